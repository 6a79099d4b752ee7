"""What a method is: a name, options, and a function from facts to an edit. A recipe is one; so are the others."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from pydantic import ConfigDict
from torch import Tensor

from ece.edits.edit import Edit, FactEntry, Manifest
from ece.errors import UserError
from ece.facts import Fact
from ece.methods.history import History
from ece.methods.recipe import changed
from ece.models import LowRank, Model
from ece.models.likelihood import Question, likelihoods
from ece.models.memories import Memory


class Method(Protocol):
    """A way to edit facts."""

    @property
    def name(self) -> str:
        """What `--method` calls it."""
        ...

    @property
    def summary(self) -> str:
        """What it is, in one line."""
        ...

    @property
    def source(self) -> str:
        """The paper it comes from."""
        ...

    @property
    def needs(self) -> str:
        """What must be there before it can edit."""
        ...

    @property
    def cost(self) -> str:
        """How much work a fact is."""
        ...

    def options(self) -> dict[str, Any]:
        """Every choice as plain data."""
        ...

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """The method with some choices changed; see `Recipe.with_options`."""
        ...

    def edit(self, model: Model, facts: Sequence[Fact], history: History, before: Sequence[str]) -> Edit:
        """Find the edit that makes the model say these facts; the model itself stays as it is.

        Args:
            model: with earlier edits applied, if there are any.
            facts: one batch, checked.
            history: of earlier batches.
            before: contexts, for methods that use them.
        """
        ...


@dataclass(frozen=True)
class Declared:
    """A method as data: its name, its options as fields. Subclasses say how they edit."""

    name: str
    summary: str
    source: str
    """The paper it comes from."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(use_attribute_docstrings=True)

    @property
    def needs(self) -> str:
        """What must be there before it can edit."""
        return "nothing"

    @property
    def cost(self) -> str:
        """How much work a fact is."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Every choice as plain data."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "summary", "source")}

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """The method with some choices changed.

        Raises:
            UserError: there is no such option, or its value is not of its kind.
        """
        return changed(self, options)


class Beside(Declared):
    """A method that keeps facts beside the model, in a memory, and leaves its weights alone."""


def known(model: Model, facts: Sequence[Fact]) -> list[bool]:
    """Which facts' targets are the model's most probable answers already."""
    asked = likelihoods(model, [Question(fact.question, (fact.target,)) for fact in facts])
    return [answer[0].exact for answer in asked]


class Batch:
    """Notes the time and what the model knew, and makes the edit of what a method found."""

    def __init__(self, model: Model, facts: Sequence[Fact]):
        """Begin; the model is as the batch finds it."""
        self.began = time.monotonic()
        self.model, self.facts = model, facts
        self.known = known(model, facts)

    def edit(
        self,
        method: Method,
        deltas: Mapping[int, LowRank] | None = None,
        memory: Memory | None = None,
        nll: Tensor | None = None,
        evaluations: Tensor | int = 0,
    ) -> Edit:
        """The edit.

        Args:
            method: that made it.
            deltas: changes of weights, by layer.
            memory: what is kept beside the model.
            nll: `[facts]` of the targets, at the last evaluation.
            evaluations: `[facts]`, or the same for all.

        Raises:
            UserError: the change is not finite.
        """
        kept = [
            *(f for d in (deltas or {}).values() for f in (d.left, d.right)),
            *(memory.tensors().values() if memory else ()),
        ]
        if not all(bool(tensor.isfinite().all()) for tensor in kept if tensor.is_floating_point()):
            raise UserError(f"{method.name}: the change is NaN or infinite; is the model sound, and the rate too high?")
        count = len(self.facts)
        losses = nll.tolist() if nll is not None else [0.0] * count
        taken = evaluations.tolist() if isinstance(evaluations, Tensor) else [evaluations] * count
        entries = [
            FactEntry(**dataclasses.asdict(fact), evaluations=int(e), nll=float(loss), already_known=known)
            for fact, e, loss, known in zip(self.facts, taken, losses, self.known, strict=True)
        ]
        none = torch.zeros(0, self.model.d_model)
        manifest = Manifest(
            method=method.name,
            options=method.options(),
            model=self.model.name,
            fingerprint=self.model.fingerprint,
            layers=sorted(deltas or {}),
            neurons={layer: len(change.neurons) for layer, change in (deltas or {}).items()},
            facts=entries,
            contexts=[],
            memory={"kind": memory.kind} | memory.about() if memory else None,
            seconds=time.monotonic() - self.began,
        )
        return Edit(dict(deltas or {}), {}, {}, none, none, manifest, memory)


def dense(change: Tensor) -> LowRank:
    """A whole matrix's change `[d_model, d_ff]` as factors."""
    width, neurons = change.shape
    return LowRank(torch.eye(width, device=change.device), change, torch.arange(neurons, device=change.device))


def checked_layers(model: Model, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers, if the model has them and their W can be changed.

    Raises:
        UserError: it does not.
    """
    last = len(model.layers) - 1
    if not layers or min(layers) < 0 or max(layers) > last:
        raise UserError(f"layers {list(layers)}: {model.name} has layers 0 to {last}")
    for layer in layers:
        model.weight(layer)
    return tuple(layers)
