"""What a model on a processor computes in its own way, it leaves alone where somebody else did so before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny as make

from ece.models.gated import activations_made_again
from ece.models.linear import maps_by_onednn
from ece.models.norms import norms_by_hand


@pytest.mark.parametrize(
    ("place", "take"),
    [
        ("model.layers.0.mlp", activations_made_again),
        ("model.layers.1.mlp.up_proj", maps_by_onednn),
        ("model.norm", norms_by_hand),
    ],
)
def test_a_forward_that_somebody_replaced_is_left_alone(place: str, take: Callable[[Any], None]):
    model = make.build("llama")
    module: Any = model.network.get_submodule(place)
    module.forward = wrapped = lambda x: x
    take(model.network)
    assert module.forward is wrapped
