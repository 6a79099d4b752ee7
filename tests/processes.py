"""Processes of their own, forked from one that has done the imports: those are most of a start."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

IMPORTED = ["torch", "transformers.models.llama.modeling_llama", "pytest", "hypothesis", "ece.cli", "ece.studies"]


def forked() -> ForkServerContext:
    """What starts such processes: they have nothing of the tests' own, and can be killed at any moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context
