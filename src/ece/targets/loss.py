"""The loss of a target search (Eq. 12-13), for many facts in one pass, each with its own delta."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ece.facts import Fact
from ece.models.model import Model
from ece.models.replay import Parts, of_device, parts_captured
from ece.models.tails import SharedPrefixes, Tails
from ece.models.tokens import Tokens, locate

ESSENCE = "{} is a"
"""What the model says after this about a subject should stay as it is."""

ESSENCE_TOKEN = -1
"""Stands for the token of a prediction that is compared with the unedited one as a whole."""

TOGETHER = {"cpu": 8, "other": 1024}
"""Predictions whose probabilities are looked at together."""

Site = Literal["layer", "ffn"]
"""Where a target lives: at the layer's output h (MEMIT), or at its FFN's output (ROME, PMET)."""


@dataclass(frozen=True)
class Weights:
    """How the terms of the loss are weighed. Defaults: the paper's."""

    kl: Annotated[float, Field(ge=0)] = 0.0625
    """Of the KL divergence at "{subject} is a" from the unedited prediction."""

    decay: Annotated[float, Field(ge=0)] = 0.5
    """Of the norm of delta, relative to the squared norm of h (or of the FFN's output, see `site`)."""

    clamp: Annotated[float, Field(gt=0)] = 0.75
    """Largest norm of delta, relative to the norm of h (or of the FFN's output)."""


@dataclass(frozen=True)
class Value:
    """The loss of each fact, and its gradient."""

    nll: Tensor
    """`[facts]`: mean over prompts of the mean negative log-likelihood of the target's tokens."""

    total: Tensor
    """`[facts]`: with the KL and decay terms."""

    gradient: Tensor
    """`[facts, d_model]`: of `total` by each fact's own delta."""

    first: Tensor | None = None
    """`[facts]` bool: whether every token of the target is the most probable one on every prompt; if asked for."""

    def select(self, facts: Tensor) -> Value:
        """Of the facts marked in `facts` (bool)."""
        first = self.first[facts] if self.first is not None else None
        return Value(self.nll[facts], self.total[facts], self.gradient[facts], first)


@dataclass(frozen=True)
class _Rows:
    """Tails that belong to facts, and the positions whose predictions count."""

    tails: Tails
    fact: Tensor
    """`[rows]`"""

    context: Tensor
    """`[rows]`: which context stands before the prompt; at essence prompts the number after the last context's"""

    row: Tensor
    """`[predictions]`: the row of each prediction that counts"""

    position: Tensor
    """`[predictions]`: its position in the tail"""

    def select(self, facts: Tensor, *per_prediction: Tensor) -> tuple[_Rows, list[Tensor]]:
        """Keep some facts, renumbered in the order given."""
        facts = facts.to(self.fact.device)
        renumbered = torch.full((int(self.fact.max()) + 1,), -1, device=facts.device)
        renumbered[facts] = torch.arange(len(facts), device=facts.device)
        fact = renumbered[self.fact]
        rows = fact.argsort(stable=True)
        rows = rows[fact[rows] >= 0]
        return self._take(rows, fact[rows], *per_prediction)

    def through(self, contexts: Sequence[int], *per_prediction: Tensor) -> tuple[_Rows, list[Tensor]]:
        """Keep the prompts in some contexts."""
        rows = torch.isin(self.context, torch.tensor(contexts, device=self.context.device)).nonzero()[:, 0]
        return self._take(rows, self.fact[rows], *per_prediction)

    def _take(self, rows: Tensor, fact: Tensor, *per_prediction: Tensor) -> tuple[_Rows, list[Tensor]]:
        """Some of the rows, in the order given, for the facts that `fact` `[rows]` says."""
        new_row = torch.full_like(self.fact, -1)
        new_row[rows] = torch.arange(len(rows), device=rows.device)
        kept = (new_row[self.row] >= 0).nonzero()[:, 0]
        kept = kept[new_row[self.row[kept]].argsort(stable=True)]
        taken = _Rows(self.tails.select(rows), fact, self.context[rows], new_row[self.row[kept]], self.position[kept])
        return taken, [values[kept] for values in per_prediction]

    def alone(self, predictions: Tensor) -> _Rows:
        """The rows of some predictions (bool), of which each has a row of its own."""
        predictions = predictions.to(self.row.device)
        rows = self.row[predictions]
        numbers = torch.arange(len(rows), device=rows.device)
        return _Rows(self.tails.select(rows), self.fact[rows], self.context[rows], numbers, self.position[predictions])

    def logits(self, delta: Tensor) -> Tensor:
        """`[predictions, vocabulary]`, in float32."""
        hidden = self.tails.run(delta[self.fact.to(delta.device)])
        return self.tails.model.logits(hidden[self.row.to(hidden.device), self.position.to(hidden.device)]).float()


@dataclass(frozen=True)
class TargetLoss:
    """Eq. 12 as a function of delta `[facts, d_model]`, added to layer L's output at each subject's last token."""

    hidden: Tensor
    """`[facts, d_model]`, float32: h of each fact, from its bare prompt."""

    size: Tensor
    """`[facts]`: the norm that clamp and decay refer to: of h, or of the FFN's part of it."""

    weights: Weights
    _rows: _Rows
    """Every fact's prompts, and its essence prompt where the KL term counts: one pass for all of them."""

    _token: Tensor
    """`[predictions]`: the target's token, or `ESSENCE_TOKEN`"""

    _share: Tensor
    """`[predictions]`: what each counts in the NLL of its fact"""

    _reference: Tensor
    """`[facts, vocabulary]`: unedited log-probabilities after the essence prompts"""

    tokens: Tensor
    """`[facts]`: how many tokens each target has"""

    attention: Tensor | None = None
    """`[facts]`: the norm of the attention's part of h; where `size` is of the FFN's."""

    @classmethod
    def prepare(
        cls,
        model: Model,
        facts: Sequence[Fact],
        layer: int,
        before: Sequence[str],
        prefixes: SharedPrefixes,
        weights: Weights = Weights(),
        site: Site = "layer",
    ) -> TargetLoss:
        """Compute once what delta cannot reach, and the reference predictions at delta = 0.

        Args:
            model: the model the targets are sought on, as it is now.
            facts: whose targets are sought.
            layer: L, the last edited layer.
            before: contexts; the first must be empty.
            prefixes: the same contexts, run through the model.
            weights: of the terms.
            site: whose norm clamp and decay refer to.
        """
        texts = [locate(model, f.prompt, f.subject, before=text, target=f.target) for f in facts for text in before]
        number = torch.arange(len(facts), device=model.device)
        fact, prompts = number.repeat_interleave(len(before)), len(texts)
        context = torch.arange(len(before), device=model.device).repeat(len(facts))
        if weights.kl:
            texts += [locate(model, ESSENCE, f.subject) for f in facts]
            fact, context = torch.cat([fact, number]), torch.cat([context, torch.full_like(number, len(before))])
        with parts_captured(model, layer) if site == "ffn" else nullcontext(Parts()) as parts:
            rows, token = _rows(model, layer, texts, fact, context, prefixes)
        per_text = torch.tensor([len(tokens.target) or 1 for tokens in texts], device=model.device)
        share = (token != ESSENCE_TOKEN) / (per_text[rows.row].float() * len(before))

        def at_subject(states: Tensor) -> Tensor:
            return states[: prompts : len(before), 0].float()

        hidden = at_subject(rows.tails.hidden)
        about = rows.alone(token == ESSENCE_TOKEN) if weights.kl else None
        with torch.no_grad():
            reference = about.logits(torch.zeros_like(hidden)).log_softmax(-1) if about else hidden[:, :0]
        size, attention = hidden.norm(dim=1), None
        if site == "ffn":
            size, attention = (at_subject(part).norm(dim=1) for part in (parts.ffn, parts.attention))
        tokens = per_text[: prompts : len(before)]
        return cls(hidden, size, weights, rows, token, share, reference, tokens, attention)

    def views(self, at_most: int) -> list[TargetLoss]:
        """The contexts, and the essence prompt after them, dealt out among so many losses (at most one a context).

        The NLL of each is the mean over its contexts; the KL term counts in one of them for all.
        """
        essence = int(self._rows.context.max()) + 1 - bool(self.weights.kl)
        views = min(at_most, essence)
        if views == 1:
            return [self]
        return [self._through(range(view, essence + 1, views), essence, views) for view in range(views)]

    def _through(self, seen: Sequence[int], essence: int, views: int) -> TargetLoss:
        rows, (token, share) = self._rows.through(seen, self._token, self._share)
        share *= essence / sum(context < essence for context in seen)
        kl = self.weights.kl * views if essence in seen else 0.0
        reference = self._reference if kl else self._reference[:, :0]
        weights = replace(self.weights, kl=kl)
        return replace(self, weights=weights, _rows=rows, _token=token, _share=share, _reference=reference)

    def select(self, facts: Tensor) -> TargetLoss:
        """The loss of some of the facts, in the order given."""
        rows, (token, share) = self._rows.select(facts, self._token, self._share)
        attention = self.attention[facts.to(self.attention.device)] if self.attention is not None else None
        hidden, size, reference, tokens = (
            of_facts[facts.to(of_facts.device)] for of_facts in (self.hidden, self.size, self._reference, self.tokens)
        )
        return TargetLoss(hidden, size, self.weights, rows, token, share, reference, tokens, attention)

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def clamp(self) -> float:
        """Largest norm of delta, relative to `size`."""
        return self.weights.clamp

    def __call__(self, delta: Tensor, ranked: bool = False) -> Value:
        """Evaluate loss and gradient at delta `[facts, d_model]`; `ranked`: also whether the targets come first."""
        with torch.enable_grad():
            delta = delta.detach().requires_grad_()
            logits = self._rows.logits(delta)
        first = self._first(logits.detach()).to(delta.device) if ranked else None
        nll, loss = self._of_logits(slope := logits.detach())
        (gradient,) = torch.autograd.grad(logits, delta, slope)
        norm = delta.detach().norm(dim=1)
        scale = self.weights.decay / self.size**2
        decay_gradient = torch.where(norm > 0, scale / norm, 0)[:, None] * delta.detach()
        return Value(nll.to(delta.device), loss.to(delta.device) + scale * norm, gradient + decay_gradient, first)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest delta inside the ball of radius clamp * size."""
        radius = self.weights.clamp * self.size
        return delta * (radius / delta.norm(dim=1).clamp_min(1e-30)).clamp_max(1)[:, None]

    @torch.no_grad()
    def _of_logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """NLL and loss `[facts]`; the loss's gradient takes the place of the logits `[predictions, vocabulary]`.

        By hand, for autograd would go through the vocabulary once for each step there and back: with p the predicted
        probabilities, that of -log p[token] is p - onehot(token), that of KL(p || q) is p * (log p - log q - KL). A few
        predictions at a time, which stay in a processor's cache.
        """
        token, share = self._token.to(logits.device)[:, None], self._share.to(logits.device)[:, None]
        fact = self._rows.fact[self._rows.row].to(logits.device)
        target, nll = token.clamp_min(0), torch.empty_like(share)
        kl = logits.new_zeros(len(self))
        at_a_time = of_device(self._rows.tails.model, TOGETHER)
        for some in (slice(first, first + at_a_time) for first in range(0, len(logits), at_a_time)):
            log_p, slope = logits[some].log_softmax(-1), logits[some]
            nll[some] = -share[some] * log_p.gather(1, target[some])  # the share is zero at essence prompts
            torch.exp(log_p, out=slope)
            about = (token[some] == ESSENCE_TOKEN).nonzero()[:, 0]
            of_kl = self._kl(slope[about], log_p[about], fact[some][about], kl) if len(about) else slope[:0]
            slope.mul_(share[some]).scatter_add_(1, target[some], -share[some])
            slope[about] = of_kl
        whole = self._of_facts(nll[:, 0])
        return whole, whole + self.weights.kl * kl

    def _kl(self, p: Tensor, log_p: Tensor, fact: Tensor, kl: Tensor) -> Tensor:
        """The gradient of the KL term by the logits after some facts' essence prompts; `kl` `[facts]` is filled in.

        Args:
            p: what is predicted there `[some, vocabulary]`; it is used up, as is `log_p`.
            log_p: its logarithm.
            fact: `[some]`
            kl: by fact, the divergence.
        """
        surprise = log_p.sub_(self._reference[fact.to(self._reference.device)].to(log_p))
        kl[fact] = (p * surprise).sum(1)
        return p.mul_(surprise.sub_(kl[fact, None])).mul_(self.weights.kl)

    def _first(self, logits: Tensor) -> Tensor:
        """Whether every token of the target is the most probable one `[facts]`."""
        token = self._token.to(logits.device)
        return self._of_facts(((logits.argmax(-1) != token) & (token != ESSENCE_TOKEN)).float()) == 0

    def _of_facts(self, values: Tensor) -> Tensor:
        """Sums `[facts]` over each fact's predictions."""
        fact = self._rows.fact[self._rows.row].to(values.device)
        return torch.zeros(len(self), device=values.device).index_add(0, fact, values)


def _rows(
    model: Model, layer: int, texts: Sequence[Tokens], fact: Tensor, context: Tensor, prefixes: SharedPrefixes
) -> tuple[_Rows, Tensor]:
    """Tails of texts cut at their subjects, the predictions of their targets or of what comes next, and the tokens."""
    tails = Tails.cut(model, layer, [text.read for text in texts], [text.subject_last for text in texts], prefixes)
    wanted = []
    for i, text in enumerate(texts):
        first = text.target_start - 1 - text.subject_last
        for offset, target in enumerate(text.target or [ESSENCE_TOKEN]):
            wanted.append((i, first + offset, target))
    row, position, token = torch.tensor(wanted, device=model.device).T
    return _Rows(tails, fact, context, row, position), token
