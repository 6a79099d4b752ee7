"""What a study is told: model, data, methods, how many edits; and the cells it makes of them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ece.errors import UserError
from ece.facts import Fact
from ece.methods.method import Method
from ece.methods.registry import METHODS, method
from ece.models import Model
from ece.studies.cells import Cell, Run
from ece.studies.inputs import Inputs

UNEDITED = "unedited"


def given_options(pairs: Sequence[str] | None) -> dict[str, str]:
    """`key=value` and `METHOD:key=value` as a user writes them.

    Raises:
        UserError: one has no equals sign.
    """
    parts = [pair.partition("=") for pair in pairs or ()]
    for key, equals, _ in parts:
        if not equals:
            raise UserError(f"--set {key}: write key=value, or METHOD:key=value")
    return {key: value for key, _, value in parts}


@dataclass(frozen=True)
class Setup:
    """The same for all studies of a folder. Its methods make cells."""

    model: Model
    inputs: Inputs
    chosen: Sequence[str] = ()
    """Methods asked for; none leaves the choice to each study."""

    edits: int = 1000
    """In sequence, at most."""

    batch_size: int = 100
    limit: int | None = None
    """At most so many edits and records of anything: for a quick look."""

    options: Mapping[str, str] = field(default_factory=dict)
    """Of all methods that have them, where a study does not set them itself; `METHOD:key` is of one method."""

    texts: int = 100
    """Records whose generated texts are measured, at most: they take longer than all other metrics together."""

    asked: int = 200
    """Records of each task of general abilities, at most."""

    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By method: options that stand below the user's."""

    def check(self) -> None:
        """Refuse what no cell could be made of.

        Raises:
            UserError: there is no such method or option, or nothing to edit.
        """
        for name in self.chosen:
            method(name)
        names = dict.fromkeys([*self.methods, *METHODS])
        check_options(self.options, {name: self._given(name) for name in names})
        for name in self.methods:
            method(name).with_options(self._given(name))

    @property
    def settings(self) -> dict[str, Any]:
        """What a folder's cells have in common. The methods are not among it: each adds its own cells."""
        return {
            "ece": importlib.metadata.version("ece-edit"),
            "model": self.model.fingerprint,
            "dtype": str(self.model.network.dtype).removeprefix("torch."),
            "data": self.inputs.hashes,
            "edits": self.edits,
            "batch_size": self.batch_size,
            "limit": self.limit,
            "options": dict(self.options),
        }

    @property
    def methods(self) -> list[str]:
        """The methods asked for, or all there are."""
        return list(self.chosen) or list(METHODS)

    def varied(self, changes: Mapping[str, Any]) -> list[str]:
        """The methods for a study that varies options: those asked for that have them, or the first there is.

        Raises:
            UserError: none of the methods asked for has these options.
        """
        having: list[str] = []
        reason = ""
        for name in self.methods:
            try:
                method(name).with_options(self._given(name) | dict(changes))
                having.append(name)
            except UserError as error:
                reason = f"{name}: {error}"
        if not having:
            raise UserError(f"none of the methods can be studied here: {reason}")
        return having if self.chosen else having[:1]

    @cached_property
    def layers(self) -> int:
        """How many layers the model has."""
        return len(self.model.layers)

    def capped(self, count: int) -> int:
        """Not more than the limit."""
        return min(count, self.limit) if self.limit else count

    def facts(self, data: str | None = None) -> list[Fact]:
        """The facts that are edited."""
        return self.inputs.facts(data or self.inputs.main)[: self.capped(self.edits)]

    @property
    def batch(self) -> int:
        """Facts in a batch."""
        return min(self.batch_size, len(self.facts()))

    def counts(self, steps: int, batch_size: int | None = None) -> list[int]:
        """About so many counts of edits, evenly spaced, each at the end of a batch; the last is of all edits."""
        total, size = len(self.facts()), batch_size or self.batch
        ends = [*range(size, total, size), total]
        picked = {ends[max(0, round(step * len(ends) / steps) - 1)] for step in range(1, steps + 1)}
        return sorted(picked)

    def run(
        self,
        name: str | None = None,
        changes: Mapping[str, Any] | None = None,
        data: str | None = None,
        batch_size: int | None = None,
    ) -> Run:
        """A run of a method with some options changed; of none, the unedited model.

        Raises:
            UserError: the method has no such option.
        """
        data = data or self.inputs.main
        if name is None:
            return Run(data=data)
        changed = self._given(name) | dict(changes or {})
        return Run(
            data=data,
            method=name,
            changes=changed,
            options=method(name).with_options(changed).options(),
            batch_size=batch_size or min(self.batch_size, len(self.facts(data))),
        )

    def quality(self, run: Run, edits: int | None = None, first: int | None = None, **what: bool) -> Cell:
        """The benchmark's metrics after so many edits (None: all), on the records that were edited by then.

        Args:
            run: which.
            edits: how many of its edits.
            first: only so many records.
            what: `generated` or `texts`, as the benchmark's `evaluate` takes them.
        """
        edits = len(self.facts(run.data)) if edits is None else edits
        stop = self.inputs.covered(run.data, edits)
        stop = stop if first is None else min(stop, first)
        of = {"data": run.data, "start": 0, "stop": stop} | {name: True for name, wanted in what.items() if wanted}
        return Cell(run=run, edits=edits if run.method else 0, measure="quality", of=of)

    def _given(self, name: str) -> dict[str, Any]:
        """The user's options for a method, over those of its preset."""
        preset = dict(self.presets.get(name, {}))
        return preset | given_to(method(name).with_options(preset), self.options)


def check_options(options: Mapping[str, str], given: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a user's option that no method takes.

    Args:
        options: as the user wrote them.
        given: by method, the most important one first: those that it takes, its own among them checked already.

    Raises:
        UserError: there is no such method or option.
    """
    for key, value in options.items():
        owner, _, _ = key.rpartition(":")
        if owner:
            method(owner)
        elif all(key not in taken for taken in given.values()):
            method(next(iter(given))).with_options({key: value})


def given_to(chosen: Method, options: Mapping[str, str]) -> dict[str, str]:
    """Of a user's options, those of this method (`METHOD:key`), and those for all methods that it has."""
    given: dict[str, str] = {}
    for key, value in options.items():
        owner, _, own = key.rpartition(":")
        if owner == chosen.name or (not owner and _has(chosen.options(), own)):
            given[own] = value
            chosen = chosen.with_options({own: value})
    return given


def _has(options: Any, name: str) -> bool:
    """Whether there is an option with this dotted name."""
    for part in name.split("."):
        if not isinstance(options, Mapping) or part not in options:
            return False
        options = options[part]
    return True
