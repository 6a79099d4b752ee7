"""Several passes at a time: on a processor, small passes with a core each beat one small pass on all cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from ece.models.model import Model

ABREAST = 2
"""Passes that run at a time, at most."""

AHEAD = ABREAST + 1
"""Passes under way: one waits, so that no core waits for the slower of two. The same on every machine: what a pass
knows of those before it must not depend on it."""

R = TypeVar("R")


def workers(model: Model) -> int:
    """How many passes the model's device takes at a time."""
    return min(side_by_side(model), torch.get_num_threads())


def side_by_side(model: Model) -> int:
    """How many passes the model's device takes at a time where it has the threads for them."""
    return ABREAST if model.device.type == "cpu" else 1


def abreast(tasks: Iterable[Callable[[], R]], workers: int) -> Iterator[R]:
    """The tasks' results, in order; `tasks` is asked for one when the result of the `AHEAD`th before it was taken.

    What reads the results may therefore hand later tasks what it learned from them, and the outcome does not depend
    on the number of workers. A task's exception is raised here.
    """
    under_way: deque[Future[R]] = deque()
    with _threads_divided(workers), ThreadPoolExecutor(workers, thread_name_prefix="pass") as pool:
        for task in tasks:
            under_way.append(pool.submit(task) if workers > 1 else _done(task))
            if len(under_way) == AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _done(task: Callable[[], R]) -> Future[R]:
    future: Future[R] = Future()
    future.set_result(task())
    return future


@contextmanager
def _threads_divided(workers: int) -> Iterator[None]:
    """While this lasts, torch divides its threads among so many workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
