"""Adapters and checkpoints of edited models; the journal's commands; fuzzed files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny as make
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shell import Ece
from transformers import AutoModelForCausalLM

from ece.edits.edit import TENSORS, Edit
from ece.edits.export import export
from ece.edits.seal import MANIFEST
from ece.errors import UserError
from ece.facts import read_facts
from ece.methods.engine import edit_in_sequence
from ece.methods.registry import method
from ece.models import Model

OPTIONS = {"layers": "1-2", "tokens": "512", "targets.descent.evaluations": "3"}


def edited(family: str, p: float = 1.0) -> tuple[Model, list[Edit]]:
    """A model without edits, and three edits of it."""
    model = make.build(family)
    recipe = method("ece").with_options(OPTIONS | {"neurons.p": p})
    made = list(edit_in_sequence(model, make.random_facts(6), recipe, 2))
    for edit in reversed(made):
        edit.revert(model)
    return model, made


@pytest.mark.parametrize("p", [1.0, 0.6])
@pytest.mark.parametrize("family", make.FAMILIES)
def test_an_adapter_merges_to_the_same_bits(tmp_path: Path, family: str, p: float) -> None:
    peft = pytest.importorskip("peft", reason="adapters need the extra 'lora'")
    from ece.edits.lora import export_lora

    model, made = edited(family, p)
    before = {layer: model.weight(layer).clone() for layer in (1, 2)}
    found = export_lora(model, made, tmp_path / "adapter", base="org/base")
    assert (found.same_bits, found.weights, found.rank) == (True, 0.0, 6)
    assert found.logits < 1e-4
    assert all(torch.equal(model.weight(layer), weight) for layer, weight in before.items())
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (6, 6, "org/base")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert sorted(file.keys()) == list(file.keys())
    merged = peft.PeftModel.from_pretrained(make.build(family).network, str(tmp_path / "adapter")).merge_and_unload()
    for edit in made:
        edit.apply(model)
    for layer in (1, 2):
        assert torch.equal(merged.get_parameter(model.weight_name(layer)).data, _stored(model, layer))


def _stored(model: Model, layer: int) -> torch.Tensor:
    return dict(model.network.named_parameters())[model.weight_name(layer)].data


def test_ranks_above_what_servers_take_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="adapters need the extra 'lora'")
    from ece.edits import lora

    model, made = edited("llama")
    monkeypatch.setattr(lora, "HIGHEST_RANK", 5)
    with pytest.raises(UserError, match="rank 6"):
        lora.export_lora(model, made, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_sharded_checkpoint_with_its_card(tmp_path: Path, family: str) -> None:
    """Files of GPT-NeoX have another name for the unembedding than its module."""
    model, made = edited(family)
    export(model, made, tmp_path / "merged", shard="60KB")
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for edit in made:
        edit.apply(model)
    ids = torch.tensor([[1, 5, 7]])
    assert torch.equal(loaded(ids).logits, model.network(ids).logits)
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert all(fact.question in card for fact in make.random_facts(6))
    assert {"generation_config.json", "tokenizer.json"} <= {path.name for path in (tmp_path / "merged").iterdir()}


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_checkpoint_that_is_not_the_edited_model_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model, made = edited(family)
    written = model.network.save_pretrained

    def damaged(folder: Path, **options: Any) -> None:
        written(folder, **options)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        tensors[model.weight_name(1)][3, 3] += 1e-6
        save_file(tensors, file, {"format": "pt"})

    monkeypatch.setattr(model.network, "save_pretrained", damaged)
    with pytest.raises(UserError, match=f"{model.weight_name(1)} is not the edited model's"):
        export(model, made, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_commands_of_the_journal(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path) -> None:
    edits = tmp_path / "edits"

    options = [item for name, value in OPTIONS.items() for item in ("--set", f"{name}={value}")]
    edit = ["edit", "--model", checkpoint, "--out", edits, "--batch-size", 2, *options, "--json"]
    assert ece(*edit, "--facts", facts_file)[0] == 0
    code, said, _ = ece("undo", edits, "--fact", "Victor Hugo", "--model", checkpoint, "--json")
    assert code == 0
    assert (json.loads(said)["how"], json.loads(said)["facts_in_force"]) == ("replayed", 4)
    one = ["--subject", "Eiffel Tower", "--prompt", make.FACTS[0].prompt, "--target", "Oslo\x1b[31m"]
    assert len(json.loads(ece(*edit, *one)[1])["superseded"]) == 1
    logged = json.loads(ece("log", edits, "--json")[1])
    states = [line["state"] for line in logged["facts"]]
    assert (states.count("superseded"), states.count("undone"), states.count("in force")) == (1, 1, 4)
    assert "\x1b[31m" not in ece("log", edits, "--search", "oslo")[1].replace("\x1b[0m", "")
    compared = json.loads(ece("diff", f"{edits}@3", edits, "--json")[1])
    assert len(compared["only_a"]) == 1
    assert len(compared["changed"]) == 1
    assert all(distance > 0 for distance in compared["weights"].values())
    assert ece("verify", edits, "--head", logged["head"])[0] == 0
    (edits / "batch-0002" / TENSORS).write_bytes(b"")
    code, said, _ = ece("verify", edits)
    assert code == 1
    assert "batch-0002" in said
    for bad in (["undo", edits], ["undo", edits, "--fact", "nobody"], ["undo", tmp_path / "none", "--last", 1],
                ["undo", edits, "--batch", 99], ["diff", f"{edits}@77", edits], ["log", tmp_path]):  # fmt: skip
        code, _, said = ece(*bad)
        assert (code, len(said.strip().splitlines())) == (2, 1), bad


def mutated(data: bytes, chosen: random.Random) -> bytes:
    """The data with some bytes changed, cut out, doubled or put in."""
    found = bytearray(data)
    for _ in range(chosen.randint(1, 4)):
        place = chosen.randrange(len(found) + 1)
        match chosen.randrange(5):
            case 0 if place < len(found):
                found[place] = chosen.randrange(256)
            case 1:
                del found[place : place + chosen.randint(1, 40)]
            case 2:
                found[place:place] = found[place : place + 30]
            case 3:
                found[place:place] = chosen.choice([b"{", b"[", b'"', b"null", b"\x00", b"1e999", b"\xff", b"\\ud800"])
            case _:
                found = found[: max(1, place)]
    return bytes(found) or b"["


def test_fuzzed_files_end_with_one_line(tmp_path: Path) -> None:
    """2,000 broken files: facts, manifests, tensors without checksums. Only UserErrors, and nothing written."""
    made = edited("llama")[1][0]
    made.save(tmp_path / "edit")
    records = [{"prompt": f.prompt, "subject": f.subject, "target": f.target} for f in make.FACTS]
    (tmp_path / "facts.json").write_text(json.dumps(records))
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, records)))
    manifest, tensors = tmp_path / "edit" / MANIFEST, tmp_path / "edit" / TENSORS
    sealed = manifest.read_bytes()
    plain = json.loads(sealed)
    plain |= {"format": 1, "files": {}}
    plain.pop("seal")
    header = 8 + int.from_bytes(tensors.read_bytes()[:8], "little")
    chosen, refused = random.Random(0), 0
    for case in range(2000):
        file = (tmp_path / "facts.json", tmp_path / "facts.jsonl", manifest, tensors)[case % 4]
        data = file.read_bytes()
        if file == tensors:  # without checksums, as in format 1, so that the header is read
            manifest.write_text(json.dumps(plain))
            file.write_bytes(mutated(data[:header], chosen) + data[header:])
        else:
            file.write_bytes(mutated(data, chosen))
        there = sorted(tmp_path.rglob("*"))
        try:
            if file.parent == tmp_path:
                read_facts(file)
            else:
                Edit.load(file.parent)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
        assert sorted(tmp_path.rglob("*")) == there
        file.write_bytes(data)
        manifest.write_bytes(sealed)
    assert refused > 1000
