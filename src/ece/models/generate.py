"""What the model writes by itself, many prompts at once, with a cache of keys and values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ece.models.memories import Patch, patched, routes
from ece.models.model import Model


@dataclass(frozen=True)
class Sampling:
    """Drawing each token from the `top_k` most probable ones, in proportion to their probabilities."""

    top_k: int
    seed: int = 0
    """Each prompt has a random sequence of its own, made from this and its text: what is written after it depends
    neither on the other prompts nor on their order (but for rounding)."""


def drawn(scores: Tensor, exponential: Tensor) -> Tensor:
    """A token for each row `[rows, 1]`: of its k largest scores that which, with Gumbel noise, is the largest.

    That is a draw from their softmax.

    Args:
        scores: `[rows, vocabulary]`, logits.
        exponential: `[rows, k]`, exponential noise.
    """
    logits, tokens = scores.float().topk(exponential.shape[1])
    return tokens.gather(1, (logits - exponential.log().to(logits.device)).argmax(1, keepdim=True))


class _Draw(LogitsProcessor):
    """Leaves one token of the k most probable ones, which is drawn."""

    def __init__(self, sampling: Sampling, prompts: Sequence[str]):
        self.top_k = sampling.top_k
        digests = [hashlib.sha256(f"{sampling.seed}\n{prompt}".encode()).digest() for prompt in prompts]
        self.generators = [torch.Generator().manual_seed(int.from_bytes(d[:7], "big")) for d in digests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        k = min(self.top_k, scores.shape[1])
        exponential = torch.stack([torch.empty(k).exponential_(generator=g) for g in self.generators])
        return torch.full_like(scores, -torch.inf).scatter(1, drawn(scores, exponential), 0.0)


def continuations(
    model: Model, prompts: Sequence[str], tokens: int, rows: int = 32, *, sampling: Sampling | None = None
) -> list[str]:
    """What the model writes after each prompt; its memories have their say.

    Args:
        model: as it is now.
        prompts: texts.
        tokens: how many to write, fewer where the model ends its text.
        rows: prompts in one pass.
        sampling: how to draw the tokens; the most probable one each time by default.
    """
    return _decoded(model, [new for _, new in _routed(model, prompts, tokens, rows, sampling, may_end=True)])


def texts(
    model: Model, prompts: Sequence[str], length: int, rows: int = 32, *, sampling: Sampling | None = None
) -> list[str]:
    """Each prompt and what the model writes after it, `length` tokens in all; the model is not let end its text.

    Args:
        model: as it is now.
        prompts: texts; one that is longer is cut.
        length: tokens of prompt and continuation together.
        rows: prompts in one pass.
        sampling: how to draw the tokens; the most probable one each time by default.
    """
    written = _routed(model, prompts, length, rows, sampling, may_end=False)
    return _decoded(model, [(prompt + new)[:length] for prompt, new in written])


def _routed(
    model: Model, prompts: Sequence[str], tokens: int, rows: int, sampling: Sampling | None, may_end: bool
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each prompt and of what follows it, where a memory has put its text in front or its patch in."""
    routed = routes(model, prompts)
    written = _written(model, prompts, tokens, rows, sampling, may_end, but=routed.keys())
    asked = [route.before + prompts[i] for i, route in routed.items()]
    answers = _written(model, asked, tokens, rows, sampling, may_end, [route.patch for route in routed.values()])
    for n, (i, route) in enumerate(routed.items()):
        new = answers[n][1]
        written[i] = (_read(model, prompts[i]), _until(model, new, route.stop) if route.stop else new)
    return [written[i] for i in range(len(prompts))]


@torch.no_grad()
def _written(
    model: Model,
    prompts: Sequence[str],
    tokens: int,
    rows: int,
    sampling: Sampling | None,
    may_end: bool,
    patches: Sequence[Patch | None] | None = None,
    but: Set[int] = frozenset(),
) -> dict[int, tuple[list[int], list[int]]]:
    """By number: token ids of the prompt and of what follows, `tokens` where the text may end, else with the prompt's.

    Passes in which all prompts are in `but` are left out; the others stay as they are.
    """
    padding = next(x for x in (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, 0) if x is not None)
    patches = patches or [None] * len(prompts)
    read = [_read(model, prompt) for prompt in prompts]
    order = sorted(range(len(read)), key=lambda i: len(read[i]))
    found: dict[int, tuple[list[int], list[int]]] = {}
    bar = tqdm(total=len(read), desc="writing", unit="prompt", leave=False, disable=None)
    with bar, _unbiased(model):
        for start in range(0, len(order), rows):
            part = order[start : start + rows]
            bar.update(len(part))
            if set(part) <= but:
                continue
            shortest, longest = len(read[part[0]]), len(read[part[-1]])
            new = tokens if may_end else max(1, tokens - shortest)
            empty = [longest - len(read[i]) for i in part]
            ids = torch.tensor([[0] * n + read[i] for n, i in zip(empty, part, strict=True)], device=model.device)
            mask = (torch.arange(longest) >= torch.tensor(empty)[:, None]).long().to(model.device)
            draw = [_Draw(sampling, [prompts[i] for i in part])] if sampling else []
            with patched(model, [patches[i] for i in part], [[longest - 1]] * len(part)):
                out = cast(Any, model.network).generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=new,
                    min_new_tokens=None if may_end else new,
                    do_sample=False,
                    logits_processor=LogitsProcessorList(draw),
                    pad_token_id=padding,
                )
            found |= {i: (read[i], row) for i, row in zip(part, out[:, longest:].tolist(), strict=True)}
    return found


@contextmanager
def _unbiased(model: Model) -> Iterator[None]:
    """While this lasts, nothing that a checkpoint asks for, penalties or beams, comes between logits and tokens."""
    network = cast(Any, model.network)
    own = network.generation_config
    network.generation_config = GenerationConfig(eos_token_id=sorted(model.ends) or None)
    try:
        yield
    finally:
        network.generation_config = own


def _read(model: Model, prompt: str) -> list[int]:
    return cast(list[int], model.tokenizer(prompt)["input_ids"])


def _until(model: Model, ids: list[int], stop: str) -> list[int]:
    """The ids up to the token that brings `stop` into the text."""
    decode = model.tokenizer.decode
    return next((ids[:n] for n in range(len(ids)) if stop in str(decode(ids[: n + 1]))), ids)


def _decoded(model: Model, ids: Sequence[Sequence[int]]) -> list[str]:
    if not ids:
        return []
    return [str(text) for text in model.tokenizer.batch_decode([list(row) for row in ids], skip_special_tokens=True)]
