"""Studies: cells, resuming, several processes, refused settings, tables, figures and the report."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny as make
import torch
from processes import command, forked, wait
from shell import Ece

from ece.errors import UserError
from ece.evaluation.means import Mean
from ece.facts import shipped_file
from ece.methods import engine
from ece.methods.registry import METHODS, as_recipe
from ece.methods.searching import search
from ece.models import Model
from ece.studies import clusters, measures, plan, runner, searches
from ece.studies.abilities import TEXT
from ece.studies.cells import Cell, Run, tracks
from ece.studies.figures import Bars, Dots, Lines, save
from ece.studies.inputs import Inputs
from ece.studies.plan import Timings, spoken, steps
from ece.studies.published import published
from ece.studies.registry import STUDIES, studies
from ece.studies.results import found
from ece.studies.searches import decided_by
from ece.studies.setup import UNEDITED, Setup
from ece.studies.shared import headline
from ece.studies.statistics import of_values, paired
from ece.studies.store import Store
from ece.studies.studying import Studying
from ece.studies.tables import Table
from ece.targets.warm import WarmStart

FAST = {"layers": "1-2", "tokens": "512", "targets.descent.evaluations": "2"}
SHIPPED = shipped_file()

pytest_plugins = ["test_cli"]


def setup(model: Model, **changes: Any) -> Setup:
    options: dict[str, Any] = {"chosen": ("ece",), "edits": 8, "batch_size": 2, "options": FAST} | changes
    return Setup(model, Inputs.read([SHIPPED]), **options)


class Calls:
    """Counts the batches that are edited and the cells that are measured."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.edited: Counter[str] = Counter()
        self.measured: Counter[str] = Counter()
        edit, quality = engine.edit, measures.Quality.records

        def counted_edit(model: Model, facts: Sequence[Any], *rest: Any, **more: Any) -> Any:
            self.edited[str(facts[0])] += 1
            self.on_edit()
            return edit(model, facts, *rest, **more)

        def counted_quality(measure: Any, model: Model, of: dict[str, Any], inputs: Inputs) -> Any:
            applied = len(model.overlay.stack)
            self.measured[f"{applied} batches: {json.dumps(of)}"] += 1
            return quality(measure, model, of, inputs)

        self.on_edit: Callable[[], None] = lambda: None
        patch.setattr(engine, "edit", counted_edit)
        patch.setattr(measures.Quality, "records", counted_quality)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def begun(name: str, one: Setup, folder: Path) -> Studying:
    return Studying.begin(studies(name), one, folder)


def run(studying: Studying) -> dict[str, str]:
    return studying.run(Timings())


def scores(folder: Path) -> dict[str, Any]:
    """The records of every cell."""
    files = sorted((folder / "cells").glob("*.json"))
    return {file.stem: json.loads(file.read_text())["records"] for file in files}


def test_a_cells_hash_is_of_what_it_measures() -> None:
    one = Run(data="counterfact", method="ece", changes={"p": 1}, options={"p": 1}, batch_size=2)
    other = Run(data="counterfact", method="ece", changes={"p": 1}, options={"p": 1, "new": 0}, batch_size=2)
    assert one.key == one.model_copy().key != other.key
    cells = [Cell(run=r, edits=n, measure="quality", of={"start": 0, "stop": n}) for r in (one, other) for n in (2, 4)]
    assert len({cell.key for cell in cells}) == 4
    assert Cell.model_validate_json(cells[0].model_dump_json()).key == cells[0].key
    grouped = tracks([*cells, cells[0], cells[0].unedited(), cells[1].unedited()])
    assert [len(track.cells) for track in grouped] == [2, 2, 1, 1]


def test_options_said_in_several_ways_are_one_run(tiny_llama: Model) -> None:
    one = Setup(tiny_llama, setup(tiny_llama).inputs, ("ece",), edits=4, batch_size=2)
    plain = one.run("ece")
    views = {"targets.views": str(plain.options["targets"]["views"])}
    same = [one.run("ece", {"regularise": plain.options["regularise"]}), one.run("ece", views)]
    assert all(run.changes and run.key == plain.key for run in same)
    assert {one.quality(run).key for run in [plain, *same]} == {one.quality(plain).key}
    assert one.run("ece", {"layers": "1"}).key == one.run("ece", {"layers": (1,)}).key != plain.key
    assert one.quality(same[0], first=2).within(one.quality(plain)) == slice(0, 2)


def test_edits_are_made_once_for_all_cells_along_a_run(tiny_llama: Model, tmp_path: Path, calls: Calls) -> None:
    before = {layer: tiny_llama.weight(layer).clone() for layer in (1, 2)}
    studying = begun("edits", setup(tiny_llama), tmp_path / "s")
    assert run(studying) == {}
    assert list(calls.edited.values()) == [1, 1, 1, 1]
    # after 2, 4, 6 and 8 edits all so far, of which the first batch is a part; the unedited model on all 8
    assert sum(calls.measured.values()) == 4 + 1
    assert all(torch.equal(tiny_llama.weight(layer), weight) for layer, weight in before.items())
    assert not (tmp_path / "s" / "runs").exists() or not any((tmp_path / "s" / "runs").iterdir())

    run(begun("edits", setup(tiny_llama), tmp_path / "s"))  # again: nothing to do
    run(begun("methods", setup(tiny_llama), tmp_path / "s"))  # shares what it can
    assert sum(calls.measured.values()) == 5 + 2  # the generated texts, edited and not


SHARED = {
    "lambda": ([{"regularise": 1.0}, {"regularise": 10.0}], 4),
    "lambda, on the edited model": ([{"regularise": 1.0}, {"regularise": 10.0}], 1 + 3 + 3),
    "neurons, two steps": ([{"neurons.p": 0.5}, {"neurons.p": 1.0}], 4),
    "steps": ([{"targets.descent.evaluations": 1}, {"targets.descent.evaluations": 2}], 4 + 4),
}
"""By what runs of four batches differ in: the options of both, and how many searches they make."""


@pytest.mark.parametrize("what", SHARED)
def test_runs_that_differ_after_the_search_share_it(
    tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    changes, expected = SHARED[what]
    made = []
    monkeypatch.setattr(searches, "search", lambda *given: made.append(1) or search(*given))
    name = "ece-rs" if "two steps" in what else "ece"
    more = {"targets_from": "current"} if "edited" in what else {}
    own = {} if name == "ece" else {"targets.own.steps": "1", "targets.shared.steps": "1"}
    options = {key: value for key, value in FAST.items() if name == "ece" or "descent" not in key} | own
    one = setup(tiny_llama, chosen=(name,), options=options)
    cells = [one.quality(one.run(name, change | more)) for change in changes]

    def found(cells: list[Cell], folder: str) -> list[Any]:
        store = Store.open(tmp_path / folder, one.settings)
        runs = runner.Runner(tiny_llama, one.inputs, store, {})
        runs(tracks(cells))
        assert not runs.failed
        results = [store.result(cell) for cell in cells]
        assert all(result and min(result.edits["seconds"]) > 0 for result in results)
        return [result.records for result in results if result]

    together = found(cells, "together")
    assert len(made) == expected
    assert together == [found([cell], f"alone-{i}")[0] for i, cell in enumerate(cells)]
    assert together[0] != together[1]


def test_a_damaged_search_is_made_again(tiny_llama: Model, tmp_path: Path) -> None:
    recipe, facts = as_recipe("memit").with_options({"layers": "1-2", "targets.descent.steps": 2}), make.FACTS[:2]
    kept = searches.Searches(tmp_path / "targets")
    first = kept(tiny_llama, facts, recipe, WarmStart(), [""])
    (file,) = (tmp_path / "targets").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    again = kept(tiny_llama, facts, recipe, WarmStart(), [""])
    assert again.solved.delta.equal(first.solved.delta)
    assert again.seconds != first.seconds


def test_a_part_of_what_was_measured_is_not_measured_again(tiny_llama: Model, tmp_path: Path, calls: Calls) -> None:
    one = setup(tiny_llama)
    whole, last = one.quality(Run(data="counterfact")), one.quality(Run(data="counterfact"), first=3)
    last = last.model_copy(update={"of": last.of | {"start": 1}})
    other = last.model_copy(update={"of": last.of | {"generated": True}})
    texts = last.model_copy(update={"of": last.of | {"texts": True}})
    assert last.within(whole) == slice(1, 3)
    for a, b in [(whole, last), (last, last), (other, whole), (texts, whole), (texts, texts)]:
        assert a.within(b) is None
    store = Store.open(tmp_path / "s", one.settings)
    runner.Runner(tiny_llama, one.inputs, store, {})(tracks([whole, last]))
    assert sum(calls.measured.values()) == 1
    results = [store.result(cell) for cell in (whole, last)]
    assert results[0]
    assert results[1]
    assert results[1].records == results[0].records[1:3]
    assert results[1].seconds == pytest.approx(results[0].seconds / 4)


def test_a_study_stopped_inside_a_run_goes_on_and_repeats_nothing(
    tiny_llama: Model, tmp_path: Path, calls: Calls
) -> None:
    whole = begun("edits", setup(tiny_llama), tmp_path / "whole")
    run(whole)
    once = Counter(calls.measured)
    calls.edited.clear()
    calls.measured.clear()

    def stop() -> None:
        if sum(calls.edited.values()) == 3:
            raise KeyboardInterrupt

    calls.on_edit = stop
    with pytest.raises(KeyboardInterrupt):
        run(begun("edits", setup(tiny_llama), tmp_path / "stopped"))
    assert tiny_llama.overlay.stack == []
    calls.on_edit = lambda: None
    run(begun("edits", setup(tiny_llama), tmp_path / "stopped"))
    assert calls.measured == once
    assert sorted(calls.edited.values()) == [1, 1, 1, 2]  # the third was stopped before it was made
    assert scores(tmp_path / "stopped") == scores(tmp_path / "whole")


def test_measurements_that_were_lost_are_made_at_their_place(tiny_llama: Model, tmp_path: Path, calls: Calls) -> None:
    """Killed after a batch is saved and before it is measured."""
    studying = begun("edits", setup(tiny_llama), tmp_path / "s")
    save_result = Store.save
    with pytest.MonkeyPatch.context() as patch:

        def failing(store: Store, result: Any) -> None:
            if result.cell.edits == 4:
                raise KeyboardInterrupt
            save_result(store, result)

        patch.setattr(Store, "save", failing)
        with pytest.raises(KeyboardInterrupt):
            run(studying)
    run(begun("edits", setup(tiny_llama), tmp_path / "s"))
    assert list(calls.edited.values()) == [1, 1, 1, 1]
    whole = begun("edits", setup(tiny_llama), tmp_path / "whole")
    run(whole)
    assert scores(tmp_path / "s") == scores(tmp_path / "whole")


def _work(folder: str, log: str, slow: float) -> None:
    """A process of its own: runs the study, and notes each batch and each cell."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    edit, save_result = engine.edit, Store.save

    def note(text: str) -> None:
        with open(log, "a") as file:
            file.write(text + "\n")

    def noted_edit(model: Model, facts: Sequence[Any], *rest: Any, **more: Any) -> Any:
        made = edit(model, facts, *rest, **more)
        note(f"edit {rest[0].layers} {facts[0]}")
        time.sleep(slow)
        return made

    def noted_save(store: Store, result: Any) -> None:
        save_result(store, result)
        note(f"cell {result.cell.key}")

    patch.setattr(engine, "edit", noted_edit)
    patch.setattr(Store, "save", noted_save)
    patch.setattr(runner, "WAIT", 0.05)
    run(begun("layers", setup(make.build("llama"), edits=4), Path(folder)))


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = forked()
    workers = [context.Process(target=_work, args=(str(tmp_path / "s"), str(log), 0.05)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
        assert worker.exitcode == 0
    notes = Counter(log.read_text().splitlines())
    cells = {row.cell.key for row in STUDIES["layers"].all_rows(setup(make.build("llama"), edits=4))}
    assert {note for note in notes if note.startswith("cell")} == {f"cell {key}" for key in cells}
    assert set(notes.values()) == {1}
    assert (tmp_path / "s" / "report.html").exists()


def test_a_lock_of_a_killed_process_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    worker = forked().Process(target=_work, args=(str(tmp_path / "s"), str(log), 5.0))
    worker.start()
    wait(worker, lambda: log.exists() and "edit" in log.read_text())
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert any((tmp_path / "s" / "locks").iterdir())
    done = set(log.read_text().splitlines())
    run(begun("layers", setup(make.build("llama"), edits=4), tmp_path / "s"))
    assert done < {f"cell {file.stem}" for file in (tmp_path / "s" / "cells").iterdir()} | {
        note for note in done if note.startswith("edit")
    }
    assert (tmp_path / "s" / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"edits": 6}, "edits"),
        ({"batch_size": 4}, "batch_size"),
        ({"limit": 4}, "limit"),
        ({"options": FAST | {"layers": "1"}}, "options"),
    ],
)
def test_a_folder_of_other_settings_is_refused(
    tiny_llama: Model, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    Store.open(tmp_path / "s", setup(tiny_llama).settings)
    there = sorted((tmp_path / "s").rglob("*"))
    with pytest.raises(UserError, match=f"made with {named}"):
        begun("methods", setup(tiny_llama, **changes), tmp_path / "s")
    assert sorted((tmp_path / "s").rglob("*")) == there
    begun("methods", setup(tiny_llama, chosen=("memit",)), tmp_path / "s")  # another method only adds cells


def test_another_model_or_a_folder_of_something_else_is_refused(tiny_llama: Model, tmp_path: Path) -> None:
    Store.open(tmp_path / "s", setup(tiny_llama).settings)
    with pytest.raises(UserError, match="made with model"):
        begun("methods", setup(make.build("llama", seed=1)), tmp_path / "s")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a study"):
        begun("methods", setup(tiny_llama), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_what_cannot_be_edited_is_left_out_and_said(tiny_llama: Model, tmp_path: Path) -> None:
    one = setup(tiny_llama, chosen=("ece", "memit"), options=FAST | {"memit:layers": "40-41"})
    failed = run(begun("methods", one, tmp_path / "s"))
    assert [reason for reason in failed.values() if "layers" in reason]
    assert "ece" in (tmp_path / "s" / "methods.md").read_text()
    assert "Not measured: memit" in (tmp_path / "s" / "report.html").read_text()


def test_options_go_to_the_methods_that_have_them(tiny_llama: Model) -> None:
    one = setup(tiny_llama, chosen=("ece", "memit"), options={"layers": "1", "targets.descent.aim": "3"})
    one.check()
    assert one.run("memit").changes == {"layers": "1"}
    assert one.run("ece").changes == {"layers": "1", "targets.descent.aim": "3"}
    own = {"pmet:targets.descent": "log-odds", "pmet:targets.descent.aim": "3"}  # the second needs the first
    setup(tiny_llama, chosen=("pmet",), options=own).check()
    with pytest.raises(UserError, match="layres"):
        setup(tiny_llama, options={"layres": "1"}).check()
    with pytest.raises(UserError, match="no option"):
        setup(tiny_llama, options={"memit:targets.descent.aim": "3"}).check()
    with pytest.raises(UserError, match="no method"):
        setup(tiny_llama, options={"mimet:layers": "3"}).check()


def test_a_presets_options_stand_below_the_users(tiny_llama: Model) -> None:
    presets = {"memit": {"layers": [1, 2], "regularise": 7.0}}
    one = setup(tiny_llama, chosen=("ece", "memit"), options={"layers": "1", "memit:contexts": "2"}, presets=presets)
    assert one.run("memit").changes == {"layers": "1", "regularise": 7.0, "contexts": "2"}
    assert one.run("ece").changes == {"layers": "1"}
    assert one.run("memit", {"regularise": 9.0}).changes["regularise"] == 9.0
    alone = setup(tiny_llama, chosen=("memit",), options={}, presets=presets)
    assert one.run("memit", {"contexts": 5, "layers": (1, 2)}).options == alone.run("memit").options


def test_the_clusters_study_keeps_the_rates_of_a_two_step_method(tiny_llama: Model) -> None:
    rate = {"targets.shared.rate": 2.0, "targets.own.rate": 2.0}
    small = {"edits": 6, "options": {}, "presets": {"ece-rs": rate}}
    found = clusters.rows(setup(tiny_llama, chosen=("ece-rs",), **small))
    assert "the method's own search" not in [row.label for row in found]
    targets = [row.cell.run.options["targets"] for row in found if row.label != "25 own steps, no clusters"]
    assert {(each["kind"], each["shared"]["rate"], each["own"]["rate"]) for each in targets} == {("two-step", 2.0, 2.0)}
    found = clusters.rows(setup(tiny_llama, chosen=("memit",), **small))
    assert found[0].label == "the method's own search"
    assert [row.cell.run.options["targets"]["kind"] for row in found[:2]] == ["per-fact", "two-step"]


@pytest.mark.parametrize("edits", [1, 3, 8, 20])
def test_counts_end_with_batches(tiny_llama: Model, edits: int) -> None:
    counts = setup(tiny_llama, edits=edits, batch_size=3).counts(4)
    assert counts[-1] == edits
    assert all(count % 3 == 0 for count in counts[:-1])
    assert len(counts) == len(set(counts)) <= max(4, 1)


@pytest.mark.slow
def test_the_unedited_model_is_in_every_table(tiny_llama: Model, tmp_path: Path) -> None:
    one = setup(tiny_llama, limit=2, batch_size=1)
    studying = begun("all", one, tmp_path / "s")
    assert run(studying).keys() == {"abilities"}  # which has no data here
    for study in studying.studies:
        there = found(study.all_rows(one), one, studying.store)
        for table in study.tables(there):
            first = [row[0] for row in table.rows]
            paired_table = table.title.startswith("Difference")
            assert paired_table or study.name == "time" or UNEDITED in first, (study.name, table.title)
    results = [json.loads(line) for line in (tmp_path / "s" / "results.jsonl").read_text().splitlines()]
    assert len(results) == len(list((tmp_path / "s" / "cells").iterdir()))
    for result in results:
        about = result["provenance"]
        assert about["model"]["sha256"] == tiny_llama.fingerprint
        assert re.fullmatch("[0-9a-f]{64}", about["data"]["counterfact"])
        assert {"ece-edit", "torch", "python"} <= about["versions"].keys()
        assert about["machine"]["device"]
        assert about["seed"] == 0
        assert all({"mean", "se", "records"} == mean.keys() for mean in result["means"].values())
    edited = next(r for r in results if r["measure"] == "quality" and r["run"]["method"])
    assert edited["means"]["specificity_kept"]["mean"] is not None

    page = (tmp_path / "s" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list((tmp_path / "s").glob("*.png"))) >= 8
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    for study in studying.studies:
        assert study.title in page
    assert "AlphaEdit" in page
    assert tiny_llama.fingerprint in page


def test_neurons_are_compared_at_equal_counts(tiny_llama: Model, tmp_path: Path) -> None:
    one = setup(tiny_llama, edits=2)
    studying = begun("neurons", one, tmp_path / "s")
    run(studying)
    for each in found(STUDIES["neurons"].all_rows(one), one, studying.store):
        if not each.unedited:
            share = each.result.cell.run.changes.get("neurons.share", 1.0)
            assert set(each.result.edits["neurons"].values()) == {round(share * tiny_llama.d_ff)}


def test_time_is_told_by_phase_for_methods_in_turn(tiny_llama: Model, tmp_path: Path) -> None:
    one = setup(tiny_llama, chosen=("ece", "memit"), edits=6)
    studying = begun("time", one, tmp_path / "s")
    run(studying)
    result = studying.store.results()[0]
    assert [record["method"] for record in result.records] == ["ece", "memit"] * 2
    for record in result.records:
        assert sum(record["phases"].values()) == pytest.approx(record["total"], rel=0.2)
        assert {"preparation", "targets", "update"} == record["phases"].keys()


def test_abilities_and_perplexity_along_a_sequence(tiny_llama: Model, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    lines = [json.dumps({"sentence": f"the town number {n} is quiet", "label": n % 2}) for n in range(16)]
    (tasks / "sst2.jsonl").write_text("\n".join(lines))
    (tmp_path / "text.txt").write_text(make.TEXT)
    inputs = Inputs.read([SHIPPED], tasks, tmp_path / "text.txt")
    one = Setup(tiny_llama, inputs, ("ece",), edits=4, batch_size=2, options=FAST, limit=4)
    studying = begun("abilities", one, tmp_path / "s")
    assert run(studying) == {}
    means = {
        (each.label, each.row.x, name): mean
        for each in found(STUDIES["abilities"].all_rows(one), one, studying.store)
        for name, mean in each.means.items()
    }
    assert {(label, x) for label, x, name in means if name == "f1"} == {(UNEDITED, None), ("ece", 2), ("ece", 4)}
    assert means["ece", 4, "f1"].records == 4
    assert means["ece", 4, "perplexity"].mean > 1
    assert means["ece", 4, "perplexity"] != means[UNEDITED, None, "perplexity"]
    assert (tmp_path / "s" / "abilities-tasks.png").exists()
    assert (tmp_path / "s" / "abilities-perplexity.png").exists()
    assert {row.panel for row in STUDIES["abilities"].all_rows(replace(one, asked=0))} == {TEXT}
    with pytest.raises(UserError, match="no tasks"):
        STUDIES["abilities"].all_rows(replace(one, asked=0, inputs=Inputs.read([SHIPPED], tasks)))


def test_records_wait_for_all_their_facts(tiny_llama: Model) -> None:
    inputs = Inputs.read([SHIPPED])
    assert [inputs.covered("counterfact", edits) for edits in (0, 1, 7, 10_000)] == [
        0, 1, 7, len(inputs.benchmarks["counterfact"].records),
    ]  # fmt: skip


@pytest.mark.parametrize("texts", [0, 3])
def test_studies_together_measure_along_one_sequence(
    tiny_llama: Model, tmp_path: Path, calls: Calls, texts: int
) -> None:
    studying = Studying.begin(studies("methods,edits"), setup(tiny_llama, texts=texts), tmp_path / "s")
    assert run(studying) == {}
    assert list(calls.edited.values()) == [1, 1, 1, 1]
    written = [of for of in calls.measured if "texts" in of]
    assert len(written) == (2 if texts else 0)
    assert all('"stop": 3' in of for of in written)
    assert {"methods.md", "edits.md"} <= {file.name for file in (tmp_path / "s").iterdir()}


@pytest.mark.parametrize(
    ("there", "shown"),
    [
        (["efficacy", "efficacy_exact", "specificity", "score"], ["efficacy", "specificity", "score"]),
        (
            ["specificity_gold", "efficacy", "specificity_unchanged"],
            ["efficacy", "specificity_gold", "specificity_unchanged"],
        ),
        (["accuracy", "f1"], ["accuracy", "f1"]),
    ],
    ids=["counterfact", "zsre", "others"],
)
def test_figures_show_what_a_benchmark_has(there: list[str], shown: list[str]) -> None:
    found = cast(Any, SimpleNamespace(means={name: Mean(50.0, 1.0, 9) for name in there}))
    assert headline([found]) == shown


@pytest.mark.parametrize(("name", "for_each"), [("ece-rs", 10.0 * 7 / 25), ("memit", 10.0)])
def test_a_probe_of_few_facts_speaks_for_a_batch(name: str, for_each: float, monkeypatch: pytest.MonkeyPatch):
    """Of few facts each is an anchor of its own, with 20 + 5 steps; of a hundred, ten are: 2 + 5 steps for each."""
    few = make.FACTS[: plan.PROBED_FACTS]
    phases = {"targets": 10.0 * len(few), "update": 3.0}
    made = SimpleNamespace(manifest=SimpleNamespace(phases=phases, seconds=43.0))
    monkeypatch.setattr(plan, "edit", lambda *_, **__: made)
    inputs = cast(Inputs, SimpleNamespace(facts=lambda _: few))
    timings, run = Timings(), Run(data="counterfact", method=name, batch_size=100)
    plan._probe_edits(cast(Model, None), inputs, run, [], timings, search)
    assert timings.edit(name) == pytest.approx(for_each + 0.03)


def test_a_probe_makes_a_search_once_for_methods_that_search_alike(
    tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And counts it for each: on a first batch it makes no difference on which weights targets are sought."""
    made: list[str] = []

    def counted(model: Model, facts: Any, recipe: Any, *rest: Any) -> Any:
        made.append(recipe.name)
        return search(model, facts, recipe, *rest)

    monkeypatch.setattr(searches, "search", counted)
    chosen = ("memit", "alphaedit", "memit-history", "ece-rs")
    timings = begun("methods", setup(tiny_llama, chosen=chosen, texts=0), tmp_path / "s").timings()
    assert made == ["memit", "ece-rs"]
    assert timings.searches["memit"] == timings.searches["alphaedit"] == timings.searches["memit-history"]
    assert timings.searches["memit"][0][1] > 0


def test_plan_knows_what_is_left(tiny_llama: Model, tmp_path: Path) -> None:
    studying = begun("edits", setup(tiny_llama), tmp_path / "s")
    plan = studying.plan(studying.timings())
    assert sum(step.cells for step in plan) == 11
    assert sum(step.edits for step in plan) == 8
    assert all(step.seconds is not None and step.seconds > 0 for step in plan)
    assert tiny_llama.overlay.stack == []
    run(studying)
    assert studying.plan(Timings()) == []
    timings = studying.timings()  # of the finished cells: nothing is probed
    spent = sum(result.seconds for result in studying.store.results())
    assert sum(seconds for seen in timings.measured.values() for _, seconds in seen) == pytest.approx(spent)
    assert steps(studying.tracks, Store(tmp_path / "none"), timings)
    assert (spoken(5), spoken(600), spoken(7200), spoken(None)) == ("5 s", "10 min", "2.0 h", "?")


@pytest.mark.parametrize(("sought_on", "second"), [("current", 30.0 + 5), ("original", 10.0 + 5)])
def test_plan_counts_a_shared_search_once(sought_on: str, second: float, tmp_path: Path) -> None:
    """Twelve seconds for four edits, eight of them the search: 3 s an edit, or 1 where targets are there already."""
    timings, cells = Timings(), []
    for name in ("memit", "memit-history"):
        options = as_recipe(name).with_options({"targets_from": sought_on}).options()
        of = {"data": "counterfact", "start": 0, "stop": 10}
        cells.append(
            Cell(run=Run(data="counterfact", method=name, options=options), edits=10, measure="quality", of=of)
        )
        timings.edited(name, 4, seconds=12.0, searching=8.0)
    timings.measured[plan.kind(cells[0])] = [(10, 5.0)]
    store = Store(tmp_path)
    assert [step.seconds for step in steps(tracks(cells), store, timings)] == [30 + 5, second]
    assert [step.seconds for step in steps(tracks(cells[1:]), store, timings)] == [30 + 5]


def test_differences_are_paired() -> None:
    here = [{"efficacy": value} for value in (1.0, 0.0, 1.0, None)]
    there = [{"efficacy": value} for value in (0.0, 0.0, 1.0, 1.0)]
    mean = paired(here, there, "efficacy")
    assert mean.mean == pytest.approx(100 / 3)
    assert mean.se == pytest.approx(100 / 3)
    assert mean.records == 3
    assert of_values([1.0, 3.0]) == Mean(2.0, 1.0, 2)
    assert math.isnan(of_values([]).mean)


def test_tables_as_markdown_and_latex() -> None:
    table = Table("50 % & more", ["", "a_b"], [["x|y", Mean(12.345, 0.678, 9)], ["z", None]], "note_1")
    assert "| x\\|y | 12.3 ± 0.7 |" in table.markdown()
    assert "| z | – |" in table.markdown()
    latex = table.latex()
    assert r"\caption{50 \% \& more}" in latex
    assert r"x|y & 12.3 $\pm$ 0.7 \\" in latex
    assert r"a\_b" in latex
    other = Table("t", ["", "a", "b", "c"], [["x", Mean(1, 0.1, 9), Mean(2, 0.1, 9), Mean(3, 0.1, 8)]])
    assert "3.00 ± 0.10 (n = 8)" in other.markdown()
    assert "(n = 9)" not in other.markdown()


def test_figures_are_pictures(tmp_path: Path) -> None:
    means = {"efficacy": Mean(90.0, 2.0, 10), "score": Mean(float("nan"), float("nan"), 0)}
    pictures = [
        Lines(
            "l",
            "title",
            "x",
            {"unedited": [(1, means), (9, means)], "ece": [(1, means)]},
            ["efficacy"],
            logarithmic=True,
        ),
        Dots("d", "title", [("unedited", means), ("ece", means)], ["efficacy", "score"]),
        Bars("b", "title", [("ece", {"targets": Mean(1.0, 0.1, 3)}, Mean(1.5, 0.1, 3))], "seconds"),
    ]
    for picture in pictures:
        file = save(picture, tmp_path / f"{picture.name}.png")
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.stat().st_size > 5000


def test_published_numbers_have_sources() -> None:
    tables = [table for name in STUDIES for table in published(name)]
    assert tables
    for table in tables:
        assert table.rows
        for row in table.rows:
            assert row.values
            assert re.search(r"arXiv \d{4}\.\d{5}|doi ", row.source)
            name = row.method.lower().replace("+", "-")
            assert row.here == (name if name in METHODS else None)


def test_the_command_as_typed(ece: Ece, checkpoint: Path, tmp_path: Path) -> None:
    options = [part for key, value in FAST.items() for part in ("--set", f"{key}={value}")]
    command = ["study", "methods", "--model", checkpoint, "--data", SHIPPED, "--out", tmp_path / "s", "--methods",
               "ece,memit", "--limit", 4, "--batch-size", 2, *options]  # fmt: skip
    planned = ece(*command, "--plan", "--json")
    assert planned.code == 0, planned.err
    assert planned.json["seconds"] > 0
    assert sum(step["cells"] for step in planned.json["plan"]) == 6
    assert not (tmp_path / "s").exists()
    made = ece(*command, "--json")
    assert made.code == 0, made.err
    assert made.json["failed"] == {}
    assert Path(made.json["report"]).exists()
    assert "| memit |" in (tmp_path / "s" / "methods.md").read_text()
    assert r"\begin{tabular}" in (tmp_path / "s" / "methods.tex").read_text()
    refused = ece(*command, "--edits", 3)
    assert refused.code == 2
    assert "made with edits" in refused.err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["stydies"], "no study 'stydies'"),
        (["edits,methds"], "no study 'methds'; did you mean 'methods'?"),
        (["edit"], "did you mean 'edits'"),
        (["methods", "--methods", "ecee"], "did you mean 'ece'"),
        (["methods", "--set", "layers"], "write key=value"),
        (["methods", "--set", "layres=3"], "did you mean 'layers'"),
        (["abilities"], "--tasks"),
        (["methods", "--data", "nowhere.json"], "cannot be read"),
    ],
)
def test_bad_commands_end_with_one_line(
    ece: Ece, checkpoint: Path, tmp_path: Path, change: list[str], reason: str
) -> None:
    result = ece("study", *change[:1], "--model", checkpoint, "--data", SHIPPED, "--out", tmp_path / "s", *change[1:])
    assert result.code == 2, result.err
    assert reason in " ".join(result.err.split())
    assert not (tmp_path / "s").exists()


def test_a_killed_command_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    """The whole command in a process of its own, killed with the signal that cannot be caught."""
    options = [part for key, value in FAST.items() for part in ("--set", f"{key}={value}")]
    typed = ["study", "layers", "--model", checkpoint, "--data", SHIPPED, "--out", tmp_path / "s",
             "--edits", "6", "--batch-size", "2", *options]  # fmt: skip
    first = command(tmp_path / "said", *typed)
    wait(first, lambda: any((tmp_path / "s" / "runs").glob("*/batch-0001")))
    first.kill()
    first.join()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "s").rglob("*.json") if "settings" in file.name}
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "s" / "cells").glob("*.json")}
    second = command(tmp_path / "said", *typed)
    second.join()
    assert second.exitcode == 0, (tmp_path / "said").read_text()
    assert all(file.stat().st_mtime_ns == changed for file, changed in (before | kept).items())
    assert (tmp_path / "s" / "report.html").exists()


def test_an_axis_reaches_down_to_a_negative_correlation():
    from matplotlib.figure import Figure

    for mean, lowest in ((-12.0, -22.0), (80.0, -4.0)):
        figure = Figure()
        Lines("tasks", "Tasks", "edits", {"ece": [(1.0, {"mcc": Mean(mean, 10.0, 9)})]}, ["mcc"]).draw(figure)
        bottom, top = figure.axes[0].get_ylim()
        assert bottom <= lowest
        assert top == 104
    assert bottom == -4


def test_a_whole_without_parts_has_its_bar():
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure()
    rows = [("ece", {"targets": Mean(1.0, 0.1, 3)}, Mean(1.5, 0.1, 3)), ("ft-l", {}, Mean(2.0, 0.1, 3))]
    Bars("b", "title", rows, "seconds").draw(figure)
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert [round(bar.get_width(), 3) for bar in bars if bar.get_y() > 0.5] == [0.0, 2.0]


def test_a_plan_writes_nothing(tiny_llama: Model, tmp_path: Path) -> None:
    one = setup(tiny_llama)
    studying = begun("methods", one, tmp_path / "study")
    studying.plan(studying.timings())
    assert not (tmp_path / "study").exists()


def test_a_damaged_cell_is_named(tiny_llama: Model, tmp_path: Path) -> None:
    one = setup(tiny_llama, edits=2)
    run(begun("methods", one, tmp_path))
    (first, *_) = sorted((tmp_path / "cells").glob("*.json"))
    first.write_text(first.read_text()[:100])
    with pytest.raises(UserError, match=f"{first.name}: damaged; delete it"):
        begun("methods", one, tmp_path).timings()


def test_searches_are_told_apart_by_their_passes(tiny_llama: Model) -> None:
    recipe = replace(as_recipe("ece"), layers=(1, 2))
    facts = make.random_facts(3)
    keys = {
        decided_by(tiny_llama, facts, replace(recipe, pass_tokens=tokens), WarmStart(), [""])
        for tokens in (None, 50, 90)
    }
    assert len(keys) == 3
