"""The loss of a target search (Eq. 12-13), for many facts in one pass, each with its own delta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ece.facts import Fact
from ece.models.model import Model
from ece.models.replay import of_device, padded, parts_captured, record
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
        """Of some facts: by their numbers, or marked (bool)."""
        first = self.first[facts] if self.first is not None else None
        return Value(self.nll[facts], self.total[facts], self.gradient[facts], first)

    def split(self, sizes: Sequence[int]) -> list[Value]:
        """Of so many facts after another."""
        return [self.select(facts) for facts in torch.arange(len(self.nll), device=self.nll.device).split(list(sizes))]


@dataclass(frozen=True)
class Balls:
    """Where the deltas of some facts may be: within a ball around each fact's state h."""

    hidden: Tensor
    """`[facts, d_model]`, float32: h of each fact, from its bare prompt."""

    size: Tensor
    """`[facts]`: the norm that clamp and decay refer to: of h, or of the FFN's part of it."""

    clamp: float
    """Largest norm of delta, relative to `size`."""

    tokens: Tensor
    """`[facts]`: how many tokens each target has"""

    attention: Tensor | None = None
    """`[facts]`: the norm of the attention's part of h; where `size` is of the FFN's."""

    def __len__(self) -> int:
        return len(self.hidden)

    def select(self, facts: Tensor) -> Balls:
        """Those of some facts, in the order given."""
        attention = self.attention[facts.to(self.attention.device)] if self.attention is not None else None
        hidden, size, tokens = (each[facts.to(each.device)] for each in (self.hidden, self.size, self.tokens))
        return Balls(hidden, size, self.clamp, tokens, attention)

    @classmethod
    def joined(cls, parts: Sequence[Balls]) -> Balls:
        """Those of several parts, in their order."""
        hidden, size, tokens = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("hidden", "size", "tokens")
        )
        attention = [part.attention for part in parts if part.attention is not None]
        return cls(hidden, size, parts[0].clamp, tokens, torch.cat(attention) if attention else None)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest delta inside the balls."""
        radius = self.clamp * self.size
        return delta * (radius / delta.norm(dim=1).clamp_min(1e-30)).clamp_max(1)[:, None]


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

    def select(self, facts: Tensor, view: Tensor, views: int, *per_prediction: Tensor) -> tuple[_Rows, list[Tensor]]:
        """Keep some facts, renumbered in the order given, each in every `views`th context from its `view` on."""
        facts = facts.to(self.fact.device)
        renumbered = torch.full((int(self.fact.max()) + 1,), -1, device=facts.device)
        renumbered[facts] = torch.arange(len(facts), device=facts.device)
        fact = renumbered[self.fact]
        seen = (fact >= 0) & (self.context % views == view.to(fact.device)[fact])
        rows = fact.argsort(stable=True)
        rows = rows[seen[rows]]
        fact = fact[rows]
        new_row = torch.full_like(self.fact, -1)
        new_row[rows] = torch.arange(len(rows), device=rows.device)
        kept = (new_row[self.row] >= 0).nonzero()[:, 0]
        kept = kept[new_row[self.row[kept]].argsort(stable=True)]
        taken = _Rows(self.tails.select(rows), fact, self.context[rows], new_row[self.row[kept]], self.position[kept])
        return taken, [values[kept] for values in per_prediction]

    @classmethod
    def joined(cls, parts: Sequence[_Rows], facts: Sequence[int]) -> _Rows:
        """Those of several parts with so many facts each, in their order."""
        first_fact = [0, *accumulate(facts)]
        first_row = [0, *accumulate(len(part.fact) for part in parts)]
        return cls(
            Tails.joined([part.tails for part in parts]),
            torch.cat([part.fact + first for part, first in zip(parts, first_fact, strict=False)]),
            torch.cat([part.context for part in parts]),
            torch.cat([part.row + first for part, first in zip(parts, first_row, strict=False)]),
            torch.cat([part.position for part in parts]),
        )

    def logits(self, delta: Tensor) -> Tensor:
        """`[predictions, vocabulary]`, in float32."""
        hidden = self.tails.run(delta[self.fact.to(delta.device)])
        return self.tails.model.logits(hidden[self.row.to(hidden.device), self.position.to(hidden.device)]).float()


@dataclass(frozen=True)
class TargetLoss:
    """Eq. 12 as a function of delta `[facts, d_model]`, added to layer L's output at each subject's last token."""

    balls: Balls
    """Where delta may be."""

    weights: Weights
    _rows: _Rows
    """Every fact's prompts, and its essence prompt where the KL term counts: one pass for all of them."""

    _token: Tensor
    """`[predictions]`: the target's token, or `ESSENCE_TOKEN`"""

    _share: Tensor
    """`[predictions]`: what each counts in the NLL of its fact"""

    _reference: tuple[Tensor, ...]
    """Of each fact `[vocabulary]`: unedited log-probabilities after its essence prompt; where the KL term counts"""

    contexts: int
    """How many each fact's prompt is in."""

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
        rows, token, about = _rows(model, layer, texts, fact, context, prefixes)
        per_text = torch.tensor([len(tokens.target) or 1 for tokens in texts], device=model.device)
        share = (token != ESSENCE_TOKEN) / (per_text[rows.row].float() * len(before))

        with torch.no_grad():
            reference = model.logits(about).float().log_softmax(-1).unbind() if weights.kl else ()
        bare = slice(0, prompts, len(before))
        hidden = rows.tails.hidden[bare, 0].float()
        size, attention = hidden.norm(dim=1), None
        if site == "ffn":
            size, attention = _norms_of_parts(model, layer, texts[bare])
        tokens = per_text[bare]
        balls = Balls(hidden, size, weights.clamp, tokens, attention)
        return cls(balls, weights, rows, token, share, reference, len(before))

    @classmethod
    def joined(cls, parts: Sequence[TargetLoss]) -> TargetLoss:
        """The loss of the facts of several parts, in their order; they differ in nothing else."""
        token, share = (torch.cat([getattr(part, name) for part in parts]) for name in ("_token", "_share"))
        return replace(
            parts[0],
            balls=Balls.joined([part.balls for part in parts]),
            _rows=_Rows.joined([part._rows for part in parts], [len(part) for part in parts]),
            _token=token,
            _share=share,
            _reference=tuple(each for part in parts for each in part._reference),
        )

    def select(self, facts: Tensor) -> TargetLoss:
        """The loss of some of the facts, in the order given."""
        return self.through(facts, torch.zeros_like(facts), 1)

    def through(self, facts: Tensor, turn: Tensor, views: int) -> TargetLoss:
        """The loss of some facts, in the order given, each through the view whose turn it is: a part of the cost.

        The contexts, and the essence prompt after them, are dealt out among the views (at most one a context). The NLL
        is the mean over a view's contexts; the KL term counts in one of the views, for all of them.

        Args:
            facts: `[some]`, their numbers.
            turn: `[some]`: how many views of each came before.
            views: how many there are.
        """
        views = min(views, self.contexts)
        view = turn % views
        rows, (token, share) = self._rows.select(facts, view, views, self._token, self._share)
        in_view = (self.contexts - view + views - 1) // views
        share = share * (self.contexts / in_view).to(share)[rows.fact[rows.row]]
        weights = replace(self.weights, kl=views * self.weights.kl)
        reference = tuple(self._reference[fact] for fact in facts.tolist()) if self._reference else ()
        return TargetLoss(self.balls.select(facts), weights, rows, token, share, reference, self.contexts)

    @property
    def hidden(self) -> Tensor:
        """`[facts, d_model]`, float32: h of each fact, from its bare prompt."""
        return self.balls.hidden

    def __len__(self) -> int:
        return len(self.balls)

    def __call__(self, delta: Tensor, ranked: bool = False) -> Value:
        """Evaluate loss and gradient at delta `[facts, d_model]`; `ranked`: also whether the targets come first."""
        with torch.enable_grad():
            delta = delta.detach().requires_grad_()
            logits = self._rows.logits(delta)
        first = self._first(logits.detach()).to(delta.device) if ranked else None
        nll, loss = self._of_logits(slope := logits.detach())
        (gradient,) = torch.autograd.grad(logits, delta, slope)
        norm = delta.detach().norm(dim=1)
        scale = self.weights.decay / self.balls.size**2
        decay_gradient = torch.where(norm > 0, scale / norm, 0)[:, None] * delta.detach()
        return Value(nll.to(delta.device), loss.to(delta.device) + scale * norm, gradient + decay_gradient, first)

    def project(self, delta: Tensor) -> Tensor:
        """The nearest delta inside the balls."""
        return self.balls.project(delta)

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
        surprise = log_p.sub_(torch.stack([self._reference[number] for number in fact.tolist()]).to(log_p))
        kl[fact] = (p * surprise).sum(1)
        return p.mul_(surprise.sub_(kl[fact, None])).mul_(self.weights.kl)

    def _first(self, logits: Tensor) -> Tensor:
        """Whether every token of the target is the most probable one `[facts]`."""
        token = self._token.to(logits.device)
        own = logits.gather(1, token.clamp_min(0)[:, None])[:, 0]
        first = own >= logits.amax(-1)  # argmax takes ten times as long
        return self._of_facts((~first & (token != ESSENCE_TOKEN)).float()) == 0

    def _of_facts(self, values: Tensor) -> Tensor:
        """Sums `[facts]` over each fact's predictions."""
        fact = self._rows.fact[self._rows.row].to(values.device)
        return torch.zeros(len(self), device=values.device).index_add(0, fact, values)


def _rows(
    model: Model, layer: int, texts: Sequence[Tokens], fact: Tensor, context: Tensor, prefixes: SharedPrefixes
) -> tuple[_Rows, Tensor, Tensor]:
    """Tails of texts cut at their subjects, the predictions of their targets or of what comes next, and the tokens.

    The last of three is what the last layer gives, unchanged, where something comes next `[essence prompts, d_model]`.
    """
    cuts = [text.subject_last for text in texts]
    without = [number for number, text in enumerate(texts) if not text.target]
    tails, about = Tails.cut(model, layer, [text.read for text in texts], cuts, prefixes, without)
    wanted = []
    for i, text in enumerate(texts):
        first = text.target_start - 1 - text.subject_last
        for offset, target in enumerate(text.target or [ESSENCE_TOKEN]):
            wanted.append((i, first + offset, target))
    row, position, token = torch.tensor(wanted, device=model.device).T
    return _Rows(tails, fact, context, row, position), token, about


@torch.no_grad()
def _norms_of_parts(model: Model, layer: int, texts: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """How long the FFN's and the attention's parts of layer L's output are at each text's subject, both `[texts]`."""
    ids, visible = padded([text.read[: text.subject_last + 1] for text in texts], model.device)
    replay = record(model, ids, visible)
    with parts_captured(model, layer) as parts:
        replay.run(replay.embedded, 0, layer + 1)
    last = visible.sum(1) - 1
    ffn, attention = (
        part[torch.arange(len(part)), last.to(part.device)].float().norm(dim=1) for part in (parts.ffn, parts.attention)
    )
    return ffn, attention
