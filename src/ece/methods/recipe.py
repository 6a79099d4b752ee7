"""A locate-and-edit method as data: which neurons, how targets are found, how the weights are solved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ece.errors import UserError, meant
from ece.locate.scores import Score
from ece.targets.descent import Adam, LogOdds, PairedAdam
from ece.targets.loss import Site, Weights
from ece.update.after import AsSolved, Prune, Rect
from ece.update.solvers import Equality, LeastSquares, NullSpace
from ece.update.spread import Rounds, Spread
from ece.update.statistics import DEFAULT_CORPUS

if TYPE_CHECKING:
    from ece.edits.edit import Edit
    from ece.facts import Fact
    from ece.methods.history import History
    from ece.models import Model


def ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    """The layers, checked."""
    if not layers or list(layers) != sorted(set(layers)):
        raise ValueError("layers must be given once each, ascending")
    return layers


@dataclass(frozen=True)
class Neurons:
    """Which columns of W may change (Eq. 5-8)."""

    score: Score = "rs"
    """`as`, `wi`, `rs`, or `random`: as many as `rs` takes."""

    p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the score that the chosen neurons hold; 1 takes all neurons."""

    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Take this share of the neurons instead, those with the highest scores, whatever they hold: for comparisons of
    scores at equal counts."""


@dataclass(frozen=True)
class PerFact:
    """A search for each fact on its own."""

    descent: Adam | LogOdds | PairedAdam = field(default_factory=Adam)
    """`adam` (ROME, MEMIT), `adam-pair` (PMET), or `log-odds` (ours)."""

    views: Annotated[int, Field(ge=1)] = 1
    """A fact's prompts are dealt out among so many views, and each evaluation sees one: a part of the cost."""

    warm: bool = False
    """Start where solved edits with similar targets ended, once there are enough of them."""

    def evaluations(self, facts: int) -> float:
        """Of the loss for each of so many facts, at most."""
        return self.descent.at_most


@dataclass(frozen=True)
class TwoStep:
    """The paper's search (Eq. 11-13): shared steps on each cluster's anchor, then own steps for each member."""

    by: Literal["neurons", "relation", "target", "random", "none"] = "neurons"
    """What clusters are made by: the facts' neuron sets (Eq. 9), or a control."""

    clusters: Annotated[int, Field(ge=1)] = 10
    """How many; fewer where some end up empty."""

    p: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Fraction of the Activation Score in a fact's own neuron set."""

    shared: Adam = field(default_factory=lambda: Adam(steps=20))
    """The search on each anchor, which gives Uz."""

    own: Adam = field(default_factory=lambda: Adam(steps=5))
    """The search for each member."""

    start: Literal["anchor", "zero"] = "anchor"
    """Where the own steps start: at the anchor's Uz, or (a control) at zero."""

    def evaluations(self, facts: int) -> float:
        """Of the loss for each of so many facts, at most: the shared ones are for a cluster's facts together."""
        return self.own.at_most + self.shared.at_most * min(self.clusters, facts) / facts


@dataclass(frozen=True)
class Recipe:
    """All choices of a method. `with_options` changes some of them."""

    name: str
    summary: str
    source: str
    """The paper it comes from."""

    targets: PerFact | TwoStep
    """How target states are found: `per-fact`, or the paper's `two-step`."""

    neurons: Neurons = field(default_factory=Neurons)
    """Which columns of W may change."""

    layers: Annotated[tuple[int, ...], AfterValidator(ascending)] | Literal["auto", "tracing"] = "auto"
    """The critical layers, ascending; on the first batch `auto` chooses them from attribution, `tracing` by ROME's
    causal tracing."""

    weights: Weights = field(default_factory=Weights)
    """The terms of the targets' loss."""

    site: Site = "layer"
    """Where a target lives: at the last written layer's output, or at its FFN's output (ROME, PMET)."""

    targets_from: Literal["original", "current"] = "current"
    """Whether targets are sought on the unedited model or on the one edited so far."""

    pass_tokens: Annotated[int, Field(gt=0)] | None = None
    """How many tokens a pass of the search takes, on average at most: more are faster and take more memory. A fact's
    start is learned from what was found before its pass begins. None: what suits the model's device."""

    contexts: Annotated[int, Field(ge=0, le=5)] = 5
    """How many texts of the model's own are put before each prompt in the search, besides none."""

    keys: Literal["prompt", "contexts", "mean"] = "prompt"
    """A fact's key: from its bare prompt; MEMIT's mean, half of it from the bare prompt and half over contexts; or
    ROME's plain mean over the bare prompt and all contexts."""

    residual: Literal["prompt", "key"] = "prompt"
    """Where what is left to write is measured: after the bare prompt, or as the same mean as the key (R-ROME)."""

    solve: LeastSquares | Equality | NullSpace = field(default_factory=LeastSquares)
    """How a layer's change is solved for: `least-squares`, `equality`, `null-space`."""

    spread: Spread = field(default_factory=Spread)
    """Which of the critical layers are written and what each takes of the residual: `memit`, `pmet`, `blue`, `single`,
    or by its parts."""

    rounds: Rounds = field(default_factory=Rounds)
    """How often the layers are swept."""

    after: AsSolved | Prune | Rect = field(default_factory=AsSolved)
    """What is done to the solved change: `as-solved` (nothing), `prune`, `rect`."""

    at_once: Annotated[int, Field(ge=1)] | None = None
    """How many facts of a batch are edited at once; the others follow on the model that is edited so far. None: all."""

    regularise: Annotated[float, Field(ge=0)] = 1000.0
    """Lambda: how many tokens of ordinary text weigh against the batch (Eq. 4)."""

    keep_names: Annotated[float, Field(ge=0)] = 0.0
    """How many names that the model writes by itself count with each token of ordinary text (0: none do): subjects
    whose keys look as those of the edited ones do, and that an edit should leave alone."""

    shrink: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How far E[kk^T] is shrunk to its diagonal: a text of some tens of tokens per neuron estimates a neuron's own
    energy well, and what it shares with others less well (Ledoit and Wolf 2004)."""

    history: bool = True
    """Whether the keys of earlier batches are kept (Eq. 4)."""

    keep_prompts: Annotated[float, Field(ge=0)] = 0.0
    """How much the keys of the prompts' tokens before the subject's last count beside the facts' own, now and in later
    batches (0: not at all): what later tokens read there by attention then stays what it was when the edit was made."""

    keep_after: Annotated[float, Field(ge=0)] = 0.0
    """How much the keys of the prompts' tokens after the subject's last count, in the same way (0: not at all)."""

    write_contexts: Annotated[int, Field(ge=0, le=5)] = 0
    """After how many of the contexts what is sought is written too, besides the bare prompt: after each of them towards
    the target state that the fact has there."""

    contexts_weight: Annotated[float, Field(gt=0)] = 0.25
    """How much they count together, beside the bare prompt, in what is written and in what later batches keep."""

    leave_common: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much of what a fact's residual has in common with the others' of its batch is not written: it says nothing of
    the fact, and all of them would write it to whatever looks like a subject."""

    corpus: str = DEFAULT_CORPUS
    """The text that E[kk^T] is taken over."""

    tokens: Annotated[int, Field(gt=0)] | None = None
    """How many tokens of it; None: 24 per neuron."""

    @property
    def edited(self) -> tuple[int, ...]:
        """The edited layers, once they are chosen.

        Raises:
            ValueError: they are still `auto`.
        """
        if isinstance(self.layers, str):
            raise ValueError("the layers are not chosen yet")
        return self.layers

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(use_attribute_docstrings=True)

    @property
    def needs(self) -> str:
        """What must be there before it can edit. Statistics are taken when they are first needed, and kept."""
        return f"key statistics ({self.corpus}); no training"

    @property
    def cost(self) -> str:
        """How much work a fact is: loss evaluations at most, and solves."""
        match self.targets:
            case PerFact(descent=descent):
                search = f"≤ {descent.at_most} evaluations"
            case TwoStep(shared=shared, own=own):
                search = f"{own.steps} evaluations and {shared.steps} for each cluster"
        times = ", for each of two layers" if self.spread.own_targets else ""
        sweeps = f", ≤ {self.rounds.at_most} sweeps" if self.rounds.at_most > 1 else ""
        return f"{search}{times}{sweeps}; solved {'fact by fact' if self.at_once == 1 else 'once a batch'}"

    @property
    def keeps_more(self) -> bool:
        """Whether other keys than the facts' own are kept."""
        return bool(self.keep_prompts or self.keep_after or self.write_contexts)

    @property
    def recallable(self) -> bool:
        """Whether a batch's keys follow from its facts and its changes: one sweep over the layers writes them all."""
        return (
            self.at_once is None
            and self.rounds == Rounds()
            and not self.spread.own_targets
            and isinstance(self.solve, LeastSquares)
            and self.after == AsSolved()
        )

    def edit(self, model: Model, facts: Sequence[Fact], history: History, before: Sequence[str]) -> Edit:
        """Run the engine with this recipe."""
        from ece.methods.engine import edit

        return edit(model, facts, self, history, before=before)

    def options(self) -> dict[str, Any]:
        """Every choice as plain data, nested as in the recipe; `kind` names an object that there are several of."""
        return {k: v for k, v in _plain(self).items() if k not in ("name", "summary", "source")}

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """A recipe with some choices changed.

        Args:
            options: by dotted name (`neurons.p`, `layers`, `targets.descent.rate`); values may be text.

        Raises:
            UserError: there is no such option, or its value is not of its kind.
        """
        return changed(self, options)


def changed(declaration: Any, options: Mapping[str, Any]) -> Any:
    """A declaration (a frozen dataclass) with some fields changed; see `Recipe.with_options`."""
    for name, value in options.items():
        declaration = _replaced(declaration, name, name.split("."), value)
    return declaration


def restored(declaration: Any, options: Mapping[str, Any]) -> Any:
    """A declaration with the options that `Recipe.options` gave as nested plain data.

    Raises:
        UserError: there is no such option or kind.
    """
    kinds = {name: kind for known in KINDS.values() for name, kind in known.items()}
    for name, value in options.items():
        if name == "kind":
            continue
        if isinstance(value, Mapping):
            kind = value.get("kind")
            if kind is not None and kind not in kinds:
                raise UserError(f"option {name!r}: no kind {kind!r}")
            part = restored(getattr(declaration, name, None) if kind is None else kinds[kind], value)
            declaration = dataclasses.replace(declaration, **{name: part})
        else:
            declaration = _replaced(declaration, name, [name], value)
    return declaration


def _replaced(node: Any, name: str, path: list[str], value: Any) -> Any:
    fields = {f.name: f for f in dataclasses.fields(node)}
    first, *rest = path
    if first not in fields or first in ("name", "summary", "source"):
        hint = meant(first, fields, f"it has: {', '.join(sorted(fields))}")
        raise UserError(f"no option {name!r}; {hint}")
    if rest:
        child = getattr(node, first)
        if not dataclasses.is_dataclass(child):
            raise UserError(f"no option {name!r}; {first!r} has no parts")
        return dataclasses.replace(node, **{first: _replaced(child, name, rest, value)})
    if dataclasses.is_dataclass(getattr(node, first)):
        return dataclasses.replace(node, **{first: _chosen(name, getattr(node, first), value)})
    return dataclasses.replace(node, **{first: _parsed(type(node), first, name, value)})


KINDS: dict[str, dict[str, Any]] = {
    "targets": {"per-fact": PerFact(), "two-step": TwoStep()},
    "descent": {"adam": Adam(), "adam-pair": PairedAdam(), "log-odds": LogOdds()},
    "solve": {"least-squares": LeastSquares(), "equality": Equality(), "null-space": NullSpace()},
    "spread": {
        "memit": Spread(),
        "pmet": Spread(share="root"),
        "blue": Spread(layers="ends", own_targets=True),
        "single": Spread(layers="last"),
    },
    "after": {"as-solved": AsSolved(), "prune": Prune(), "rect": Rect()},
}
"""What can be named where a recipe holds an object: `targets=two-step`, `targets.descent=adam`."""


def _chosen(name: str, current: Any, value: Any) -> Any:
    allowed = KINDS.get(name.split(".")[-1], {})
    if not isinstance(value, str) or value not in allowed:
        parts = ", ".join(f"{name}.{f.name}" for f in dataclasses.fields(current))
        choices = [f"one of {', '.join(allowed)}"] if allowed else []
        choices += [f"set one of its parts: {parts}"] if parts else []
        raise UserError(f"option {name!r}: {', or '.join(choices)}")
    return allowed[value]


def _plain(node: Any) -> Any:
    """A dataclass as nested dictionaries, with the kind's name where several classes can stand."""
    if not dataclasses.is_dataclass(node):
        return node
    kinds = {type(kind): name for known in KINDS.values() if len({*map(type, known.values())}) > 1
             for name, kind in known.items()}  # fmt: skip
    kind = {"kind": kinds[type(node)]} if type(node) in kinds else {}
    return kind | {field.name: _plain(getattr(node, field.name)) for field in dataclasses.fields(node)}


def _parsed(owner: type, field_name: str, name: str, value: Any) -> Any:
    annotation = get_type_hints(owner, include_extras=True)[field_name]
    if field_name == "layers" and isinstance(value, str) and not _word(annotation, value):
        value = parsed_layers(name, value)
    if value in ("none", "None") and type(None) in get_args(_bare(annotation)):
        value = None
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise UserError(
            f"option {name}={value}: {error.errors()[0]['msg'].removeprefix('Value error, ').lower()}"
        ) from error


def _word(annotation: Any, value: str) -> bool:
    """Whether a literal of the annotation is meant, or nothing but literals is allowed."""
    parts = get_args(annotation)
    literals = [part for part in (annotation, *parts) if get_origin(part) is Literal]
    return any(value in get_args(literal) for literal in literals) or get_origin(annotation) is Literal


def _bare(annotation: Any) -> Any:
    """A type without its constraints."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def parsed_layers(name: str, text: str) -> tuple[int, ...]:
    """`3-7` or `3,4,5`."""
    try:
        if "-" in text:
            first, last = (int(part) for part in text.split("-"))
            return tuple(range(first, last + 1))
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UserError(f"option {name}={text}: layers are written 3-7, or 3,4,5, or auto, or tracing") from error
