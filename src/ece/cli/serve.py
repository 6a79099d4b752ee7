"""`ece serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ece.cli.options import DeviceMap, Dtype, ModelName, RemoteCode


def serve(
    edits: Annotated[Path, typer.Option("--edits", help="Folder of edits; new batches are picked up as they come.")],
    model: ModelName = "smollm2",
    host: Annotated[str, typer.Option(help="Address to listen on; loopback is yours alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="ECE_API_KEY", help="Allow POST /edits to who has this key; better given as ECE_API_KEY."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Requests answered side by side.")] = 32,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Serve the edited model: completions and chat as OpenAI's API has them. Editing over HTTP is off without a key."""
    from ece.models import load
    from ece.serve import check_address, check_installed, run

    check_installed()
    check_address(host, port)
    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    run(loaded, edits, host=host, port=port, api_key=api_key, rows=rows)
