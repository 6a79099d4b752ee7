"""Several passes at a time: the same as one after the other."""

from __future__ import annotations

import threading
import time

import pytest
import tiny as make
import torch

from ece.methods import searching
from ece.methods.engine import with_layers, written_contexts
from ece.methods.recipe import Recipe
from ece.methods.registry import as_recipe
from ece.methods.searching import search
from ece.models import Model
from ece.models.abreast import crew, workers
from ece.models.replay import padded, record
from ece.models.tokens import locate
from ece.targets.warm import WarmStart


@pytest.mark.parametrize("at_once", [1, 3])
def test_each_task_has_its_own_result(at_once: int) -> None:
    with crew(at_once) as submit:
        results = [submit(lambda number=number: time.sleep(0.02 * (number % 3 == 0)) or number) for number in range(10)]
        assert [result.result() for result in results] == list(range(10))


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_task_that_fails_is_heard_and_threads_are_given_back(two_threads: None, at_once: int) -> None:
    def fail() -> int:
        raise ValueError("no")

    def tried() -> None:
        with crew(at_once) as submit:
            submit(lambda: 1)
            submit(fail).result()

    with pytest.raises(ValueError, match="no"):
        tried()
    assert torch.get_num_threads() == 2


def test_threads_are_divided(two_threads: None) -> None:
    assert workers(make.build("llama")) == 2
    with crew(2) as submit:
        tasks = [submit(lambda: (torch.get_num_threads(), threading.get_ident())) for _ in range(3)]
        seen = [task.result() for task in tasks]
    assert {threads for threads, _ in seen} == {1}
    assert threading.get_ident() not in {thread for _, thread in seen}


def found(family: str, recipe: Recipe) -> torch.Tensor:
    model = make.build(family)
    facts = make.random_facts(8)
    recipe = with_layers(model, facts, recipe.with_options({"layers": "1-2", "tokens": "512"}))
    warm = WarmStart(enough=3)
    return search(model, facts, recipe, warm, written_contexts(model)).solved.delta


@pytest.mark.parametrize("family", make.FAMILIES)
@pytest.mark.parametrize("name", ["ece", "memit", "ece-rs", "pmet"])
def test_passes_side_by_side_find_the_same_every_time(
    monkeypatch: pytest.MonkeyPatch, two_threads: None, family: str, name: str
) -> None:
    monkeypatch.setitem(searching.PASS_TOKENS, "cpu", 24)
    recipe = as_recipe(name)
    torch.set_num_threads(1)
    alone = found(family, recipe)
    torch.set_num_threads(2)
    beside = found(family, recipe)
    assert torch.equal(found(family, recipe), beside)
    assert ((beside - alone).norm(dim=1) < 1e-3 * alone.norm(dim=1)).all()  # as near as one and two threads are


def test_recording_in_one_thread_leaves_the_others_alone(tiny: Model) -> None:
    text = locate(tiny, make.FACTS[0].prompt, make.FACTS[0].subject)
    replay = record(tiny, *padded([text.ids], tiny.device))
    with torch.no_grad():
        wanted = replay.run(replay.embedded, 0, len(tiny.layers))
    over = threading.Event()

    def keep_recording() -> None:
        while not over.is_set():
            record(tiny, *padded([text.ids], tiny.device))

    other = threading.Thread(target=keep_recording)
    other.start()
    try:
        with torch.no_grad():
            for _ in range(200):
                assert torch.equal(replay.run(replay.embedded, 0, len(tiny.layers)), wanted)
    finally:
        over.set()
        other.join()
