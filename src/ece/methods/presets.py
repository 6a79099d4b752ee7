"""Published and tuned options by model: `hyperparameters/*.json`, each with its source."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from ece.errors import UserError, meant
from ece.methods.method import Method
from ece.models import Model

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Method)


class Size(BaseModel):
    """Which model a preset is for: its type and its size."""

    model_config = ConfigDict(protected_namespaces=())

    model_type: str
    layers: int
    d_model: int
    d_ff: int

    @classmethod
    def of(cls, model: Model) -> Size:
        """A model's own."""
        kind = str(model.network.config.model_type)
        return cls(model_type=kind, layers=len(model.layers), d_model=model.d_model, d_ff=model.d_ff)


class Setting(BaseModel):
    """A method's options for the model."""

    source: str
    """Where the numbers are from: a paper, a file of a repository at a commit, or our own tuning."""

    options: dict[str, Any]
    """By dotted name."""

    note: str | None = None
    """In what they are not what the source has."""


class Preset(BaseModel):
    """All that is known for one model."""

    model: Size
    methods: dict[str, Setting]


def presets() -> dict[str, Preset]:
    """Every preset by its name."""
    files = Path(str(resources.files("ece.methods") / "hyperparameters")).glob("*.json")
    return {file.stem: Preset.model_validate_json(file.read_bytes()) for file in sorted(files)}


def with_preset(recipe: M, model: Model, name: str = "auto") -> M:
    """The method with the options of a preset; see `setting`."""
    found = setting(recipe.name, model, name)
    return recipe.with_options(found.options) if found else recipe


def preset_options(methods: Iterable[str], model: Model, name: str = "auto") -> dict[str, dict[str, Any]]:
    """The options of several methods, of those that a preset has; see `setting`."""
    found = {method: setting(method, model, name) for method in methods}
    return {method: of.options for method, of in found.items() if of}


def setting(method: str, model: Model, name: str = "auto") -> Setting | None:
    """What a preset says of a method.

    Args:
        method: a registered one's name.
        model: what it is going to edit.
        name: of a preset; `auto`: the model's own, if there is one by its type and size; `none`.

    Raises:
        UserError: there is no such preset, or it says nothing of this method.
    """
    known = presets()
    if name == "auto":
        own = [key for key, preset in known.items() if preset.model == Size.of(model)]
        name = next((key for key in own if method in known[key].methods), "none")
    if name == "none":
        return None
    if name not in known:
        hint = meant(name, known, f"there are: auto, none, {', '.join(known)}")
        raise UserError(f"no preset {name!r}; {hint}")
    found = known[name].methods.get(method)
    if found is None:
        raise UserError(f"preset {name!r} has no options for {method}; it has: {', '.join(known[name].methods)}")
    log.info("options of %s for %s, from %s", method, name, found.source)
    if found.note:
        log.info("%s, %s: %s", method, name, found.note)
    return found
