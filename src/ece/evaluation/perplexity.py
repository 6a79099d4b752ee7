"""Perplexity of texts under a model: exp of the mean negative log-likelihood per token, in strided windows.

Window w reads up to `window` tokens and scores its last `stride` ones, so that each token is scored once, with at least
`window - stride` tokens before it where the text has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ece import files
from ece.errors import UserError
from ece.models import Model

WINDOW = 512
STRIDE = 256
LOGITS = 128
"""Positions whose logits are held at a time: a large vocabulary times a window would not fit."""


@dataclass(frozen=True)
class Perplexity:
    """Of a text."""

    perplexity: float
    se: float
    """Standard error over windows, which are taken for independent; NaN for one window."""

    tokens: int
    """How many were scored."""

    windows: int

    def __str__(self) -> str:
        return f"{self.perplexity:.2f} ± {self.se:.2f}"


def read_text(file: Path) -> str:
    """A text file.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is empty.
    """
    text = files.read_text(file)
    if not text.strip():
        raise UserError(f"{file}: no text in it")
    return text


@torch.no_grad()
def perplexity(
    model: Model, *texts: str, window: int = WINDOW, stride: int = STRIDE, limit: int | None = None
) -> Perplexity:
    """Perplexity with its standard error (of a ratio of sums over windows, by linearisation).

    Args:
        model: as it is now.
        texts: each tokenized in one piece, with the special tokens that the tokenizer adds; its first token is not
            scored.
        window: tokens read at a time, fewer where the model's context is shorter.
        stride: tokens scored at a time.
        limit: only so many tokens of each text, from the first.

    Raises:
        UserError: no text has two tokens or more, or the stride does not fit into the window.
    """
    window = min(window, model.context or window)
    if not 0 < stride < window:
        raise UserError(f"a stride of {stride} tokens does not fit into windows of {window}; take 1 to {window - 1}")
    read = [torch.tensor(model.tokenizer(text, verbose=False)["input_ids"][:limit], device=model.device)
            for text in texts]  # fmt: skip
    spans = [(ids, span) for ids in read for span in _windows(len(ids), window, stride)]
    if not spans:
        raise UserError(f"perplexity needs a text of two tokens or more; here: {max(map(len, read), default=0)}")
    sums, counts = np.zeros(len(spans)), np.zeros(len(spans))
    bar = tqdm(spans, desc="perplexity", unit="window", leave=False, disable=None)
    for i, (ids, (start, first, end)) in enumerate(bar):
        sums[i], counts[i] = float(_surprise(model, ids[start:end], first - start)), end - first
    mean = sums.sum() / counts.sum()
    n = len(spans)
    spread = np.sqrt(n / (n - 1) * ((sums - mean * counts) ** 2).sum()) / counts.sum() if n > 1 else float("nan")
    value = float(np.exp(mean))
    return Perplexity(value, value * float(spread), int(counts.sum()), n)


def _windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Where each window starts, where its scored tokens start, and where both end."""
    first = 1
    while first < length:
        end = min(first + stride, length)
        yield max(0, end - window), first, end
        first = end


def _surprise(model: Model, ids: Tensor, first: int) -> Tensor:
    """Summed negative log-likelihood of the tokens from `first` on, in nats."""
    states = model.network.base_model(input_ids=ids[None, :-1], use_cache=False).last_hidden_state[0, first - 1 :]
    wanted = ids[first:]
    total = torch.zeros((), dtype=torch.float64)
    for some, tokens in zip(states.split(LOGITS), wanted.split(LOGITS), strict=True):
        logits = model.unembed(some).float()
        total += cross_entropy(logits, tokens.to(logits.device), reduction="sum").double().cpu()
    return total
