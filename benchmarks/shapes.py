"""Seconds per edit at the shapes of the paper's models, with random weights in bfloat16: MEMIT's plain loop and ours.

python benchmarks/shapes.py [--shape gpt2-xl] [--shape gpt-j-6b] [--shape llama-3-8b] [--device cuda] [--json FILE]
python benchmarks/shapes.py --scale 0.1 --device cpu --facts 4 --plain-facts 1      # to see it run without a GPU

Random weights cost what trained ones cost, evaluation by evaluation, but they are not searched like trained ones: a
search that stops early needs more evaluations here. `evaluations` tells how many there were; `plain` and `fast` take 25
whatever the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from machine import matmul_peak, peak_memory, report, start
from plain import plain_search
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.gpt2 import GPT2Config
from transformers.models.gptj import GPTJConfig
from transformers.models.llama import LlamaConfig

import ece
from ece.evaluation.counterfact import evaluate
from ece.facts import shipped_file
from ece.methods.engine import written_contexts
from ece.methods.recipe import PerFact, Recipe
from ece.methods.registry import as_recipe
from ece.methods.searching import search
from ece.methods.subjects import prepared, states, wanted
from ece.methods.writing import spread
from ece.targets.descent import Adam

STEPS = 25


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, and the layers that the paper edits in it."""

    make: Callable[..., Any]
    layers: int
    heads: int
    d_head: int
    d_ff: int
    vocabulary: int
    edited: tuple[int, int]

    def scaled(self, scale: float) -> Shape:
        """About so large a share of it in depth, width and vocabulary."""
        layers = max(4, round(self.layers * scale))
        heads = max(4, 4 * round(self.heads * scale / 4))
        first, last = (round(layer * layers / self.layers) for layer in self.edited)
        edited = (max(1, first), min(max(first, last, 1), layers - 2))
        d_ff, vocabulary = max(64, round(self.d_ff * scale)), round(self.vocabulary * scale)
        return replace(self, layers=layers, heads=heads, d_ff=d_ff, vocabulary=vocabulary, edited=edited)

    def config(self, least_vocabulary: int) -> Any:
        """A transformers configuration."""
        return self.make(
            self, vocab_size=max(self.vocabulary, least_vocabulary), bos_token_id=0, eos_token_id=0, pad_token_id=0
        )


def _gpt2(shape: Shape, **words: Any) -> GPT2Config:
    width = shape.heads * shape.d_head
    return GPT2Config(**words, n_embd=width, n_layer=shape.layers, n_head=shape.heads, n_inner=shape.d_ff)


def _gptj(shape: Shape, **words: Any) -> GPTJConfig:
    width = shape.heads * shape.d_head
    return GPTJConfig(
        **words, n_embd=width, n_layer=shape.layers, n_head=shape.heads, n_inner=shape.d_ff, rotary_dim=64
    )


def _llama(shape: Shape, **words: Any) -> LlamaConfig:
    return LlamaConfig(
        **words,
        hidden_size=shape.heads * shape.d_head,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // 4,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )


SHAPES = {
    "gpt2-xl": Shape(_gpt2, 48, 25, 64, 6400, 50257, (13, 17)),
    "gpt-j-6b": Shape(_gptj, 28, 16, 256, 16384, 50400, (3, 8)),
    "llama-3-8b": Shape(_llama, 32, 32, 128, 14336, 128256, (4, 8)),
}


def words() -> PreTrainedTokenizerFast:
    """A tokenizer trained on the shipped facts, so that they have about as many tokens as a real one gives them."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = BpeTrainer(
        vocab_size=4000,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(shipped_file().read_text(encoding="utf-8").splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>")


def build(name: str, shape: Shape, device: torch.device, dtype: torch.dtype) -> ece.Model:
    """A model of that shape with random weights, made on the device."""
    tokenizer = words()
    torch.manual_seed(0)
    config = shape.config(len(tokenizer))
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return ece.Model(network, tokenizer, name)


class Clock:
    """Wall time on a device, whose queue is waited for."""

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds, and what `run` gave."""
        self._wait()
        began = time.perf_counter()
        found = run()
        self._wait()
        return time.perf_counter() - began, found

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measured(name: str, shape: Shape, facts: int, plain_facts: int, device: torch.device, dtype: torch.dtype) -> dict:
    """Seconds per edit of every part, at one shape."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model, clock = build(name, shape, device, dtype), Clock(device)
    records = ece.read_counterfact(shipped_file())[:facts]
    asked = [record.fact() for record in records]
    first, last = shape.edited
    recipe: Recipe = replace(as_recipe("ece"), layers=tuple(range(first, last + 1)))
    history = ece.History()
    before = written_contexts(model)[: 1 + recipe.contexts]
    fast = replace(recipe, targets=PerFact(Adam(steps=STEPS)))

    def plain(some: list[ece.Fact]) -> None:
        for fact in some:
            plain_search(model, fact, last, before, steps=STEPS, rate=0.5, weights=recipe.weights)

    def update(delta: torch.Tensor) -> Any:
        subjects = prepared(model, asked, recipe, before)
        hidden = states(model, asked, last)
        reached = wanted(model, asked, recipe, before, hidden, delta)
        return spread(model, recipe, subjects, reached, moments, history)

    moments = {layer: torch.eye(model.d_ff, device=model.weight(layer).device) for layer in recipe.edited}
    plain_search(model, asked[0], last, before, steps=1, rate=0.5, weights=recipe.weights)  # to warm the device up
    search(model, asked[:1], fast, history.warm, before)
    seconds: dict[str, float] = {}
    seconds["plain"] = clock(lambda: plain(asked[:plain_facts]))[0] / len(asked[:plain_facts])
    taken, fast_sought = clock(lambda: search(model, asked, fast, history.warm, before))
    seconds["fast"] = taken / len(asked)
    taken, default_sought = clock(lambda: search(model, asked, recipe, history.warm, before))
    seconds["default"] = taken / len(asked)
    taken, (deltas, _, _) = clock(lambda: update(default_sought.solved.delta))
    seconds["update"] = taken / len(asked)
    model.overlay.push(model, deltas)
    taken, _ = clock(lambda: evaluate(model, records))
    seconds["evaluation"] = taken / len(asked)
    return {
        "shape": {"layers": shape.layers, "d_model": model.d_model, "d_ff": model.d_ff, "edited": list(recipe.edited)},
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "seconds_per_edit": seconds,
        "plain_over": {key: seconds["plain"] / seconds[key] for key in ("plain", "fast", "default")},
        "plain_over_whole_edit": seconds["plain"] / (seconds["default"] + seconds["update"]),
        "evaluations": {
            "plain": float(STEPS),
            "fast": fast_sought.solved.evaluations.float().mean().item(),
            "default": default_sought.solved.evaluations.float().mean().item(),
        },
        "not_finite": int(default_sought.solved.failed.sum()),
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else peak_memory(),
        "facts": len(asked),
        "plain_facts": len(asked[:plain_facts]),
        "contexts": len(before),
    }


def main(
    shape: Annotated[list[str] | None, typer.Option(help=f"Some of {', '.join(SHAPES)}; all by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    scale: Annotated[float, typer.Option(help="Share of the sizes; 0.1 for a machine without a GPU.")] = 1.0,
    facts: Annotated[int, typer.Option(help="Facts in the batch, from the shipped ones.")] = 50,
    plain_facts: Annotated[int, typer.Option(help="Facts for the plain loop.")] = 4,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Time plain and our edits at each shape, one after the other."""
    where, what = torch.device(device), getattr(torch, dtype)
    found: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name in shape or SHAPES:
        if name not in SHAPES:
            raise typer.BadParameter(f"no shape {name!r}; there are: {', '.join(SHAPES)}")
        chosen = SHAPES[name].scaled(scale) if scale != 1 else SHAPES[name]
        found[name] = result = measured(name, chosen, facts, plain_facts, where, what)
        if where.type == "cuda":
            torch.cuda.empty_cache()
        seconds, ratio = result["seconds_per_edit"], result["plain_over"]
        rows.append(
            {"shape": name, "10⁶ par.": result["parameters"] / 1e6}
            | {"measure" if part == "evaluation" else part: seconds[part] for part in seconds}
            | {"plain / fast": ratio["fast"], "plain / default": ratio["default"]}
            | {"evals": result["evaluations"]["default"], "peak GB": result["peak_gb"]}
        )
    peak = matmul_peak(where, what, 8192 if where.type == "cuda" else 1024)
    title = f"Seconds per edit, {dtype} on {device}, scale {scale}; matrix products reach {peak / 1e12:.3g} TFLOP/s"
    report(title, rows, {"shapes": found, "scale": scale, "dtype": dtype, "device": device, "peak_flops": peak}, json)


if __name__ == "__main__":
    start(main)
