"""Recipes and their options."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from ece.errors import UserError
from ece.methods.memory import available
from ece.methods.recall import plain
from ece.methods.recipe import PerFact, Recipe, TwoStep, restored
from ece.methods.recipes import RECIPES
from ece.methods.registry import METHODS, as_recipe, method
from ece.targets.descent import Adam, LogOdds

RECIPE = Recipe("test", "a summary", "a source", PerFact(Adam()))
TWO_STEP = Recipe("test", "", "", TwoStep())


def value(recipe: Recipe, name: str) -> Any:
    found: Any = recipe
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("neurons.p", "0.5", 0.5),
        ("neurons.p", 0.5, 0.5),
        ("neurons.score", "wi", "wi"),
        ("targets.descent.rate", "0.1", 0.1),
        ("targets.descent.steps", "7", 7),
        ("targets.descent.stop_below", "none", None),
        ("targets.descent.stop_below", "0.05", 0.05),
        ("targets.warm", "true", True),
        ("weights.clamp", 1, 1.0),
        ("targets_from", "original", "original"),
        ("regularise", "15000", 15000.0),
        ("history", "false", False),
        ("tokens", "5000", 5000),
        ("tokens", "none", None),
        ("corpus", "none", "none"),
        ("contexts", "0", 0),
        ("layers", "auto", "auto"),
        ("layers", "3-7", (3, 4, 5, 6, 7)),
        ("layers", "4-4", (4,)),
        ("layers", "3,4", (3, 4)),
        ("layers", "7,3", (3, 7)),
        ("layers", "5", (5,)),
        ("layers", [3, 4], (3, 4)),
        ("layers", (3, 4), (3, 4)),
    ],
)
def test_good_values(name: str, given: Any, wanted: Any):
    changed = RECIPE.with_options({name: given})
    assert value(changed, name) == wanted
    assert type(value(changed, name)) is type(wanted)
    assert changed.with_options({name: value(RECIPE, name)}) == RECIPE  # nothing else changed


def test_the_recipe_itself_stays_as_it_is():
    before = dataclasses.asdict(RECIPE)
    RECIPE.with_options({"neurons.p": 0.1, "layers": "1-2"})
    assert dataclasses.asdict(RECIPE) == before


def test_several_options_at_once():
    changed = RECIPE.with_options({"layers": "1-2", "targets": "two-step", "targets.clusters": "4"})
    assert changed.layers == (1, 2)
    assert isinstance(changed.targets, TwoStep)
    assert changed.targets.clusters == 4


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"targets": "two-step"}, TwoStep()),
        ({"targets.descent": "log-odds"}, PerFact(LogOdds())),
        ({"targets.descent": "log-odds", "targets.descent.aim": 3}, PerFact(LogOdds(aim=3.0))),
    ],
)
def test_objects_by_name(options: dict[str, Any], wanted: Any):
    assert RECIPE.with_options(options).targets == wanted


@pytest.mark.parametrize("name", ["by", "shared.steps", "own.rate"])
def test_options_of_two_steps(name: str):
    given = {"by": "relation", "shared.steps": 3, "own.rate": 0.25}[name]
    assert value(TWO_STEP.with_options({f"targets.{name}": given}), f"targets.{name}") == given


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("neuron.p", "neurons"),
        ("layer", "layers"),
        ("targets.descent.stps", "steps"),
        ("weights.clmp", "clamp"),
        ("regularize", "regularise"),
        ("neurons.scores", "score"),
    ],
)
def test_wrong_names_suggest_the_nearest(name: str, nearest: str):
    with pytest.raises(UserError, match=f"no option '{name}'; did you mean '{nearest}'"):
        RECIPE.with_options({name: 1})


@pytest.mark.parametrize("name", ["zzz", "name", "summary", "source", "layers.x", "neurons.p.q", "", "neurons.", "."])
def test_names_of_nothing(name: str):
    with pytest.raises(UserError, match="no option"):
        RECIPE.with_options({name: 1})


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("neurons.p", "much"),
        ("neurons.p", None),
        ("neurons.score", "xy"),
        ("targets.descent.steps", "many"),
        ("targets.descent.steps", "2.5"),
        ("targets.descent.steps", 2.5),
        ("targets_from", "somewhere"),
        ("history", "perhaps"),
        ("tokens", "few"),
        ("corpus", 5),
        ("layers", "three"),
        ("layers", "3-"),
        ("layers", "3-5-7"),
        ("layers", ""),
        ("layers", ["a"]),
        ("layers", 3.5),
        ("neurons", "rs"),
        ("targets", "three-step"),
        ("targets.descent", "sgd"),
        ("weights", {"kl": 1}),
    ],
)
def test_wrong_values_are_refused(name: str, given: Any):
    with pytest.raises(UserError) as caught:
        RECIPE.with_options({name: given})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("neurons.p", 0),
        ("neurons.p", 1.5),
        ("neurons.p", -0.1),
        ("neurons.p", "nan"),
        ("layers", (7, 3)),
        ("layers", (3, 3)),
        ("contexts", -1),
        ("regularise", -1),
        ("tokens", -5),
        ("weights.clamp", -1),
    ],
)
def test_values_out_of_range_are_refused(name: str, given: Any):
    with pytest.raises(UserError, match=name):
        RECIPE.with_options({name: given})


def test_options_are_plain_data_that_can_be_given_back():
    options = TWO_STEP.with_options({"layers": "1-2"}).options()
    assert not {"name", "summary", "source"} & options.keys()
    assert options["targets"]["shared"]["steps"] == 20
    assert options["layers"] == (1, 2)


def test_layers_must_be_chosen_before_they_are_used():
    with pytest.raises(ValueError, match="not chosen"):
        _ = RECIPE.edited
    assert RECIPE.with_options({"layers": "1-2"}).edited == (1, 2)


def test_registry():
    assert {"ece", "ece-as", "ece-wi", "ece-rs", "memit"} <= METHODS.keys()
    for name, recipe in METHODS.items():
        assert method(name) is recipe
        assert recipe.name == name
        assert recipe.summary
        assert recipe.source
    assert [as_recipe(f"ece-{s}").neurons.score for s in ("as", "wi", "rs")] == ["as", "wi", "rs"]
    assert as_recipe("ece-rs").neurons.p == 0.8
    assert isinstance(as_recipe("ece-rs").targets, TwoStep)
    assert as_recipe("memit").neurons.p == 1
    assert not as_recipe("memit").history


@pytest.mark.parametrize(("wrong", "hint"), [("memitt", "'memit'"), ("ece-sr", "'ece-"), ("zzzzz", "there are: ece")])
def test_unknown_methods(wrong: str, hint: str):
    with pytest.raises(UserError, match=hint):
        method(wrong)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_comes_back_from_its_options_as_json_has_them(recipe: Recipe):
    changed = recipe.with_options({"regularise": 7.0, "layers": "2-4"})
    bare = Recipe(recipe.name, recipe.summary, recipe.source, PerFact())
    assert restored(bare, plain(changed.options())) == changed


def test_options_that_are_not_known_are_refused_when_a_recipe_comes_back():
    options = plain(method("ece").options())
    with pytest.raises(UserError, match="no option 'colour'"):
        restored(method("ece"), options | {"colour": 1})
    with pytest.raises(UserError, match="no kind 'guess'"):
        restored(method("ece"), options | {"targets": {"kind": "guess"}})


def test_what_torch_holds_ready_counts_as_free(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 25)
    assert available(torch.device("cuda")) == 10 + 60 - 25
