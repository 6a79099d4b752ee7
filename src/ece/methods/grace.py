"""GRACE: values trained for single prompts, kept in a codebook beside the model (Hartvigsen et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ece.edits.edit import Edit
from ece.errors import UserError
from ece.facts import Fact
from ece.memories.codebook import Codebook, last_states
from ece.methods.history import History
from ece.methods.method import Batch, Beside, checked_layers
from ece.models import Model
from ece.models.replay import passes
from ece.models.tails import SharedPrefixes
from ece.models.tokens import encode
from ece.targets.descent import Adam, LogOdds, Solved
from ece.targets.loss import TargetLoss, Weights

PASS_TOKENS = 512
ALONE = Weights(kl=0.0, decay=0.0, clamp=1e9)
"""Nothing but the target's likelihood."""


@dataclass(frozen=True)
class Grace(Beside):
    """A layer's output at a prompt's last token is searched for, then looked up by what enters the layer there."""

    layer: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Where the codebook is; `auto`: at three quarters of the depth (35 of GPT2-XL's 48)."""

    epsilon: Annotated[float, Field(gt=0)] = 1.0
    """First radius of a code, in the states' own unit."""

    start: Literal["warm", "cold"] = "warm"
    """Values begin at the layer's own output, or at uniform random numbers from 0 to 1."""

    descent: Adam | LogOdds = field(default_factory=lambda: Adam(steps=100, rate=1.0, stop_below=0.01))
    """How a value is searched for."""

    @property
    def cost(self) -> str:
        """How much work a fact is."""
        return f"≤ {self.descent.at_most} evaluations"

    def edit(self, model: Model, facts: Sequence[Fact], history: History, before: Sequence[str]) -> Edit:
        """Search for the facts' values on the model as it is, without its memories."""
        batch, layer = Batch(model, facts), self.chosen(model)
        questions = [Fact("{}", fact.question, fact.target) for fact in facts]  # the whole prompt is the subject
        keys = last_states(model, [fact.question for fact in questions], layer)
        values = torch.empty_like(keys)
        nll, taken = torch.zeros(len(facts)), torch.zeros(len(facts), dtype=torch.int)
        prefixes = SharedPrefixes.compute(model, [list(model.tokenizer("")["input_ids"])])
        for group in passes([len(encode(model, f.question, f.target)[0]) for f in questions], PASS_TOKENS):
            loss = TargetLoss.prepare(model, [questions[i] for i in group], layer, [""], prefixes, ALONE)
            solved = self.descent(loss, self._start(loss.hidden, group))
            self._check(solved, [facts[i] for i in group])
            values[group] = loss.hidden + solved.delta
            nll[group], taken[group] = solved.nll.cpu(), solved.evaluations.cpu()
        memory = Codebook(layer, self.epsilon, keys, values, tuple(fact.target for fact in facts))
        return batch.edit(self, memory=memory, nll=nll, evaluations=taken)

    def chosen(self, model: Model) -> int:
        """The layer.

        Raises:
            UserError: the model does not have it.
        """
        layer = 3 * len(model.layers) // 4 if self.layer == "auto" else self.layer
        return checked_layers(model, [layer])[0]

    def _start(self, hidden: Tensor, group: Sequence[int]) -> Tensor:
        if self.start == "warm":
            return torch.zeros_like(hidden)
        drawn = torch.stack([torch.rand(hidden.shape[1], generator=torch.Generator().manual_seed(i)) for i in group])
        return drawn.to(hidden) - hidden

    def _check(self, solved: Solved, facts: Sequence[Fact]) -> None:
        failed = [str(fact) for fact, bad in zip(facts, solved.failed.tolist(), strict=True) if bad]
        if failed:
            raise UserError(f"the loss of {failed[0]!r} is NaN or infinite; is the model sound, its dtype wide enough?")


PAPER = "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors, NeurIPS 2023, arXiv 2211.11031"

GRACE = Grace(name="grace", summary="a codebook beside the model: states near an edit's are replaced", source=PAPER)

METHODS = (GRACE,)
