"""What the library computes, computed again: slowly, one thing at a time, so that it can be seen to be right.

Nothing here uses the library's own positions, replays, batches or solvers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ece.facts import Fact
from ece.models import Model

Array = NDArray[np.float64]

# --- tokens: subjects and prompts must end at a space or the end of the text, as they do in tests that use these


def token_ids(model: Model, text: str) -> list[int]:
    """The text's ids, with what the tokenizer adds in front and without what it adds behind."""
    ids = list(model.tokenizer(text)["input_ids"])
    return ids[:-1] if ids and ids[-1] == model.tokenizer.eos_token_id else ids


def subject_position(model: Model, fact: Fact, before: str = "") -> int:
    """Where the subject's last token is: the text up to there is tokenized alone."""
    return len(token_ids(model, before + fact.prompt.split("{}")[0] + fact.subject)) - 1


# --- whole-model runs with hooks


def run_hooked(model: Model, ids: Sequence[int], layer: int, position: int, delta: Tensor | None) -> dict[str, Tensor]:
    """Run one sequence through the whole model, with `delta` added to a layer's output at one position.

    Returns:
        `logits` and `last` (the last layer's output), `[positions, ...]`; `hidden`: the layer's output at the position,
        without delta.
    """
    seen: dict[str, Tensor] = {}

    def add(_: Any, __: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        seen["hidden"] = states[0, position].detach().clone()
        if delta is None:
            return output
        marker = torch.zeros(states.shape[1], 1)
        marker[position] = 1
        states = states + marker * delta
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def keep(_: Any, __: Any, output: Any) -> None:
        seen["last"] = (output[0] if isinstance(output, tuple) else output)[0]

    handles = [model.layers[layer].register_forward_hook(add), model.layers[-1].register_forward_hook(keep)]
    try:
        seen["logits"] = model.network(torch.tensor([list(ids)])).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def hidden_state(model: Model, fact: Fact, layer: int, before: str = "") -> Tensor:
    """H: the layer's output at the subject's last token."""
    position = subject_position(model, fact, before)
    return run_hooked(model, token_ids(model, before + fact.question), layer, position, None)["hidden"]


@torch.no_grad()
def key(model: Model, fact: Fact, layer: int, before: str = "") -> Tensor:
    """K: what enters W at the subject's last token."""
    kept: list[Tensor] = []
    handle = model.ffn_output(layer).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    model.network(torch.tensor([token_ids(model, before + fact.question)]))
    handle.remove()
    return kept[0][0, subject_position(model, fact, before)]


@torch.no_grad()
def ffn_output(model: Model, fact: Fact, layer: int, before: str = "") -> Tensor:
    """W K (and a bias, if there is one): what the FFN adds at the subject's last token."""
    kept: list[Tensor] = []
    handle = model.ffn_output(layer).register_forward_hook(lambda _, __, output: kept.append(cast(Tensor, output)))
    model.network(torch.tensor([token_ids(model, before + fact.question)]))
    handle.remove()
    return kept[0][0, subject_position(model, fact, before)]


# --- the search for a target (Eq. 12-13)


@dataclass
class PlainLoss:
    """The loss of one fact, each prompt run alone through the whole model."""

    model: Model
    fact: Fact
    layer: int
    before: Sequence[str]
    kl: float = 0.0625
    decay: float = 0.5
    clamp: float = 0.75
    site: str = "layer"

    def __post_init__(self) -> None:
        self.hidden = hidden_state(self.model, self.fact, self.layer)
        self.around = self.hidden if self.site == "layer" else ffn_output(self.model, self.fact, self.layer)
        asked = token_ids(self.model, f"{self.fact.question} {self.fact.target}")
        self.tokens = len(asked) - len(token_ids(self.model, self.fact.question))
        with torch.no_grad():
            self.reference = self._essence(torch.zeros_like(self.hidden))

    def __call__(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the target, and the total loss."""
        nll = torch.stack([self._prompt(text, delta) for text in self.before]).mean()
        now = self._essence(delta)
        kl = (now.exp() * (now - self.reference)).sum()
        return nll, nll + self.kl * kl + self.decay * delta.norm() / self.around.norm() ** 2

    def project(self, delta: Tensor) -> Tensor:
        """Back into the ball."""
        radius = self.clamp * self.around.norm()
        return delta * (radius / delta.norm()) if delta.norm() > radius else delta

    def comes_first(self, delta: Tensor) -> bool:
        """Whether every token of the target is the most probable one on every prompt."""
        for text in self.before:
            start = len(token_ids(self.model, text + self.fact.question))
            full = token_ids(self.model, f"{text}{self.fact.question} {self.fact.target}")
            position = subject_position(self.model, self.fact, text)
            logits = run_hooked(self.model, full, self.layer, position, delta)["logits"]
            if any(int(logits[i - 1].argmax()) != full[i] for i in range(start, len(full))):
                return False
        return True

    def _prompt(self, text: str, delta: Tensor) -> Tensor:
        prompt = token_ids(self.model, text + self.fact.question)
        full = token_ids(self.model, f"{text}{self.fact.question} {self.fact.target}")
        assert full[: len(prompt)] == prompt
        position = subject_position(self.model, self.fact, text)
        likely = run_hooked(self.model, full, self.layer, position, delta)["logits"].log_softmax(-1)
        return -torch.stack([likely[i - 1, full[i]] for i in range(len(prompt), len(full))]).mean()

    def _essence(self, delta: Tensor) -> Tensor:
        ids = token_ids(self.model, f"{self.fact.subject} is a")
        position = len(token_ids(self.model, self.fact.subject)) - 1
        return run_hooked(self.model, ids, self.layer, position, delta)["logits"][-1].log_softmax(-1)


def adam_search(
    loss: PlainLoss, steps: int, rate: float, stop_below: float | None = None, start: Tensor | None = None
) -> tuple[Tensor, int]:
    """Delta and the number of evaluations: torch's Adam, one fact."""
    delta = (torch.zeros_like(loss.hidden) if start is None else loss.project(start)).clone().requires_grad_()
    optimiser = torch.optim.Adam([delta], lr=rate)
    for evaluations in range(1, steps + 1):
        optimiser.zero_grad()
        nll, total = loss(delta)
        if stop_below is not None and nll < stop_below:
            return delta.detach(), evaluations
        total.backward()
        optimiser.step()
        with torch.no_grad():
            delta.copy_(loss.project(delta))
    return delta.detach(), steps


def first_search(loss: PlainLoss, steps: int, rate: float, times: int) -> tuple[Tensor, int]:
    """ENCORE's most-probable early stopping: Adam until the target has come first on all prompts so many times."""
    delta = torch.zeros_like(loss.hidden).requires_grad_()
    optimiser = torch.optim.Adam([delta], lr=rate)
    came_first = 0
    for evaluations in range(1, steps + 1):
        came_first += loss.comes_first(delta.detach())
        if came_first == times:
            return delta.detach(), evaluations
        optimiser.zero_grad()
        loss(delta)[1].backward()
        optimiser.step()
        with torch.no_grad():
            delta.copy_(loss.project(delta))
    return delta.detach(), steps


def paired_search(loss: PlainLoss, attention: Tensor, steps: int, rate: float) -> Tensor:
    """PMET: both changes descend on the loss of their sum, each in its own ball; the FFN's is wanted."""
    own, beside = (torch.zeros_like(loss.hidden).requires_grad_() for _ in range(2))
    optimiser = torch.optim.Adam([own, beside], lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(own + beside)[1].backward()
        optimiser.step()
        with torch.no_grad():
            for delta, size in ((own, loss.around.norm()), (beside, attention.norm())):
                if delta.norm() > loss.clamp * size:
                    delta *= loss.clamp * size / delta.norm()
    return own.detach()


def log_odds_search(
    loss: PlainLoss, evaluations: int = 25, stop_below: float = 0.05, last_below: float = 0.3
) -> tuple[Tensor, int]:
    """Delta and the number of evaluations: the formula of docs/method.md, one fact."""
    delta = torch.zeros_like(loss.hidden)
    momentum = torch.zeros_like(delta)
    longest = 0.2 * loss.hidden.norm()
    for done in range(1, evaluations + 1):
        variable = delta.clone().requires_grad_()
        nll, total = loss(variable)
        whole = nll.item() * loss.tokens
        if whole < stop_below:
            return delta, done
        (g,) = torch.autograd.grad(total, variable)
        p = math.exp(-nll.item())
        momentum = 0.5 * momentum + g / g.norm()
        u = momentum / momentum.norm()
        m = -nll.item() - math.log(1 - p)
        s = max(float(g @ u), 1e-9) / (1 - p)
        aim = 5.0 if whole < last_below else 4.0
        step = min(float(longest), max(0.0, (aim - m) / s))
        delta = loss.project(delta - step * u)
        if whole < last_below:
            return delta, done
    return delta, evaluations


# --- neurons and clusters (Eq. 8-10)


def top_p(scores: Sequence[float], p: float) -> set[int]:
    """Take the largest until a share p is held."""
    taken: set[int] = set()
    held = 0.0
    for neuron in sorted(range(len(scores)), key=lambda k: -scores[k]):
        if held >= p * math.fsum(scores):
            break
        taken.add(neuron)
        held += scores[neuron]
    return taken


def jaccard(a: set[int], b: set[int]) -> float:
    """Eq. 9; two empty sets are the same set."""
    return 1 - len(a & b) / len(a | b) if a | b else 0.0


# --- the closed form (Eq. 4)


def least_squares(kept: Any, keys: Any, residuals: Any) -> Array:
    """`R K^T (C + K K^T)^-1` with facts as columns, as the paper writes it.

    Args:
        kept: C `[d_ff, d_ff]`.
        keys: K `[d_ff, facts]`.
        residuals: R `[d_model, facts]`.
    """
    c, k, r = (np.asarray(x, dtype=np.float64) for x in (kept, keys, residuals))
    return r @ k.T @ np.linalg.inv(c + k @ k.T)


def of_rank(change: Any, system: Any, rank: int) -> Tensor:
    """The D of a rank for which `|(D - change) system^(1/2)|` is least: the first singular vectors of the whitened."""
    whitening = np.linalg.cholesky(np.asarray(system, dtype=np.float64))
    left, values, right = np.linalg.svd(np.asarray(change, dtype=np.float64) @ whitening, full_matrices=False)
    return torch.from_numpy((left[:, :rank] * values[:rank]) @ right[:rank] @ np.linalg.inv(whitening))


# --- the solves of other papers; facts are columns


def rank_one(statistics: Any, direction: Any, held: Any, residual: Any) -> Array:
    """ROME: `(v - W k) (C^-1 k')^T / (C^-1 k')^T k`.

    Args:
        statistics: C `[d_ff, d_ff]`.
        direction: k' `[d_ff]`, mean over contexts.
        held: k `[d_ff]`, where the constraint is to hold.
        residual: v - W k `[d_model]`.
    """
    c, k, h, r = (np.asarray(x, dtype=np.float64) for x in (statistics, direction, held, residual))
    u = np.linalg.inv(c) @ k
    return np.outer(r, u) / (u @ h)


def equality(statistics: Any, keys: Any, residuals: Any, slack: float = 0.0) -> Array:
    """EMMET: `R (K^T C^-1 K + slack I)^-1 K^T C^-1`."""
    c, k, r = (np.asarray(x, dtype=np.float64) for x in (statistics, keys, residuals))
    inverse = np.linalg.inv(c)
    return r @ np.linalg.inv(k.T @ inverse @ k + slack * np.eye(k.shape[1])) @ k.T @ inverse


def projector(statistics: Any, threshold: float) -> Array:
    """AlphaEdit's P: onto the singular vectors of E[kk^T] whose singular values are below the threshold."""
    u, s, _ = np.linalg.svd(np.asarray(statistics, dtype=np.float64))
    return u[:, s < threshold] @ u[:, s < threshold].T


def null_space(p: Array, earlier: Any, keys: Any, residuals: Any, ridge: float) -> Array:
    """AlphaEdit: `R K^T P (Kp Kp^T P + K K^T P + ridge I)^-1`."""
    e, k, r = (np.asarray(x, dtype=np.float64) for x in (earlier, keys, residuals))
    return r @ k.T @ p @ np.linalg.inv(e @ p + k @ k.T @ p + ridge * np.eye(len(p)))


def pruned(weight: Any, total: Any, base: float) -> Array:
    """PRUNE: the accumulated change with its singular values restrained one by one."""
    most = np.linalg.svd(np.asarray(weight, dtype=np.float64))[1][0]
    u, s, v = np.linalg.svd(np.asarray(total, dtype=np.float64), full_matrices=False)
    restrained = [x if x <= most else math.log(x, base) - math.log(most, base) + most for x in s]
    return u @ np.diag(restrained) @ v


def rectified(weight: Any, change: Any, share: float) -> Array:
    """RECT: entries in order of |change / W|, the first share of them kept."""
    w, d = (np.asarray(x, dtype=np.float64) for x in (weight, change))
    order = sorted(np.ndindex(d.shape), key=lambda place: -abs(d[place] / w[place]))
    kept = np.zeros_like(d)
    for place in order[: round(share * d.size)]:
        kept[place] = d[place]
    return kept


# --- likelihoods


@torch.no_grad()
def likelihoods(model: Model, prompt: str, candidates: Sequence[str]) -> list[tuple[float, bool]]:
    """Of each candidate the mean log-probability of its tokens, and whether each is the most probable one.

    A row for each, with padding at its end, which no earlier token sees.
    """
    start = len(token_ids(model, prompt))
    rows = [token_ids(model, f"{prompt} {candidate}") for candidate in candidates]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    likely = model.network(ids, logits_to_keep=longest - start + 1).logits.float().log_softmax(-1)
    found = []
    for row, after in zip(rows, likely, strict=True):
        tokens = row[start:]
        mean = sum(float(after[place, token]) for place, token in enumerate(tokens)) / len(tokens)
        found.append((mean, all(int(after[place].argmax()) == token for place, token in enumerate(tokens))))
    return found


def likelihood(model: Model, prompt: str, candidate: str) -> tuple[float, bool]:
    """`likelihoods` of one candidate."""
    return likelihoods(model, prompt, [candidate])[0]


@torch.no_grad()
def along(model: Model, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The most probable token in each place of an answer, given the answer's tokens before it; and the answer's."""
    start, ids = len(token_ids(model, prompt)), token_ids(model, f"{prompt} {answer}")
    best = model.network(torch.tensor([ids[:-1]]), logits_to_keep=len(ids) - start).logits[0].argmax(-1)
    return best.tolist(), ids[start:]


@torch.no_grad()
def greedy(model: Model, prompt: str, tokens: int) -> str:
    """What the model writes, token by token, the whole text read anew each time, to its end or `tokens`."""
    ids = token_ids(model, prompt)
    start = len(ids)
    while len(ids) < start + tokens:
        ids.append(int(model.network(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].argmax()))
        if ids[-1] == model.tokenizer.eos_token_id:
            break
    return str(model.tokenizer.decode(ids[start:], skip_special_tokens=True))


@torch.no_grad()
def drawn(model: Model, opening: str, tokens: int, generator: torch.Generator) -> str:
    """What the model writes after an opening, each token drawn by torch from the 20 most probable ones."""
    ids = token_ids(model, opening)
    for _ in range(tokens):
        logits = model.network(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].topk(20)
        choice = int(torch.multinomial(logits.values.softmax(0), 1, generator=generator))
        ids.append(int(logits.indices[choice]))
    return str(model.tokenizer.decode(ids, skip_special_tokens=True))


# --- metrics of generated texts


def ngram_entropy(words: list[str], n: int) -> float:
    """Shannon entropy in bits of a list's n-grams."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return -sum(grams.count(g) / len(grams) * math.log2(grams.count(g) / len(grams)) for g in set(grams))


def tfidf_cosine(a: str, b: str, corpus: list[str]) -> float:
    """Cosine of TF-IDF vectors: words of two letters or more, small letters, idf = ln((1 + N) / (1 + df)) + 1."""

    def split(text: str) -> list[str]:
        return re.findall(r"\b\w\w+\b", text.lower())

    documents = [set(split(text)) for text in corpus]
    known = sorted(set().union(*documents))
    idf = {w: math.log((1 + len(corpus)) / (1 + sum(w in d for d in documents))) + 1 for w in known}
    x, y = (np.array([split(text).count(w) * idf[w] for w in known]) for text in (a, b))
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) if x.any() else 0.0


# --- errors of means


def jackknifed_harmonic(rows: list[list[float]]) -> tuple[float, float]:
    """Harmonic mean of the columns' means (NaN left out) and its error from leaving out one row after the other."""

    def value(some: list[list[float]]) -> float:
        columns = [[x for x in column if not math.isnan(x)] for column in zip(*some, strict=True)]
        means = [sum(column) / len(column) if column else float("nan") for column in columns]
        if any(map(math.isnan, means)):
            return float("nan")
        return 0.0 if 0 in means else len(means) / sum(1 / mean for mean in means)

    n = len(rows)
    without = [value(rows[:i] + rows[i + 1 :]) for i in range(n)]
    return value(rows), math.sqrt((n - 1) / n * sum((x - sum(without) / n) ** 2 for x in without))


def bootstrap(statistic: Callable[[Array], float], rows: Array, rounds: int = 2000) -> float:
    """Standard error of a statistic of `rows` `[records, ...]`."""
    generator = np.random.default_rng(0)
    draws = [statistic(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(rounds)]
    return float(np.std(draws))


def relative(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference, relative to the norm of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())
