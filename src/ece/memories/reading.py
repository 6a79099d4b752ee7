"""Vectors of texts: from the model's own hidden states, or from any encoder that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from ece.errors import UserError, reason_of
from ece.models.model import Model
from ece.models.replay import padded, passes, record

OWN = "own"
"""Stands for the edited model itself."""

PASS_TOKENS = 2048


def hidden_states(model: Model, texts: Sequence[str], layers: Sequence[int]) -> list[list[Tensor]]:
    """What enters each of the layers, ascending: for every text, by layer `[tokens, d_model]`, float32."""
    ids = [list(model.tokenizer(text)["input_ids"]) or [0] for text in texts]
    found: dict[int, list[Tensor]] = {}
    with torch.no_grad(), tqdm(total=len(ids), desc="reading", unit="text", leave=False, disable=None) as bar:
        for group in passes([len(row) for row in ids], PASS_TOKENS):
            replay = record(model, *padded([ids[i] for i in group], model.device))
            hidden, below = replay.embedded, 0
            for layer in layers:
                hidden, below = replay.run(hidden, below, layer), layer
                for row, i in enumerate(group):
                    found.setdefault(i, []).append(hidden[row, : len(ids[i])].float())
            bar.update(len(group))
    return [found[i] for i in range(len(ids))]


@dataclass
class Reader:
    """Turns texts into vectors."""

    encoder: str = OWN
    """`own`, or a local folder or hub id of an encoder."""

    depths: tuple[float, ...] = (0.0, 0.25)
    """Where the model's own states are read, as shares of its depth."""

    _loaded: Any = field(default=None, repr=False, compare=False)

    def __call__(self, model: Model, texts: Sequence[str]) -> Tensor:
        """Means over tokens `[texts, width]`, float32; of the unedited model's states, each scaled to length 1."""
        if self.encoder != OWN:
            return self._encoded(texts).to(model.device)
        layers = sorted({round(depth * (len(model.layers) - 1)) for depth in self.depths})
        with model.overlay.suspended(model):
            states = hidden_states(model, texts, layers)
        return torch.stack([torch.cat([normalize(h, dim=-1).mean(0) for h in rows]) for rows in states])

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> Tensor:
        tokenizer, network = self._load()
        found = []
        for start in range(0, len(texts), 32):
            batch = tokenizer(list(texts[start : start + 32]), padding=True, truncation=True, return_tensors="pt")
            states = network(**batch).last_hidden_state.float()
            real = batch["attention_mask"][..., None].float()
            found.append(normalize((states * real).sum(1) / real.sum(1), dim=-1))
        return torch.cat(found)

    def _load(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        if self._loaded is None:
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.encoder)
                network = cast(Any, AutoModel.from_pretrained(self.encoder, use_safetensors=True)).eval()
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise UserError(
                    f"cannot load encoder {self.encoder!r}: {reason_of(error)}; give a folder or a hub id"
                ) from error
            self._loaded = tokenizer, network
        return self._loaded
