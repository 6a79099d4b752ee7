"""Edits as a PEFT adapter: W + B A, with the factors of all edits side by side."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ece.edits.edit import Edit, refuse_memories
from ece.edits.export import NO_CHECKPOINT, card
from ece.errors import UserError, require
from ece.files import new_folder
from ece.models import LowRank, Model
from ece.models.overlay import BLOCK

log = logging.getLogger(__name__)

HIGHEST_RANK = BLOCK
"""What servers of adapters accept at most (vLLM: `--max-lora-rank` 512)."""


@dataclass(frozen=True)
class RoundTrip:
    """What loading the adapter again gave."""

    rank: int
    same_bits: bool
    """Whether base and adapter merge to the edited weights bit for bit (in the model's own dtype)."""

    weights: float
    """Largest difference of a merged weight from the edited one."""

    logits: float
    """Largest difference of a logit after the facts' prompts, with the adapter beside the base, unmerged."""

    weights_bfloat16: float
    """Largest difference of a weight when the adapter is merged into a bfloat16 base, from the edited weight rounded to
    bfloat16."""

    logits_bfloat16: float
    """Largest difference of a logit, of the same two bfloat16 models."""


def rank_of(edits: Sequence[Edit]) -> int:
    """The rank that an adapter of these edits has: the largest sum over a layer."""
    layers = {layer for edit in edits for layer in edit.deltas}
    return max((sum(c.left.shape[1] for c in _changes(edits, layer)) for layer in layers), default=0)


def export_lora(model: Model, edits: Sequence[Edit], folder: Path | str, base: str | None = None) -> RoundTrip:
    """Write an adapter that `PeftModel.from_pretrained` loads; it appears there only if it gives the edited model.

    Args:
        model: without edits; it is given back as it was.
        edits: in order.
        folder: new.
        base: `base_model_name_or_path`; where the model was loaded from by default.

    Returns:
        How exact it is, measured by loading it.

    Raises:
        UserError: PEFT is not installed, the folder exists, the rank is above 512, an edit is more than a change of
            weights, or the adapter does not give the edited model.
    """
    require("--lora", "lora", "peft")
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists already; give another folder")
    refuse_memories([edit.manifest for edit in edits], NO_CHECKPOINT)
    rank = rank_of(edits)
    if not rank:
        raise UserError("these edits change no weights, so there is nothing to put into an adapter")
    if rank > HIGHEST_RANK:
        raise UserError(
            f"an adapter of these edits has rank {rank}, and servers accept {HIGHEST_RANK} at most;"
            " export a merged checkpoint instead (ece export without --lora)"
        )
    with new_folder(folder) as temporary:
        tensors = adapter(model, edits, rank)
        save_file(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
        text = json.dumps(
            _config(model, edits, rank, base or str(model.network.name_or_path or model.name)), indent=1, sort_keys=True
        )
        (temporary / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(card(model, edits, base), encoding="utf-8")
        found = round_trip(model, edits, temporary, rank)
        bound = 0.0 if model.network.dtype == torch.float32 else torch.finfo(model.network.dtype).eps
        largest = max(float(model.weight(layer).abs().max()) for edit in edits for layer in edit.deltas)
        if not found.weights <= max(bound, 1e-6) * max(1.0, largest):
            raise UserError(f"the adapter gives weights that are off by {found.weights:.2g}; nothing was written")
        if not found.same_bits:
            log.warning("merged, the adapter differs from the edited weights by up to %.2g", found.weights)
    return found


def adapter(model: Model, edits: Sequence[Edit], rank: int) -> dict[str, Tensor]:
    """The adapter's tensors, by sorted name: A `[rank, d_ff]` and B `[d_model, rank]`, padded with zeros, float32."""
    found: dict[str, Tensor] = {}
    for layer in sorted({layer for edit in edits for layer in edit.deltas}):
        weight = model.weight(layer)
        like = torch.empty(weight.shape, dtype=torch.float32)
        lefts, rights = zip(*(change.wide(like) for change in _changes(edits, layer)), strict=True)
        left, right = torch.cat(lefts, 1), torch.cat(rights)
        padding = rank - left.shape[1]
        module = f"base_model.model.{model.weight_name(layer).removesuffix('.weight')}"
        found[f"{module}.lora_A.weight"] = nn.functional.pad(right, (0, 0, 0, padding)).contiguous()
        found[f"{module}.lora_B.weight"] = nn.functional.pad(left, (0, padding)).contiguous()
    return dict(sorted(found.items()))


def _config(model: Model, edits: Sequence[Edit], rank: int, base: str) -> dict[str, Any]:
    layers = sorted({layer for edit in edits for layer in edit.deltas})
    modules = sorted(model.weight_name(layer).removesuffix(".weight") for layer in layers)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": model.family.transposed,
        "target_modules": modules,
        "inference_mode": True,
    }


def round_trip(model: Model, edits: Sequence[Edit], folder: Path, rank: int) -> RoundTrip:
    """Load the adapter beside a copy of the base, and compare it with the edited model."""
    layers = sorted({layer for edit in edits for layer in edit.deltas})
    probes = [fact.question for edit in edits for fact in edit.facts][:8] or ["The"]
    deltas = [edit.deltas for edit in edits]
    base = {name: tensor.detach().clone() for name, tensor in model.network.state_dict().items()}
    model.overlay.push_all(model, deltas)
    try:
        edited = {layer: model.weight(layer).clone() for layer in layers}
        wanted = _logits(model, model.network, probes)
    finally:
        model.overlay.replace(model, deltas, [])
    beside = _with_adapter(_network(model, base, model.network.dtype), folder)
    logits = _logits(model, beside, probes)
    merged = _merged(beside)
    weights = {layer: _weight(model, merged, layer) for layer in layers}
    half = _merged(_with_adapter(_network(model, base, torch.bfloat16), folder))
    rounded = _network(model, base, torch.bfloat16)
    for layer in layers:
        _weight(model, rounded, layer).copy_(edited[layer])
    return RoundTrip(
        rank,
        all(torch.equal(weights[layer], edited[layer]) for layer in layers),
        max(_largest(weights[layer], edited[layer]) for layer in layers),
        _farthest(logits, wanted),
        max(_largest(_weight(model, half, layer), _weight(model, rounded, layer)) for layer in layers),
        _farthest(_logits(model, half, probes), _logits(model, rounded, probes)),
    )


def _network(model: Model, weights: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """A copy of the network with the given weights."""
    network = AutoModelForCausalLM.from_config(model.network.config, dtype=dtype)
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, strict=False)
    return network.to(model.device).eval()


def _with_adapter(network: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftModel

    return PeftModel.from_pretrained(cast(Any, network), str(folder)).eval()


def _merged(network: nn.Module) -> nn.Module:
    return cast(Any, network).merge_and_unload()


def _weight(model: Model, network: nn.Module, layer: int) -> Tensor:
    weight = cast(Tensor, network.get_parameter(model.weight_name(layer))).detach()
    return weight.T if model.family.transposed else weight


@torch.no_grad()
def _logits(model: Model, network: nn.Module, probes: Sequence[str]) -> list[Tensor]:
    rows = [torch.tensor([model.tokenizer(probe)["input_ids"]], device=model.device) for probe in probes]
    return [network(ids).logits.double() for ids in rows]


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def _farthest(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return max(_largest(x, y) for x, y in zip(a, b, strict=True))


def _changes(edits: Sequence[Edit], layer: int) -> list[LowRank]:
    return [edit.deltas[layer] for edit in edits if layer in edit.deltas]
