"""Several passes at a time: on a processor, small passes with a core each beat one small pass on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from ece.models.model import Model

ABREAST = 2
"""Passes that run at a time, at most."""

AHEAD = ABREAST + 1
"""Tasks under way: one waits, so that no core waits for the slower of two. The same on every machine: what a pass
knows of those before it must not depend on it."""

R = TypeVar("R")


def workers(model: Model) -> int:
    """How many passes the model's device takes at a time."""
    return min(side_by_side(model), torch.get_num_threads())


def side_by_side(model: Model) -> int:
    """How many passes the model's device takes at a time where it has the threads for them."""
    return ABREAST if model.device.type == "cpu" else 1


@contextmanager
def crew(workers: int) -> Iterator[Callable[[Callable[[], R]], Future[R]]]:
    """While this lasts, what it gives takes tasks for so many workers, among whom torch's threads are divided.

    One worker alone does them as they come.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    try:
        if workers == 1:
            yield _done
        else:
            with ThreadPoolExecutor(workers, thread_name_prefix="pass") as pool:
                yield pool.submit
    finally:
        torch.set_num_threads(threads)


def _done(task: Callable[[], R]) -> Future[R]:
    future: Future[R] = Future()
    future.set_result(task())
    return future
