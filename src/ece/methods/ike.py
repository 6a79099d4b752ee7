"""IKE: edits by in-context demonstrations, retrieved for each prompt (Zheng et al. 2023)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from ece.edits.edit import Edit
from ece.facts import CounterFactRecord, Fact, read_counterfact, shipped_file
from ece.files import cache_folder, new_file, sound
from ece.memories.reading import OWN, Reader
from ece.memories.retrieval import Retrieval, Space, best_radius
from ece.methods.history import History
from ece.methods.method import Batch, Beside
from ece.models import Model

KIND = "ike"
KINDS = ("retain", "update", "retain", "copy", "update", "retain", "update", "retain")
"""What demonstrations show, in the paper's shares of 1 copy, 3 updates and 4 retains; the nearest is last."""


@dataclass(frozen=True)
class Corpus:
    """The shipped facts as a source of demonstrations, read by the model once."""

    space: Space
    records: list[CounterFactRecord]
    points: Tensor
    """`[records, width]`: of their questions"""

    radius: float
    """Parts their paraphrases, which are in scope, from prompts about neighbours, which are not, best."""

    @classmethod
    def read(cls, model: Model, encoder: str) -> Corpus:
        """From the cache, or by reading now."""
        reader, records = Reader(encoder), read_counterfact(shipped_file())
        identity = [model.fingerprint, encoder, reader.depths, hashlib.sha256(shipped_file().read_bytes()).hexdigest()]
        name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
        file = cache_folder() / "demonstrations" / f"{name}.safetensors"
        if not sound(file):
            with new_file(file) as temporary:
                save_file({key: t.cpu().contiguous() for key, t in _read(model, reader, records).items()}, temporary)
        kept = load_file(file, device=str(model.device))
        return cls(Space(reader, kept["mean"], kept["deviation"]), records, kept["points"], float(kept["radius"]))

    def demonstrations(self, fact: Fact, point: Tensor, count: int) -> str:
        """The nearest records as demonstrations, none about the fact's own subject."""
        order = torch.cdist(point[None].to(self.points), self.points)[0].argsort().tolist()
        near = [self.records[i] for i in order if self.records[i].requested_rewrite.subject != fact.subject][:count]
        shown = [demonstration(record, kind) for record, kind in zip(near, cycle(reversed(KINDS)), strict=False)]
        return "".join(reversed(shown))


def demonstration(record: CounterFactRecord, kind: str) -> str:
    """A new fact, and a prompt that copies it, follows from it (update), or has nothing to do with it (retain)."""
    fact, true = record.fact(), record.requested_rewrite.target_true
    match kind:
        case "update" if record.paraphrase_prompts:
            asked = f"{record.paraphrase_prompts[0]} {fact.target}"
        case "retain" if record.neighborhood_prompts and true:
            asked = f"{record.neighborhood_prompts[0]} {true.text}"
        case _:
            asked = f"{fact.question} {fact.target}"
    return f"New Fact: {fact.question} {fact.target}\nPrompt: {asked}\n\n"


def _read(model: Model, reader: Reader, records: Sequence[CounterFactRecord]) -> dict[str, Tensor]:
    """Mean and deviation of what is read, the questions' points, and the radius."""
    questions = [record.fact().question for record in records]
    inside = [(i, text) for i, record in enumerate(records) for text in record.paraphrase_prompts]
    outside = [text for record in records for text in record.neighborhood_prompts]
    read = reader(model, [*questions, *(text for _, text in inside), *outside])
    space = Space(reader, read.mean(0), read.std(0))
    points, rephrased, others = space.points(read).split([len(questions), len(inside), len(outside)])
    nearest, which = torch.cdist(rephrased, points).min(1)
    own = which == torch.tensor([i for i, _ in inside], device=which.device)
    radius = best_radius(nearest.masked_fill(~own, torch.inf), torch.cdist(others, points).min(1).values)
    return {"mean": space.mean, "deviation": space.deviation, "points": points, "radius": torch.tensor(radius)}


@dataclass(frozen=True)
class Ike(Beside):
    """Prompts in an edit's scope are answered after demonstrations and the edit; nothing is trained."""

    demonstrations: Annotated[int, Field(ge=0)] = 8
    """How many of the shipped facts are shown first (the paper: 32)."""

    encoder: str = OWN
    """What retrieves: `own` hidden states, or a folder or hub id of an encoder."""

    radius: Annotated[float, Field(ge=0)] = 0.0
    """Largest distance of a prompt in scope, of points of length 1; 0: the one that suits the shipped facts best."""

    @property
    def needs(self) -> str:
        """What must be there before it can edit."""
        return "nothing (reads the shipped facts once)"

    @property
    def cost(self) -> str:
        """How much work a fact is."""
        return "none; the prompt becomes longer when the model is asked"

    def edit(self, model: Model, facts: Sequence[Fact], history: History, before: Sequence[str]) -> Edit:
        """Retrieve demonstrations for each fact."""
        batch, corpus = Batch(model, facts), Corpus.read(model, self.encoder)
        points = corpus.space(model, [fact.question for fact in facts])
        shown = [corpus.demonstrations(f, point, self.demonstrations) for f, point in zip(facts, points, strict=True)]
        texts = [f"{s}New Fact: {f.question} {f.target}\nPrompt: " for s, f in zip(shown, facts, strict=True)]
        memory = Retrieval(KIND, corpus.space, points, tuple(texts), self.radius or corpus.radius, stop="\n")
        return batch.edit(self, memory=memory)


PAPER = "Can We Edit Factual Knowledge by In-Context Learning?, EMNLP 2023, arXiv 2305.12740"

IKE = Ike(name="ike", summary="demonstrations and the edit are put in front of prompts in its scope", source=PAPER)

METHODS = (IKE,)
