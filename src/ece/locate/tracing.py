"""Causal tracing (Meng et al. 2022, arXiv 2202.05262, Sec. 2): which states carry a fact through the model.

The subject's embeddings are corrupted by noise, so that the model loses its answer; then one state of the clean run is
put back, and the answer's probability that comes back with it is that state's indirect effect.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ece.errors import UserError
from ece.facts import Fact
from ece.locate.layers import window_of
from ece.models.model import Model
from ece.models.replay import Replay, record
from ece.models.tokens import Tokens, locate

log = logging.getLogger(__name__)

KINDS = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
"""Kinds of positions that effects are averaged over. A position that is of two kinds is the subject's last token before
all, and else the prompt's last before the first subsequent one."""

Part = Literal["layer", "ffn"]
"""What is put back: a layer's output, or the FFN outputs of a window of layers around it."""

FACTS, SAMPLES = 16, 3
"""Facts that layers are chosen from, and corrupted runs of each."""


@dataclass(frozen=True)
class Traced:
    """Average indirect effects over facts: a heat map."""

    part: Part
    window: int
    """Layers put back together; 1 for layer outputs."""

    effects: Tensor
    """`[kinds, layers]`: mean gain in the answer's probability; NaN where no fact has such a position."""

    errors: Tensor
    """`[kinds, layers]`: standard errors of the means; NaN where there are fewer than two facts."""

    facts: Tensor
    """`[kinds]`: how many facts have such a position."""

    clean: float
    """Mean probability of the answers in the clean runs."""

    corrupted: float
    """The same in the corrupted runs."""

    @property
    def total(self) -> float:
        """The average total effect: what corruption takes away."""
        return self.clean - self.corrupted

    def as_json(self) -> dict[str, Any]:
        """For `json.dumps`, with NaN where nothing was measured."""
        return {
            "part": self.part,
            "window": self.window,
            "positions": list(KINDS),
            "layers": self.effects.shape[1],
            "effects": self.effects.tolist(),
            "standard_errors": self.errors.tolist(),
            "facts": self.facts.tolist(),
            "clean": self.clean,
            "corrupted": self.corrupted,
            "total_effect": self.total,
        }


@torch.no_grad()
def trace(
    model: Model,
    facts: Sequence[Fact],
    part: Part = "layer",
    *,
    samples: int = 10,
    noise: float = 3.0,
    window: int = 10,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
) -> Traced:
    """Average indirect effects of the facts' prompts. The answer is the model's own most probable next token.

    Args:
        model: as it is now.
        facts: whose prompts are traced; their targets play no part.
        part: what is put back.
        samples: corrupted runs of each prompt.
        noise: its standard deviation, relative to that of the embeddings of all subjects' tokens.
        window: layers whose FFN outputs are put back together, for `part="ffn"`.
        kinds: positions to look at; effects at others are NaN.
        seed: of the noise, the same for every fact.

    Raises:
        UserError: there are no facts.
    """
    if not facts:
        raise UserError("no facts to trace; give at least one")
    texts = [locate(model, fact.prompt, fact.subject) for fact in facts]
    scale = noise * _spread_of_embeddings(model, texts)
    rows: list[Tensor] = []
    probabilities: list[tuple[float, float]] = []
    for text in tqdm(texts, desc="tracing", unit="fact", leave=False, disable=None):
        places = {place: kind for place in range(len(text.ids)) if (kind := kind_of(text, place)) in kinds}
        run = _Runs.of(model, text, scale, samples, seed)
        effects = run.effects(list(places), part, window)
        of_kind = [[i for i, kind in enumerate(places.values()) if kind == wanted] for wanted in KINDS]
        rows.append(torch.stack([effects[which].mean(0) for which in of_kind]))  # the mean of none is NaN
        probabilities.append((run.clean, run.corrupted))
    every = torch.stack(rows)
    there = ~every[:, :, 0].isnan()
    count = there.sum(0)
    mean = every.nanmean(0)
    squares = (every - mean).nan_to_num().square().sum(0)
    clean, corrupted = (sum(values) / len(facts) for values in zip(*probabilities, strict=True))
    errors = (squares / (count - 1)[:, None] / count[:, None]).sqrt()
    errors[count < 2] = torch.nan
    return Traced(part, window if part == "ffn" else 1, mean, errors, count, clean, corrupted)


def traced_layers(model: Model, facts: Sequence[Fact]) -> tuple[int, ...]:
    """`layers=tracing`: the window of layers whose FFNs have the largest sum of effects at the subject's last token.

    Args:
        model: without edits.
        facts: the batch; the first `FACTS` of them are traced.
    """
    kind = "last subject token"
    found = trace(model, facts[:FACTS], "ffn", samples=SAMPLES, kinds=[kind])
    effects = found.effects[KINDS.index(kind), :-1]
    width = window_of(len(model.layers))
    first = int(effects.unfold(0, width, 1).sum(1).argmax())
    log.info("corruption takes %.0f %% of the answers' probability away", 100 * found.total / max(found.clean, 1e-30))
    return tuple(range(first, first + width))


def kind_of(text: Tokens, place: int) -> str | None:
    """The kind of a position; None before the subject, where corruption changes nothing."""
    if place < text.subject_first:
        return None
    if place <= text.subject_last:
        if place == text.subject_last:
            return "last subject token"
        return "first subject token" if place == text.subject_first else "middle subject tokens"
    if place == len(text.ids) - 1:
        return "last token"
    return "first subsequent token" if place == text.subject_last + 1 else "further tokens"


def _spread_of_embeddings(model: Model, texts: Sequence[Tokens]) -> float:
    """Standard deviation of all entries of the embeddings of all subjects' tokens."""
    embed = cast(nn.Module, model.network.get_input_embeddings())  # Gemma's scales what its table holds
    ids = [token for text in texts for token in text.ids[text.subject_first : text.subject_last + 1]]
    return float(embed(torch.tensor(ids, device=cast(Tensor, embed.weight).device)).float().std())


@dataclass(frozen=True)
class _Runs:
    """The clean and the corrupted runs of one prompt."""

    model: Model
    ids: list[int]
    answer: int
    clean: float
    corrupted: float
    entering: list[Tensor]
    """What enters each layer, and what leaves the last `[1 + samples, positions, d_model]`; the clean run first."""

    ffn: list[Tensor]
    """FFN outputs of the clean run, by layer `[positions, d_model]`."""

    @classmethod
    def of(cls, model: Model, text: Tokens, scale: float, samples: int, seed: int) -> _Runs:
        replay = _recorded(model, text.ids, 1 + samples)
        subject = slice(text.subject_first, text.subject_last + 1)
        hidden = replay.embedded.clone()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(samples, *hidden[0, subject].shape, generator=generator)
        hidden[1:, subject] += (scale * drawn).to(hidden)
        entering, ffn = [hidden], []
        with _ffn_outputs(model, lambda layer, output: ffn.append(output[0])):
            for layer in range(len(model.layers)):
                entering.append(replay.run(entering[-1], layer, layer + 1))
        likely = model.logits(entering[-1][:, -1]).float().softmax(-1)
        answer = int(likely[0].argmax())
        clean, corrupted = float(likely[0, answer]), float(likely[1:, answer].mean())
        return cls(model, text.ids, answer, clean, corrupted, entering, ffn)

    def effects(self, places: Sequence[int], part: Part, window: int) -> Tensor:
        """Indirect effects `[places, layers]`."""
        layers, samples = len(self.model.layers), len(self.entering[0]) - 1
        replay = _recorded(self.model, self.ids, len(places) * samples)
        columns = []
        for layer in range(layers):
            if part == "layer":
                states = self._repeated(layer + 1, len(places))
                self._put_back(states, self.entering[layer + 1][0], places)
                last = replay.run(states.flatten(0, 1), layer + 1, layers)
            else:
                restored = range(max(0, layer - window // 2), min(layers, layer + (window + 1) // 2))

                def put_back(at: int, output: Tensor, restored: range = restored) -> Tensor | None:
                    if at not in restored:
                        return None
                    output = output.unflatten(0, (len(places), samples)).clone()
                    self._put_back(output, self.ffn[at], places)
                    return output.flatten(0, 1)

                with _ffn_outputs(self.model, put_back):
                    states = self._repeated(restored.start, len(places)).flatten(0, 1)
                    last = replay.run(states, restored.start, layers)
            likely = self.model.logits(last[:, -1]).float().softmax(-1)[:, self.answer]
            columns.append(likely.unflatten(0, (len(places), samples)).mean(1).cpu() - self.corrupted)
        return torch.stack(columns, dim=1)

    def _repeated(self, layer: int, times: int) -> Tensor:
        """What enters a layer in the corrupted runs `[times, samples, positions, d_model]`."""
        return self.entering[layer][1:].expand(times, -1, -1, -1).clone()

    @staticmethod
    def _put_back(states: Tensor, clean: Tensor, places: Sequence[int]) -> None:
        """Row i of `states` `[places, samples, positions, d_model]` gets the clean state at place i."""
        for row, place in enumerate(places):
            states[row, :, place] = clean[place].to(states)


def _recorded(model: Model, ids: Sequence[int], rows: int) -> Replay:
    tokens = torch.tensor([list(ids)] * rows, device=model.device)
    return record(model, tokens, torch.ones_like(tokens, dtype=torch.bool))


@contextmanager
def _ffn_outputs(model: Model, take: Any) -> Iterator[None]:
    """While this lasts, `take(layer, output)` sees every FFN's output; what it returns, if anything, replaces it."""

    def hook(layer: int) -> Any:
        return lambda _, __, output: take(layer, output)

    handles = [model.ffn_output(layer).register_forward_hook(hook(layer)) for layer in range(len(model.layers))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
