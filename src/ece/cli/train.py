"""`ece train`: what some methods need before they can edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ece.cli.options import AsJson, DeviceMap, Dtype, ModelName, RemoteCode
from ece.cli.output import err, show

if TYPE_CHECKING:
    from ece.models import Model
    from ece.training.examples import Example
    from ece.training.trainer import Schedule, Task

train = typer.Typer(help="Train what MEND and SERAC need before they can edit.", no_args_is_help=True)

Data = Annotated[Path, typer.Option(help="CounterFact or zsRE records; the last tenth is held out.")]
Records = Annotated[str | None, typer.Option(help="Only these, FIRST-LAST, counted from 0.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder; by default the model's own in the cache.")]
Steps = Annotated[int, typer.Option(min=1, help="At most so many steps.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=2, help="Examples in a step.")]
Rate = Annotated[float, typer.Option(help="Adam's learning rate.")]
Every = Annotated[int, typer.Option(min=1, help="Steps between validations.")]
Patience = Annotated[int, typer.Option(min=1, help="Validations without a better one before training ends.")]
Seed = Annotated[int, typer.Option(help="Seed of the examples' order.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")]


@train.command()
def mend(
    data: Data,
    model: ModelName = "smollm2",
    records: Records = None,
    output: Out = None,
    layers: Annotated[str, typer.Option(help="Whose W are edited, e.g. 27-29; last: the last three.")] = "last",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the network's blocks (the paper: 1920).")] = 256,
    c_edit: Annotated[float, typer.Option(help="Weight of the edit's loss; the KL divergence has 1.")] = 0.1,
    steps: Steps = 400,
    batch_size: BatchSize = 8,
    rate: Rate = 1e-3,
    every: Every = 50,
    patience: Patience = 4,
    seed: Seed = 0,
    resume: Resume = False,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Train MEND's network for a model: from gradients to edits."""

    def task(loaded: Model, examples: list[Example]) -> Task:
        from ece.methods.mend import MendTask, default_layers
        from ece.methods.method import checked_layers
        from ece.methods.recipe import parsed_layers

        chosen = default_layers(loaded) if layers == "last" else parsed_layers("--layers", layers)
        return MendTask(loaded, examples, checked_layers(loaded, chosen), rank, c_edit)

    given = _schedule(steps, batch_size, rate, every, patience, seed)
    _train("mend", task, given, (model, dtype, device_map, trust_remote_code), data, records, output, resume, as_json)


@train.command()
def serac(
    data: Data,
    model: ModelName = "smollm2",
    records: Records = None,
    output: Out = None,
    encoder: Annotated[str, typer.Option(help="own (the model's hidden states), or a folder or hub id.")] = "own",
    dimensions: Annotated[int, typer.Option(min=1, help="Of the space in which texts are compared.")] = 128,
    steps: Steps = 300,
    batch_size: BatchSize = 128,
    rate: Rate = 1e-4,
    every: Every = 15,
    patience: Patience = 5,
    seed: Seed = 0,
    resume: Resume = False,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Train SERAC's classifier for a model: which prompts an edit concerns."""

    def task(loaded: Model, examples: list[Example]) -> Task:
        from ece.methods.serac import SeracTask

        return SeracTask(loaded, examples, encoder, dimensions)

    given = _schedule(steps, batch_size, rate, every, patience, seed)
    _train("serac", task, given, (model, dtype, device_map, trust_remote_code), data, records, output, resume, as_json)


def _schedule(steps: int, batch: int, rate: float, every: int, patience: int, seed: int) -> Schedule:
    from ece.errors import UserError
    from ece.training.trainer import Schedule

    if not 0 < rate < float("inf"):
        raise UserError(f"--rate {rate}: must be larger than 0")
    return Schedule(steps, batch, rate, every=every, patience=patience, seed=seed)


def _train(
    kind: str,
    task: Any,
    schedule: Schedule,
    source: tuple[str, str, str | None, bool],
    data: Path,
    records: str | None,
    output: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    from ece.models import load
    from ece.training.examples import read_examples
    from ece.training.trainer import check_folder, default_folder, peak_bytes
    from ece.training.trainer import train as trained

    examples = read_examples(data, records)
    model, dtype, device_map, trusted = source
    if output is not None:
        check_folder(output, resume)
    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trusted)
    folder = output or default_folder(loaded, kind)
    check_folder(folder, resume)
    loaded_bytes = peak_bytes()
    try:
        found = trained(kind, task(loaded, examples), schedule, folder, resume)
    except KeyboardInterrupt:
        err.print(f"stopped; go on with the same command and --resume (the checkpoint is in {folder})")
        raise typer.Exit(130) from None
    best = next(row for row in found.history if row["step"] == found.best_step)
    report = {"trained": str(folder), "model_peak_bytes": loaded_bytes} | found.model_dump()
    table = Table(show_header=False)
    shown = {"steps": found.steps} | {f"best {key}": value for key, value in best.items()}
    shown |= {"seconds": found.seconds, "peak memory, GB": found.peak_bytes / 1e9}
    for key, value in shown.items():
        table.add_row(key, f"{value:.3f}" if isinstance(value, float) else str(value))
    table.add_row("written to", str(folder))
    show(as_json, report, table)
