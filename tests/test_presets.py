"""Options by model, and what methods and options are said to be."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ece.errors import UserError
from ece.methods.describe import options
from ece.methods.presets import Size, preset_options, presets, with_preset
from ece.methods.recipe import Recipe
from ece.methods.recipes import RECIPES as RECIPES_DECLARED
from ece.methods.registry import METHODS, as_recipe, method
from ece.models import Model

RECIPES = {recipe.name for recipe in RECIPES_DECLARED}


def model_of(size: Size) -> Model:
    """What a preset looks at of a model."""
    config = SimpleNamespace(config=SimpleNamespace(model_type=size.model_type))
    found = SimpleNamespace(network=config, layers=range(size.layers), d_model=size.d_model, d_ff=size.d_ff)
    return cast(Model, found)


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_of_registered_methods_and_valid_options(name: str):
    preset = presets()[name]
    for of, setting in preset.methods.items():
        changed = method(of).with_options(setting.options)
        if isinstance(changed, Recipe) and not isinstance(changed.layers, str):
            assert changed.edited[-1] < preset.model.layers - 1
        assert setting.source
        recipe = with_preset(method(of), model_of(preset.model), name)
        assert recipe == changed
        assert recipe == with_preset(method(of), model_of(preset.model))


def test_papers_numbers():
    """A few of them once more, by hand."""
    gpt2, gptj, llama = (model_of(presets()[name].model) for name in ("gpt2-xl", "gpt-j-6b", "llama3-8b"))
    assert with_preset(as_recipe("memit"), gpt2).edited == (13, 14, 15, 16, 17)
    assert with_preset(as_recipe("memit"), gptj).edited == (3, 4, 5, 6, 7, 8)
    assert with_preset(as_recipe("memit"), llama).edited == (4, 5, 6, 7, 8)
    assert [with_preset(as_recipe("memit"), model).regularise for model in (gpt2, gptj, llama)] == [20000, 15000, 15000]
    assert [with_preset(as_recipe("rome"), model).edited for model in (gpt2, gptj, llama)] == [(17,), (5,), (5,)]
    assert with_preset(as_recipe("nse"), llama).rounds.above == 2.5
    rates = [
        with_preset(as_recipe("ece-rs"), model).options()["targets"]["own"]["rate"] for model in (gpt2, gptj, llama)
    ]
    assert rates == [0.5, 0.5, 0.1]


def test_what_a_study_begins_with(tiny: Model):
    llama = model_of(presets()["llama3-8b"].model)
    assert preset_options(["memit", "ece", "ike"], llama).keys() == {"memit"}
    assert preset_options(["memit"], tiny) == {}
    assert preset_options(["memit"], llama, "none") == {}
    with pytest.raises(UserError, match="no options for ike"):
        preset_options(["ike"], llama, "llama3-8b")


def test_models_of_other_sizes_have_no_preset(tiny: Model, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    assert with_preset(as_recipe("memit"), tiny) is as_recipe("memit")
    assert not caplog.text


def test_what_a_preset_is_from_is_said(tiny: Model, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    recipe = with_preset(as_recipe("rome"), tiny, "llama3-8b")
    assert recipe.edited == (5,)
    assert "jianghoucheng/AlphaEdit hparams/ROME/Llama3-8B.json" in caplog.text
    assert "identity" in caplog.text
    assert with_preset(as_recipe("rome"), tiny, "none") is as_recipe("rome")


@pytest.mark.parametrize(
    ("of", "name", "hint"),
    [("memit", "llama3", "did you mean 'llama3-8b'"), ("memit", "zzz", "there are: auto, none, gpt"),
     ("ece", "gpt2-xl", "no options for ece; it has: ece-as")],
)  # fmt: skip
def test_wrong_presets(tiny: Model, of: str, name: str, hint: str):
    with pytest.raises(UserError, match=hint):
        with_preset(as_recipe(of), tiny, name)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_says_what_it_means(name: str):
    found = options(method(name))
    assert all(option.meaning for option in found)
    by_name = {option.name: option.value for option in found}
    if name in RECIPES:
        assert {"layers", "regularise", "solve", "spread.share", "neurons.p", "weights.clamp"} <= by_name.keys()
    changed: dict[str, Any] = {option.name: option.value for option in found if option.value not in (None, "")}
    assert method(name).with_options(changed) == method(name)  # names and values are those of --set


def test_costs_and_needs():
    assert method("memit").cost == "≤ 25 evaluations; solved once a batch"
    assert method("rome").cost == "≤ 20 evaluations; solved fact by fact"
    assert "each of two layers" in method("memit-blue").cost
    assert "20 for each cluster" in method("ece-rs").cost
    assert "statistics" in method("alphaedit").needs
