"""The search for targets: the fast path gives what plain searches through the whole model give."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
import reference
import tiny as make
import torch
from torch import Tensor

from ece.errors import UserError
from ece.facts import Fact
from ece.methods import memory, searching
from ece.methods.memory import needed
from ece.methods.recipe import PerFact, Recipe, TwoStep
from ece.models import Model
from ece.models.tails import SharedPrefixes
from ece.targets.descent import Adam, LogOdds, Solved
from ece.targets.loss import Balls, TargetLoss, Value, Weights
from ece.targets.warm import WarmStart

LAYER = 1
WIDE = Weights(clamp=3)
QUICK = [Fact("I know {}", "Ada Lovelace", "Rome"), Fact("{}", "Victor Hugo", "Paris")]
"""A random model learns these soon: their subjects' last tokens predict the targets."""


def recipe(targets: PerFact | TwoStep, weights: Weights = WIDE) -> Recipe:
    return Recipe("test", "", "", targets, layers=(0, LAYER), weights=weights)


def searched(
    model: Model, facts: Sequence[Fact], targets: PerFact | TwoStep, before: Sequence[str], weights: Weights = WIDE
) -> Solved:
    return searching.search(model, facts, recipe(targets, weights), WarmStart(), before).solved


def prepared(model: Model, facts: Sequence[Fact], before: Sequence[str], weights: Weights | None = None) -> TargetLoss:
    prefixes = SharedPrefixes.compute(model, [reference.token_ids(model, text.rstrip()) for text in before])
    return TargetLoss.prepare(model, facts, LAYER, before, prefixes, weights or Weights())


def plain(model: Model, fact: Fact, before: Sequence[str], clamp: float = 3, kl: float = 0.0625) -> reference.PlainLoss:
    return reference.PlainLoss(model, fact, LAYER, before, clamp=clamp, kl=kl)


@pytest.mark.parametrize("length", [0.0, 0.4])
def test_loss_and_gradient_equal_the_plain_ones(tiny: Model, more_facts: list[Fact], before: list[str], length: float):
    loss = prepared(tiny, more_facts, before)
    delta = torch.randn(loss.hidden.shape, generator=torch.Generator().manual_seed(1))
    delta = length * loss.hidden.norm(dim=1, keepdim=True) * delta / delta.norm(dim=1, keepdim=True)
    value = loss(delta)
    for i, fact in enumerate(more_facts):
        slow = plain(tiny, fact, before)
        variable = delta[i].clone().requires_grad_()
        nll, total = slow(variable)
        (gradient,) = torch.autograd.grad(total, variable)
        torch.testing.assert_close(loss.hidden[i], slow.hidden, rtol=1e-5, atol=1e-5)
        assert value.nll[i].item() == pytest.approx(nll.item(), rel=1e-4)
        assert value.total[i].item() == pytest.approx(total.item(), rel=1e-4)
        assert reference.relative(value.gradient[i], gradient) < 1e-4


@pytest.mark.parametrize(("stop", "clamp"), [(None, 0.75), (1.0, 3)])
def test_adam_equals_the_plain_search(
    tiny: Model, facts: list[Fact], before: list[str], stop: float | None, clamp: float
):
    some = [*QUICK, facts[2]]
    solved = searched(tiny, some, PerFact(Adam(25, 0.5, stop)), before[:2], Weights(clamp=clamp))
    for i, fact in enumerate(some):
        delta, evaluations = reference.adam_search(plain(tiny, fact, before[:2], clamp), 25, 0.5, stop)
        assert reference.relative(solved.delta[i], delta) < 1e-4
        assert solved.evaluations[i] == evaluations
    assert solved.evaluations[2] == 25
    assert bool(solved.evaluations[:2].min() < 25) == (stop is not None)
    assert not solved.failed.any()


def test_log_odds_equals_the_plain_search(tiny: Model, facts: list[Fact], before: list[str]):
    some = [*QUICK, facts[0]]
    solved = searched(tiny, some, PerFact(LogOdds()), before[:2])
    for i, fact in enumerate(some):
        delta, evaluations = reference.log_odds_search(plain(tiny, fact, before[:2]))
        assert reference.relative(solved.delta[i], delta) < 1e-3
        assert solved.evaluations[i] == evaluations
    assert solved.evaluations[0] < 25 == solved.evaluations[2]


def test_log_odds_can_stop_without_a_last_step(tiny_llama: Model, before: list[str]):
    solved = searched(tiny_llama, QUICK, PerFact(LogOdds(stop_below=0.5, last_below=0)), before[:2])
    for i, fact in enumerate(QUICK):
        slow = plain(tiny_llama, fact, before[:2])
        delta, evaluations = reference.log_odds_search(slow, stop_below=0.5, last_below=0)
        assert reference.relative(solved.delta[i], delta) < 1e-3
        assert solved.evaluations[i] == evaluations < 25
        assert solved.nll[i] < 0.5
        assert solved.nll[i].item() == pytest.approx(slow(delta)[0].item(), rel=1e-3)  # of the delta it ends with


def test_two_steps_equal_composed_plain_searches(tiny: Model, more_facts: list[Fact], before: list[str]):
    choice = TwoStep(by="relation", shared=Adam(6, 0.5), own=Adam(3, 0.5))
    sought = searching.search(tiny, more_facts, recipe(choice), WarmStart(), before[:2])
    solved, clusters = sought.solved, sought.clusters
    assert clusters is not None
    assert clusters.of_fact.tolist() == [0, 1, 2, 0, 1]
    slow = [plain(tiny, fact, before[:2]) for fact in more_facts]
    for i in range(len(more_facts)):
        anchor = int(clusters.anchors[clusters.of_fact[i]])
        shared, _ = reference.adam_search(slow[anchor], 6, 0.5)
        own, _ = reference.adam_search(slow[i], 3, 0.5, start=shared)
        assert reference.relative(solved.delta[i], own) < 1e-4
        assert solved.evaluations[i] == (9 if i == anchor else 3)


def test_own_steps_from_zero(tiny_llama: Model, facts: list[Fact], before: list[str]):
    choice = TwoStep(by="none", shared=Adam(6, 0.5), own=Adam(3, 0.5), start="zero")
    solved = searched(tiny_llama, facts, choice, before[:2])
    alone = searched(tiny_llama, facts, PerFact(Adam(3, 0.5)), before[:2])
    torch.testing.assert_close(solved.delta, alone.delta)


@pytest.mark.parametrize("descent", [Adam(8, 0.5, stop_below=0.5), LogOdds(evaluations=8)])
def test_facts_together_give_the_same_as_alone(
    tiny: Model, more_facts: list[Fact], before: list[str], descent: Adam | LogOdds
):
    together = searched(tiny, more_facts, PerFact(descent), before)
    for i, fact in enumerate(more_facts):
        alone = searched(tiny, [fact], PerFact(descent), before)
        assert reference.relative(together.delta[i], alone.delta[0]) < 1e-4
        assert together.evaluations[i] == alone.evaluations[0]
        assert together.nll[i].item() == pytest.approx(alone.nll[0].item(), rel=1e-3)


def test_many_small_passes_give_the_same_as_one(
    tiny_llama: Model, more_facts: list[Fact], before: list[str], monkeypatch: pytest.MonkeyPatch
):
    choice = PerFact(Adam(5, 0.5))
    once = searched(tiny_llama, more_facts, choice, before)
    monkeypatch.setattr(searching, "PASS_TOKENS", {"cpu": 1, "other": 1})
    assert reference.relative(searched(tiny_llama, more_facts, choice, before).delta, once.delta) < 1e-5


def test_a_recipe_says_how_full_passes_are(
    tiny_llama: Model, more_facts: list[Fact], before: list[str], monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    through = TargetLoss.through

    def noted(loss: TargetLoss, facts: Tensor, *others: Any) -> TargetLoss:
        sizes.append(len(facts))
        return through(loss, facts, *others)

    monkeypatch.setattr(TargetLoss, "through", noted)
    chosen = recipe(PerFact(Adam(1)))
    for pass_tokens, wanted in ((1, [1] * 5), (10**6, [2, 3]), (None, [2, 3])):
        some = chosen.with_options({"pass_tokens": pass_tokens})
        sizes.clear()
        searching.search(tiny_llama, more_facts, some, WarmStart(), before)
        assert sorted(sizes) == wanted
        assert searching.pass_tokens(tiny_llama, some) == (pass_tokens or searching.PASS_TOKENS["cpu"])


def test_smaller_passes_need_less_memory(tiny_llama: Model):
    chosen = recipe(PerFact())
    small, large = (needed(tiny_llama, chosen, tokens) for tokens in (100, 300))
    values = 12 * tiny_llama.d_model + 4 * tiny_llama.d_ff
    assert large - small == 200 * 4 * (len(tiny_llama.layers) - LAYER - 1) * values


def test_a_search_holds_what_its_passes_may_or_what_its_facts_have(
    tiny_llama: Model, more_facts: list[Fact], before: list[str], monkeypatch: pytest.MonkeyPatch
):
    """A fact's prompts are read from the subject's last token to the target's last but one; a row counts two more."""
    chosen, read = recipe(PerFact()), 0
    for fact in more_facts:
        text = reference.token_ids(tiny_llama, f"{fact.prompt.format(fact.subject)} {fact.target}")
        tail = len(text) - 1 - reference.subject_position(tiny_llama, fact)
        read += (len(before) + 1) * (tail + searching.ROW_TOKENS)
    assert searching.tokens_at_a_time(tiny_llama, more_facts, chosen, before) == read
    few = chosen.with_options({"pass_tokens": 10})
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert searching.tokens_at_a_time(tiny_llama, more_facts, few, before) == 10 * threads


def test_passes_that_fit_are_named(tiny_llama: Model, monkeypatch: pytest.MonkeyPatch):
    chosen = recipe(PerFact())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(memory, "available", lambda device: needed(tiny_llama, chosen, 121))
    memory.check(tiny_llama, chosen, 121)
    with pytest.raises(UserError, match=r"pass_tokens=60\)"):
        memory.check(tiny_llama, chosen, 122)
    monkeypatch.setattr(memory, "available", lambda device: needed(tiny_llama, chosen, 0) - 1)
    with pytest.raises(UserError, match="layers") as refused:
        memory.check(tiny_llama, chosen, 122)
    assert "pass_tokens" not in str(refused.value)
    last = dataclasses.replace(chosen, layers=(len(tiny_llama.layers) - 1,))
    assert needed(tiny_llama, last, 122) == needed(tiny_llama, last, 0)  # nothing stands above it
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(UserError, match="layers"):
        memory.check(tiny_llama, last, 122)


def assert_same(found: Value, wanted: Value, facts: Tensor) -> None:
    for name in ("nll", "total", "gradient"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name)[facts], rtol=1e-4, atol=1e-5)


def test_select_renumbers_facts(tiny_llama: Model, more_facts: list[Fact], before: list[str]):
    loss = prepared(tiny_llama, more_facts, before)
    delta = torch.randn(loss.hidden.shape)
    whole = loss(delta)
    some = torch.tensor([0, 3, 4])
    assert_same(loss.select(some)(delta[some]), whole, some)
    assert_same(loss.select(some).select(torch.tensor([1]))(delta[[3]]), whole, torch.tensor([3]))


def test_select_in_another_order(tiny_llama: Model, more_facts: list[Fact], before: list[str]):
    loss = prepared(tiny_llama, more_facts, before)
    delta = torch.randn(loss.hidden.shape)
    order = torch.tensor([3, 0, 4])
    assert_same(loss.select(order)(delta[order]), loss(delta), order)


def test_terms_can_be_switched_off(tiny_llama: Model, facts: list[Fact], before: list[str]):
    delta = torch.randn(len(facts), tiny_llama.d_model)
    value = prepared(tiny_llama, facts, before, Weights(kl=0, decay=0))(delta)
    assert torch.equal(value.nll, value.total)
    full = prepared(tiny_llama, facts, before)(delta)
    assert (full.total > full.nll).all()


def test_delta_stays_inside_the_ball(tiny: Model, facts: list[Fact], before: list[str]):
    loss = prepared(tiny, facts, before[:1], Weights(clamp=0.1))
    radius = 0.1 * loss.hidden.norm(dim=1)
    far = loss.project(10 * loss.hidden)
    torch.testing.assert_close(far.norm(dim=1), radius)
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(far, loss.hidden), torch.ones(3))
    assert torch.equal(loss.project(0.01 * loss.hidden), 0.01 * loss.hidden)
    for descent in (Adam(4, 0.5), LogOdds()):
        assert (descent(loss, torch.zeros_like(loss.hidden)).delta.norm(dim=1) <= radius * (1 + 1e-5)).all()


def test_search_lowers_the_loss(tiny: Model, more_facts: list[Fact], before: list[str]):
    loss = prepared(tiny, more_facts, before)
    zero = torch.zeros_like(loss.hidden)
    for descent in (Adam(15, 0.1), LogOdds()):
        assert (loss(descent(loss, zero).delta).nll < loss(zero).nll).all()


BAD = Fact("Paris is near {} and", "Kelva", "Rome", "bad")


def poisoned(model: Model, facts: Sequence[Fact], before: Sequence[str]) -> Model:
    """A model in which `BAD` gives NaN and the other facts do not."""
    texts = [f"{text}{fact} {fact.subject} is a" for text in before for fact in facts]
    elsewhere = {token for text in texts for token in reference.token_ids(model, text)}
    own = set(reference.token_ids(model, BAD.subject)) & set(reference.token_ids(model, f"{BAD.subject} is a"))
    model.network.get_input_embeddings().weight.data[list(own - elsewhere)] = math.nan  # pyright: ignore
    return model


GIVING_UP = {
    "adam": PerFact(Adam(6, 0.5)),
    "adam with stop": PerFact(Adam(6, 0.5, 0.5)),
    "log-odds": PerFact(LogOdds(evaluations=6)),
    "two steps": TwoStep(by="relation"),
}


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [(name, torch.float64, 1e-9) for name in GIVING_UP]
    + [(name, torch.float32, 1e-5) for name in GIVING_UP if name != "two steps"],  # its 25 steps make rounding grow
)
def test_facts_with_nan_are_given_up_and_the_rest_are_as_without_them(
    tiny_llama: Model, more_facts: list[Fact], before: list[str], name: str, dtype: torch.dtype, bound: float
):
    model, targets = make.cast(poisoned(tiny_llama, more_facts, before), dtype), GIVING_UP[name]
    mixed = [more_facts[0], BAD, *more_facts[1:]]
    solved, wanted = searched(model, mixed, targets, before), searched(model, more_facts, targets, before)
    assert solved.failed.tolist() == [False, True, False, False, False, False]
    assert (solved.delta[1] == 0).all()
    rest = [0, 2, 3, 4, 5]
    assert reference.relative(solved.delta[rest], wanted.delta) < bound
    assert torch.equal(solved.evaluations[rest], wanted.evaluations)


def test_only_bad_facts(tiny_llama: Model, before: list[str]):
    solved = searched(poisoned(tiny_llama, [], before), [BAD], PerFact(Adam(4)), before)
    assert solved.failed.tolist() == [True]
    assert solved.delta.abs().sum() == 0


@dataclasses.dataclass
class Bowl:
    """A loss with the ways of `TargetLoss`: the squared distance to 3, NaN for some facts after some evaluations."""

    facts: Tensor
    nan_from: dict[int, int]
    evaluated: list[int] = dataclasses.field(default_factory=lambda: [0])

    @property
    def balls(self) -> Balls:
        one = torch.ones(len(self.facts))
        return Balls(torch.full((len(self.facts), 2), 10.0), one, math.inf, one)

    def __len__(self) -> int:
        return len(self.facts)

    def __call__(self, delta: Tensor, ranked: bool = False) -> Value:
        self.evaluated[0] += 1
        nll = (delta - 3).pow(2).sum(1) / 10
        for i, fact in enumerate(self.facts.tolist()):
            if self.evaluated[0] >= self.nan_from.get(fact, 99):
                nll[i] = math.nan
        return Value(nll, nll, (delta - 3) / 5)

    def select(self, facts: Tensor) -> Bowl:
        return Bowl(self.facts[facts], self.nan_from, self.evaluated)


@pytest.mark.parametrize("descent", [Adam(8, 0.5, 0.1), Adam(8, 0.5), LogOdds(evaluations=8)])
def test_a_fact_that_fails_in_the_middle_disturbs_no_other(descent: Adam | LogOdds):
    start = torch.tensor([[0.0, 0], [-9, -7], [-2, 0], [2.5, 2]])

    def run(facts: list[int], nan_from: dict[int, int]) -> Solved:
        loss = cast(TargetLoss, Bowl(torch.tensor(facts), nan_from))
        return descent(loss, start[facts])

    solved, wanted = run([0, 1, 2, 3], {1: 2, 2: 1}), run([0, 3], {})
    assert solved.failed.tolist() == [False, True, True, False]
    assert solved.delta[[1, 2]].abs().sum() == 0
    assert torch.equal(solved.delta[[0, 3]], wanted.delta)
    assert torch.equal(solved.evaluations[[0, 3]], wanted.evaluations)


@pytest.mark.parametrize("descent", [Adam(8, 0.5, 0.1), Adam(8, 0.5), LogOdds(evaluations=8)])
@pytest.mark.parametrize("nan_from", [{0: 1, 1: 1, 2: 1}, {0: 1, 1: 2, 2: 2}])
def test_all_facts_may_fail_at_once(descent: Adam | LogOdds, nan_from: dict[int, int]):
    loss = cast(TargetLoss, Bowl(torch.arange(3), nan_from))
    solved = descent(loss, torch.zeros(3, 2))
    assert solved.failed.all()
    assert solved.delta.abs().sum() == 0
    assert solved.evaluations.tolist() == [nan_from[fact] - 1 for fact in range(3)]


@dataclasses.dataclass
class Slope(Bowl):
    """A loss of one value and one gradient everywhere, with a state so large that no step is too long."""

    nll: float = 1.0
    in_target: int = 1

    @property
    def balls(self) -> Balls:
        return Balls(torch.full((1, 2), 1e6), torch.ones(1), math.inf, torch.tensor([self.in_target]))

    def __call__(self, delta: Tensor, ranked: bool = False) -> Value:
        self.evaluated[0] += 1
        nll = torch.full((1,), self.nll)
        return Value(nll, nll, torch.tensor([[0.03, -0.04]]))


@pytest.mark.parametrize(
    ("nll", "tokens", "aim", "evaluations"),
    [(2.0, 1, 4.0, 1), (0.4, 1, 4.0, 1), (0.2, 1, 5.0, 9), (0.2, 2, 4.0, 1), (0.14, 2, 5.0, 9)],
)
def test_log_odds_steps_aim_where_the_slope_leads(nll: float, tokens: int, aim: float, evaluations: int):
    """By hand: the log-odds rise by |g| / (1 - p) along -g; the last step aims higher, and is one.

    It comes where the NLL of the target's tokens together is below 0.3.
    """
    loss = Slope(torch.tensor([0]), {}, nll=nll, in_target=tokens)
    solved = LogOdds(evaluations=evaluations)(cast(TargetLoss, loss), torch.zeros(1, 2))
    p = math.exp(-nll)
    length = (aim - math.log(p / (1 - p))) / (0.05 / (1 - p))
    torch.testing.assert_close(solved.delta, length * torch.tensor([[-0.6, 0.8]]))
    assert loss.evaluated[0] == 1


def test_warm_start_learns_directions():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    embeddings, hidden = torch.randn(60, 8, generator=generator), torch.ones(60, 8)
    warm = WarmStart(length=0.3, ridge=1e-4, enough=20)
    warm.learn(embeddings[:10], embeddings[:10] @ rotation)
    assert (warm(embeddings, hidden) == 0).all()  # too few yet
    warm.learn(embeddings[10:40], 5 * embeddings[10:40] @ rotation)
    start = warm(embeddings[40:], hidden[40:])
    torch.testing.assert_close(start.norm(dim=1), 0.3 * hidden[40:].norm(dim=1))
    assert torch.nn.functional.cosine_similarity(start, embeddings[40:] @ rotation).min() > 0.9


def test_warm_start_is_one_ridge_regression_however_it_was_learned():
    torch.manual_seed(1)
    embeddings, directions = torch.randn(33, 6), torch.nn.functional.normalize(torch.randn(33, 6), dim=1)
    hidden = torch.randn(4, 6)
    x = embeddings.double()
    centre, scale = x.mean(0), x.std()

    def design(rows):
        return torch.cat([(rows - centre) / scale, torch.ones(len(rows), 1)], 1)

    moment = design(x).T @ design(x) + 0.1 * len(x) * torch.eye(7)
    predicted = design(embeddings[:4].double()) @ moment.inverse() @ design(x).T @ directions.double()
    expected = 0.3 * hidden.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(predicted, dim=1)
    warm = WarmStart()
    for part in (slice(0, 1), slice(1, 20), slice(20, 33)):
        warm.learn(embeddings[part], 7 * directions[part])
    torch.testing.assert_close(warm(embeddings[:4], hidden), expected.float())


def test_what_a_warm_start_keeps_does_not_grow():
    warm = WarmStart()
    assert warm.learned == []
    warm.learn(torch.randn(20, 6), torch.randn(20, 6))
    before = [part.shape for part in warm.learned]
    alone = warm.copy()
    for _ in range(5):
        warm.learn(torch.randn(50, 6), torch.randn(50, 6))
    assert [part.shape for part in warm.learned] == before
    assert not any(torch.equal(mine, yours) for mine, yours in zip(alone.learned[1:], warm.learned[1:], strict=True))


def test_warm_start_ignores_failed_facts():
    embeddings = torch.randn(30, 8)
    delta = torch.randn(30, 8)
    delta[::3] = 0
    with_failed, without = WarmStart(enough=5), WarmStart(enough=5)
    with_failed.learn(embeddings, delta)
    without.learn(embeddings[delta.norm(dim=1) > 0], delta[delta.norm(dim=1) > 0])
    start = with_failed(embeddings, torch.ones(30, 8))
    assert start.isfinite().all()
    assert torch.equal(start, without(embeddings, torch.ones(30, 8)))


@pytest.mark.parametrize("kl", [0.0, 2.0])
def test_views_see_their_own_prompts_in_turn(tiny_llama: Model, facts: list[Fact], before: list[str], kl: float):
    """Three contexts and the essence prompt, dealt out among two views: the second has it, and counts it for both."""
    loss, all_facts = prepared(tiny_llama, facts, before, Weights(kl=kl, clamp=3)), torch.arange(3)
    delta = torch.randn(loss.hidden.shape, generator=torch.Generator().manual_seed(2))
    parts = [([before[0], before[2]], 0.0), ([before[1]], 2 * kl)]
    for turns in ([0, 0, 0], [1, 1, 1], [2, 2, 2], [0, 1, 3]):
        value = loss.through(all_facts, torch.tensor(turns), 2)(delta)
        for i, (fact, turn) in enumerate(zip(facts, turns, strict=True)):
            contexts, weight = parts[turn % 2]
            nll, total = plain(tiny_llama, fact, contexts, kl=weight)(delta[i])
            assert value.nll[i].item() == pytest.approx(nll.item(), rel=1e-4)
            assert value.total[i].item() == pytest.approx(total.item(), rel=1e-4)


def test_views_of_some_facts(tiny_llama: Model, facts: list[Fact], before: list[str]):
    loss, all_facts = prepared(tiny_llama, facts, before), torch.arange(3)
    delta, some, turn = torch.randn(loss.hidden.shape), torch.tensor([0, 2]), torch.tensor([1, 1, 1])
    selected = loss.through(some, turn[some], 3)
    assert len(selected) == 2
    assert_same(selected(delta[some]), loss.through(all_facts, turn, 3)(delta), some)
    assert_same(loss.through(all_facts, turn, 1)(delta), loss(delta), all_facts)
