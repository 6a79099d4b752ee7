"""Names that the model writes by itself, and what is kept of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny as make
import torch
from torch import Tensor

from ece.facts import DEMONSTRATED, read_counterfact, shipped_file
from ece.methods.registry import as_recipe
from ece.methods.writing import ordinary, statistics
from ece.models import Model
from ece.update.names import Lists
from ece.update.solve import shrunk
from ece.update.statistics import name_statistics, statistics_key

FOUND = ["Ada Lovelace", "Lake Inari", "the Odeon", "Oslo", "Ada"]


class Written(Lists):
    """Lists that stand for what a model would write."""

    asked = 0

    def names(self, model: Model) -> list[str]:
        Written.asked += 1
        return FOUND


def direct(model: Model, layer: int, names: list[str]) -> Tensor:
    """E[kk^T] of the last tokens, one name at a time through the whole network."""
    kept: list[Tensor] = []
    handle = model.ffn_output(layer).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0][0, -1].double()))
    for name in names:
        model.network(torch.tensor([model.tokenizer(name)["input_ids"]]))
    handle.remove()
    return torch.stack([torch.outer(k, k) for k in kept]).mean(0)


def test_only_whole_short_new_lines_are_names(tiny_llama: Model, monkeypatch: pytest.MonkeyPatch):
    known = read_counterfact(shipped_file())[-1].fact().subject
    written = [f" Oslo \nAda\n\n{known}\n" + "x" * 41 + "\nLake In", "Ada\nOd", "no end"]
    monkeypatch.setattr("ece.update.names.continuations", lambda *_, **__: written)
    assert Lists().names(tiny_llama) == ["Oslo", "Ada"]


def test_lists_begin_with_shipped_subjects_but_the_demonstrations(monkeypatch: pytest.MonkeyPatch, tiny_llama: Model):
    asked: list[str] = []

    def noted(_: Model, prompts: list[str], *__: Any, **___: Any) -> list[str]:
        asked.extend(prompts)
        return []

    monkeypatch.setattr("ece.update.names.continuations", noted)
    assert Lists(lists=30, begun=5).names(tiny_llama) == []
    subjects = [record.fact().subject for record in read_counterfact(shipped_file())]
    lines = [prompt.removesuffix("\n").split("\n") for prompt in asked]
    assert len(lines) == 30
    assert all(len(set(line)) == 5 and set(line) <= set(subjects[DEMONSTRATED:]) for line in lines)


def test_a_model_writes_names_and_the_same_ones_again(tiny_llama: Model):
    lists = Lists(lists=8, tokens=12)
    found = lists.names(tiny_llama)
    assert found == lists.names(tiny_llama)
    assert all(name == name.strip() and 0 < len(name) <= lists.longest for name in found)


@pytest.mark.parametrize("family", make.FAMILIES)
def test_the_last_tokens_of_names_are_kept(family: str, tmp_path: Path):
    model = make.build(family)
    found = name_statistics(model, [2, 0], Written(), folder=tmp_path)
    for layer in (0, 2):
        assert reference.relative(found[layer], direct(model, layer, FOUND)) < 1e-5


def test_names_are_asked_for_once(tiny_llama: Model, tmp_path: Path):
    before = Written.asked
    first = name_statistics(tiny_llama, [1, 2], Written(), folder=tmp_path)
    again = name_statistics(tiny_llama, [2], Written(), folder=tmp_path)
    assert Written.asked == before + 1
    assert torch.equal(first[2], again[2])
    name_statistics(tiny_llama, [1], Written(lists=3), folder=tmp_path)
    name_statistics(make.build("llama", seed=1), [1], Written(), folder=tmp_path)
    assert Written.asked == before + 3


def test_a_model_without_names_keeps_none(tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ece.update.names.continuations", lambda *_, **__: [])
    assert not name_statistics(tiny_llama, [1], Lists(), folder=tmp_path)[1].any()


def test_what_a_recipe_keeps_is_shrunk_text_and_names(tiny_llama: Model):
    recipe = replace(as_recipe("ece"), layers=(1, 2), tokens=512, keep_names=0.5, shrink=0.4)
    text, names = ordinary(tiny_llama, recipe), name_statistics(tiny_llama, [1, 2])
    for layer, found in statistics(tiny_llama, recipe).items():
        wanted = shrunk(text[layer], 0.4) + 0.5 * names[layer].double()
        assert reference.relative(found, wanted) < 1e-6
    assert statistics_key(tiny_llama, names=True) != statistics_key(tiny_llama)
    plain = replace(recipe, keep_names=0.0, shrink=0.0)
    assert all(torch.equal(found, text[layer]) for layer, found in statistics(tiny_llama, plain).items())
