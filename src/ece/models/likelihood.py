"""Probabilities of given continuations, many prompts in one pass; beginnings that texts share are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ece.models.memories import Patch, patched, routes
from ece.models.model import Model
from ece.models.replay import padded, passes
from ece.models.tails import SharedPrefixes
from ece.models.tokens import encode

PASS_TOKENS = 1024
TREE_TOKENS = 128
"""A tree takes no text that shares so little of it that more than this is not shared: cheap attention."""

PREFIX_TOKENS = 32
"""What all texts begin with is computed before the trees where it is at least so long (few-shot prompts)."""


@dataclass(frozen=True)
class Question:
    """A prompt and the continuations to be compared after it."""

    prompt: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is, each of its tokens given those before it (teacher forcing)."""

    log_probability: float
    """Mean over its tokens, in nats."""

    right: tuple[bool, ...]
    """By token: whether it is the most probable one."""

    predicted: tuple[int, ...]
    """By token: the most probable one in its place."""

    @property
    def exact(self) -> bool:
        """Whether every token is the most probable one."""
        return all(self.right)

    @property
    def accuracy(self) -> float:
        """The share of tokens that are the most probable ones."""
        return sum(self.right) / len(self.right)


@dataclass(frozen=True)
class _Text:
    """A prompt with one of its candidates."""

    read: list[int]
    """What the model reads: all tokens but the last."""

    start: int
    """Index of the candidate's first token."""

    last: int
    """The last token, which is only predicted."""

    def after(self, common: int) -> _Text:
        """What is left of it after so many tokens."""
        return _Text(self.read[common:], self.start - common, self.last)

    @property
    def wanted(self) -> list[int]:
        """The candidate's tokens."""
        return [*self.read[self.start :], self.last]


@dataclass
class _Tree:
    """Texts side by side in one row, what they begin with in common only once: each token sees those it follows."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    """For each text, where its tokens stand in the row."""

    texts: list[int] = field(default_factory=list)
    """Which texts."""

    nodes: dict[tuple[int, int], int] = field(default_factory=dict)
    """By what stands before it and its token: a token's place."""

    def path(self, read: Sequence[int]) -> list[int]:
        """As much of a text as the tree has."""
        path: list[int] = []
        for token in read:
            place = self.nodes.get((path[-1] if path else -1, token))
            if place is None:
                break
            path.append(place)
        return path

    def add(self, text: int, read: Sequence[int]) -> None:
        path = self.path(read)
        for token in read[len(path) :]:
            parent = path[-1] if path else -1
            path.append(len(self.ids))
            self.nodes[parent, token] = path[-1]
            self.ids.append(token)
            self.parents.append(parent)
            self.positions.append(len(path) - 1)
        self.paths.append(path)
        self.texts.append(text)

    def seen(self, size: int) -> Tensor:
        """`[size, size]` bool: which tokens each one sees; those beyond the tree see themselves."""
        seen = torch.eye(size, dtype=torch.bool)
        for place, parent in enumerate(self.parents):
            if parent >= 0:
                seen[place] |= seen[parent]
        return seen


def likelihoods(model: Model, questions: Sequence[Question], label: str = "likelihoods") -> list[list[Likelihood]]:
    """The likelihood of every candidate of every question, in their order; the model's memories have their say."""
    routed = routes(model, [question.prompt for question in questions])
    found = _answered(model, questions, label, but=routed.keys())
    asked = [replace(questions[i], prompt=route.before + questions[i].prompt) for i, route in routed.items()]
    answers = _answered(model, asked, label, [route.patch for route in routed.values()])
    found |= {i: answers[n] for n, i in enumerate(routed)}
    return [found[i] for i in range(len(questions))]


def _answered(
    model: Model,
    questions: Sequence[Question],
    label: str,
    patches: Sequence[Patch | None] | None = None,
    but: Set[int] = frozenset(),
) -> dict[int, list[Likelihood]]:
    """By number of the question; passes in which all are in `but` are left out, the others stay as they are.

    With patches, one for each question, questions share nothing with each other.
    """
    asked = [(i, candidate) for i, question in enumerate(questions) for candidate in question.candidates]
    texts = [_text(model, questions[i].prompt, candidate) for i, candidate in asked]
    if not texts:
        return {i: [] for i in range(len(questions))}
    before_answers = min(text.start for text in texts) - 1
    prefix = SharedPrefixes.of_all(model, [text.read for text in texts], before_answers, PREFIX_TOKENS)
    texts = [text.after(len(prefix.tokens[0])) for text in texts]
    if patches is None:
        trees, patches = list(_trees(texts, range(len(texts)))), [None] * len(questions)
    else:
        own = [[n for n, (i, _) in enumerate(asked) if i == question] for question in range(len(questions))]
        trees = [tree for numbers in own for tree in _trees(texts, numbers)]
    found: dict[int, Likelihood] = {}
    with tqdm(total=len(texts), desc=label, unit="text", leave=False, disable=None) as bar:
        for group in passes([len(tree.ids) for tree in trees], PASS_TOKENS):
            some = [trees[row] for row in group]
            bar.update(sum(len(tree.texts) for tree in some))
            if all(asked[text][0] in but for tree in some for text in tree.texts):
                continue
            ends = [sorted({path[texts[n].start - 1] for n, path in zip(t.texts, t.paths, strict=True)}) for t in some]
            with patched(model, [patches[asked[tree.texts[0]][0]] for tree in some], ends):
                found |= _scored(model, some, texts, prefix)
    answers: dict[int, list[Likelihood]] = {i: [] for i in range(len(questions))}
    for n, (i, _) in enumerate(asked):
        if n in found:
            answers[i].append(found[n])
    return answers


def _text(model: Model, prompt: str, candidate: str) -> _Text:
    ids, _, start = encode(model, prompt, candidate)
    return _Text(ids[:-1], start, ids[-1])


def _trees(texts: Sequence[_Text], numbers: Sequence[int]) -> Iterator[_Tree]:
    """Those texts, the ones that begin alike next to each other."""
    tree = _Tree()
    for i in sorted(numbers, key=lambda i: texts[i].read):
        read = texts[i].read
        if tree.ids and len(tree.ids) + len(read) - 2 * len(tree.path(read)) > TREE_TOKENS:
            yield tree
            tree = _Tree()
        tree.add(i, read)
    if tree.ids:
        yield tree


@torch.no_grad()
def _scored(
    model: Model, trees: Sequence[_Tree], texts: Sequence[_Text], prefix: SharedPrefixes
) -> dict[int, Likelihood]:
    ids, _ = padded([tree.ids for tree in trees], model.device)
    positions, _ = padded([tree.positions for tree in trees], model.device)
    past = prefix.repeated(len(trees))
    seen = torch.stack([tree.seen(ids.shape[1]) for tree in trees]).to(model.device)
    seen = torch.cat([past.visible[:, None].expand(-1, ids.shape[1], -1), seen], dim=2)
    mask = torch.zeros(seen.shape, dtype=model.network.dtype, device=model.device)
    mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)[:, None]
    states = model.network.base_model(
        input_ids=ids,
        position_ids=past.visible.shape[1] + positions,
        attention_mask=mask,
        **model.remembering(past),
    ).last_hidden_state

    predictions = [
        (text, row, path[texts[text].start - 1 + i], token)
        for row, tree in enumerate(trees)
        for text, path in zip(tree.texts, tree.paths, strict=True)
        for i, token in enumerate(texts[text].wanted)
    ]
    places = {place: number for number, place in enumerate(dict.fromkeys((row, at) for _, row, at, _ in predictions))}
    rows, at = torch.tensor(list(places), device=states.device).T
    logits = model.unembed(states[rows, at]).float()
    which = torch.tensor([places[row, at] for _, row, at, _ in predictions], device=logits.device)
    token = torch.tensor([token for *_, token in predictions], device=logits.device)
    chosen = (logits[which, token] - logits.logsumexp(1)[which]).tolist()
    best = logits.argmax(1)[which].tolist()

    found, first = {}, 0
    for tree in trees:
        for text in tree.texts:
            wanted = texts[text].wanted
            part = slice(first, first := first + len(wanted))
            predicted = tuple(best[part])
            right = tuple(p == w for p, w in zip(predicted, wanted, strict=True))
            found[text] = Likelihood(sum(chosen[part]) / len(wanted), right, predicted)
    return found
