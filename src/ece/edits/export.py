"""Writing an edited model as an ordinary checkpoint, checked on the spot."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from ece.edits.edit import Edit, refuse_memories
from ece.errors import UserError
from ece.files import new_folder
from ece.models import Model

SHARD = "4GB"
"""Checkpoints are cut into files of at most this size."""

NO_CHECKPOINT = "so no checkpoint can hold them; export edits of a method that changes weights (see `ece methods`)"


def export(model: Model, edits: Sequence[Edit], folder: Path | str, shard: str = SHARD) -> None:
    """Write the model with these edits to a folder that transformers loads; it appears there only if it is right.

    Beside the model itself, one tensor at a time is held in memory; where transformers gives files other names than
    modules (GPT-NeoX), a second model.

    Args:
        model: without edits; it is given back as it was.
        edits: to be merged, in order.
        folder: new.
        shard: largest size of a file.

    Raises:
        UserError: the size is none, the folder exists, an edit is more than a change of weights, or what was written
            is not the edited model bit for bit.
    """
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?[KMGT]B", shard, re.IGNORECASE):
        raise UserError(f"--shard {shard}: give a size, such as 4GB or 500MB")
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; give another folder")
    refuse_memories([edit.manifest for edit in edits], NO_CHECKPOINT)
    applied: list[Edit] = []
    try:
        for edit in edits:
            edit.apply(model)
            applied.append(edit)
        with new_folder(folder) as temporary:
            model.network.save_pretrained(temporary, max_shard_size=shard)
            model.tokenizer.save_pretrained(temporary)
            (temporary / "README.md").write_text(card(model, edits), encoding="utf-8")
            _verify(model, temporary)
    finally:
        model.overlay.replace(model, [edit.deltas for edit in applied], [])


def card(model: Model, edits: Sequence[Edit], base: str | None = None) -> str:
    """A model card that lists the edits.

    Args:
        model: the base.
        edits: in order.
        base: name of the base model; the model's own by default.
    """
    facts = [(fact, edit.manifest) for edit in edits for fact in edit.facts]
    rows = [
        f"| {_cell(fact.question)} | {_cell(fact.target)} | {manifest.method} | {manifest.created} |"
        for fact, manifest in facts
    ]
    return "\n".join(
        [
            "---",
            f"base_model: {_cell(base or model.name)}",
            "tags: [knowledge-editing]",
            "---",
            "",
            f"# {_cell(base or model.name)} with {len(facts)} edited facts",
            "",
            f"Edited with ece {edits[0].manifest.versions.get('ece-edit', '') if edits else ''};"
            f" SHA-256 of the unedited parameters: `{model.fingerprint}`.",
            "",
            "| prompt | answer after the edit | method | when |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _cell(text: str) -> str:
    """Text in one cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _verify(model: Model, checkpoint: Path) -> None:
    """Compare every tensor that was written with the model's, bit for bit, and the names with those a load asks for."""
    wanted = model.network.state_dict()
    seen: set[str] = set()
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as written:
            if not wanted.keys() >= set(written.keys()):
                _verify_loaded(wanted, checkpoint)
                return
            for name in written.keys():  # noqa: SIM118
                _same(name, wanted[name], written.get_tensor(name))
                seen.add(name)
    config = AutoConfig.from_pretrained(checkpoint)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    tied = {name for name, tensor in wanted.items() if any(tensor.data_ptr() == wanted[s].data_ptr() for s in seen)}
    if missing := {name for name, _ in shell.named_parameters()} - seen - tied:
        raise UserError(f"the exported checkpoint lacks {sorted(missing)[0]}; nothing was written")


def _verify_loaded(wanted: Mapping[str, Tensor], checkpoint: Path) -> None:
    """The same for what a load makes of the checkpoint, whose files have other names than the modules."""
    found = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").state_dict()
    for name, tensor in wanted.items():
        if name not in found:
            raise UserError(f"the exported checkpoint lacks {name}; nothing was written")
        _same(name, tensor, found[name])


def _same(name: str, wanted: Tensor, found: Tensor) -> None:
    if wanted.dtype != found.dtype or not torch.equal(wanted.cpu(), found):
        raise UserError(f"the exported checkpoint's {name} is not the edited model's; nothing was written")
