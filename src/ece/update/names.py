"""Names that the model thinks of by itself: other subjects, whose keys an edit should leave alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ece.facts import not_demonstrated
from ece.models.generate import Sampling, continuations
from ece.models.model import Model


@dataclass(frozen=True)
class Lists:
    """Lists of names, a line each, that the model goes on with."""

    lists: int = 128
    begun: int = 8
    """Names that a list begins with, drawn from the subjects of the shipped facts."""

    tokens: int = 64
    """That the model writes in each."""

    longest: int = 40
    """Characters of a name: what is longer is a sentence."""

    sampling: Sampling = Sampling(top_k=1000)

    @property
    def identity(self) -> str:
        """Changes when what the model is asked does."""
        return repr((self, self._prompts(_subjects())))

    def names(self, model: Model) -> list[str]:
        """What the model wrote on complete lines, none twice and none that it was given."""
        known = _subjects()
        written = continuations(model, self._prompts(known), self.tokens, rows=64, sampling=self.sampling)
        lines = [line.strip() for text in written for line in text.split("\n")[:-1]]
        return [line for line in dict.fromkeys(lines) if line and len(line) <= self.longest and line not in known]

    def _prompts(self, known: Sequence[str]) -> list[str]:
        draw = random.Random(0)
        return ["\n".join(draw.sample(known, self.begun)) + "\n" for _ in range(self.lists)]


LISTS = Lists()


def _subjects() -> list[str]:
    return [record.fact().subject for record in not_demonstrated()]
