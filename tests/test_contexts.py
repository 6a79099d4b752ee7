"""Contexts: what the model writes before prompts, one opening after the other, as if each were written alone."""

from __future__ import annotations

import pytest
import reference
import tiny as make
import torch

from ece.models import Model
from ece.targets.contexts import OPENINGS, contexts

SEEDS = (0, 1, 7)


def one_after_the_other(model: Model, length: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    texts = [reference.drawn(model, opening, length, generator) for opening in OPENINGS]
    return ["", *(" ".join(text.split()) + ". " for text in texts)]


@pytest.mark.parametrize("seed", SEEDS)
def test_openings_together_say_what_each_says_alone(tiny: Model, seed: int) -> None:
    assert contexts(tiny, length=6, seed=seed) == one_after_the_other(tiny, 6, seed)


@pytest.mark.parametrize("kind", ["bos", "eos", "metaspace"])
def test_any_tokenizer_will_do(tiny_llama: Model, kind: str) -> None:
    model = Model(tiny_llama.network, make.tokenizer(kind), f"tiny-{kind}")
    lengths = {len(reference.token_ids(model, opening)) for opening in OPENINGS}
    assert len(lengths) > 1  # rows that are padded
    assert contexts(model, length=4) == one_after_the_other(model, 4, 0)


def test_seeds_differ_and_the_random_state_is_left_alone(tiny_llama: Model) -> None:
    state = torch.get_rng_state()
    written = [contexts(tiny_llama, seed=seed) for seed in SEEDS]
    assert torch.equal(torch.get_rng_state(), state)
    assert [texts[0] for texts in written] == [""] * len(SEEDS)
    assert len({*map(tuple, written)}) == len(SEEDS)


@pytest.mark.model
def test_the_real_models_contexts(real_model: Model) -> None:
    assert contexts(real_model) == one_after_the_other(real_model, 10, 0)
