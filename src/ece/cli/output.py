"""Where results and messages go: results to stdout, progress and logs to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console, RenderableType
from rich.markup import escape

from ece.errors import UserError
from ece.files import finite

out, err = Console(), Console(stderr=True)


def show(as_json: bool, report: dict[str, Any], shown: RenderableType) -> None:
    """One JSON object on stdout, or something for people."""
    if as_json:
        sys.stdout.write(json.dumps(finite(report), ensure_ascii=False) + "\n")
    else:
        out.print(shown, soft_wrap=isinstance(shown, str))  # a path is not to be broken; tables wrap in their cells


@contextmanager
def refusals() -> Iterator[None]:
    """Bad input inside, and a file that cannot be opened, end with one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}")


def _refuse(message: str) -> NoReturn:
    err.print(f"[red]error:[/] {escape(printable(message))}", soft_wrap=True, highlight=False)
    sys.exit(2)


def printable(text: str) -> str:
    """The text with control characters written out, so that a prompt can neither break a line nor steer a terminal."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
