"""A causal language model with its anatomy: the places that reading and editing a fact need."""

import hashlib
import inspect
import threading
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ece.errors import UserError
from ece.models.attention import group_heads
from ece.models.families import FAMILIES, Family
from ece.models.gated import activations_made_again
from ece.models.linear import maps_by_onednn
from ece.models.memories import Memory
from ece.models.norms import norms_by_hand
from ece.models.overlay import Overlay

EDITABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def family_of(model_type: str) -> Family:
    """The declaration for `config.model_type`.

    Raises:
        UserError: no family declares this type.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise UserError(
        f"model type {model_type!r} is of no known family (known: {known}); "
        "docs/add-a-model.md shows how to declare one"
    )


class Model:
    """A network, its tokenizer and its anatomy. Device and dtype are always the network's own."""

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str):
        """Wrap a loaded network; its weights are frozen (`requires_grad` off) and it is put in evaluation mode.

        Raises:
            UserError: the family is unknown, or the tokenizer has no character offsets.
        """
        if not tokenizer.is_fast:
            raise UserError(f"{name}: its tokenizer gives no character offsets; use a fast tokenizer")
        self.network = network.eval().requires_grad_(False)
        group_heads(network)
        activations_made_again(network)
        norms_by_hand(network)
        maps_by_onednn(network)
        self.tokenizer = tokenizer
        self.name = name
        self.family = family_of(network.config.model_type)
        self.overlay = Overlay()
        self.memories: list[Memory] = []
        self.recording = threading.Lock()
        """Held by the thread that puts something else in the layers' place for a moment."""

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, lowest first."""
        return list(cast(nn.ModuleList, self.network.get_submodule(self.family.layers)))

    def ffn_output(self, layer: int) -> nn.Module:
        """The module whose input is the key and whose weight is W (Eq. 3)."""
        return self.layers[layer].get_submodule(self.family.ffn_output)

    def weight_name(self, layer: int) -> str:
        """W's name in the checkpoint."""
        return f"{self.family.layers}.{layer}.{self.family.ffn_output}.weight"

    def weight(self, layer: int) -> Tensor:
        """W `[d_model, d_ff]`: a view, so that writing to it changes the model.

        Raises:
            UserError: the layer is quantised or offloaded, so that W is not there to be changed.
        """
        parameter = getattr(self.ffn_output(layer), "weight", None)
        if not isinstance(parameter, Tensor) or parameter.dtype not in EDITABLE:
            raise UserError(f"{self.weight_name(layer)} is quantised; load the model in a floating-point dtype")
        weight = parameter.data
        if weight.is_meta:
            raise UserError(
                f"{self.weight_name(layer)} is offloaded; load the model so that the edited layers stay in memory"
            )
        return weight.T if self.family.transposed else weight

    @cached_property
    def layers_return_tuples(self) -> bool:
        """Whether a decoder layer returns `(hidden, …)` rather than the hidden states alone.

        Releases of transformers differ, and so a single token shows it.
        """
        seen: list[Any] = []
        handle = self.layers[0].register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            with torch.no_grad():
                self.network.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device))
        finally:
            handle.remove()
        return isinstance(seen[0], tuple)

    @cached_property
    def past_argument(self) -> str:
        """What the network calls a past: releases of transformers differ."""
        named = inspect.signature(self.network.base_model.forward).parameters
        return "cache" if "cache" in named else "past_key_values"

    def remembering(self, past: Any) -> dict[str, Any]:
        """What hands the network a past."""
        return {self.past_argument: past, "use_cache": True}

    @property
    def final_norm(self) -> nn.Module:
        """The norm in front of the unembedding."""
        return self.network.get_submodule(self.family.final_norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits `[..., vocabulary]` of states `[..., d_model]` at the last layer's output."""
        return self.unembed(self.final_norm(hidden))

    def unembed(self, normed: Tensor) -> Tensor:
        """Logits `[..., vocabulary]` of normed states `[..., d_model]`."""
        return cast(nn.Module, self.network.get_output_embeddings())(normed)

    @property
    def device(self) -> torch.device:
        """Where the token ids go."""
        return cast(nn.Module, self.network.get_input_embeddings()).weight.device  # type: ignore[return-value]

    @cached_property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.weight(0).shape[0]

    @cached_property
    def d_ff(self) -> int:
        """Neurons per layer."""
        return self.weight(0).shape[1]

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a text, as the model's generation settings and its tokenizer have them."""
        settings: Any = getattr(self.network.generation_config, "eos_token_id", None)
        ends: list[Any] = settings if isinstance(settings, list) else [settings]
        return frozenset(token for token in (*ends, self.tokenizer.eos_token_id) if isinstance(token, int))

    @property
    def context(self) -> int | None:
        """How many tokens the model sees at once, where its configuration says so."""
        return getattr(self.network.config, "max_position_embeddings", None) or None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the unedited model's parameters: names, shapes, dtypes and bits.

        Raises:
            UserError: a parameter is offloaded.
        """
        away = next((name for name, parameter in self.network.named_parameters() if parameter.is_meta), None)
        if away is not None:
            raise UserError(f"{away} is offloaded; load the model so that all of it stays in memory")
        digest = hashlib.sha256()
        base = {self.weight_name(layer): weight for layer, weight in self.overlay.base.items()}
        for name, parameter in sorted(self.network.named_parameters()):
            tensor = base.get(name, parameter.data)
            if name in base and self.family.transposed:
                tensor = tensor.T
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()
