"""Where results and messages go: results to stdout, progress and logs to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape

from ece.errors import UserError

out, err = Console(), Console(stderr=True)


def show(as_json: bool, report: dict[str, Any], shown: RenderableType) -> None:
    """One JSON object on stdout, or something for people."""
    if as_json:
        sys.stdout.write(json.dumps(finite(report), ensure_ascii=False) + "\n")
    else:
        out.print(shown, soft_wrap=isinstance(shown, str))  # a path is not to be broken; tables wrap in their cells


@contextmanager
def refusals() -> Iterator[None]:
    """Bad input inside ends with one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        err.print(f"[red]error:[/] {escape(printable(str(error)))}", soft_wrap=True, highlight=False)
        sys.exit(2)


def printable(text: str) -> str:
    """The text with control characters written out, so that a prompt can neither break a line nor steer a terminal."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def finite(value: Any) -> Any:
    """The same data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
