"""Greedy continuations, many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from ece.models.model import Model


@torch.no_grad()
def continuations(model: Model, prompts: Sequence[str], tokens: int, rows: int = 32) -> list[str]:
    """What the model writes after each prompt, always taking the most probable token.

    Args:
        model: as it is now.
        prompts: texts.
        tokens: how many to write, fewer where the model ends its text.
        rows: prompts in one pass.
    """
    written: list[str] = []
    for start in range(0, len(prompts), rows):
        part = [model.tokenizer(prompt)["input_ids"] for prompt in prompts[start : start + rows]]
        longest = max(len(ids) for ids in part)
        padding = [longest - len(ids) for ids in part]
        ids = torch.tensor([[0] * n + list(row) for n, row in zip(padding, part, strict=True)], device=model.device)
        mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long().to(model.device)
        out = cast(Any, model.network).generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=model.tokenizer.pad_token_id or model.tokenizer.eos_token_id or 0,
        )
        written += [str(text) for text in model.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)]
    return written
