"""Serving an edited model over HTTP."""

from __future__ import annotations

from pathlib import Path

from ece.errors import require
from ece.models import Model


def run(
    model: Model, edits: Path, host: str = "127.0.0.1", port: int = 8000, api_key: str | None = None, rows: int = 32
) -> None:
    """Serve until interrupted.

    Args:
        model: without edits.
        edits: folder of the journal.
        host: address to listen on.
        port: 0 takes a free one.
        api_key: who has it may edit; nobody where it is None.
        rows: requests answered side by side.

    Raises:
        UserError: FastAPI or uvicorn is not installed, the address cannot be had, or the journal is damaged or of
            another model.
    """
    check_installed()
    from ece.serve.server import listen

    listen(model, edits, host, port, api_key, rows)


def check_installed() -> None:
    """Say what is missing before a model is loaded.

    Raises:
        UserError: FastAPI or uvicorn is not installed.
    """
    require("ece serve", "serve", "fastapi", "uvicorn")


def check_address(host: str, port: int) -> None:
    """Say that an address cannot be had before a model is loaded.

    Raises:
        UserError: it is taken, or not this machine's.
    """
    from ece.serve.server import bound

    bound(host, port).close()


__all__ = ["check_address", "check_installed", "run"]
