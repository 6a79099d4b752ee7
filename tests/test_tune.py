"""The search for options: the same draw for every trial, valid for every method; trials that are resumed."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import tiny as make
import tune

import ece
from ece.evaluation.means import Mean
from ece.facts import shipped_file
from ece.methods.mend import LAST_LAYERS
from ece.methods.method import Declared
from ece.methods.presets import Preset
from ece.methods.recipe import Recipe, parsed_layers
from ece.methods.recipes import RECIPES
from ece.methods.registry import METHODS, as_recipe
from ece.studies.searches import Searches


@pytest.mark.parametrize("name", METHODS)
def test_every_point_is_a_valid_choice(name: str):
    declared = METHODS[name]
    for number in range(1, 30):
        point = tune.drawn(declared, 30, number)
        training, of_method = tune.parted(point)
        chosen = declared.with_options(of_method)
        assert chosen != declared
        if isinstance(chosen, Recipe):
            assert max(chosen.edited) < 15
        if training:
            assert training.keys() <= inspect.signature(tune.TRAINING[name]).parameters.keys()
        if name == "mend":
            first, last = parsed_layers("layers", training["layers"])[:: LAST_LAYERS - 1]
            assert 15 <= first < last < 30
        assert point == tune.drawn(declared, 30, number)


def test_a_method_of_another_kind_has_nothing_that_is_drawn():
    with pytest.raises(ece.UserError, match="new has nothing that is drawn"):
        tune.drawn(Declared(name="new", summary="", source=""), 30, 1)  # type: ignore[arg-type]


def test_what_a_method_needs_is_trained_on_records_that_no_trial_edits(
    monkeypatch: pytest.MonkeyPatch, quick: dict[str, int], tmp_path: Path
):
    """Once for each trial: what is there is taken, and a training that was stopped is gone on with."""
    calls: list[dict[str, Any]] = []

    def mend(data: Path, model: str, *, output: Path, **options: Any) -> None:
        calls.append(options)
        output.mkdir(parents=True, exist_ok=True)
        if len(calls) == 2:
            (output / "checkpoint.safetensors").touch()
            raise KeyboardInterrupt
        (output / "weights.safetensors").touch()

    used: list[Any] = []

    def tried(model: ece.Model, method: Any, *_: Any) -> dict[str, Any]:
        used.append(method)
        return {"score": 1.0 + len(used), "seconds": 0.0, "metrics": {}}

    monkeypatch.setitem(tune.TRAINING, "mend", mend)
    monkeypatch.setattr(tune, "tried", tried)
    monkeypatch.setattr(tune, "OPTIONS", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        tune.main(**command(tmp_path), methods="mend", trials=2, write="none")
    tune.main(**command(tmp_path), methods="mend", trials=2, write="tiny")
    point = tune.drawn(METHODS["mend"], 4, 1)
    training, of_method = tune.parted(point)
    assert [call["resume"] for call in calls] == [False, False, True]
    assert calls[0] == {"records": "1003-1999", "resume": False}
    assert calls[1] == {"records": "1003-1999", "resume": False} | training
    folders = [tmp_path / "trials" / "trained" / f"mend-{number}" for number in range(2)]
    assert [Path(method.weights) for method in used] == folders
    assert used[1] == METHODS["mend"].with_options(of_method | {"weights": str(folders[1])})
    kept = Preset.model_validate_json((tmp_path / "tiny.json").read_bytes()).methods["mend"]
    assert kept.options == of_method
    assert kept.note is not None
    assert "c_edit" in kept.note


def of_search(point: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in point.items() if key.startswith(("layers", "weights", "targets"))}


def test_methods_that_search_alike_draw_the_same_searches():
    """What `studies/searches.py` counts as the same search: its layers, its loss, its descent."""
    for number in range(1, 30):
        points = [tune.drawn(METHODS[name], 30, number) for name in ("memit", "alphaedit", "prune")]
        searches = [of_search(point) for point in points]
        assert searches[0] == searches[1] == searches[2] != {}
        assert len({json.dumps(point) for point in points}) > 1


@pytest.mark.parametrize("name", [recipe.name for recipe in RECIPES])
def test_one_search_leaves_what_a_search_depends_on(name: str):
    points = [tune.drawn(METHODS[name], 30, number, one_search=True) for number in range(1, 30)]
    assert all(of_search(point) == {} for point in points)
    assert name in ("rome", "r-rome") or len({json.dumps(point) for point in points}) > 1


def test_what_is_given_is_the_same_in_every_trial(quick: dict[str, int], tmp_path: Path):
    arguments = command(tmp_path)
    tune.main(**arguments, methods="memit", trials=3, write="none", set=["weights.clamp=0.5", "targets_from=original"])
    lines = [json.loads(line) for line in (tmp_path / "trials" / "memit.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == [50.5] * 3
    assert all(line["options"]["targets_from"] == "original" for line in lines)


def test_what_is_given_leaves_what_is_drawn(quick: dict[str, int], tmp_path: Path):
    """A given kind of descent comes first, so that the drawn parts of it are not lost."""
    arguments = command(tmp_path)
    tune.main(**arguments, methods="memit", trials=2, write="none", set=["targets.descent=log-odds"])
    lines = [json.loads(line) for line in (tmp_path / "trials" / "memit.jsonl").read_text().splitlines()]
    aim = lines[1]["options"]["targets.descent.aim"]
    assert as_recipe("memit").with_options(lines[1]["options"]).options()["targets"]["descent"]["aim"] == aim != 4.0


def command(folder: Path, facts: int = 3) -> dict[str, Any]:
    """What all runs here have in common."""
    return {"data": shipped_file(), "model": "", "facts": facts, "batch_size": 2, "out": folder / "trials"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A search whose trials cost nothing: the score is the number of the trial's options."""
    trials: dict[str, int] = {}

    def tried(model: ece.Model, recipe: Any, *_: Any) -> dict[str, Any]:
        trials[recipe.name] = trials.get(recipe.name, 0) + 1
        return {"score": 50 + recipe.weights.clamp, "seconds": 0.0, "metrics": {}}

    shipped = ece.read_counterfact(shipped_file())
    monkeypatch.setattr(tune, "tried", tried)
    monkeypatch.setattr(ece, "load", lambda _: make.build("llama"))
    monkeypatch.setattr(ece, "read_counterfact", lambda _: shipped * 40)
    monkeypatch.setattr(ece, "evaluate", lambda *_: [])
    return trials


def test_the_same_budget_for_all_resumed_and_kept(
    quick: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tune, "OPTIONS", tmp_path)
    arguments = command(tmp_path)
    tune.main(**arguments, methods="memit,rome", trials=2, write="none")
    assert quick == {"memit": 2, "rome": 2}
    assert not list(tmp_path.glob("*.json"))
    tune.main(**arguments, methods="memit,rome,nse", trials=5, write="tiny")
    assert quick == {"memit": 5, "rome": 5, "nse": 5}
    lines = [json.loads(line) for line in (tmp_path / "trials" / "memit.jsonl").read_text().splitlines()]
    assert [line["trial"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[0]["options"] == {}
    best = max(lines, key=lambda line: line["score"])
    preset = Preset.model_validate_json((tmp_path / "tiny.json").read_bytes())
    assert preset.methods["memit"].options == best["options"]
    assert "5 trials" in preset.methods["memit"].source
    assert preset.model.model_type == "llama"


def test_what_was_given_is_said_and_not_kept(quick: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file of options has what was drawn; what all trials had in common is in its source."""
    monkeypatch.setattr(tune, "OPTIONS", tmp_path)
    arguments = command(tmp_path)
    tune.main(**arguments, methods="alphaedit", trials=4, write="tiny", one_search=True, set=["targets_from=original"])
    kept = Preset.model_validate_json((tmp_path / "tiny.json").read_bytes()).methods["alphaedit"]
    assert "targets_from=original" in kept.source
    assert "targets_from" not in kept.options
    assert kept.options.keys() <= {"solve.threshold", "solve.ridge"}


def test_fewer_neighbours_are_measured(quick: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def tried(model: ece.Model, method: Any, records: list[Any], *_: Any) -> dict[str, Any]:
        seen.extend(len(record.neighborhood_prompts) for record in records)
        return {"score": 1.0, "seconds": 0.0, "metrics": {}}

    monkeypatch.setattr(tune, "tried", tried)
    arguments = command(tmp_path)
    tune.main(**arguments, methods="ft-l", trials=1, write="none", neighbours=2)
    assert seen == [2, 2, 2]


def test_trials_of_other_settings_are_refused(quick: dict[str, int], tmp_path: Path):
    arguments = command(tmp_path)
    tune.main(**arguments, methods="memit", trials=1, write="none")
    with pytest.raises(ece.UserError, match="made with facts = 3, now it is 4"):
        tune.main(**command(tmp_path, facts=4), methods="memit", trials=2, write="none")
    with pytest.raises(ece.UserError, match="made with set"):
        tune.main(**arguments, methods="rome", trials=1, write="none", set=["contexts=2"])
    assert quick == {"memit": 1}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"methods": "mimet"}, "no method 'mimet'"), ({"methods": "memit", "set": ["contxts=2"]}, "contexts")],
)
def test_wrong_names_are_refused_and_nothing_is_written(
    quick: dict[str, int], tmp_path: Path, wrong: dict[str, Any], reason: str
):
    with pytest.raises(ece.UserError, match=reason):
        tune.main(**command(tmp_path), trials=1, write="none", **wrong)
    assert not (tmp_path / "trials").exists()
    assert not quick


class Record:
    def __init__(self, fact: ece.Fact):
        self.fact = lambda: fact


def test_a_search_is_made_once_for_methods_that_search_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model = make.build("llama")
    monkeypatch.setattr(ece, "evaluate", lambda *_: [])
    monkeypatch.setattr(ece, "summary", lambda *_: {"score": Mean(70.0, 1.0, 1)})
    options = {"layers": "1-2", "tokens": 512, "targets.descent.steps": 2, "targets_from": "original"}
    for name in ("memit", "alphaedit", "prune"):
        recipe = as_recipe(name).with_options(options)
        found = tune.tried(model, recipe, [Record(fact) for fact in make.FACTS], [], 3, Searches(tmp_path / "targets"))
        assert found["score"] == 70
        assert found["seconds"] > 0
    batches = -(-len(make.FACTS) // 3)
    assert len(list((tmp_path / "targets").glob("*.safetensors"))) == batches


def test_a_trial_gives_the_model_back(monkeypatch: pytest.MonkeyPatch):
    model = make.build("llama")
    before = [model.weight(layer).clone() for layer in range(4)]
    monkeypatch.setattr(ece, "evaluate", lambda *_: [])
    monkeypatch.setattr(ece, "summary", lambda *_: {"score": Mean(70.0, 1.0, 1)})
    recipe = as_recipe("memit").with_options({"layers": "1-2", "tokens": 512, "targets.descent.steps": 2})
    found = tune.tried(model, recipe, [Record(fact) for fact in make.FACTS], [], 3)
    assert found["score"] == 70
    failed = tune.tried(model, recipe.with_options({"layers": "1-9"}), [Record(make.FACTS[0])], [], 3)
    assert failed["score"] == 0
    assert "layers" in failed["failed"]
    assert all((model.weight(layer) == weight).all() for layer, weight in enumerate(before))
