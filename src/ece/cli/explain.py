"""`ece explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ece.cli.options import (
    AsJson,
    DeviceMap,
    Dtype,
    EditsFolder,
    FactsFile,
    Method,
    ModelName,
    Options,
    Preset,
    RemoteCode,
    chosen_method,
    fitted_method,
    given_facts,
    refuse_idle,
)
from ece.cli.output import show
from ece.errors import UserError, require


def explain(
    context: typer.Context,
    model: ModelName = "smollm2",
    facts: FactsFile = None,
    edits: EditsFolder = None,
    method: Method = "ece-rs",
    options: Options = None,
    preset: Preset = "auto",
    plots: Annotated[Path | None, typer.Option(help="Folder for plots (PNG).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many facts.")] = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Show where facts are: layers, neurons and their scores, what the strongest neurons write, and the clusters."""
    from ece.edits.folder import load_edits
    from ece.explain import explain as explained
    from ece.explain import from_edits
    from ece.explain.tables import rendered
    from ece.models import load

    if (facts is None) == (edits is None):
        raise UserError("give either --facts FILE or --edits FOLDER")
    if plots:
        require("--plots", "plots", "matplotlib")
    if edits:
        refuse_idle(context, "--facts", "method", "options", "preset", "limit")
    wanted = given_facts(facts, None, None, None)[:limit] if facts else []
    chosen_method(method, options)  # what is wrong is said before the model is loaded
    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    recipe = fitted_method(method, options, preset, loaded)
    found = from_edits(loaded, load_edits(edits, loaded)) if edits else explained(loaded, wanted, recipe)
    report = found.as_json()
    if plots:
        from ece.explain.plots import draw

        report["plots"] = [str(path) for path in draw(found, plots)]
    show(as_json, report, rendered(found))
