"""Many facts, a few at a time: those that wait take the places of those that are done, so that passes stay full."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ece.models.abreast import ABREAST, AHEAD, crew
from ece.targets.descent import Course, Descent, Solved
from ece.targets.loss import TargetLoss, Value

Deltas = tuple[Tensor, Tensor]
"""The numbers `[some]` of some facts, and their deltas `[some, d_model]`."""

Start = Callable[[Tensor, Tensor, Deltas], Tensor]
"""Where to start `[some, d_model]`, given the numbers `[some]` of some facts, their states `[some, d_model]`, and how
far those have come that are in the middle of their search."""

Task = tuple[Callable[[], Any], Callable[[Any], None]]
"""What a worker does, and what is made of it."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A fact whose search can begin."""

    member: int
    """Its number."""

    place: int
    """Which of the facts that were prepared together it is."""

    loss: TargetLoss
    """Of these."""


@dataclass(frozen=True, eq=False)
class _Group:
    """Facts that began together."""

    members: Tensor
    """Their numbers, on the processor, as all numbers here."""

    places: Tensor
    """Which of the facts that were prepared together they are."""

    loss: TargetLoss
    """Of these."""

    course: Course

    @property
    def active(self) -> Tensor:
        """The numbers of those that are not done."""
        return self.members[self.course.active.cpu()]

    def seen(self, views: int) -> TargetLoss:
        """The loss of those that are not done, each through the view whose turn it is."""
        return self.loss.through(self.places[self.course.active.cpu()], self.course.turn, views)


class Stream:
    """A search for facts in their order. What it finds does not depend on the number of workers."""

    def __init__(
        self,
        descent: Descent,
        prepare: Callable[[Sequence[int]], TargetLoss],
        lengths: Sequence[Sequence[int]],
        budget: int,
        start: Start,
        done: Callable[[Deltas], None],
    ):
        """Nothing is under way yet.

        Args:
            descent: how each fact is searched for.
            prepare: computes what the search for some facts needs again and again, given their numbers.
            lengths: how many tokens an evaluation of each fact takes, by number, through each of the views in turn.
            budget: tokens of a pass, on average at most; a fact that takes more has one of its own.
            start: says where facts start whose turn has come.
            done: is told of facts that are done, in an order that is always the same.
        """
        self.descent, self.prepare, self.lengths, self.budget = descent, prepare, lengths, budget
        self.views = len(lengths[0])
        self.start, self.done = start, done
        self.coming: deque[list[int]] = deque()
        """Facts that are to be prepared together."""
        self.preparing = 0
        """Tokens of those that are being prepared."""
        self.waiting: deque[_Waiting] = deque()
        self.free: deque[_Group] = deque()
        """In the middle of their search, and in no pass."""
        self.begun: list[_Group] = []
        """And not done."""
        self.found: list[tuple[Tensor, Solved]] = []

    def run(self, groups: Sequence[list[int]], workers: int) -> Solved:
        """Search for all facts, which are prepared in these groups, in passes that workers take side by side.

        The last facts, too few for a pass for each worker, share one that has all threads.

        Returns:
            What was found, by the facts' numbers.
        """
        self.coming.extend(groups)
        under_way: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()
        with crew(workers) as submit:
            while True:
                if len(under_way) < AHEAD and (task := self._next(len(under_way))):
                    work, then = task
                    under_way.append((submit(work), then))
                elif under_way:
                    result, then = under_way.popleft()
                    then(result.result())
                else:
                    break
        while self.free:
            last, self.free = list(self.free), deque()
            self._go_on(last, self._evaluated(last))
        members, solved = zip(*self.found, strict=True)
        return Solved.joined(solved, torch.cat(members).argsort())

    def _next(self, under_way: int) -> Task | None:
        """Prepare facts, that enough of them wait; else a full pass, or at the end one for every worker."""
        waiting = self._first([fact.member for fact in self.waiting])
        if self.coming and waiting + self.preparing < ABREAST * self.budget:
            members = self.coming.popleft()
            self.preparing += self._first(members)
            return partial(self.prepare, members), partial(self._prepared, members)
        ready = waiting + sum(map(self._next_of, self.free))
        if ready and not self._last() and (under_way < ABREAST or (waiting and ready >= self.budget)):
            groups = self._filled()
            return partial(self._evaluated, groups), partial(self._go_on, groups)
        return None

    def _first(self, members: Sequence[int]) -> int:
        """How many tokens the first evaluation of some facts takes."""
        return sum(self.lengths[member][0] for member in members)

    def _next_of(self, group: _Group) -> int:
        """How many the next of a group takes."""
        turns = zip(group.active.tolist(), group.course.turn.tolist(), strict=True)
        return sum(self.lengths[member][turn % self.views] for member, turn in turns)

    def _prepared(self, members: Sequence[int], loss: TargetLoss) -> None:
        self.preparing -= self._first(members)
        self.waiting.extend(_Waiting(member, place, loss) for place, member in enumerate(members))

    @property
    def _left(self) -> int | None:
        """Tokens of all that is left, once nothing is to begin; None before."""
        return None if self.coming or self.preparing or self.waiting else sum(map(self._next_of, self.begun))

    def _last(self) -> bool:
        """Whether what is left is so little that one pass takes it all."""
        return (left := self._left) is not None and left <= self.budget / ABREAST

    def _room(self) -> int:
        """Tokens of the next pass: a full one's, or at the end a worker's share of what is left."""
        return self.budget if (left := self._left) is None else min(self.budget, math.ceil(left / ABREAST))

    def _filled(self) -> list[_Group]:
        """Groups for one pass: those in the middle of their search, and new facts in the places left."""
        groups, entering, room = [], [], self._room()
        for group in tuple(self.free):
            if not groups or self._next_of(group) <= room:
                self.free.remove(group)
                groups.append(group)
                room -= self._next_of(group)
        while self.waiting and (room == self.budget or self._first([self.waiting[0].member]) / 2 <= room):
            entering.append(self.waiting.popleft())
            room -= self._first([entering[-1].member])
        halfway = [group for group in self.begun if group.course.turn.any()]
        new = [self._begin(list(facts), halfway) for _, facts in groupby(entering, lambda fact: id(fact.loss))]
        self.begun += new
        return groups + new

    def _begin(self, facts: Sequence[_Waiting], halfway: Sequence[_Group]) -> _Group:
        """Facts that were prepared together, started with regard to those that had an evaluation at least."""
        loss, members, places = facts[0].loss, [fact.member for fact in facts], [fact.place for fact in facts]
        numbers, balls = torch.tensor(members), loss.balls.select(torch.tensor(places))
        reached = torch.cat([balls.hidden[:0], *(group.course.search.delta for group in halfway)])
        so_far = torch.cat([numbers[:0], *(group.active for group in halfway)]), reached
        course = Course(self.descent, balls, self.start(numbers, balls.hidden, so_far))
        return _Group(numbers, torch.tensor(places), loss, course)

    def _evaluated(self, groups: Sequence[_Group]) -> Value:
        loss = TargetLoss.joined([group.seen(self.views) for group in groups])
        return loss(torch.cat([group.course.asked for group in groups]), self.descent.stop_when_first is not None)

    def _go_on(self, groups: Sequence[_Group], value: Value) -> None:
        """The step after an evaluation: some are done, the others wait for the next one."""
        parts = value.split([len(group.active) for group in groups])
        for group, part in zip(groups, parts, strict=True):
            course, before = group.course, group.course.active
            course.go_on(part)
            left = before[~torch.isin(before, course.active)]
            self.done((group.members[left.cpu()], course.search.solved.delta[left]))
            if len(course.active):
                self.free.append(group)
            else:
                self.begun.remove(group)
                self.found.append((group.members, course.search.solved))
