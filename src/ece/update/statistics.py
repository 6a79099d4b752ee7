"""Key statistics: E[kk^T] of each edited layer, streamed over a text, kept on disk, resumed where they stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
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
from ece.models.replay import keys_captured, record
from ece.update.corpus import Corpus, corpus

log = logging.getLogger(__name__)

DEFAULT_CORPUS = "shipped"
TOKENS_PER_NEURON = 24
WINDOW = 256
CHECKPOINT_SECONDS = 20.0


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
    missing = [layer for layer, file in files.items() if not sound(file)]
    if missing:
        moments, count = _streamed(model, missing, source, tokens, window, folder)
        for layer in missing:
            about = {"model": model.name, "layer": str(layer), "corpus": source.name, "tokens": str(count)}
            with new_file(files[layer]) as file:
                save_file({"moment": (moments[layer] / count).float().cpu()}, file, about)
    return {layer: load_file(file)["moment"].to(model.weight(layer).device) for layer, file in files.items()}


def statistics_key(model: Model, text: str = DEFAULT_CORPUS, *, tokens: int | None = None, window: int = WINDOW) -> str:
    """What names the statistics of all layers: the model, the text, and how much of it."""
    return _key(model, -1, corpus(text), tokens or TOKENS_PER_NEURON * model.d_ff, window)


def _key(model: Model, layer: int, source: Corpus, tokens: int, window: int) -> str:
    parts = [model.fingerprint, layer, source.name, source.identity, tokens, window]
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
        for batch in _batched(windows, max(1, 2048 // window)):
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
    size = (model.d_ff, model.d_ff)
    return {layer: torch.zeros(size, dtype=torch.float64, device=model.weight(layer).device) for layer in layers}, 0


@torch.no_grad()
def _add(model: Model, sums: dict[int, Tensor], ids: Tensor) -> None:
    """Add kk^T of every token `[windows, length]`."""
    with keys_captured(model, list(sums)) as keys:
        replay = record(model, ids, torch.ones_like(ids, dtype=torch.bool))
        replay.run(replay.embedded, 0, max(sums) + 1)
    for layer, total in sums.items():
        flat = keys[layer].flatten(0, 1).float()
        total += flat.T @ flat


def _batched(windows: Iterator[list[int]], size: int) -> Iterator[list[list[int]]]:
    while batch := list(islice(windows, size)):
        yield batch
