"""The facts' prompts: keys and states at the subjects' last tokens, and the keys of the other tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ece.facts import Fact
from ece.locate.scores import activation_score
from ece.methods.recipe import Recipe
from ece.models import Model
from ece.models.replay import Entering, Led, keys_captured, of_device, parts_captured, passes
from ece.models.tails import in_common
from ece.models.tokens import Tokens, locate
from ece.targets.loss import Site

PASS_TOKENS = {"cpu": 1024, "other": 16_384}
"""Tokens in one pass, padding included."""

Hidden = tuple[Entering, ...]
"""What enters a layer, by pass."""


@dataclass(frozen=True)
class Pass:
    """Rows of like length, which are run together."""

    replay: Led

    rows: Tensor
    """`[rows]`: their numbers among all"""

    last: Tensor
    """`[rows]`: position of the subject's last token, behind what all rows begin with"""

    bare: bool
    """Whether these are the prompts alone; otherwise they follow contexts."""

    around: Tensor
    """`[3, positions]` of `Read.around`: where in it, row in this pass, position"""

    weights: Tensor
    """`[positions]`: what each of them counts"""

    def at_subject(self, states: Tensor) -> Tensor:
        """`[rows, width]`, float32: the states at the subjects' last tokens."""
        return states[torch.arange(len(states)), self.last.to(states.device)].float()


@dataclass(frozen=True)
class Read:
    """What the prompts have at a layer, and what becomes of it above."""

    key: Tensor
    """K1 `[facts, d_ff]`: over the contexts, as the recipe wants it"""

    bare: Tensor
    """`[facts, d_ff]`: the bare prompts' keys"""

    beside: Tensor
    """`[facts x contexts, d_ff]`: the keys after each context, where they are written too, times the root of their
    weight"""

    now: Tensor
    """`[facts + facts x contexts, d_model]`: the states that an edit is to change"""

    around: Tensor
    """`[positions, d_ff]`: what else is kept, times the root of its weight: the key at the end of each different
    beginning of a bare prompt, but for those that end in its subject's last token"""

    @property
    def others(self) -> Tensor:
        """`[positions + facts x contexts, d_ff]`: what later batches keep besides K1."""
        return torch.cat([self.around, self.beside])


@dataclass(frozen=True)
class Subjects:
    """The facts' prompts, ready to be run through the edited layers: up to the subjects' last tokens, or whole."""

    model: Model
    passes: tuple[Pass, ...]

    entering: Hidden
    """What enters the first edited layer."""

    share: Tensor
    """`[rows]`: weight of the row in its fact's key; rows of a fact follow each other and begin with the bare prompt"""

    facts: int
    beside: float
    """How much a key after a context does in `Read.beside`; 0: there are none"""

    @classmethod
    @torch.no_grad()
    def prepare(
        cls,
        model: Model,
        facts: Sequence[Fact],
        first: int,
        before: Sequence[str],
        *,
        evenly: bool = False,
        earlier: float = 0.0,
        after: float = 0.0,
        beside: float = 0.0,
    ) -> Subjects:
        """Run everything below layer `first`.

        Args:
            model: as it is now.
            facts: whose prompts.
            first: the first edited layer.
            before: contexts, the empty one first; several average keys as MEMIT does.
            evenly: or as a plain mean.
            earlier: how much the keys of a bare prompt's tokens before its subject's last count in `Read.around`; at 0
                there are none.
            after: the same for the tokens after it.
            beside: how much a fact's keys after contexts do together in `Read.beside`; at 0 a fact has one key, and
                otherwise that of its bare prompt and these.
        """
        texts = [locate(model, fact.prompt, fact.subject, before=text) for fact in facts for text in before]
        ids = [text.ids[: text.subject_last + 1] for text in texts]
        bare = range(0, len(ids), len(before))
        if after:
            ids[:: len(before)] = [texts[row].ids for row in bare]
        around = _around({row: texts[row] for row in bare}, earlier, after)
        budget = of_device(model, PASS_TOKENS)
        made: list[Pass] = []
        for context in range(len(before)):
            kind = range(context, len(ids), len(before))
            common = in_common([ids[row][:-1] for row in kind]) if context else 0
            for group in passes([len(ids[row]) - common for row in kind], budget):
                rows = [kind[i] for i in group]
                replay = Led.record(model, ids[rows[0]][:common], [ids[row][common:] for row in rows])
                last = torch.tensor([texts[row].subject_last - common for row in rows])
                made.append(Pass(replay, torch.tensor(rows), last, not context, *_within(around, rows)))
        others = len(before) - 1
        if not others or evenly:
            shares = [1 / len(before)] * len(before)
        else:
            shares = [1.0] + [0.0] * others if beside else [0.5] + [0.5 / others] * others
        entering = tuple(each.replay.run(each.replay.embedded, 0, first) for each in made)
        share = torch.tensor(shares * len(facts))
        return cls(model, tuple(made), entering, share, len(facts), beside / others if others else 0.0)

    @property
    def roots(self) -> Tensor:
        """`[facts + facts x contexts, 1]`: of the weights of what is written."""
        others = len(self.share) - self.facts if self.beside else 0
        return torch.tensor([1.0] * self.facts + [self.beside**0.5] * others)[:, None]

    def run(self, entering: Hidden, start: int, stop: int) -> Hidden:
        """Taken from the input of layer `start` to that of `stop`."""
        return tuple(each.replay.run(h, start, stop) for each, h in zip(self.passes, entering, strict=True))

    @torch.no_grad()
    def along(
        self,
        layers: Sequence[int],
        to: int | None = None,
        site: Site = "layer",
        residual: Literal["prompt", "key"] = "prompt",
    ) -> Iterator[tuple[int, Read]]:
        """What the prompts have in each layer in turn.

        A layer that is written by the time the next one is asked for is passed as it then is.

        Args:
            layers: ascending, from the first edited one on.
            to: the layer at which `now` is read; by default the same as the keys.
            site: where in it.
            residual: whether `now` is the bare prompts' state, or the same mean as the key.
        """
        entering = self.entering
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            yield layer, self.read(entering, layer, layer if to is None else to, site, residual)
            if following is not None:
                entering = self.run(entering, layer, following)

    @torch.no_grad()
    def read(self, entering: Hidden, layer: int, to: int, site: Site, residual: Literal["prompt", "key"]) -> Read:
        """What the prompts have in a layer that `entering` enters; see `along`."""
        rows, like = len(self.share), {"dtype": torch.float32, "device": self.model.weight(layer).device}
        keys = torch.empty(rows, self.model.d_ff, **like)
        states = torch.zeros(rows, self.model.d_model, **like)
        around = torch.empty(sum(len(each.weights) for each in self.passes), self.model.d_ff, **like)
        for each, hidden in zip(self.passes, entering, strict=True):
            counts = each.bare or residual == "key" or self.beside
            with keys_captured(self.model, [layer]) as captured:
                output = _output(self.model, each.replay, hidden, layer, to if counts else layer, site)
            keys[each.rows] = each.at_subject(captured[layer])
            if counts:
                states[each.rows] = each.at_subject(output).to(states)
            place, row, position = each.around
            found = captured[layer][row, position].float()
            around[place] = found * each.weights.to(found).sqrt()[:, None]
        now = self.averaged(states) if residual == "key" else self.of_bare(states)
        key, beside = self.averaged(keys), keys[:0]
        if self.beside:
            beside = self.of_others(keys) * self.beside**0.5
            now = torch.cat([now, self.of_others(states)])
        return Read(key, self.of_bare(keys), beside, now, around)

    def averaged(self, rows: Tensor) -> Tensor:
        """`[facts, width]` of `[rows, width]`: over contexts."""
        return (rows * self.share.to(rows)[:, None]).unflatten(0, (self.facts, -1)).sum(1)

    def of_bare(self, rows: Tensor) -> Tensor:
        """`[facts, width]` of `[rows, width]`: the bare prompts'."""
        return rows.unflatten(0, (self.facts, -1))[:, 0]

    def of_others(self, rows: Tensor) -> Tensor:
        """`[facts x contexts, width]` of `[rows, width]`: those after contexts."""
        return rows.unflatten(0, (self.facts, -1))[:, 1:].flatten(0, 1)


Beginning = tuple[int, int, float]
"""Of a prompt: a row that has it, the position where it ends, and what it counts."""


def _around(rows: Mapping[int, Tokens], earlier: float, after: float) -> list[Beginning]:
    """Every different beginning of some rows that does not end in a subject's last token, and counts.

    It counts `earlier` for each row whose subject ends behind it, `after` for each whose subject ends before.
    """
    found: dict[tuple[int, ...], Beginning] = {}
    for row, text in rows.items():
        for position in range(len(text.ids)):
            weight = earlier if position < text.subject_last else after
            if weight and position != text.subject_last:
                beginning = tuple(text.ids[: position + 1])
                first, end, so_far = found.get(beginning, (row, position, 0.0))
                found[beginning] = (first, end, so_far + weight)
    return list(found.values())


def _within(around: Sequence[Beginning], rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of beginnings those of some rows: `[3, positions]` number, row among these and position; what each counts."""
    place = {row: i for i, row in enumerate(rows)}
    here = [(i, place[row], position, weight) for i, (row, position, weight) in enumerate(around) if row in place]
    places = torch.tensor([each[:3] for each in here], dtype=torch.long).reshape(-1, 3).T
    return places, torch.tensor([each[3] for each in here])


def _output(model: Model, replay: Led, entering: Entering, first: int, last: int, site: Site) -> Tensor:
    """The output `[rows, positions, d_model]` of layer `last`, or of its FFN; `entering` enters layer `first`."""
    if site == "layer":
        return replay.run(entering, first, last + 1)[0]
    with parts_captured(model, last) as parts:
        replay.run(entering, first, last + 1)
    return parts.ffn


@torch.no_grad()
def prepared(model: Model, facts: Sequence[Fact], recipe: Recipe, before: Sequence[str]) -> Subjects:
    """The facts' prompts, alone or after contexts, as the recipe takes its keys from."""
    seen = before[: 1 + (recipe.write_contexts if recipe.keys == "prompt" else recipe.contexts)]
    beside = recipe.contexts_weight if recipe.write_contexts else 0.0
    return Subjects.prepare(
        model,
        facts,
        recipe.edited[0],
        seen,
        evenly=recipe.keys == "mean",
        earlier=recipe.keep_prompts,
        after=recipe.keep_after,
        beside=beside,
    )


@torch.no_grad()
def wanted(
    model: Model, facts: Sequence[Fact], recipe: Recipe, before: Sequence[str], hidden: Tensor, delta: Tensor
) -> Tensor:
    """Targets z = h + delta `[facts + facts x contexts, d_model]`: after bare prompts and, where written, contexts.

    Args:
        model: the one that targets are sought on.
        facts: whose prompts.
        recipe: with its layers chosen.
        before: contexts.
        hidden: h `[facts, d_model]` after the bare prompts.
        delta: `[facts, d_model]`.
    """
    bare = hidden + delta.to(hidden)
    if not recipe.write_contexts:
        return bare
    first, last = recipe.edited[0], recipe.edited[-1]
    subjects = prepared(model, facts, replace(recipe, keep_prompts=0.0, keep_after=0.0), before)
    others = subjects.read(subjects.entering, first, last, recipe.site, "prompt").now[len(facts) :]
    return torch.cat([bare, others + (bare - hidden).repeat_interleave(len(others) // len(facts), 0)])


def states(model: Model, facts: Sequence[Fact], layer: int, site: Site = "layer") -> Tensor:
    """The output `[facts, d_model]` of a layer, or of its FFN, at the subjects' last tokens, after bare prompts."""
    subjects = Subjects.prepare(model, facts, layer, [""])
    return subjects.read(subjects.entering, layer, layer, site, "prompt").now


def keys(
    model: Model, facts: Sequence[Fact], layers: Sequence[int], before: Sequence[str] = ("",)
) -> dict[int, Tensor]:
    """Keys by layer `[facts, d_ff]`, after bare prompts or over contexts, of the model as it is."""
    subjects = Subjects.prepare(model, facts, layers[0], before)
    return {layer: read.key for layer, read in subjects.along(layers)}


def activations(model: Model, facts: Sequence[Fact], first: int, last: int) -> dict[int, Tensor]:
    """Activation Scores (Eq. 5) by layer `[facts, d_ff]`, at the subjects' last tokens."""
    found = keys(model, facts, range(first, last + 1))
    return {layer: activation_score(key, model.weight(layer)) for layer, key in found.items()}
