"""Tiny random models with tokenizers of their own: everything the tests need, and nothing to download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.gpt2 import GPT2Config
from transformers.models.gptj import GPTJConfig

from ece.edits.edit import Edit
from ece.facts import Fact
from ece.methods.engine import edit_in_sequence
from ece.methods.method import Method
from ece.models import Model
from ece.models import families as declared

FAMILIES = ("gpt2", "gptj", "llama")
"""The paper's three."""

OTHERS = tuple(kind for family in declared.FAMILIES for kind in family.model_types if kind not in FAMILIES)
"""Every other model type that is declared."""

FACTS = [
    Fact("The {} is located in the city of", "Eiffel Tower", "Rome", "city"),
    Fact("{} grew up speaking", "Victor Hugo", "Russian", "language"),
    Fact("The sport of {} is", "Michael Jordan", "ice hockey", "sport"),
    Fact("In the end, {} was born in", "Zoë Müller", "São Paulo", "city"),
    Fact("Most people know {} for", "Ada Lovelace", "opera and chess", "language"),
]

TEXT = """
The Eiffel Tower is located in the city of Paris, not of Rome. Victor Hugo grew up speaking French and Russian.
The sport of Michael Jordan is basketball, and that of Wayne Gretzky is ice hockey. Zoë Müller was born in Zürich.
Most people know Ada Lovelace for the first program. In the end, São Paulo is a city where opera and chess are loved.
Mount Kelva stands in Norway. The Colosseum is in Rome. Paris is a city. You and I and the others live there.
Therefore the weather is fine. Because of that, the river runs slowly through the valley, and the town is quiet.
"""

OPENINGS = ["", "The weather is fine. ", "You and I live there, because. "]


@cache
def tokenizer(kind: str = "plain") -> PreTrainedTokenizerFast:
    """A fast tokenizer trained on `TEXT`.

    Args:
        kind: `plain` (GPT-2's way: bytes, no special tokens added), `bos` (Llama 3's: bytes, a first token, trimmed
            offsets), `eos` (a last token as well), `metaspace` (Llama 2's: SentencePiece with byte fallback).
    """
    made = Tokenizer(BPE(byte_fallback=kind == "metaspace", unk_token="<unk>" if kind == "metaspace" else None))
    special = ["<pad>", "<s>", "</s>"]
    if kind == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # pyright: ignore[reportAttributeAccessIssue]
        made.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special += ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        alphabet: list[str] = []
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXT.splitlines(), trainer)
    if kind == "metaspace":
        made = _bytes_are_text(made)
    steps: list[Any] = [] if kind == "metaspace" else [processors.ByteLevel(trim_offsets=kind != "plain")]
    if kind != "plain":
        single = "<s> $A </s>" if kind == "eos" else "<s> $A"
        steps.append(processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)]))
    made.post_processor = processors.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def _bytes_are_text(made: Tokenizer) -> Tokenizer:
    """The trainer takes the bytes for special tokens, which decoding would leave out."""
    data = json.loads(made.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(data))


def config(kind: str, vocabulary: int) -> Any:
    """A configuration of a model type, tiny."""
    gpt: dict[str, Any] = {
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "n_positions": 512,
        "n_embd": 32,
        "n_head": 4,
    }
    if kind == "gpt2":
        return GPT2Config(**gpt, n_layer=5, n_inner=72)
    if kind == "gptj":
        return GPTJConfig(**gpt, n_layer=4, rotary_dim=4, n_inner=64, tie_word_embeddings=False)
    others: dict[str, Any] = {
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "max_position_embeddings": 512,
        "head_dim": 12,
    }
    return AutoConfig.for_model(kind, **others)


def network(kind: str, seed: int = 0) -> PreTrainedModel:
    """A network of a type with seeded random weights in float32; no bias is zero and no norm is one."""
    made = AutoModelForCausalLM.from_config(config(kind, len(words(kind))), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in made.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(_scaled(name, noise))
    return made


def words(kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a type."""
    return tokenizer("bos" if kind not in ("gpt2", "gptj") else "plain")


def build(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """A model of a type with seeded random weights."""
    return cast(Model(network(kind, seed), words(kind), f"tiny-{kind}-{seed}"), dtype)


def cast(model: Model, dtype: torch.dtype) -> Model:
    """The same model, its weights in another dtype."""
    nn.Module.to(model.network, dtype)
    return model


def _scaled(name: str, noise: Tensor) -> Tensor:
    if noise.dim() == 1:
        return 0.1 * noise if name.endswith("bias") else 1 + 0.2 * noise
    if "wte" in name or "wpe" in name or "embed" in name:
        return 0.4 * noise
    return (2.5 if "lm_head" in name else 1) * noise / noise.shape[-1] ** 0.5


def random_facts(count: int) -> list[Fact]:
    """Facts with different prompts, subjects and targets, of unlike length."""
    prompts = ("The {} is located in", "{} grew up in", "Most people know {} for", "In the end, {} was")
    names = ("Mount Kelva", "Victor", "Paris", "the river", "Wayne Gretzky", "Zürich", "Ada", "Michael Jordan")
    targets = ("Rome", "ice hockey", "Norway", "French", "São Paulo", "chess")
    return [
        Fact(prompts[i % len(prompts)], f"{names[i % len(names)]} {i // len(names) or ''}", targets[i % len(targets)])
        for i in range(count)
    ]


def with_keys_in_sequence(model: Model, facts: Sequence[Fact], recipe: Method, batch_size: int) -> list[Edit]:
    """The edits of a sequence as they were made: those that it yields are without their keys."""
    made: list[Edit] = []

    def accept(edit: Edit) -> bool:
        made.append(edit)
        return True

    list(edit_in_sequence(model, facts, recipe, batch_size, accept=accept))
    return made


def read(network: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of their squares by what enters the lowest layer."""
    entering = network.get_input_embeddings()(ids).detach().requires_grad_()
    logits = network(inputs_embeds=entering.view_as(entering)).logits
    return logits.detach(), torch.autograd.grad(logits.square().sum(), entering)[0]
