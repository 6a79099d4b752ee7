"""The command line: each command parses, calls, prints; one file for each."""

from __future__ import annotations

import logging

import typer
from rich.logging import RichHandler

from ece.cli.abilities import abilities
from ece.cli.ask import ask
from ece.cli.demo import demo
from ece.cli.diff import diff
from ece.cli.edit import edit
from ece.cli.evaluate import evaluate
from ece.cli.explain import explain
from ece.cli.export import export
from ece.cli.log import log
from ece.cli.methods import methods
from ece.cli.output import err, printable, refusals
from ece.cli.serve import serve
from ece.cli.study import study
from ece.cli.trace import trace
from ece.cli.train import train
from ece.cli.undo import undo
from ece.cli.verify import verify
from ece.heap import one_heap

app = typer.Typer(
    help="Edit what a language model knows: explain where a fact is, change it there, keep the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *(edit, ask, evaluate, abilities),
    *(undo, log, diff, verify, export, serve),
    *(explain, trace, methods, study, demo),
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(train, name="train")


class _Printable(logging.Formatter):
    """Prompts may hold anything; a log line is one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The message with control characters written out."""
        return printable(super().formatMessage(record))


def main() -> None:
    """Run the command line. Bad input ends with one line on stderr and exit code 2."""
    handler = RichHandler(console=err, show_path=False)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ece").setLevel(logging.INFO)
    one_heap()
    with refusals():
        app()
