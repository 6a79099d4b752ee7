"""Many questions answered at once: how likely each candidate is, and what the model writes by itself.

A prompt is read once, for both; what all prompts begin with in common (few-shot examples) is read once for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ece.models.generate import continuations
from ece.models.likelihood import Likelihood, Question, likelihoods
from ece.models.memories import routes
from ece.models.model import Model
from ece.models.replay import Past, padded, passes, record
from ece.models.tails import SharedPrefixes
from ece.models.tokens import encode

PASS_TOKENS = 1024


@dataclass(frozen=True)
class Answer:
    """What a model says to a question."""

    candidates: list[Likelihood]
    """How likely each of the question's candidates is, in their order."""

    text: str
    """What the model writes by itself."""


@torch.no_grad()
def answers(model: Model, questions: Sequence[Question], tokens: int, label: str = "answers") -> list[Answer]:
    """The likelihood of each question's candidates, and what the model writes; its memories have their say.

    Args:
        model: as it is now.
        questions: prompts, each with any number of candidates.
        tokens: how many to write, always the most probable one, fewer where the model ends its text.
        label: of the progress bar.
    """
    if not questions:
        return []
    prompts = [question.prompt for question in questions]
    encoded = [encode(model, prompt)[0] for prompt in prompts]
    following = [_following(model, question, ids) for question, ids in zip(questions, encoded, strict=True)]
    shared = SharedPrefixes.of_all(model, encoded, min(map(len, encoded)) - 1)
    tails = [ids[len(shared.tokens[0]) :] for ids in encoded]
    found: dict[int, list[Likelihood]] = {}
    texts: dict[int, str] = {}
    with tqdm(total=len(tails), desc=label, unit="question", leave=False, disable=None) as bar:
        for rows in passes([len(tail) for tail in tails], PASS_TOKENS):
            read = _read(model, [tails[row] for row in rows], shared.repeated(len(rows)))
            found.update(zip(rows, _compared(model, read, [following[row] or [] for row in rows]), strict=True))
            texts.update(zip(rows, map(str, model.tokenizer.batch_decode(_written(model, read, tokens))), strict=True))
            bar.update(len(rows))
    claimed = list(routes(model, prompts))
    texts |= zip(claimed, continuations(model, [prompts[row] for row in claimed], tokens), strict=True)
    apart = sorted({*claimed, *(row for row, ids in enumerate(following) if ids is None)})
    found |= zip(apart, likelihoods(model, [questions[row] for row in apart], label), strict=True)
    return [Answer(found[row], texts[row]) for row in range(len(questions))]


def _following(model: Model, question: Question, prompt: list[int]) -> list[list[int]] | None:
    """The candidates' tokens after the prompt's; None where the tokenizer does not part the two there."""
    found: list[list[int]] = []
    for candidate in question.candidates:
        ids, _, start = encode(model, question.prompt, candidate)
        if ids[:start] != prompt:
            return None
        found.append(ids[start:])
    return found


@dataclass(frozen=True)
class _Read:
    """Rows of tokens that were read."""

    past: Past
    logits: Tensor
    """`[rows, vocabulary]`: what comes next, float32"""


def _read(model: Model, rows: Sequence[Sequence[int]], past: Past) -> _Read:
    ids, visible = padded(rows, model.device)
    past.seen = {}
    replay = record(model, ids, visible, past)
    states = replay.run(replay.embedded, 0, len(model.layers))
    last = (visible.sum(1) - 1).to(states.device)
    logits = model.logits(states[torch.arange(len(ids), device=states.device), last]).float()
    return _Read(past.extended(visible), logits)


def _compared(model: Model, read: _Read, candidates: Sequence[Sequence[Sequence[int]]]) -> list[list[Likelihood]]:
    """The likelihood of each row's candidates; their first tokens are predicted already."""
    found: list[list[Likelihood]] = [[] for _ in candidates]
    for number in range(max(map(len, candidates), default=0)):
        rows = [row for row, of in enumerate(candidates) if number < len(of)]
        wanted = [candidates[row][number] for row in rows]
        for row, ids, logits in zip(rows, wanted, _predictions(model, read, rows, wanted), strict=True):
            chosen = logits.log_softmax(1).gather(1, torch.tensor(ids, device=logits.device)[:, None])
            predicted = tuple(logits.argmax(1).tolist())
            right = tuple(p == w for p, w in zip(predicted, ids, strict=True))
            found[row].append(Likelihood(float(chosen.mean()), right, predicted))
    return found


def _predictions(model: Model, read: _Read, rows: Sequence[int], wanted: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits `[tokens, vocabulary]` where each row's continuation is predicted, given its tokens one by one."""
    first = read.logits[torch.tensor(rows, device=read.logits.device)]
    longer = [i for i, ids in enumerate(wanted) if len(ids) > 1]
    made = list(first[:, None])
    if longer:
        ids, visible = padded([wanted[i][:-1] for i in longer], model.device)
        past = read.past.select(torch.tensor([rows[i] for i in longer], device=model.device))
        replay = record(model, ids, visible, past)
        states = replay.run(replay.embedded, 0, len(model.layers))
        for i, of in zip(longer, states, strict=True):
            made[i] = torch.cat([made[i], model.logits(of[: len(wanted[i]) - 1]).float()])
    return made


def _written(model: Model, read: _Read, tokens: int) -> list[list[int]]:
    """The most probable tokens after each row, up to the end of text (left out)."""
    chosen = [read.logits.argmax(1).tolist()]
    while len(chosen) < tokens:
        read = _read(model, [[token] for token in chosen[-1]], read.past)
        chosen.append(read.logits.argmax(1).tolist())
    ends = model.ends
    rows = [list(row) for row in zip(*chosen, strict=True)]
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
