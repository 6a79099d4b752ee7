"""layers=auto: the layers to edit, from attribution on the batch at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ece.facts import Fact
from ece.models.model import Model
from ece.models.replay import padded, record
from ece.models.tokens import locate

WINDOW = 5
"""Edited layers, as in MEMIT and ECE; fewer in a model of fewer than ten layers."""

BELOW = 0.55
"""Share of the attribution that lies at or below the last edited layer. On SmolLM2 it leads to windows that end at
layers 6 to 8; there, windows ending at 5, 6 and 7 did alike on the tuning records, and later ones worse."""

FACTS = 32
"""Facts that are looked at."""


def choose_layers(model: Model, facts: Sequence[Fact]) -> tuple[int, ...]:
    """A window of layers that ends where `BELOW` of the FFNs' attribution has been reached.

    Early layers build up the subject at its last token, later ones read it. An edit must come late enough to know the
    subject, and early enough for the layers above to read what it wrote.

    Args:
        model: without edits.
        facts: the batch; the first `FACTS` of them are looked at.
    """
    attributions = attribution(model, facts[:FACTS]).sum(0)
    reached = attributions.cumsum(0) / attributions.sum()
    last = min(int((reached < BELOW).sum()), len(model.layers) - 2)
    return tuple(range(max(0, last - window_of(len(model.layers)) + 1), last + 1))


def window_of(layers: int) -> int:
    """How many layers of a model with so many are edited where that is left to us."""
    return min(WINDOW, max(1, layers // 2))


def attribution(model: Model, facts: Sequence[Fact], rows: int = 8) -> Tensor:
    """How much each layer's neurons, at the subjects' last tokens, matter for the targets' likelihood.

    For each fact and layer: the sum over neurons of |a_k g.W_k|, where g is the gradient of the target's negative
    log-likelihood by the FFN's output (activation times gradient, neuron by neuron).

    Returns:
        `[facts, layers]`
    """
    return torch.cat([_attribution(model, facts[i : i + rows]) for i in range(0, len(facts), rows)])


def _attribution(model: Model, facts: Sequence[Fact]) -> Tensor:
    texts = [locate(model, fact.prompt, fact.subject, target=fact.target) for fact in facts]
    ids, visible = padded([text.read for text in texts], model.device)
    replay = record(model, ids, visible)
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def hook(layer: int):
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            kept[layer] = (inputs[0].detach(), output)

        return keep

    handles = [model.ffn_output(layer).register_forward_hook(hook(layer)) for layer in range(len(model.layers))]
    try:
        with torch.enable_grad():
            states = replay.run(replay.embedded.clone().requires_grad_(), 0, len(model.layers))
            wanted = [(i, place - 1, text.ids[place]) for i, text in enumerate(texts)
                      for place in range(text.target_start, len(text.ids))]  # fmt: skip
            row, position, token = torch.tensor(wanted, device=states.device).T
            likely = model.logits(states[row, position]).float().log_softmax(-1)
            likely[torch.arange(len(token)), token.to(likely.device)].sum().backward()
    finally:
        for handle in handles:
            handle.remove()

    subject = torch.tensor([text.subject_last for text in texts])
    rows = torch.arange(len(texts))
    columns = []
    for layer, (keys, output) in sorted(kept.items()):
        assert output.grad is not None
        gradient = output.grad[rows, subject].float()
        columns.append((keys[rows, subject].float() * (gradient @ model.weight(layer).float())).abs().sum(1).cpu())
    return torch.stack(columns, dim=1)
