"""The journal: resumed, undone, replaced to the same bits; damaged, contended and interrupted without loss."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import tiny as make
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import started, wait
from safetensors import SafetensorError
from safetensors.torch import save_file

from ece.edits import journal as journal_module
from ece.edits.edit import TENSORS, Edit, Manifest
from ece.edits.folder import Applied, append, load_edits
from ece.edits.journal import Journal, Undone, key, verify, writing
from ece.edits.log import lines, matching
from ece.edits.packing import pack, packs, unpack
from ece.edits.seal import MANIFEST
from ece.errors import UserError
from ece.evaluation.guard import Guard
from ece.facts import Fact
from ece.methods import engine
from ece.methods.engine import edit_in_sequence
from ece.methods.grace import GRACE
from ece.methods.recall import recalled, recipe_of
from ece.methods.recipe import Recipe
from ece.methods.registry import as_recipe, method
from ece.methods.run import Stopped, edit_journal, plan, run_of
from ece.methods.undo import replayed, undo
from ece.models import Model

QUICK = {"layers": "1-2", "tokens": "512", "targets.descent.evaluations": "3"}
FACTS = make.random_facts(12)


def recipe(name: str = "ece", **options: str) -> Recipe:
    return as_recipe(name).with_options({"layers": "1-2", "tokens": "512"} | (QUICK if name == "ece" else {}) | options)


def run(folder: Path, facts: Sequence[Fact], choice: Recipe | None = None, size: int = 2, stop: int = 99,
        guard: Any = None) -> Model:  # fmt: skip
    """`ece edit`, as a process of its own would do it; stopped after some batches. The model it leaves."""
    applied = Applied(make.build("llama"))
    with writing(folder) as journal:
        applied.follow(journal)
        for number, _ in enumerate(edit_journal(applied, journal, facts, choice or recipe(), size, guard), 1):
            if number == stop:
                break
    return applied.model


def take_out(folder: Path, *facts: Fact, recompute: bool = False) -> Journal:
    with writing(folder) as journal:
        return undo(journal, {key(fact) for fact in facts}, make.build("llama"), recompute=recompute)


def weights(model: Model) -> list[torch.Tensor]:
    return [model.weight(layer).contiguous().clone() for layer in range(len(model.layers))]


def served(folder: Path) -> list[torch.Tensor]:
    """The weights that a fresh process has with this folder."""
    model = make.build("llama")
    Applied(model).follow(Journal.read(folder))
    return weights(model)


def equal(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "edits"


# --- what is stored


@pytest.mark.parametrize("name", ["ece", "ece-rs", "memit", "memit-history", "pmet", "encore"])
def test_recipes_come_back_from_their_manifests(name: str) -> None:
    choice = as_recipe(name).with_options({"layers": "1-2", "tokens": "512"})
    made = next(edit_in_sequence(make.build("llama"), FACTS[:1], choice, 1)).manifest
    again = made.model_validate_json(made.model_dump_json())
    assert recipe_of(again) == choice


@pytest.mark.parametrize("name", ["rome", "prune", "nse", "ft-l"])
def test_what_cannot_be_solved_again_says_so(name: str) -> None:
    choice = method(name).with_options({"layers": "1-2"} | ({} if name == "ft-l" else {"tokens": "512"}))
    made = next(edit_in_sequence(make.build("llama"), FACTS[:1], choice, 1))
    assert not made.manifest.derived_keys
    with pytest.raises(UserError, match="solved again"):
        recipe_of(made.manifest)


@pytest.mark.parametrize("name", ["ece", "memit-history", "ece-rs"])
@pytest.mark.parametrize("family", make.FAMILIES)
def test_keys_are_derived_bit_for_bit(tmp_path: Path, family: str, name: str) -> None:
    made = make.with_keys_in_sequence(make.build(family), FACTS[:6], recipe(name), 2)
    for number, edit in enumerate(made):
        edit.save(tmp_path / str(number))
    loaded = [Edit.load(tmp_path / str(number)) for number in range(3)]
    assert not any(edit.keys for edit in loaded)
    model = make.build(family)
    before = weights(model)
    for wanted, found in zip(made, recalled(model, loaded), strict=True):
        for name_ in ("keys", "around"):
            a, b = getattr(wanted, name_), getattr(found, name_)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[layer], b[layer]) for layer in a)
        assert torch.equal(wanted.delta, found.delta)
        assert all(torch.equal(wanted.deltas[layer].right, found.deltas[layer].right) for layer in wanted.deltas)
    assert equal(weights(model), before)


@given(st.integers(0, 10**6), st.floats(-30, 30))
@settings(max_examples=30, deadline=None)
def test_packing(seed: int, size: float) -> None:
    factor = 10**size * torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))
    stored = unpack(*pack(factor))
    assert float((stored.double() - factor.double()).norm() / factor.double().norm()) < 2**-11
    assert packs(stored)
    assert not packs(factor)


def test_what_a_manifest_says(folder: Path) -> None:
    run(folder, FACTS[:3])
    first, second = Journal.read(folder).entries
    manifest, begun = second.manifest, first.manifest
    assert isinstance(manifest, Manifest)
    assert isinstance(begun, Manifest)
    assert manifest.run
    assert (manifest.number, manifest.previous) == (2, first.seal)
    assert manifest.files.keys() == {TENSORS}
    assert manifest.statistics
    assert manifest.run == begun.run
    assert manifest.run.batch_size == 2


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_who_may_read_it_is_what_the_umask_says(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        run(folder, FACTS[:2])
    finally:
        os.umask(before)
    entry = folder / "batch-0001"
    assert entry.stat().st_mode & 0o777 == 0o777 & ~umask
    assert {file.stat().st_mode & 0o777 for file in entry.iterdir()} == {0o666 & ~umask}


def test_format_1_is_read_and_gone_on_from(folder: Path) -> None:
    """Folders of the first version: plain manifests, keys kept, factors in float32."""
    (made,) = make.with_keys_in_sequence(make.build("llama"), FACTS[:2], recipe(), 2)
    old = folder / "batch-0001"
    old.mkdir(parents=True)
    names = {"derived_keys", "number", "previous", "files", "run", "metrics", "left_out", "statistics"}
    written = json.loads(made.manifest.model_dump_json(exclude=names)) | {"format": 1}
    (old / MANIFEST).write_text(json.dumps(written, indent=1))
    tensors = {"hidden": made.hidden, "delta": made.delta}
    for layer, change in made.deltas.items():
        tensors |= {f"{layer}.{part}": getattr(change, part).clone() for part in ("left", "right", "neurons")}
        tensors |= {f"{layer}.keys": made.keys[layer].clone(), f"{layer}.around": made.around[layer].clone()}
    save_file(tensors, old / TENSORS)
    assert torch.equal(load_edits(folder, make.build("llama"))[0].around[1], made.around[1])
    whole = run(folder.with_name("whole"), FACTS[:4])
    assert equal(weights(run(folder, FACTS[:4])), weights(whole))
    assert verify(folder)[0] == {}


def test_a_later_format_is_refused(folder: Path) -> None:
    run(folder, FACTS[:1])
    file = folder / "batch-0001" / MANIFEST
    file.write_text(file.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(UserError, match="install a newer one"):
        Journal.read(folder)


# --- resume


@pytest.mark.parametrize("name", ["ece", "ece-rs", "memit", "memit-history"])
def test_a_resumed_run_has_the_same_bits(folder: Path, name: str) -> None:
    whole = run(folder.with_name("whole"), FACTS[:7], recipe(name))
    for stop in (1, 2, 99):
        model = run(folder, FACTS[:7], recipe(name), stop=stop)
    assert equal(weights(model), weights(whole))  # pyright: ignore[reportPossiblyUnboundVariable]
    assert equal(served(folder), weights(whole))
    assert len(Journal.read(folder).entries) == 4


def test_automatic_layers_and_repeated_facts_resume(folder: Path) -> None:
    facts = [*FACTS[:3], FACTS[0], *FACTS[3:5]]
    choice = replace(recipe(), layers="auto")
    whole = run(folder.with_name("whole"), facts, choice)
    run(folder, facts, choice, stop=1)
    assert equal(weights(run(folder, facts, choice)), weights(whole))


def _edit(folder: Path, batches: int) -> None:
    """A process of its own: says when it begins to edit."""
    os.write(1, b"ready")
    run(folder, make.random_facts(2 * batches))


@pytest.mark.slow
def test_a_run_killed_at_random_moments_goes_on(folder: Path, tmp_path: Path, long: bool) -> None:
    """Twelve batches and eight kills (SIGKILL); with `--long` twenty and forty."""
    batches, kills = (20, 40) if long else (12, 8)
    whole = run(tmp_path / "whole", make.random_facts(2 * batches))
    said = tmp_path / "said.txt"

    def begun(place: Path) -> ForkServerProcess:
        process = started(said, _edit, place, batches)
        wait(process, lambda: "ready" in said.read_text())  # starting is not of interest
        return process

    def attempt(seconds: float | None) -> int | None:
        process = begun(tmp_path / "killed")
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode

    timed, began = begun(tmp_path / "timed"), time.perf_counter()
    wait(timed, (tmp_path / "timed" / "batch-0001").exists)
    first = time.perf_counter() - began
    timed.join()
    each = (time.perf_counter() - began - first) / (batches - 1)
    chosen = random.Random(0)
    codes = [attempt(chosen.uniform(0.0, first + each)) for _ in range(kills)]
    assert codes.count(-signal.SIGKILL) >= kills / 2
    assert set(codes) <= {0, -signal.SIGKILL}, (tmp_path / "said.txt").read_text()
    assert attempt(None) == 0, (tmp_path / "said.txt").read_text()
    assert equal(served(tmp_path / "killed"), weights(whole))
    assert verify(tmp_path / "killed")[0] == {}
    assert len(Journal.read(tmp_path / "killed").entries) == batches
    assert sorted(path.name for path in (tmp_path / "killed").iterdir())[0] == "batch-0001"  # nothing is left behind


# --- undo and update


def test_replaying_the_whole_journal_gives_the_same_bits(folder: Path) -> None:
    run(folder, FACTS[:6])
    model = make.build("llama")
    replayed(model, load_edits(folder, model))
    assert equal(weights(model), served(folder))


@pytest.mark.parametrize("name", ["ece", "memit-history", "memit", "ece-rs"])
@pytest.mark.parametrize("gone", [[0], [3], [2, 3], [5, 0]])
def test_undo_in_the_middle_equals_a_replay_from_the_start(folder: Path, name: str, gone: list[int]) -> None:
    run(folder, FACTS[:6], recipe(name))
    before = Journal.read(folder)
    journal = take_out(folder, *(FACTS[i] for i in gone))
    model = make.build("llama")
    edits = [held.load() for held in before.in_force]
    replayed(model, edits, {key(FACTS[i]) for i in gone})
    assert equal(served(folder), weights(model))
    assert {fact for fact, _ in journal.active.values()} == {FACTS[i] for i in range(6) if i not in gone}
    undone = [line for line in lines(journal) if line.state == "undone"]
    assert {line.fact for line in undone} == {FACTS[i] for i in gone}
    assert verify(folder)[0] == {}


@pytest.mark.parametrize("name", ["ece", "ece-rs"])
def test_recomputing_equals_a_run_that_never_had_the_fact(folder: Path, name: str) -> None:
    run(folder, FACTS[:5], recipe(name))
    run(folder, FACTS[5:8], recipe(name))
    take_out(folder, FACTS[2], recompute=True)
    never = folder.with_name("never")
    run(never, [*FACTS[:2], *FACTS[3:5]], recipe(name))
    run(never, FACTS[5:8], recipe(name))
    assert equal(served(folder), served(never))


def test_undoing_the_last_needs_no_model_and_gives_the_old_bits(folder: Path) -> None:
    run(folder, FACTS[:2])
    wanted = served(folder)
    run(folder, FACTS[2:4])
    with writing(folder) as journal:
        assert journal.behind({key(fact) for fact in FACTS[2:4]}) == (1, False)
        journal.undo({key(fact) for fact in FACTS[2:4]})
    assert equal(served(folder), wanted)
    assert sum(path.stat().st_size for path in (folder / "undo-0003").iterdir()) < 5000


def test_undo_of_what_is_not_there(folder: Path) -> None:
    run(folder, FACTS[:2])
    there = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match="no fact in force"):
        take_out(folder, FACTS[5])
    assert sorted(folder.rglob("*")) == there


def test_an_update_takes_the_place_of_the_earlier_version(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    new = replace(FACTS[1], target="Norway")
    run(folder, FACTS[:4])
    run(folder, [new])
    journal = Journal.read(folder)
    assert "superseded by Norway" in caplog.text
    assert journal.active[key(new)][0] == new
    assert [line.state for line in lines(journal) if key(line.fact) == key(new)] == ["superseded", "in force"]
    other = folder.with_name("other")
    run(other, FACTS[:4])
    take_out(other, FACTS[1])
    run(other, [new])
    assert equal(served(folder), served(other))


def test_finding_facts(folder: Path) -> None:
    run(folder, FACTS[:4])
    journal = Journal.read(folder)
    for text in (str(FACTS[2]), FACTS[2].question.upper(), FACTS[2].subject):
        assert matching(journal, text) == [FACTS[2]]
    assert matching(journal, "nobody") == []


Step = tuple[str, int]


@given(st.lists(st.tuples(st.sampled_from(["edit", "undo", "update", "stop"]), st.integers(0, 5)), max_size=5))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_equals_the_plain_replay(tmp_path_factory: pytest.TempPathFactory, steps: list[Step]) -> None:
    """Whatever is edited, undone, updated and resumed: the model is what solving the edits in force gives."""
    folder = tmp_path_factory.mktemp("any") / "edits"
    wanted: dict[Any, Fact] = {}
    run(folder, FACTS[:1])
    wanted[key(FACTS[0])] = FACTS[0]
    for number, (kind, which) in enumerate(steps):
        if kind == "undo" and wanted:
            fact = list(wanted.values())[which % len(wanted)]
            take_out(folder, fact)
            del wanted[key(fact)]
        elif kind != "undo":
            facts = FACTS[which : which + 3]
            if kind == "update":
                facts = [replace(fact, target=f"Rome {number}") for fact in facts[:1]]
            if kind == "stop":
                run(folder, facts, stop=1)
            run(folder, facts)
            wanted |= {key(fact): fact for fact in facts}
    journal = Journal.read(folder)
    assert {fact for fact, _ in journal.active.values()} == set(wanted.values())
    model = make.build("llama")
    replayed(model, [held.load() for held in journal.in_force])
    assert equal(served(folder), weights(model))
    assert verify(folder)[0] == {}


# --- damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with batches and an undo that solved batches again."""
    folder = tmp_path_factory.mktemp("sound") / "edits"
    run(folder, FACTS[:6])
    take_out(folder, FACTS[1])
    run(folder, FACTS[6:8])
    assert verify(folder)[0] == {}
    return folder


def flip(data: bytes, seed: int) -> bytes:
    place = random.Random(seed).randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << seed % 8)]) + data[place + 1 :]


DAMAGE: dict[str, Callable[[Path, int], Any]] = {
    "truncated": lambda file, seed: file.write_bytes(file.read_bytes()[: len(file.read_bytes()) * (seed % 10) // 10]),
    "flipped": lambda file, seed: file.write_bytes(flip(file.read_bytes(), seed)),
    "deleted": lambda file, seed: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damaged_file_is_named(sound: Path, tmp_path: Path, damage: str) -> None:
    files = [path.relative_to(sound) for path in sorted(sound.rglob("*")) if path.is_file()]
    assert len(files) == 15
    for seed, name in enumerate(files):
        for again in range(4 if damage == "flipped" else 1):
            folder = tmp_path / f"{seed}-{again}"
            shutil.copytree(sound, folder)
            DAMAGE[damage](folder / name, 7 * seed + again)
            wrong, _ = verify(folder)
            assert folder / name in wrong, (name, wrong)
            tensors = [file for file in wrong if file.name == TENSORS]
            assert tensors == ([folder / name] if name.name == TENSORS else [])
            others = {path for path in folder.rglob("*") if path.is_file()} - {folder / name}
            assert all((sound / path.relative_to(folder)).read_bytes() == path.read_bytes() for path in others)


def test_entries_that_were_swapped_or_taken_away(sound: Path, tmp_path: Path) -> None:
    head = Journal.read(sound).head
    missing, foreign, cut = (tmp_path / name for name in ("missing", "foreign", "cut"))
    for folder in (missing, foreign, cut):
        shutil.copytree(sound, folder)
    shutil.rmtree(missing / "batch-0002")
    with pytest.raises(UserError, match="0002 is missing"):
        Journal.read(missing)
    other = tmp_path / "other"
    run(other, FACTS[6:10])
    shutil.rmtree(foreign / "batch-0002")
    shutil.copytree(other / "batch-0002", foreign / "batch-0002")
    with pytest.raises(UserError, match="batch-0002"):
        Journal.read(foreign)
    shutil.rmtree(cut / "batch-0005")
    wrong, seals = verify(cut)
    assert not wrong
    assert head not in seals


def test_links_are_not_followed(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    shutil.copytree(sound, folder)
    place = folder / "batch-0001" / TENSORS
    place.unlink()
    place.symlink_to(sound / "batch-0001" / TENSORS)
    assert "link" in verify(folder)[0][place]


@pytest.mark.parametrize("name", ["../../etc", "/etc", "a/b", "..", "", "a\\b", "c:d"])
def test_paths_in_manifests_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        Undone.model_validate({"how": "cut", "keep": 0, "removed": [], "files": {name: 64 * "0"}})


def test_two_writers(folder: Path) -> None:
    with writing(folder) as journal:
        code = (
            "import sys; from ece.edits.journal import writing; from ece.errors import UserError\n"
            f"try:\n  writing({str(folder)!r}).__enter__()\nexcept UserError as error:\n  sys.exit(str(error))"
        )
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"held by process {os.getpid()}" in other.stderr
        assert not journal.entries
    assert not folder.exists()
    append(folder, next(edit_in_sequence(make.build("llama"), FACTS[:1], recipe(), 1)))
    assert [path.name for path in folder.iterdir()] == ["batch-0001"]


def test_a_stale_lock_of_a_killed_process_does_not_hold(folder: Path) -> None:
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".lock.json").write_text('{"process": 1, "host": "x", "command": "ece edit", "since": "then"}')
    (folder / ".batch-0001-abc").mkdir()
    (folder / ".batch-0001-abc" / MANIFEST).write_text("{")
    run(folder, FACTS[:1])
    assert [path.name for path in folder.iterdir()] == ["batch-0001"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """However little room there is, what was finished stays, and the same command goes on once there is room."""
    folder, filler = small_disk / "edits", small_disk / "filler"
    whole = run(tmp_path / "whole", FACTS[:6])
    for room in (60, 40, 24, 16, 12, 8, 4, 1):
        filler.write_bytes(b"")
        with filler.open("wb") as file:
            free = shutil.disk_usage(small_disk).free
            file.write(b"x" * max(0, free - room * 1024))
        try:
            run(folder, FACTS[:6])
        except UserError as error:
            assert "make room" in str(error) or "cannot be written" in str(error)  # noqa: PT017
        done = len(Journal.read(folder).entries)
        assert not done or verify(folder)[0] == {}
    filler.unlink()
    assert equal(weights(run(folder, FACTS[:6])), weights(whole))


@pytest.mark.parametrize("call", range(0, 12, 2))
def test_any_write_may_fail(folder: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    calls = 0
    original = os.fsync

    def failing(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raise OSError(28, "No space left on device")
        original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(UserError, match="No space left"):
            run(folder, FACTS[:6])
    done = len(Journal.read(folder).entries)
    assert not done or verify(folder)[0] == {}
    run(folder, FACTS[:6])
    assert len(Journal.read(folder).entries) == 3


# --- the guard


def guard(model: Model, tmp_path: Path, stop: bool, perplexity: float = -100.0) -> Guard:
    file = tmp_path / "guard.jsonl"
    answer = model.tokenizer.decode(int(model.network(torch.tensor([model.tokenizer("Paris is a")["input_ids"]])).logits[0, -1].argmax()))  # fmt: skip  # noqa: E501
    records = [{"prompt": "{} is a", "subject": "Paris", "target": str(answer).strip() or "x"}, {"text": make.TEXT}]
    file.write_text("\n".join(json.dumps(record) for record in records))
    return Guard.read(file, perplexity=perplexity, stop=stop)


def test_the_guard_stops_a_run(folder: Path, tmp_path: Path) -> None:
    watching = guard(make.build("llama"), tmp_path, stop=True)
    with pytest.raises(Stopped, match="perplexity is"):
        run(folder, FACTS[:4], guard=watching)
    assert not Journal.read(folder).entries


def test_the_guard_leaves_batches_out(folder: Path, tmp_path: Path) -> None:
    watching = guard(make.build("llama"), tmp_path, stop=False)
    model = run(folder, FACTS[:4], guard=watching)
    assert equal(weights(model), weights(make.build("llama")))
    journal = Journal.read(folder)
    assert {line.state for line in lines(journal)} == {"left out"}
    assert not journal.in_force
    again = plan(journal, FACTS[:4], run_of(FACTS[:4], recipe(), 2, watching))
    assert not again.new  # the same command does not try them again
    assert len(plan(journal, FACTS[:4], run_of(FACTS[:4], recipe(), 2)).new) == 4
    assert verify(folder)[0] == {}


def test_a_guard_that_is_kept_records_what_it_measured(folder: Path, tmp_path: Path) -> None:
    watching = guard(make.build("llama"), tmp_path, stop=True, perplexity=1e9)
    run(folder, FACTS[:4], guard=watching)
    assert all(entry.manifest.metrics["perplexity"] > 1 for entry in Journal.read(folder).entries)  # pyright: ignore
    assert equal(served(folder), weights(run(folder.with_name("free"), FACTS[:4])))


def test_reading_does_not_depend_on_the_module_state() -> None:
    """Nothing is cached in the module."""
    assert not [name for name, value in vars(journal_module).items() if isinstance(value, dict) and name[0] != "_"]


@pytest.mark.parametrize("error", [SafetensorError("I/O error: No space left on device"), OSError(28, "No space left")])
def test_an_edit_that_cannot_be_saved_is_taken_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    applied = Applied(make.build("llama"))
    saved = weights(run(folder, FACTS[:2]))

    def full(*_: object) -> None:
        raise error

    with writing(folder) as journal:
        applied.follow(journal)
        monkeypatch.setattr("ece.edits.edit.save_file", full)
        with pytest.raises(UserError, match=r"batch-0002: cannot be written .*No space left.*make room"):
            list(edit_journal(applied, journal, FACTS[:4], recipe(), 2))
    assert equal(weights(applied.model), saved)
    assert [path.name for path in folder.iterdir() if path.name[0] != "."] == ["batch-0001"]


def test_a_guard_that_cannot_measure_leaves_the_model_as_it_was(folder: Path, tmp_path: Path) -> None:
    watching = guard(make.build("llama"), tmp_path, stop=True)
    watching.measure = lambda model: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    applied = Applied(make.build("llama"))
    with writing(folder) as journal, pytest.raises(ZeroDivisionError):
        list(edit_journal(applied, journal, FACTS[:2], recipe(), 2, watching))
    assert equal(weights(applied.model), weights(make.build("llama")))


def test_a_batch_that_breaks_the_model_is_left_out(folder: Path, tmp_path: Path) -> None:
    """Its perplexity is infinite, for which JSON has no number."""
    watching = guard(make.build("llama"), tmp_path, stop=False)
    watching.measure = lambda model: {"perplexity": math.inf, "perplexity_rise": math.inf, "specificity": 50.0}  # type: ignore[method-assign]
    run(folder, FACTS[:2], guard=watching)
    (entry,) = Journal.read(folder).entries
    assert isinstance(entry.manifest, Manifest)
    assert entry.manifest.metrics == {"specificity": 50.0}
    assert "inf % higher" in entry.manifest.left_out


def test_undo_and_recall_leave_memories_as_they_are(folder: Path) -> None:
    model = make.build("llama")
    made = engine.edit(model, FACTS[:1], GRACE.with_options({"descent.steps": 2}))
    append(folder, made)
    run(folder, FACTS[1:3])
    fresh = make.build("llama")
    with writing(folder) as journal:
        undo(journal, {key(FACTS[1])}, fresh)
    assert fresh.memories == []
    applied = Applied(make.build("llama"))
    applied.follow(Journal.read(folder))
    recalled(applied.model, applied.edits)
    assert len(applied.model.memories) == 1
