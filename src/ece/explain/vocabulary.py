"""Directions of the residual stream, read as words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ece.models import Model

TOKENS = 5
ROWS = 128
"""Directions read in one go: a row of logits is as long as the vocabulary."""


@dataclass(frozen=True)
class Token:
    """A token that a direction makes more or less probable."""

    text: str
    """As the tokenizer decodes it, spaces included; bytes that are no whole character are written `\\xe2`."""

    logit: float
    """Change of its logit, against the mean of the vocabulary."""


@dataclass(frozen=True)
class Reading:
    """What a direction says, the strongest first."""

    promotes: tuple[Token, ...]
    suppresses: tuple[Token, ...]


@torch.no_grad()
def logits_of(model: Model, directions: Tensor) -> Tensor:
    """What directions add to the logits, were they alone in the last layer's output and their entries of size 1 (rms).

    That is U N(d), with N the final norm's scaling (and centring, where it centres) and U the unembedding. Whatever
    either adds regardless of d, a bias, is left out, so -d has the opposite logits. The layers in between are left out.

    Args:
        model: whose norm and unembedding are used.
        directions: `[directions, d_model]`.

    Returns:
        `[directions, vocabulary]` in float32, each with mean zero.
    """
    sized = directions * (model.d_model**0.5 / directions.norm(dim=1, keepdim=True).clamp_min(1e-30))
    nothing = sized.new_zeros(1, model.d_model)
    logits = model.logits(torch.cat([sized, nothing]).to(model.network.dtype)).float()
    change = (logits[:-1] - logits[-1])[:, : len(model.tokenizer)]
    return change - change.mean(1, keepdim=True)


def read(model: Model, directions: Tensor, tokens: int = TOKENS) -> list[Reading]:
    """The tokens that each of `directions` `[directions, d_model]` promotes and suppresses most; see `logits_of`."""
    return [
        Reading(_tokens(model, row, tokens), _tokens(model, row, tokens, largest=False))
        for rows in directions.split(ROWS)
        for row in logits_of(model, rows)
    ]


def token_text(model: Model, token: int) -> str:
    """A token's text, with the space it begins with and with the bytes that are no whole character."""
    raw = str(model.tokenizer.convert_ids_to_tokens(token))
    text = str(model.tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if "\ufffd" in text:
        known = all(character in BYTES for character in raw)
        return bytes(BYTES[c] for c in raw).decode(errors="backslashreplace") if known else raw
    return f" {text}" if raw.startswith("▁") and not text.startswith(" ") else text


def _tokens(model: Model, logits: Tensor, count: int, largest: bool = True) -> tuple[Token, ...]:
    top = logits.topk(min(count, len(logits)), largest=largest)
    pairs: Sequence[tuple[int, float]] = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return tuple(Token(token_text(model, token), logit) for token, logit in pairs)


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level tokenizers write for each byte: itself if it is visible, else one beyond 255."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTES = _byte_alphabet()
