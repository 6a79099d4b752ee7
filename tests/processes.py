"""Processes of their own, forked from one that has done the imports: those are most of a start."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

IMPORTED = ["torch", "transformers.models.llama.modeling_llama", "pytest", "hypothesis", "ece.cli", "ece.studies"]


def forked() -> ForkServerContext:
    """What starts such processes: they can be killed at any moment. Their environment is that of the first of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def command(said: Path, *arguments: object) -> ForkServerProcess:
    """`ece ARGUMENTS`, begun as a process of its own that writes all it says to a file."""
    said.write_text("")
    process = forked().Process(target=_command, args=(said, [str(argument) for argument in arguments]))
    process.start()
    return process


def saying(said: Path) -> None:
    """From now on, what this process says goes to a file."""
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _command(said: Path, arguments: list[str]) -> None:
    from ece.cli import main

    saying(said)
    sys.argv = ["ece", *arguments]
    main()
