"""Processes of their own, forked from one that has done the imports: those are most of a start."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED = ["torch", "transformers.models.llama.modeling_llama", "pytest", "hypothesis", "ece.cli", "ece.studies"]


def forked() -> ForkServerContext:
    """What starts such processes: they can be killed at any moment. Their environment is that of the first of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def started(said: Path, work: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """A process of its own that does some work, and writes all it says to a file."""
    said.write_text("")
    process = forked().Process(target=_saying, args=(said, work, arguments))
    process.start()
    return process


def command(said: Path, *arguments: object) -> ForkServerProcess:
    """`ece ARGUMENTS`, begun as a process of its own."""
    return started(said, _typed, *map(str, arguments))


def wait(process: BaseProcess, condition: Callable[[], object], seconds: float = 120) -> None:
    """Until a condition holds, the process is over, or so much time has passed."""
    end = time.monotonic() + seconds
    while not condition() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.005)


def _saying(said: Path, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(*arguments)


def _typed(*arguments: str) -> None:
    from ece.cli import main

    sys.argv = ["ece", *arguments]
    main()
