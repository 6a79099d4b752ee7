"""Searches for delta: Adam (the paper's), PMET's pair, and log-odds steps (ours, docs/method.md)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ece.errors import UserError
from ece.targets.loss import Balls, TargetLoss, Value

Steps = Generator[Tensor, Value, None]
"""A search that says where it wants loss and gradient of its active facts `[active, d_model]`, and is handed them."""


@dataclass
class Solved:
    """Where a search ended."""

    delta: Tensor
    """`[facts, d_model]`, float32"""

    nll: Tensor
    """`[facts]`: at the last evaluation"""

    evaluations: Tensor
    """`[facts]`: of loss and gradient"""

    failed: Tensor
    """`[facts]` bool: the loss became NaN or infinite; delta is zero there"""

    @classmethod
    def joined(cls, parts: Sequence[Solved], order: Tensor | slice = slice(None)) -> Solved:
        """The facts of several searches in one, put in another order if one is given."""
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts])[order] for name in names))


class Search:
    """The state of a search: facts that are done leave it, and cost nothing any more."""

    def __init__(self, balls: Balls, start: Tensor):
        """Begin with all facts active at `start` `[facts, d_model]`, projected into their balls."""
        facts, device = len(balls), start.device
        self.balls = balls
        self.firsts = torch.zeros(facts, dtype=torch.int, device=device)
        self.active = torch.arange(facts, device=device)
        self.solved = Solved(
            balls.project(start),
            torch.full((facts,), math.nan, device=device),
            torch.zeros(facts, dtype=torch.int, device=device),
            torch.zeros(facts, dtype=torch.bool, device=device),
        )

    @property
    def delta(self) -> Tensor:
        """Of the active facts `[active, d_model]`."""
        return self.solved.delta[self.active]

    def evaluate(self, delta: Tensor | None = None) -> Generator[Tensor, Value, Value]:
        """The loss of the active facts, at delta or where they are. Those whose loss is not finite are given up."""
        value = yield self.delta if delta is None else delta
        bad = ~(value.total.isfinite() & value.gradient.isfinite().all(1))
        if bad.any():
            given_up = self.active[bad]
            self.solved.failed[given_up] = True
            self.solved.delta[given_up] = 0
            self.leave(bad)
            value = value.select(~bad)
        self.solved.nll[self.active] = value.nll
        self.solved.evaluations[self.active] += 1
        if value.first is not None:
            self.firsts[self.active] += value.first.int()
        return value

    def reached(self, nll: Tensor, stop_below: float | None, stop_when_first: int | None) -> Tensor:
        """`[active]` bool: which facts need no further step, by their `nll` `[active]`."""
        done = torch.zeros_like(nll, dtype=torch.bool) if stop_below is None else nll < stop_below
        return done if stop_when_first is None else done | (self.firsts[self.active] >= stop_when_first)

    def move(self, delta: Tensor) -> None:
        """Put the active facts at `delta` `[active, d_model]`, projected into their balls."""
        self.solved.delta[self.active] = self.balls.project(delta)

    def leave(self, done: Tensor) -> None:
        """Take the facts marked in `done` `[active]` (bool) out of the search."""
        if done.any():
            self.active = self.active[~done]
            self.balls = self.balls.select((~done).nonzero()[:, 0])


class Course:
    """A search under way, from one evaluation to the next. It is over when no fact is left, or the descent ends."""

    def __init__(self, descent: Descent, balls: Balls, start: Tensor):
        """Begin at `start` `[facts, d_model]`."""
        self.search = Search(balls, start)
        self._steps = descent.descend(self.search)
        self.asked = next(self._steps)
        """Where the active facts wait for an evaluation `[active, d_model]`."""

    @property
    def active(self) -> Tensor:
        """Their numbers; none when the search is over."""
        return self.search.active[: len(self.asked)]

    @property
    def turn(self) -> Tensor:
        """How many evaluations they have had `[active]`."""
        return self.search.solved.evaluations[self.active]

    def go_on(self, value: Value) -> None:
        """Take the next step, with the loss of the active facts where it was asked for."""
        try:
            self.asked = self._steps.send(value)
        except StopIteration:
            self.asked = self.asked[:0]


class Descent(ABC):
    """A search for the delta that makes a loss small, for many facts at once."""

    stop_when_first: int | None
    """Whether evaluations are to say, too, which targets are the most probable; if not None."""

    @property
    @abstractmethod
    def at_most(self) -> int:
        """Evaluations of a fact, at most."""

    @abstractmethod
    def descend(self, search: Search) -> Steps:
        """Search from where the facts are."""

    def __call__(self, loss: TargetLoss, start: Tensor) -> Solved:
        """Search from `start` `[facts, d_model]`, all facts together."""
        course = Course(self, loss.balls, start)
        while len(course.active):
            seen = loss if len(course.active) == len(loss) else loss.select(course.active)
            course.go_on(seen(course.asked, self.stop_when_first is not None))
        return course.search.solved


@dataclass(frozen=True)
class Adam(Descent):
    """Adam on each fact's delta, projected into the clamp's ball after each step (ROME's and MEMIT's search)."""

    steps: Annotated[int, Field(ge=1)] = 25
    """Evaluations of loss and gradient, at most."""

    rate: Annotated[float, Field(gt=0)] = 0.5
    """Adam's learning rate."""

    stop_below: float | None = None
    """A fact leaves when its NLL is below this (MEMIT: 0.05, of the total loss, which the decay term can hold up)."""

    stop_when_first: Annotated[int, Field(ge=1)] | None = None
    """A fact leaves at this many-th evaluation at which its target is the most probable on all prompts (ENCORE's MPES,
    arXiv 2502.01636: 2 to 4)."""

    @property
    def at_most(self) -> int:
        """Evaluations of a fact, at most."""
        return self.steps

    def descend(self, search: Search) -> Steps:
        """Search from where the facts are."""
        delta = search.solved.delta.clone()
        optimiser = torch.optim.Adam([delta], lr=self.rate)
        for _ in range(self.steps):
            value = yield from search.evaluate()
            if self.stop_below is not None or self.stop_when_first is not None:
                done = search.reached(value.nll, self.stop_below, self.stop_when_first)
                search.leave(done)
                value = value.select(~done)
            delta.grad = torch.zeros_like(delta).index_copy(0, search.active, value.gradient)
            optimiser.step()
            search.move(delta[search.active])
            delta[search.active] = search.delta


@dataclass(frozen=True)
class PairedAdam(Descent):
    """PMET's search (arXiv 2308.08742): the attention's output changes along with the FFN's, which alone is written.

    Both changes are free, each in a ball around its own output, and what the loss sees is their sum. It is added to the
    layer's output: exact where attention and FFN work side by side (GPT-J, which PMET was made on); elsewhere the same
    layer's FFN does not see the attention's change. Needs `site=ffn`.
    """

    steps: Annotated[int, Field(ge=1)] = 30
    """Evaluations of loss and gradient, at most."""

    rate: Annotated[float, Field(gt=0)] = 0.2
    """Adam's learning rate."""

    stop_below: float | None = None
    """A fact leaves when its NLL is below this."""

    stop_when_first: Annotated[int, Field(ge=1)] | None = None
    """A fact leaves at this many-th evaluation at which its target is the most probable on all prompts (ENCORE)."""

    @property
    def at_most(self) -> int:
        """Evaluations of a fact, at most."""
        return self.steps

    def descend(self, search: Search) -> Steps:
        """Search from where the facts are, all of it the FFN's; the FFN's change alone is given back.

        Raises:
            UserError: the loss does not tell the parts of h apart.
        """
        balls = search.balls
        if balls.attention is None:
            raise UserError("the paired search needs targets at the FFN's output; set site=ffn")
        pair = torch.stack([search.solved.delta, torch.zeros_like(search.solved.delta)])
        radius = balls.clamp * torch.stack([balls.size, balls.attention])[:, :, None]
        optimiser = torch.optim.Adam([pair], lr=self.rate)
        for _ in range(self.steps):
            value = yield from search.evaluate(pair.sum(0)[search.active])
            done = search.reached(value.nll, self.stop_below, self.stop_when_first)
            search.leave(done)
            gradient = value.select(~done).gradient.expand(2, -1, -1)
            pair.grad = torch.zeros_like(pair).index_copy(1, search.active, gradient)
            before = pair.clone()
            optimiser.step()
            moved = pair * (radius / pair.norm(dim=2, keepdim=True).clamp_min(1e-30)).clamp_max(1)
            pair.copy_(before.index_copy(1, search.active, moved[:, search.active]))
            search.solved.delta[search.active] = pair[0][search.active]


@dataclass(frozen=True)
class LogOdds(Descent):
    """Steps whose length aims at a log-odds of the target, along a normalised momentum (docs/method.md)."""

    aim: float = 4.0
    """m*: the log-odds of the target's mean token probability to aim at; 4 is p = 0.98"""

    last_aim: float = 5.0
    """What the last step aims at, which is not followed by an evaluation."""

    momentum: float = 0.5
    """How much of the direction so far goes into the next step's."""

    longest: float = 0.2
    """Longest step, relative to the norm of h."""

    stop_below: float = 0.05
    """A fact leaves when the NLL of its target as a whole, the sum over its tokens, is below this."""

    last_below: float = 0.3
    """Below this NLL of the target as a whole a fact takes one last step."""

    evaluations: Annotated[int, Field(ge=1)] = 25
    """At most."""

    stop_when_first: Annotated[int, Field(ge=1)] | None = None
    """A fact leaves at this many-th evaluation at which its target is the most probable on all prompts (ENCORE)."""

    @property
    def at_most(self) -> int:
        """Evaluations of a fact, at most."""
        return self.evaluations

    def descend(self, search: Search) -> Steps:
        """Search from where the facts are."""
        velocity = torch.zeros_like(search.solved.delta)
        for _ in range(self.evaluations):
            value = yield from search.evaluate()
            whole = value.nll * search.balls.tokens
            done = search.reached(whole, self.stop_below, self.stop_when_first)
            search.leave(done)
            nll, gradient = value.nll[~done], value.gradient[~done]
            velocity[search.active] = self.momentum * velocity[search.active] + _unit(gradient)
            direction = _unit(velocity[search.active])
            last = whole[~done] < self.last_below
            search.move(search.delta - self._length(nll, gradient, direction, last, search.balls.hidden) * direction)
            search.leave(last)

    def _length(self, nll: Tensor, gradient: Tensor, direction: Tensor, last: Tensor, hidden: Tensor) -> Tensor:
        """How far to go `[active, 1]`: to the aimed log-odds if the slope held, but not further than allowed."""
        wrong = -torch.expm1(-nll).clamp_max(-1e-9)  # 1 - p
        log_odds = -nll - wrong.log()
        slope = (gradient * direction).sum(1).clamp_min(1e-9) / wrong
        aim = torch.where(last, self.last_aim, self.aim)
        longest = self.longest * hidden.norm(dim=1)
        return ((aim - log_odds) / slope).clamp_min(0).minimum(longest)[:, None]


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-30)
