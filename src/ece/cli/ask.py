"""`ece ask`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ece.cli.options import AsJson, DeviceMap, Dtype, EditsFolder, ModelName, RemoteCode
from ece.cli.output import show


def ask(
    prompts: Annotated[list[str], typer.Argument(help="Texts to go on from.")],
    model: ModelName = "smollm2",
    edits: EditsFolder = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write.")] = 24,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Let the model go on from a prompt, without and with the edits, side by side."""
    from ece.edits.folder import load_edits
    from ece.models import load
    from ece.models.generate import continuations

    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    made = load_edits(edits, loaded) if edits else []
    columns = {"unedited": continuations(loaded, prompts, tokens)}
    if made:
        for edit in made:
            edit.apply(loaded)
        columns["edited"] = continuations(loaded, prompts, tokens)
    table = Table("prompt", *columns, show_lines=True)
    for prompt, *texts in zip(prompts, *columns.values(), strict=True):
        table.add_row(escape(prompt), *(escape(text.strip()) for text in texts))
    answers = [
        dict(zip(["prompt", *columns], row, strict=True)) for row in zip(prompts, *columns.values(), strict=True)
    ]
    show(as_json, {"model": model, "edits": str(edits) if edits else None, "answers": answers}, table)
