"""Facts that wait take the places of those that are done: nothing of what is found depends on it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast
from unittest.mock import patch

import pytest
import tiny as make
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ece.facts import Fact
from ece.methods import searching
from ece.methods.recipe import PerFact, Recipe
from ece.models import Model
from ece.models.abreast import ABREAST
from ece.models.tails import SharedPrefixes
from ece.targets.descent import Adam, Descent, LogOdds, Search, Solved, Steps
from ece.targets.loss import Balls, TargetLoss, Value, Weights
from ece.targets.stream import Deltas, Stream
from ece.targets.warm import WarmStart, target_embeddings


class Countdown(Descent):
    """Goes one further at each evaluation, until a fact's loss is at most one."""

    stop_when_first = None

    @property
    def at_most(self) -> int:
        return 99

    def descend(self, search: Search) -> Steps:
        while len(search.active):
            value = yield from search.evaluate()
            search.move(search.delta + 1)
            search.leave(value.nll <= 1)


@dataclass(frozen=True)
class Patience:
    """A loss that is the number of evaluations that facts still need."""

    members: Tensor
    needs: Tensor

    @property
    def balls(self) -> Balls:
        one = torch.ones(len(self.needs))
        return Balls(torch.zeros(len(self.needs), 1), one, math.inf, one)

    def through(self, facts: Tensor, turn: Tensor, views: int) -> Patience:
        return Patience(self.members[facts], self.needs[facts] - turn)

    def __call__(self, delta: Tensor, ranked: bool = False) -> Value:
        return Value(self.needs.float(), self.needs.float(), torch.zeros_like(delta))


@dataclass
class Noted:
    """What a stream tells and asks."""

    started: list[int] = field(default_factory=list)
    halfway: list[list[int]] = field(default_factory=list)
    done: list[int] = field(default_factory=list)

    def start(self, members: Tensor, hidden: Tensor, so_far: Deltas) -> Tensor:
        self.started += members.tolist()
        self.halfway.append(so_far[0].tolist())
        assert len(so_far[1]) == len(so_far[0])
        return 100.0 * members[:, None]

    def finish(self, deltas: Deltas) -> None:
        self.done += deltas[0].tolist()


def streamed(
    needs: list[int], lengths: list[int] | list[list[int]], budget: int, workers: int = 1, together: int = 3
) -> tuple[Solved, list[list[int]], Noted]:
    """What a stream finds, the facts of each of its passes, and what it told; so many facts are prepared together."""
    passes, noted = [], Noted()

    def prepare(members: Sequence[int]) -> TargetLoss:
        facts = torch.tensor(members)
        return cast(TargetLoss, Patience(facts, torch.tensor(needs)[facts]))

    def joined(parts: Sequence[Patience]) -> Patience:
        passes.append(torch.cat([part.members for part in parts]).tolist())
        return Patience(torch.tensor(passes[-1]), torch.cat([part.needs for part in parts]))

    by_view = [length if isinstance(length, list) else [length] for length in lengths]
    stream = Stream(Countdown(), prepare, by_view, budget, noted.start, noted.finish)
    facts = list(range(len(needs)))
    groups = [facts[first : first + together] for first in range(0, len(facts), together)]
    with patch.object(TargetLoss, "joined", joined):
        return stream.run(groups, workers), passes, noted


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=20),
    st.integers(1, 30),
    st.sampled_from([1, 2]),
    st.integers(1, 20),
)
def test_every_fact_is_searched_for_as_if_alone(
    facts: list[tuple[int, int]], budget: int, workers: int, together: int
) -> None:
    needs, lengths = (list(part) for part in zip(*facts, strict=True))
    solved, passes, noted = streamed(needs, lengths, budget, workers, together)
    members = list(range(len(needs)))
    assert noted.started == members
    assert sorted(noted.done) == members
    assert solved.evaluations.tolist() == needs
    assert solved.delta[:, 0].tolist() == [100 * member + need for member, need in zip(members, needs, strict=True)]
    for facts_of_pass in passes:
        tokens = [lengths[fact] for fact in facts_of_pass]
        assert len(tokens) == 1 or sum(tokens) <= budget + max(tokens) / 2


@pytest.mark.parametrize("workers", [1, 2])
def test_those_that_wait_take_the_places_of_those_that_are_done(workers: int) -> None:
    """Beside a fact that takes four evaluations there is always another: 24 evaluations are 12 full passes."""
    needs = [4] + [1] * 20
    _, passes, _ = streamed(needs, [1] * len(needs), 2, workers)
    assert sorted(len(facts) for facts in passes) == [2] * 12


def test_a_pass_is_as_full_as_its_views_are_long() -> None:
    """24 facts take 3 tokens and then 1: with 6 in a pass 16 are enough, if second evaluations are not counted as 3."""
    lengths = [3, 1]
    _, passes, _ = streamed([2] * 24, [lengths] * 24, 6, together=4)
    turns: Counter[int] = Counter()
    tokens = []
    for facts in passes:
        tokens.append(sum(lengths[turns[fact]] for fact in facts))
        turns.update(facts)
    assert sum(tokens) == 24 * 4
    assert max(tokens) <= 6 + 3 / 2
    assert len(passes) <= 18


def test_the_last_facts_are_divided_among_the_workers_alone() -> None:
    """Three passes are under way; when none wait, what is left of one joins another."""
    _, passes, _ = streamed([9, 1, 9, 1, 9, 1], [1] * 6, 2)
    lengths = [len(facts) for facts in passes]
    assert lengths[:3] == [2, 2, 2]
    assert sum(lengths) == 30
    assert len(lengths) <= 3 + 8 * ABREAST


@pytest.mark.parametrize("workers", [1, 2])
def test_no_worker_is_idle_while_the_other_has_all_that_is_left(workers: int) -> None:
    """Six facts begin in two passes, for the last is not prepared in time for the first, and go on three by three."""
    _, passes, _ = streamed([5] * 6, [1] * 6, 6, workers, together=1)
    assert sorted(len(facts) for facts in passes) == [1, *[3] * 8, 5]


def test_the_last_facts_share_a_pass_that_has_all_threads(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once what is left is half a pass; until then each of two workers has one of the threads."""
    threads, evaluate = [], Patience.__call__

    def noting(loss: Patience, delta: Tensor, ranked: bool = False) -> Value:
        threads.append(torch.get_num_threads())
        return evaluate(loss, delta, ranked)

    monkeypatch.setattr(Patience, "__call__", noting)
    _, passes, _ = streamed([5] * 4 + [2] * 4, [1] * 8, 8, workers=2, together=8)
    assert [len(facts) for facts in passes] == [8, 8, 4, 4, 4]
    assert threads == [1, 1, 2, 2, 2]


def test_a_start_is_told_how_far_others_have_come() -> None:
    _, _, noted = streamed([1, 3, 2, 2, 1, 1, 1, 1], [1] * 8, 2, together=2)
    assert noted.halfway[:3] == [[], [], [1]]  # 0 is done, and nothing is known of 2 and 3 yet


def test_what_workers_do_at_the_same_time_is_not_known_to_each_other() -> None:
    needs = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 2, 1]
    alone, beside = (streamed(needs, [1] * len(needs), 3, workers)[2] for workers in (1, ABREAST))
    assert alone == beside


@pytest.mark.parametrize("descent", [Adam(6, 0.5, stop_below=3.0), LogOdds(evaluations=6)])
def test_a_search_in_full_passes_finds_what_one_by_one_does(
    tiny: Model, before: list[str], descent: Descent, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = make.random_facts(9)
    recipe = Recipe("test", "", "", PerFact(descent, views=2), layers=(0, 1), weights=Weights(clamp=3))  # pyright: ignore
    found = {}
    for tokens in (1, 40, 10**6):
        monkeypatch.setitem(searching.PASS_TOKENS, "cpu", tokens)
        found[tokens] = searching.search(tiny, facts, recipe, WarmStart(), before).solved
    for tokens in (40, 10**6):
        assert torch.equal(found[tokens].evaluations, found[1].evaluations)
        torch.testing.assert_close(found[tokens].delta, found[1].delta, rtol=1e-3, atol=1e-4)


def test_losses_joined_are_those_of_all_facts(tiny: Model, more_facts: list[Fact], before: list[str]) -> None:
    """Tails, pasts and predictions of unequal number; one fact's subject stands first, and has no past of its own."""
    facts = [Fact("{} is in", "Kyoto", "Rome"), *more_facts]
    prefixes = SharedPrefixes.compute(tiny, [tiny.tokenizer(text.rstrip())["input_ids"] for text in before])

    def prepared(some: Sequence[Fact]) -> TargetLoss:
        return TargetLoss.prepare(tiny, some, 1, before, prefixes)

    whole, parts = prepared(facts), [prepared(facts[:1]), prepared(facts[1:4]), prepared(facts[4:])]
    joined, delta = TargetLoss.joined(parts), torch.randn(len(facts), tiny.d_model)
    assert len(joined) == len(facts)
    some, turn = torch.tensor([4, 0, 2]), torch.tensor([0, 1, 1])
    for mine, reference in (
        (joined(delta), whole(delta)),
        (joined.through(some, turn, 2)(delta[some]), whole.through(some, turn, 2)(delta[some])),
    ):
        for name in ("nll", "total", "gradient"):
            torch.testing.assert_close(getattr(mine, name), getattr(reference, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joined.balls.size, whole.balls.size)
    assert torch.equal(joined.balls.tokens, whole.balls.tokens)


def test_a_start_is_learned_from_those_that_are_halfway(
    tiny_llama: Model, more_facts: list[Fact], before: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is so for that start alone: what they come to in the end is learned when they are done."""
    caught: list[Stream] = []

    def caught_at(stream: Stream, groups: Sequence[list[int]], workers: int) -> Solved:
        caught.append(stream)
        raise InterruptedError

    monkeypatch.setattr(Stream, "run", caught_at)
    recipe = Recipe("test", "", "", PerFact(LogOdds(), warm=True), layers=(0, 1))
    with pytest.raises(InterruptedError):
        searching.search(tiny_llama, more_facts, recipe, WarmStart(enough=2), before)
    start, hidden = caught[0].start, torch.randn(1, tiny_llama.d_model)
    nobody, so_far = (torch.tensor([], dtype=torch.long), hidden[:0]), torch.randn(2, tiny_llama.d_model)
    embeddings, wanted = target_embeddings(tiny_llama, [fact.target for fact in more_facts]), WarmStart(enough=2)
    wanted.learn(embeddings[[1, 3]], so_far)
    found = start(torch.tensor([0]), hidden, (torch.tensor([1, 3]), so_far))
    torch.testing.assert_close(found, wanted(embeddings[:1], hidden))
    assert found.norm() > 0
    assert (start(torch.tensor([0]), hidden, nobody) == 0).all()
