"""One trainer: Adam on a module, validation, early stop, and checkpoints from which it goes on to the same bits.

What a step sees depends on the seed and the step's number alone, so that a checkpoint needs no more than parameters,
Adam's moments and the best parameters so far.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from ece.errors import UserError, reason_of
from ece.files import cache_folder, new_file
from ece.models import Model

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
ABOUT = "about.json"
CHECKPOINT_SECONDS = 60.0
DEFAULT = "default"
"""Stands for a folder in the cache, one for each model."""


class Task(Protocol):
    """What is trained."""

    @property
    def module(self) -> nn.Module:
        """Whose parameters are trained."""
        ...

    @property
    def examples(self) -> Sequence[Any]:
        """To train on."""
        ...

    def loss(self, batch: Sequence[int], generator: torch.Generator) -> Tensor:
        """Mean loss of the examples with these numbers."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on held-out examples; `loss` is the one that early stopping minds."""
        ...

    def about(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on with."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    steps: Annotated[int, Field(ge=1)] = 1000
    batch: Annotated[int, Field(ge=1)] = 8
    """Examples in a step."""

    rate: Annotated[float, Field(gt=0)] = 1e-3
    clip: Annotated[float, Field(gt=0)] = 100.0
    """Largest norm of the gradient."""

    every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations."""

    patience: Annotated[int, Field(ge=1)] = 5
    """Validations without a better one before training ends."""

    seed: int = 0


class Trained(BaseModel):
    """What was trained, how it went and what it cost."""

    kind: str
    about: dict[str, Any]
    schedule: dict[str, Any]
    steps: int
    best_step: int
    history: list[dict[str, float]]
    seconds: float
    peak_bytes: int
    """Largest resident size of the process (on CUDA: of the allocator)."""


@dataclass
class _Progress:
    step: int = 0
    best_step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def exhausted(self, schedule: Schedule) -> bool:
        return self.step >= schedule.steps or self.step - self.best_step >= schedule.patience * schedule.every


def train(kind: str, task: Task, schedule: Schedule, folder: Path, resume: bool = False) -> Trained:
    """Train, and write the best parameters to `folder`.

    Args:
        kind: of method, for the record.
        task: whose module is trained; it is left with the best parameters.
        schedule: how long and how fast.
        folder: of checkpoints and results.
        resume: go on from the checkpoint that is there.

    Raises:
        UserError: the folder holds results or a checkpoint that is not to be gone on with, or a loss is not finite.
    """
    check_folder(folder, resume)
    parameters = dict(task.module.named_parameters())
    optimiser = torch.optim.Adam(parameters.values(), lr=schedule.rate)
    identity = {"kind": kind, "about": task.about(), "schedule": _identity(schedule)}
    identity["examples"] = hashlib.sha256(repr(list(task.examples)).encode()).hexdigest()
    progress, best = _Progress(), {name: p.detach().clone() for name, p in parameters.items()}
    if resume and (folder / CHECKPOINT).exists():
        progress, best = _resumed(folder / CHECKPOINT, identity, parameters, optimiser)
    began, saved = time.monotonic() - progress.seconds, time.monotonic()

    def save() -> None:
        progress.seconds = time.monotonic() - began
        _save(folder / CHECKPOINT, identity, parameters, optimiser, best, progress)

    with tqdm(total=schedule.steps, initial=progress.step, desc=f"training {kind}", unit="step", disable=None) as bar:
        while True:
            due = progress.step % schedule.every == 0 or progress.step == schedule.steps
            if due and (not progress.history or progress.history[-1]["step"] != progress.step):
                if _validated(task, progress):
                    best = {name: p.detach().clone() for name, p in parameters.items()}
                save()
                bar.set_postfix(loss=f"{progress.history[-1]['loss']:.3f}")
            if progress.exhausted(schedule):
                break
            _step(task, schedule, progress.step, parameters, optimiser)
            progress.step += 1
            bar.update()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save()
                saved = time.monotonic()

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(best[name])
    found = Trained(
        kind=kind,
        about=task.about(),
        schedule=vars(schedule),
        steps=progress.step,
        best_step=progress.best_step,
        history=progress.history,
        seconds=time.monotonic() - began,
        peak_bytes=peak_bytes(),
    )
    with new_file(folder / ABOUT) as file:
        file.write_text(found.model_dump_json(indent=1), encoding="utf-8")
    with new_file(folder / WEIGHTS) as file:  # last: where it is, training is done
        save_file({name: tensor.cpu().contiguous() for name, tensor in task.module.state_dict().items()}, file)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return found


def default_folder(model: Model, kind: str) -> Path:
    """Where what is trained for a model lies unless another folder is given."""
    return cache_folder() / "trained" / f"{kind}-{model.fingerprint[:16]}"


def trained(model: Model, kind: str, folder: str = DEFAULT) -> tuple[dict[str, Tensor], Trained]:
    """What `train` wrote for a model.

    Raises:
        UserError: it is not there (says the command that makes it), is damaged, or is for another method or model.
    """
    place = default_folder(model, kind) if folder == DEFAULT else Path(folder)
    weights, about = _read(place, kind, f"ece train {kind} --model {model.name} --data RECORDS.json")
    if about.about["fingerprint"] != model.fingerprint:
        raise UserError(f"{place} was trained for {about.about['model']}, which is not this {model.name}")
    return weights, about


def _read(folder: Path, kind: str, command: str) -> tuple[dict[str, Tensor], Trained]:
    if (folder / CHECKPOINT).exists() and not (folder / WEIGHTS).exists():
        raise UserError(f"{folder}: training was stopped before its end; go on with: {command} --out {folder} --resume")
    if not (folder / WEIGHTS).exists():
        raise UserError(f"{kind} has to be trained for a model first, and {folder} holds nothing; run: {command}")
    try:
        about = Trained.model_validate_json((folder / ABOUT).read_bytes())
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValidationError) as error:
        raise UserError(f"{folder}: damaged ({reason_of(error)}); train anew: {command}") from error
    if about.kind != kind:
        raise UserError(f"{folder} holds what was trained for {about.kind}, not for {kind}")
    return weights, about


def peak_bytes() -> int:
    """The largest memory this process has taken so far."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that training must not write to.

    Raises:
        UserError: it holds something that is not to be gone on with, or nothing to go on from.
    """
    if (folder / WEIGHTS).exists():
        raise UserError(f"{folder} holds finished training already; give another folder with --out")
    if (folder / CHECKPOINT).exists() and not resume:
        raise UserError(f"{folder} holds a checkpoint; go on from it with --resume, or give another folder")
    if folder.is_file() or (folder.is_dir() and not (folder / CHECKPOINT).exists() and any(folder.iterdir())):
        raise UserError(f"{folder} holds something that is not training; give another folder")
    if resume and not (folder / CHECKPOINT).exists():
        raise UserError(f"{folder} holds no checkpoint to go on from; leave out --resume")


def _identity(schedule: Schedule) -> dict[str, Any]:
    """What must not change between a checkpoint and its resumption: all but where training ends."""
    return {key: value for key, value in vars(schedule).items() if key not in ("steps", "patience")}


def _step(
    task: Task, schedule: Schedule, step: int, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> None:
    generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
    optimiser.zero_grad()
    with torch.enable_grad():
        loss = task.loss(batch_numbers(len(task.examples), schedule, step), generator)
        loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters.values(), schedule.clip)
    if not (loss.isfinite() and norm.isfinite()):
        raise UserError(f"the loss is NaN or infinite at step {step}; lower the rate (--rate {schedule.rate / 10:g})")
    optimiser.step()


def batch_numbers(examples: int, schedule: Schedule, step: int) -> list[int]:
    """Which examples a step sees: each epoch is a permutation of its own."""
    size = min(schedule.batch, examples)
    per_epoch = examples // size
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(schedule.seed + 7919 * epoch))
    return order[place * size : (place + 1) * size].tolist()


def _validated(task: Task, progress: _Progress) -> bool:
    """Note how the held-out examples fare; whether it is the best so far."""
    with torch.no_grad():
        figures = task.validate()
    if not math.isfinite(figures["loss"]):
        raise UserError(f"the held-out loss is NaN or infinite at step {progress.step}; lower the rate (--rate)")
    better = all(figures["loss"] < earlier["loss"] for earlier in progress.history)
    progress.history.append({"step": progress.step} | figures)
    log.info("step %d: %s", progress.step, ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
    if better:
        progress.best_step = progress.step
    return better


def _save(
    file: Path,
    identity: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    progress: _Progress,
) -> None:
    tensors = {}
    for name, parameter in parameters.items():
        tensors |= {f"now.{name}": parameter.detach(), f"best.{name}": best[name]}
        tensors |= {f"adam.{name}.{key}": value for key, value in optimiser.state.get(parameter, {}).items()}
    about = {"identity": json.dumps(identity, sort_keys=True), "progress": json.dumps(vars(progress))}
    with new_file(file) as temporary:
        save_file({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}, temporary, about)


def _resumed(
    file: Path, identity: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> tuple[_Progress, dict[str, Tensor]]:
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
        tensors = load_file(file)
        progress = _Progress(**json.loads(about["progress"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: damaged ({reason_of(error)}); delete it and begin anew") from error
    if about["identity"] != json.dumps(identity, sort_keys=True):
        raise UserError(f"{file} was made with another model, data or settings; give the same, or another folder")
    best = {}
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(tensors[f"now.{name}"])
        best[name] = tensors[f"best.{name}"].to(parameter.device)
        prefix = f"adam.{name}."
        state = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        if state:
            moved = {k: t if k == "step" else t.to(parameter.device) for k, t in state.items()}
            optimiser.state[parameter] = moved
    log.info("going on from step %d", progress.step)
    return progress, best
