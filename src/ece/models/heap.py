"""Memory that is free goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def memory_returned() -> Iterator[None]:
    """Before and after, what glibc keeps though nothing is in it goes back: 0.4 GB after a search on SmolLM2."""
    _return_memory()
    try:
        yield
    finally:
        _return_memory()


def _return_memory() -> None:
    """Hand the system what glibc keeps of freed memory; elsewhere nothing."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
