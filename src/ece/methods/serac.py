"""SERAC: a cache of edits, a trained classifier of their scope, and a counterfactual model (Mitchell et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ece.edits.edit import Edit
from ece.facts import Fact
from ece.memories.reading import Reader
from ece.memories.retrieval import Retrieval, Space, best_radius
from ece.methods.history import History
from ece.methods.method import Batch, Beside
from ece.models import Model
from ece.training.examples import Example, divided
from ece.training.trainer import DEFAULT, trained

KIND = "serac"
RIDGE = 1.0
UNRELATED = 3
"""Prompts out of scope that are read of each example."""


class Classifier(nn.Module):
    """P(in scope) = exp(-|P x - P e|^2), the paper's embedding classifier with a linear map as encoder."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, dimensions: int):
        super().__init__()
        self.projection = nn.Parameter(torch.eye(min(dimensions, width), width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def space(self, reader: Reader) -> Space:
        """Where texts are compared."""
        return Space(reader, self.mean, self.deviation, self.projection)


class SeracTask:
    """The classifier's training: each prompt against its own edit, and against the nearest of the batch's others."""

    def __init__(self, model: Model, examples: Sequence[Example], encoder: str, dimensions: int):
        """Read all texts, once.

        Args:
            model: without edits.
            examples: the last tenth is held out.
            encoder: `own`, or an encoder that transformers loads.
            dimensions: in which texts are compared.
        """
        self.model, self.reader = model, Reader(encoder)
        self.examples, self.held = divided(list(examples))
        texts = list(dict.fromkeys(text for example in examples for text in _texts(example)))
        self.read = dict(zip(texts, self.reader(model, texts), strict=True))
        self.module = Classifier(len(self.read[texts[0]]), dimensions).to(model.device)
        seen = torch.stack([self.read[text] for example in self.examples for text in _texts(example)])
        self.module.mean.copy_(seen.mean(0))
        self.module.deviation.copy_(seen.std(0))
        self._begin()

    def about(self) -> dict[str, Any]:
        """What a checkpoint is bound to."""
        return {
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "encoder": self.reader.encoder,
            "depths": list(self.reader.depths),
            "dimensions": len(self.module.projection),
        }

    @torch.no_grad()
    def _begin(self) -> None:
        """Start at the linear discriminant: directions in which texts differ most and rephrasings least."""
        space = Space(self.reader, self.module.mean, self.module.deviation, torch.eye(len(self.module.mean)))

        def points(texts: Sequence[str]) -> Tensor:
            return space.points(torch.stack([self.read[text] for text in texts])).double()

        same = points([e.fact.question for e in self.examples]) - points([e.rephrased[0] for e in self.examples])
        every = points([text for e in self.examples for text in _texts(e)])
        projection = discriminant(same, every, len(self.module.projection), RIDGE)
        self.module.projection.copy_(projection)
        inside = self._distances([e.rephrased[0] for e in self.examples], self.examples).diag()
        outside = self._distances([e.unrelated[0] for e in self.examples], self.examples).min(1).values
        self.module.projection.mul_(math.sqrt(math.log(2) / best_radius(inside, outside)))

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Tensor:
        """Binary cross-entropy: prompts in scope, and prompts out of it against the edit they are most alike."""
        examples = [self.examples[i] for i in batch]

        def one(texts: Sequence[str]) -> str:
            return texts[int(torch.randint(len(texts), (), generator=generator))]

        inside = self._distances([one(e.rephrased) for e in examples], examples)
        outside = self._distances([one(e.unrelated[:UNRELATED]) for e in examples], examples)
        others = inside + torch.diag(torch.full((len(examples),), math.inf, device=inside.device))
        wrong = torch.cat([outside.min(1).values, others.min(1).values])
        return inside.diag().mean() - torch.log(-torch.expm1(-wrong) + 1e-6).mean()

    def validate(self) -> dict[str, float]:
        """The loss on held-out examples, the share of rephrasings routed to their edit, and of others let pass."""
        limit = math.log(2)
        inside = self._distances([e.rephrased[0] for e in self.held], self.held)
        own = torch.arange(len(self.held), device=inside.device)
        found = (inside.argmin(1) == own) & (inside.diag() <= limit)
        outside = self._distances([t for e in self.held for t in e.unrelated[:UNRELATED]], self.held)
        nearest = outside.min(1).values
        loss = inside.diag().mean() - torch.log(-torch.expm1(-nearest) + 1e-6).mean()
        return {
            "loss": loss.item(),
            "in_scope": found.float().mean().item(),
            "out_of_scope": (nearest > limit).float().mean().item(),
        }

    def _distances(self, prompts: Sequence[str], examples: Sequence[Example]) -> Tensor:
        """Squared `[prompts, examples]`."""
        space = self.module.space(self.reader)
        x = space.points(torch.stack([self.read[text] for text in prompts]))
        e = space.points(torch.stack([self.read[example.fact.question] for example in examples]))
        return (x[:, None] - e[None]).square().sum(-1)


def discriminant(same: Tensor, every: Tensor, dimensions: int, ridge: float) -> Tensor:
    """The projection `[dimensions, width]` with the largest spread of texts for that of differences in one scope.

    Args:
        same: differences between texts of one scope `[pairs, width]`.
        every: texts `[texts, width]`, their mean being 0.
        dimensions: how many directions.
        ridge: added to the scatter within scopes, relative to its mean eigenvalue.
    """
    within, total = same.T @ same / len(same), every.T @ every / len(every)
    within += ridge * within.diag().mean() * torch.eye(len(within), dtype=within.dtype, device=within.device)
    factor = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(factor, total, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    strongest = torch.linalg.eigh((whitened + whitened.T) / 2).eigenvectors[:, -dimensions:]
    return torch.linalg.solve_triangular(factor.T, strongest, upper=True).T


def _texts(example: Example) -> tuple[str, ...]:
    return (example.fact.question, *example.rephrased, *example.unrelated[:UNRELATED])


@dataclass(frozen=True)
class Serac(Beside):
    """Prompts in an edit's scope are answered by the model with the edit in front of them."""

    weights: str = DEFAULT
    """Folder that `ece train serac` wrote; `default`: the model's own in the cache."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability from which a prompt is in scope."""

    @property
    def needs(self) -> str:
        """What must be there before it can edit."""
        return "training, once for a model: ece train serac"

    @property
    def cost(self) -> str:
        """How much work a fact is."""
        return "one reading; the prompt is read twice when the model is asked"

    def edit(self, model: Model, facts: Sequence[Fact], history: History, before: Sequence[str]) -> Edit:
        """Put the facts into the cache.

        Raises:
            UserError: the classifier has not been trained for this model.
        """
        space = restored(model, self.weights)
        batch = Batch(model, facts)
        memory = Retrieval(
            kind=KIND,
            space=space,
            points=space(model, [fact.question for fact in facts]),
            before=tuple(f"{fact.question} {fact.target}. " for fact in facts),
            radius=math.sqrt(-math.log(self.threshold)),
        )
        return batch.edit(self, memory=memory)


def restored(model: Model, weights: str) -> Space:
    """Where the trained classifier compares texts.

    Raises:
        UserError: there is none for this model.
    """
    tensors, about = trained(model, KIND, weights)
    reader = Reader(about.about["encoder"], tuple(about.about["depths"]))
    return Space(reader, *(tensors[name].to(model.device) for name in ("mean", "deviation", "projection")))


PAPER = "Memory-Based Model Editing at Scale, ICML 2022, arXiv 2206.06520"

SERAC = Serac(
    name="serac", summary="a cache and a trained scope classifier; in scope, the edit is read first", source=PAPER
)

METHODS = (SERAC,)
