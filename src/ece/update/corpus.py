"""Texts over which E[kk^T] is taken: a file, a dataset, what every installation carries, or the model's own writing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache

from ece.errors import UserError, reason_of, requiring
from ece.facts import not_demonstrated
from ece.models.model import Model


@dataclass(frozen=True)
class Corpus:
    """A text to take statistics over."""

    name: str
    identity: str
    """Changes when the text does; part of the statistics' cache key."""

    windows: Callable[[Model, int], Iterator[list[int]]]
    """Token ids of the text, in windows of a given length."""


def corpus(name: str) -> Corpus:
    """The corpus that a name stands for.

    Args:
        name: `shipped` (sentences of the shipped facts but the demonstration's, then `python`), `python` (the
            language reference that every Python carries), `self` (sampled from the model), a text file, or
            `datasets:PATH[:CONFIG[:SPLIT]]` (needs the `datasets` package).

    Raises:
        UserError: there is no such file or dataset.
    """
    if name == "self":
        return Corpus(name, "sampled, seed 0", _sampled)
    if name == "python":
        return _of_text(name, _python_documentation())
    if name == "shipped":
        return _of_text(name, "\n".join([*_shipped_sentences(), _python_documentation()]))
    if name.startswith("datasets:"):
        return Corpus(name, name, lambda model, length: _packed(model, _dataset(name), length))
    file = Path(name)
    if not file.is_file():
        raise UserError(f"corpus {name!r}: no such file (a text file, shipped, python, self or datasets:PATH)")
    return _of_text(str(file), file.read_text(encoding="utf-8", errors="replace"))


def _of_text(name: str, text: str) -> Corpus:
    paragraphs = text.splitlines()
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Corpus(name, digest, lambda model, length: _packed(model, iter(paragraphs), length))


def _shipped_sentences() -> list[str]:
    """True statements about people and places."""
    sentences: list[str] = []
    for record in not_demonstrated():
        rewrite = record.requested_rewrite
        prompts = [record.fact().question, *record.paraphrase_prompts, *record.neighborhood_prompts]
        true = rewrite.target_true.text if rewrite.target_true else ""
        sentences += [f"{prompt} {true}." for prompt in prompts]
        sentences += [*record.generation_prompts, *record.reference_texts]
    return sentences


def _python_documentation() -> str:
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def _dataset(name: str) -> Iterator[str]:
    with requiring("a dataset as corpus", "data"):
        from datasets import load_dataset
    _, path, *rest = name.split(":")
    config, split = (*rest, None, None)[:2]
    try:
        rows = load_dataset(path, config or None, split=split or "train", streaming=True)
    except (OSError, ValueError) as error:
        raise UserError(f"corpus {name!r}: {reason_of(error)}") from error
    return (_text_of(row, name) for row in rows)


def _text_of(row: dict[str, Any], name: str) -> str:
    if "text" not in row:
        raise UserError(f"corpus {name!r}: its rows have no field 'text', but {', '.join(row)}")
    return row["text"]


def _packed(model: Model, texts: Iterator[str], length: int) -> Iterator[list[int]]:
    """Windows of exactly `length` tokens, texts joined end to end."""
    pending: list[int] = []
    for text in texts:
        if text.strip():
            pending += model.tokenizer(text.strip() + "\n", add_special_tokens=False)["input_ids"]
        while len(pending) >= length:
            yield pending[:length]
            pending = pending[length:]


@torch.no_grad()
def _sampled(model: Model, length: int, rows: int = 64) -> Iterator[list[int]]:
    """Windows that the model writes itself, by ancestral sampling from its own beginnings."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = model.tokenizer
    specials = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    first = next((token for token in specials if isinstance(token, int)), 0)
    while True:
        ids = torch.full((rows, 1), first, device=model.device)
        past = DynamicCache()
        new = ids
        for _ in tqdm(range(length), desc="sampling text", leave=False, disable=None):
            logits = model.network(new, **model.remembering(past)).logits
            probabilities = logits[:, -1].float().softmax(-1).cpu()
            new = torch.multinomial(probabilities, 1, generator=generator).to(ids)
            ids = torch.cat([ids, new], dim=1)
        yield from ids[:, 1:].tolist()
