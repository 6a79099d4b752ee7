"""An edit: low-rank factors per changed matrix, what they were made from, and a manifest with checksums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ece.edits.packing import pack, packs, unpack
from ece.edits.seal import FORMAT, MANIFEST, Digest, FileName, digest, read_manifest, sealed
from ece.errors import UserError, reason_of
from ece.facts import Fact
from ece.files import new_folder
from ece.memories import restored
from ece.models import LowRank, Model
from ece.models.memories import Memory
from ece.provenance import now, versions

TENSORS = "edit.safetensors"


class FactEntry(BaseModel):
    """A fact of an edit, and how the search for its target went."""

    prompt: str
    subject: str
    target: str
    relation: str | None = None
    cluster: int | None = None
    evaluations: int = 0
    nll: float = 0.0
    failed: bool = False
    """The loss became NaN or infinite: the fact was left out."""

    already_known: bool = False
    """The target was the model's most probable answer before the edit."""

    @property
    def fact(self) -> Fact:
        """The fact itself."""
        return Fact(self.prompt, self.subject, self.target, self.relation)


class Run(BaseModel):
    """The command that a batch belongs to, so that it can go on, or be run again."""

    id: str
    """The same for the same facts, options and guard."""

    options: dict[str, Any]
    """As they were given: layers may be `auto`."""

    batch_size: int


class Manifest(BaseModel):
    """What was edited, in which model, how."""

    format: int = FORMAT
    number: int = 1
    """Its place in the journal."""

    previous: Digest | None = None
    """The seal of the journal's entry before it."""

    files: dict[FileName, Digest] = {}
    method: str
    options: dict[str, Any]
    model: str
    fingerprint: str
    """SHA-256 of the unedited model's parameters."""

    layers: list[int]
    neurons: dict[int, int]
    """How many columns of W are changed in each layer."""

    facts: list[FactEntry]
    contexts: list[str]
    anchors: list[int] = []
    """The fact that stands for each cluster, where there are clusters."""

    memory: dict[str, Any] | None = None
    """What a memory keeps besides tensors: its kind and settings."""

    statistics: str = ""
    """What E[kk^T] was taken over: the key of its cache."""

    derived_keys: bool = False
    """Whether the keys are not kept, as they follow from the facts and the model."""

    run: Run | None = None
    metrics: dict[str, float] = {}
    """What the guard measured after this batch."""

    left_out: str = ""
    """Why the batch is not part of the edited model, where it is not."""

    seconds: float
    phases: dict[str, float] = {}
    """Seconds of its parts, where the method tells them apart."""

    created: str = Field(default_factory=now)
    versions: dict[str, str] = Field(default_factory=versions)


@dataclass(frozen=True, eq=False)
class Edit:
    """The change that one batch of facts makes to a model. Making it changes nothing; `apply` does."""

    deltas: Mapping[int, LowRank]
    """By layer."""

    keys: Mapping[int, Tensor]
    """By layer: K1 `[facts, d_ff]`, which later batches must keep (the history of Eq. 4); empty where a method keeps
    none. An edit that was loaded or made in a sequence may have none: `ece.methods.recall.with_keys` derives them."""

    around: Mapping[int, Tensor]
    """By layer: other keys that later batches must keep `[positions, d_ff]`; empty where the recipe keeps none."""

    hidden: Tensor
    """h `[facts, d_model]` at the last edited layer before the edit."""

    delta: Tensor
    """z - h `[facts, d_model]`."""

    manifest: Manifest
    memory: Memory | None = None
    """What a method keeps that leaves the weights alone."""

    @property
    def facts(self) -> list[Fact]:
        """The facts that were edited; those that failed are left out."""
        return [entry.fact for entry in self.manifest.facts if not entry.failed]

    def without_keys(self) -> Edit:
        """The same edit without the keys that can be derived again: they are most of its size in memory."""
        return replace(self, keys={}, around={}) if self.manifest.derived_keys else self

    def apply(self, model: Model) -> None:
        """Change the model's weights.

        Raises:
            UserError: the edit was made for another model.
        """
        self.check(model)
        model.overlay.push(model, self.deltas)
        if self.memory is not None:
            model.memories.append(self.memory)

    def revert(self, model: Model) -> None:
        """Take the change back; without other edits the weights are the original ones, bit for bit.

        Raises:
            ValueError: the edit is not applied.
        """
        model.overlay.remove(model, self.deltas)
        model.memories[:] = [memory for memory in model.memories if memory is not self.memory]

    def check(self, model: Model) -> None:
        """Refuse another model.

        Raises:
            UserError: the fingerprints differ, or a change does not fit the model.
        """
        if self.manifest.fingerprint != model.fingerprint:
            raise UserError(
                f"these edits were made for {self.manifest.model} ({self.manifest.fingerprint[:12]}), "
                f"not for {model.name} ({model.fingerprint[:12]}); give the model they were made for"
            )
        for layer, change in self.deltas.items():
            if not 0 <= layer < len(model.layers) or not change.fits(model.weight(layer)):
                raise UserError(f"the change of layer {layer} does not fit {model.name}; the edit is damaged")

    def save(self, folder: Path | str) -> None:
        """Write the folder: there whole or not at all.

        Raises:
            UserError: it exists already.
        """
        folder = Path(folder)
        if folder.exists():
            raise UserError(f"{folder} exists already; give another folder")
        with new_folder(folder) as temporary:
            self.write(temporary)

    def write(self, folder: Path) -> str:
        """Fill a folder that is there and empty; the seal of its manifest."""
        files: dict[str, str] = {}
        if tensors := self._tensors():
            save_file({name: tensor.cpu().clone() for name, tensor in tensors.items()}, folder / TENSORS)
            files[TENSORS] = digest((folder / TENSORS).read_bytes())
        data = sealed(self.manifest.model_copy(update={"format": FORMAT, "files": files}))
        (folder / MANIFEST).write_bytes(data)
        return read_manifest(folder / MANIFEST, Manifest)[1]

    def _tensors(self) -> dict[str, Tensor]:
        """By name, as the file has them."""
        tensors: dict[str, Tensor] = {}
        if self.memory is not None:
            tensors |= {f"memory.{name}": tensor for name, tensor in self.memory.tensors().items()}
        if len(self.hidden):
            tensors |= {"hidden": self.hidden, "delta": self.delta}
        for layer, change in self.deltas.items():
            tensors |= {f"{layer}.left": change.left, f"{layer}.neurons": change.neurons}
            if packs(change.right):
                tensors[f"{layer}.right"], tensors[f"{layer}.exponents"] = pack(change.right)
            else:
                tensors[f"{layer}.right"] = change.right
        if not self.manifest.derived_keys:
            tensors |= {f"{layer}.keys": keys for layer, keys in self.keys.items()}
            tensors |= {f"{layer}.around": keys for layer, keys in self.around.items()}
        return tensors

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> Edit:
        """Read a folder written by `save`. Its checksums are compared; format 1 has none.

        Raises:
            UserError: it is not an edit, or is damaged; the file is named.
        """
        folder = Path(folder)
        manifest, _ = read_manifest(folder / MANIFEST, Manifest)
        data = checked(folder, TENSORS, manifest.files)
        try:
            # clones begin where torch's own tensors begin, and products of them have the same bits
            return cls._of(manifest, {name: tensor.clone().to(device) for name, tensor in load(data).items()})
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{folder / TENSORS}: damaged ({reason_of(error)})") from error

    @classmethod
    def _of(cls, manifest: Manifest, tensors: dict[str, Tensor]) -> Edit:
        """The edit that `_tensors` describes."""
        changed = [layer for layer in manifest.layers if manifest.format == 1 or f"{layer}.left" in tensors]
        deltas: dict[int, LowRank] = {}
        for layer in changed:
            left, right, neurons = (tensors.pop(f"{layer}.{part}") for part in ("left", "right", "neurons"))
            if (exponents := tensors.pop(f"{layer}.exponents", None)) is not None:
                right = unpack(right, exponents)
            deltas[layer] = LowRank(left, right, neurons)
        if set(changed) != set(manifest.layers) and set(changed):
            raise KeyError(f"no change of layers {sorted(set(manifest.layers) - set(changed))}")
        keys = {layer: tensors.pop(name) for layer in changed if (name := f"{layer}.keys") in tensors}
        around = {layer: tensors.pop(name) for layer in changed if (name := f"{layer}.around") in tensors}
        if keys and keys.keys() != deltas.keys():
            raise KeyError("no keys of some layers")
        nothing = torch.empty(0, 0)
        hidden, delta = tensors.pop("hidden", nothing), tensors.pop("delta", nothing)
        kept = {name.removeprefix("memory."): t for name, t in tensors.items() if name.startswith("memory.")}
        memory = restored(manifest.memory, kept) if manifest.memory else None
        return cls(deltas, keys, around, hidden, delta, manifest, memory)


def refuse_memories(manifests: Iterable[Manifest], why: str) -> None:
    """Refuse edits that are no change of weights.

    Args:
        manifests: of the edits.
        why: what cannot be done with them, and what to do instead.

    Raises:
        UserError: naming the method.
    """
    for manifest in manifests:
        if manifest.memory is not None:
            raise kept_beside(manifest.method, why)


def kept_beside(method: str, why: str) -> UserError:
    """What to say of a method that changes no weights, and of what cannot be done with it."""
    return UserError(f"{method} keeps its facts beside the model and leaves the weights alone, {why}")


def checked(folder: Path, name: str, files: Mapping[str, str]) -> bytes:
    """A file's bytes, after a look at its checksum.

    Raises:
        UserError: it is missing, a link, or not what was written; the file is named.
    """
    file = folder / name
    try:
        if file.is_symlink():
            raise UserError(f"{file}: a link, which might lead anywhere; put the file itself there")
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: not a saved edit, or damaged ({error.strerror or error})") from error
    if name in files and digest(data) != files[name]:
        raise UserError(f"{file}: damaged (its checksum is not the manifest's); restore it from a copy")
    return data
