"""Edits as values: applied, reverted, saved, loaded, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny as make
import torch

from ece.edits.edit import TENSORS, Edit, FactEntry, Manifest
from ece.edits.folder import append, load_edits
from ece.edits.journal import Journal, writing
from ece.edits.seal import MANIFEST
from ece.errors import UserError
from ece.models import LowRank, Model


def made(model: Model, layers: tuple[int, ...] = (1, 2), seed: int = 0) -> Edit:
    """A random edit of three facts, one of which failed."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    chosen = torch.arange(seed % 3, model.d_ff, 3)
    deltas = {
        layer: LowRank(random(model.d_model, 2), 0.1 * random(2, len(chosen)), chosen.clone()) for layer in layers
    }
    entries = [
        FactEntry(prompt=f.prompt, subject=f.subject, target=f.target, relation=f.relation, failed=i == 1, nll=0.25)
        for i, f in enumerate(make.FACTS[:3])
    ]
    manifest = Manifest(
        method="test",
        options={"neurons": {"p": 0.8}, "layers": list(layers)},
        model=model.name,
        fingerprint=model.fingerprint,
        layers=list(layers),
        neurons=dict.fromkeys(layers, len(chosen)),
        facts=entries,
        contexts=["", "A text. "],
        anchors=[0],
        seconds=1.5,
    )
    keys = {layer: random(2, model.d_ff) for layer in layers}
    around = {layer: random(4, model.d_ff) for layer in layers[:1]}
    return Edit(deltas, keys, around, random(2, model.d_model), random(2, model.d_model), manifest)


def bits(model: Model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone().view(torch.uint8) for name, p in model.network.named_parameters()}


def same(model: Model, wanted: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(found, wanted[name]) for name, found in bits(model).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_apply_and_revert(tiny: Model, dtype: torch.dtype):
    make.cast(tiny, dtype)
    before, base = bits(tiny), tiny.weight(1).clone()
    edit = made(tiny)
    assert same(tiny, before)  # making it changes nothing
    edit.apply(tiny)
    change = edit.deltas[1]
    wanted = base.float()
    wanted[:, change.neurons] += change.left @ change.right
    assert torch.equal(tiny.weight(1), wanted.to(dtype))
    edit.revert(tiny)
    assert same(tiny, before)


def test_reverting_out_of_order_equals_never_having_applied(tiny: Model):
    first, second = made(tiny, (0, 1), 0), made(tiny, (1, 2), 1)
    second.apply(tiny)
    wanted = bits(tiny)
    second.revert(tiny)
    first.apply(tiny)
    second.apply(tiny)
    first.revert(tiny)
    assert same(tiny, wanted)


def test_revert_of_what_is_not_applied(tiny_llama: Model):
    with pytest.raises(ValueError, match="not applied"):
        made(tiny_llama).revert(tiny_llama)


def test_facts_leave_out_the_failed(tiny_llama: Model):
    assert made(tiny_llama).facts == [make.FACTS[0], make.FACTS[2]]


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(tiny: Model, tmp_path: Path, half: bool):
    edit = made(tiny)
    if half:
        edit.deltas[1].left.copy_(edit.deltas[1].left.half())
    edit.save(tmp_path / "here" / "edit")
    loaded = Edit.load(tmp_path / "here" / "edit")
    assert loaded.manifest.model_copy(update={"files": {}}) == edit.manifest
    assert loaded.deltas.keys() == edit.deltas.keys() == loaded.keys.keys()
    pairs = [(loaded.hidden, edit.hidden), (loaded.delta, edit.delta)]
    for layer, change in edit.deltas.items():
        pairs += [(loaded.keys[layer], edit.keys[layer])]
        pairs += [(getattr(loaded.deltas[layer], part), getattr(change, part)) for part in ("left", "right", "neurons")]
    for found, wanted in pairs:
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    edit.apply(tiny)
    wanted = bits(tiny)
    edit.revert(tiny)
    loaded.apply(tiny)
    assert same(tiny, wanted)


def test_layers_may_share_their_neurons(tiny_llama: Model, tmp_path: Path):
    edit = made(tiny_llama)
    shared = edit.deltas[1].neurons
    deltas = {layer: replace(change, neurons=shared) for layer, change in edit.deltas.items()}
    replace(edit, deltas=deltas).save(tmp_path / "edit")
    assert torch.equal(Edit.load(tmp_path / "edit").deltas[2].neurons, shared)


def test_manifest_is_readable_text(tiny_llama: Model, tmp_path: Path):
    made(tiny_llama).save(tmp_path / "edit")
    data = json.loads((tmp_path / "edit" / MANIFEST).read_text(encoding="utf-8"))
    assert data["method"] == "test"
    assert data["facts"][0]["subject"] == "Eiffel Tower"
    assert data["fingerprint"] == tiny_llama.fingerprint
    assert data["versions"]["torch"]


def test_another_model_is_refused(tiny_llama: Model):
    edit, other = made(tiny_llama), make.build("llama", seed=1)
    before = bits(other)
    with pytest.raises(UserError, match="were made for tiny-llama-0"):
        edit.apply(other)
    assert same(other, before)
    assert not other.overlay.stack


def test_the_same_weights_loaded_again_are_accepted(tiny_llama: Model):
    edit, again = made(tiny_llama), make.build("llama")
    edit.apply(again)
    edit.apply(tiny_llama)
    assert same(again, bits(tiny_llama))


def test_an_edited_model_still_accepts_edits(tiny_llama: Model):
    first, second = made(tiny_llama, seed=0), made(tiny_llama, seed=1)
    first.apply(tiny_llama)
    del tiny_llama.fingerprint  # computed anew
    second.check(tiny_llama)


def test_an_existing_folder_is_refused_and_untouched(tiny_llama: Model, tmp_path: Path):
    (tmp_path / "edit").mkdir()
    (tmp_path / "edit" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        made(tiny_llama).save(tmp_path / "edit")
    assert [path.name for path in tmp_path.rglob("*")] == ["edit", "mine.txt"]


def test_a_failed_save_leaves_nothing(tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ece.edits.edit.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        made(tiny_llama).save(tmp_path / "edit")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "first bytes", "garbage"])
def test_damaged_files(tiny_llama: Model, tmp_path: Path, name: str, damage: str):
    made(tiny_llama).save(tmp_path / "edit")
    file = tmp_path / "edit" / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        parts = {"empty": b"", "half": data[: len(data) // 2], "first bytes": data[:5], "garbage": b"\xff" * 400}
        file.write_bytes(parts[damage])
    with pytest.raises(UserError) as caught:
        Edit.load(tmp_path / "edit")
    assert str(tmp_path / "edit") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_promises_too_much(tiny_llama: Model, tmp_path: Path):
    made(tiny_llama).save(tmp_path / "edit")
    file = tmp_path / "edit" / MANIFEST
    data = json.loads(file.read_text(encoding="utf-8"))
    data["layers"].append(3)
    file.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        Edit.load(tmp_path / "edit")


def test_a_manifest_without_a_field(tiny_llama: Model, tmp_path: Path):
    made(tiny_llama).save(tmp_path / "edit")
    file = tmp_path / "edit" / MANIFEST
    data = json.loads(file.read_text(encoding="utf-8"))
    del data["fingerprint"]
    file.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        Edit.load(tmp_path / "edit")


def test_no_such_folder(tmp_path: Path):
    with pytest.raises(UserError, match="not a saved edit"):
        Edit.load(tmp_path / "nowhere")


def test_a_folder_of_edits(tiny_llama: Model, tmp_path: Path):
    edits = [made(tiny_llama, seed=seed) for seed in range(3)]
    assert Journal.read(tmp_path / "run").entries == ()
    assert [append(tmp_path / "run", edit).name for edit in edits] == ["batch-0001", "batch-0002", "batch-0003"]
    loaded = load_edits(tmp_path / "run", tiny_llama)
    assert [torch.equal(a.delta, b.delta) for a, b in zip(loaded, edits, strict=True)] == [True] * 3
    assert len(Journal.read(tmp_path / "run").in_force) == 3
    (tmp_path / "run" / "batch-0002" / MANIFEST).unlink()
    with pytest.raises(UserError, match="batch-0002"):
        load_edits(tmp_path / "run", tiny_llama)


def test_one_saved_edit_is_read_like_a_folder_of_edits(
    tiny_llama: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    edits = [made(tiny_llama, seed=seed) for seed in range(2)]
    edits[0].save(tmp_path / "edit")
    for edit in edits:
        append(tmp_path / "run", edit)
    for folder in (tmp_path / "edit", tmp_path / "run" / "batch-0001"):
        (loaded,) = load_edits(folder, tiny_llama)
        assert torch.equal(loaded.delta, edits[0].delta)
    assert not caplog.records
    (loaded,) = load_edits(tmp_path / "run" / "batch-0002", tiny_llama)
    assert torch.equal(loaded.delta, edits[1].delta)
    assert "one batch of several" in caplog.text
    with pytest.raises(UserError, match="made for"):
        load_edits(tmp_path / "edit", make.build("llama", seed=1))


def test_a_folder_of_something_else(tiny_llama: Model, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="not edits"), writing(place):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="no edits in it"):
        load_edits(tmp_path, tiny_llama)


def test_a_folder_for_another_model(tiny_llama: Model, tmp_path: Path):
    append(tmp_path / "run", made(tiny_llama))
    with pytest.raises(UserError, match="made for"):
        load_edits(tmp_path / "run", make.build("llama", seed=1))
