"""`ece trace`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ece.cli.options import FACTS, AsJson, DeviceMap, Dtype, ModelName, RemoteCode, given_facts, refuse_idle
from ece.cli.output import show
from ece.errors import UserError, require


def trace(
    context: typer.Context,
    facts: Annotated[Path, typer.Option("--facts", help=FACTS)],
    model: ModelName = "smollm2",
    part: Annotated[str, typer.Option(help="What is put back: layer (its output) or ffn (of a window).")] = "layer",
    samples: Annotated[int, typer.Option(min=1, help="Corrupted runs of each prompt.")] = 10,
    noise: Annotated[
        float, typer.Option(min=0, help="Size of the noise, in standard deviations of the subjects' embeddings.")
    ] = 3.0,
    window: Annotated[int, typer.Option(min=1, help="Layers whose FFN outputs are put back together.")] = 10,
    plots: Annotated[Path | None, typer.Option(help="Folder for the heat map (PNG).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many facts.")] = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Causal tracing: which states carry what the model says about a subject, by position and layer."""
    from ece.locate.tracing import trace as traced
    from ece.models import load

    if part not in ("layer", "ffn"):
        raise UserError(f"--part {part}: layer or ffn")
    if part != "ffn":
        refuse_idle(context, "--part ffn", "window")
    if plots:
        require("--plots", "plots", "matplotlib")
    wanted = given_facts(facts, None, None, None)[:limit]
    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    found = traced(loaded, wanted, part, samples=samples, noise=noise, window=window)
    report = found.as_json()
    if plots:
        from ece.explain.plots import draw_trace

        report["plots"] = [str(path) for path in draw_trace(found, plots)]
    show(as_json, report, _table(report))


def _table(report: dict[str, Any]) -> Table:
    """Percent of probability that comes back, layers downwards."""
    title = (
        f"{100 * report['clean']:.1f} % of probability, {100 * report['corrupted']:.1f} % with the subject corrupted"
    )
    table = Table("layer", *report["positions"], title=f"{title}; what comes back, in percent points")
    for layer in range(report["layers"]):
        cells = zip(report["effects"], report["standard_errors"], strict=True)
        table.add_row(str(layer), *(_cell(100 * mean[layer], 100 * error[layer]) for mean, error in cells))
    return table


def _cell(mean: float, error: float) -> str:
    if mean != mean:
        return ""
    return f"{mean:.1f}" if error != error else f"{mean:.1f} ± {error:.1f}"
