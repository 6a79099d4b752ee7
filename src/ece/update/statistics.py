"""Key statistics: E[kk^T] of each edited layer, streamed over a text, kept on disk, resumed where they stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ece.errors import UserError
from ece.files import cache_folder, new_file, sound
from ece.models.model import Model
from ece.models.replay import keys_captured, padded, passes, record
from ece.update.corpus import Corpus, corpus
from ece.update.names import LISTS, Lists

log = logging.getLogger(__name__)

DEFAULT_CORPUS = "shipped"
TOKENS_PER_NEURON = 24
WINDOW = 256
CHECKPOINT_SECONDS = 20.0
PASS_TOKENS = 2048
"""Tokens in one pass."""


def key_statistics(
    model: Model,
    layers: Sequence[int],
    text: str = DEFAULT_CORPUS,
    *,
    tokens: int | None = None,
    window: int = WINDOW,
    folder: Path | None = None,
) -> dict[int, Tensor]:
    """E[kk^T] of the unedited model (Eq. 4), from the cache or computed now.

    Args:
        model: its overlay must be empty.
        layers: whose keys.
        text: a corpus name, see `ece.update.corpus.corpus`.
        tokens: how many; 24 for each neuron by default.
        window: tokens that see each other.
        folder: where the cache is.

    Returns:
        By layer `[d_ff, d_ff]`, float32, on the layer's device.

    Raises:
        UserError: the text has fewer tokens than one window.
    """
    folder = folder or cache_folder() / "statistics"
    tokens = tokens or TOKENS_PER_NEURON * model.d_ff
    source = corpus(text)
    files = {layer: folder / f"{_key(model, layer, source, tokens, window)}.safetensors" for layer in layers}
    return _kept(model, source.name, files, lambda missing: _streamed(model, missing, source, tokens, window, folder))


def name_statistics(
    model: Model, layers: Sequence[int], lists: Lists = LISTS, *, folder: Path | None = None
) -> dict[int, Tensor]:
    """E[kk^T] at the last tokens of names that the unedited model writes, from the cache or computed now.

    Args:
        model: its overlay must be empty.
        layers: whose keys.
        lists: what makes the model write names.
        folder: where the cache is.

    Returns:
        By layer `[d_ff, d_ff]`, float32, on the layer's device; zero where the model writes no names.
    """
    folder = folder or cache_folder() / "statistics"
    asked = lists.identity
    files = {layer: folder / f"{_hashed(model.fingerprint, layer, asked)}.safetensors" for layer in layers}
    return _kept(model, "names", files, lambda missing: _of_names(model, missing, lists.names(model)))


def _kept(
    model: Model, source: str, files: Mapping[int, Path], summed: Callable[[list[int]], tuple[dict[int, Tensor], int]]
) -> dict[int, Tensor]:
    """What the files hold, by layer; those that are missing are made of the sums of kk^T and the number of keys."""
    missing = [layer for layer, file in files.items() if not sound(file)]
    if missing:
        moments, count = summed(missing)
        for layer in missing:
            about = {"model": model.name, "layer": str(layer), "corpus": source, "tokens": str(count)}
            with new_file(files[layer]) as file:
                save_file({"moment": (moments[layer] / max(1, count)).float().cpu()}, file, about)
    return {layer: load_file(file)["moment"].to(model.weight(layer).device) for layer, file in files.items()}


def statistics_key(
    model: Model, text: str = DEFAULT_CORPUS, *, tokens: int | None = None, window: int = WINDOW, names: bool = False
) -> str:
    """What names the statistics of all layers: the model, the text, how much of it, and which names, if any."""
    key = _key(model, -1, corpus(text), tokens or TOKENS_PER_NEURON * model.d_ff, window)
    return _hashed(key, LISTS.identity) if names else key


def _key(model: Model, layer: int, source: Corpus, tokens: int, window: int) -> str:
    return _hashed(model.fingerprint, layer, source.name, source.identity, tokens, window)


def _hashed(*parts: str | int) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _streamed(
    model: Model, layers: Sequence[int], source: Corpus, tokens: int, window: int, folder: Path
) -> tuple[dict[int, Tensor], int]:
    """Sums of kk^T over a text and the number of its tokens; what was done before an interruption is not done again."""
    wanted = max(1, tokens // window)
    partial = folder / f"{_key(model, -1, source, tokens, window)}-{'-'.join(map(str, layers))}.partial.safetensors"
    sums, done = _resumed(model, layers, partial)
    windows = islice(source.windows(model, window), done, wanted)
    saved = time.monotonic()
    with tqdm(total=wanted, initial=done, desc="key statistics", unit="window", leave=False, disable=None) as bar:
        for batch in _batched(windows, max(1, PASS_TOKENS // window)):
            _add(model, sums, torch.tensor(batch, device=model.device))
            done += len(batch)
            bar.update(len(batch))
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                with new_file(partial) as file:
                    save_file({str(layer): total for layer, total in sums.items()}, file, {"windows": str(done)})
                saved = time.monotonic()
    partial.unlink(missing_ok=True)
    if not done:
        raise UserError(f"corpus {source.name!r}: fewer than {window} tokens of text")
    if done < wanted:
        log.warning("corpus %s has only %d of the %d tokens asked for", source.name, done * window, tokens)
    return sums, done * window


def _resumed(model: Model, layers: Sequence[int], partial: Path) -> tuple[dict[int, Tensor], int]:
    if sound(partial):
        with safe_open(partial, framework="pt") as file:
            done = int(file.metadata()["windows"])
            sums = {layer: file.get_tensor(str(layer)).to(model.weight(layer).device) for layer in layers}
        log.info("key statistics resume after %d windows", done)
        return sums, done
    return _nothing(model, layers), 0


def _nothing(model: Model, layers: Sequence[int]) -> dict[int, Tensor]:
    size = (model.d_ff, model.d_ff)
    return {layer: torch.zeros(size, dtype=torch.float64, device=model.weight(layer).device) for layer in layers}


def _add(model: Model, sums: dict[int, Tensor], ids: Tensor) -> None:
    """Add kk^T of every token `[windows, length]`."""
    _add_at(model, sums, ids, torch.ones_like(ids, dtype=torch.bool), slice(None))


@torch.no_grad()
def _add_at(
    model: Model, sums: dict[int, Tensor], ids: Tensor, visible: Tensor, places: slice | tuple[Tensor, Tensor]
) -> None:
    """Add kk^T of the tokens in some places of `[rows, positions]`."""
    with keys_captured(model, list(sums)) as keys:
        replay = record(model, ids, visible)
        replay.run(replay.embedded, 0, max(sums) + 1)
    for layer, total in sums.items():
        flat = keys[layer][places].flatten(0, -2).float()
        total += flat.T @ flat


def _of_names(model: Model, layers: Sequence[int], names: Sequence[str]) -> tuple[dict[int, Tensor], int]:
    """Sums of kk^T over the last tokens of names, each by itself, and the number of names."""
    log.info("%d names that the model wrote are kept", len(names))
    sums, rows = _nothing(model, layers), [model.tokenizer(name)["input_ids"] for name in names]
    for group in passes([len(row) for row in rows], PASS_TOKENS):
        ids, visible = padded([rows[i] for i in group], model.device)
        _add_at(model, sums, ids, visible, (torch.arange(len(group)), visible.sum(1).cpu() - 1))
    return sums, len(names)


def _batched(windows: Iterator[list[int]], size: int) -> Iterator[list[list[int]]]:
    while batch := list(islice(windows, size)):
        yield batch
