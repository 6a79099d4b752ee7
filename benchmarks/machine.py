"""What benchmarks share: where they find data, how they start and report, and the machine they run on."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

COUNTERFACT = Path(os.environ.get("ECE_DATA") or "../shared/data") / "counterfact.json"
"""CounterFact's records, unless `--data` names others."""


def start(main: Callable[..., None]) -> None:
    """Run a script with the options it was given. Bad input ends with one line on stderr and exit code 2."""
    from ece.cli.output import refusals  # here, for a sequence's memory at rest is that before ece is imported

    with refusals():
        typer.run(main)


def description() -> dict[str, Any]:
    """Processor, cores and versions."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return {
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else processor,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def matmul_peak(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    size: int = 2048,
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.matmul,
) -> float:
    """Floating-point operations per second of a large square matrix product: the median of several."""
    a, b = torch.randn(size, size, device=device, dtype=dtype), torch.randn(size, size, device=device, dtype=dtype)

    def once() -> float:
        began = time.perf_counter()
        c = multiply(a, b)
        c[0, 0].item()
        return 2 * size**3 / (time.perf_counter() - began)

    return statistics.median([once() for _ in range(15)][3:])


def linear_over_matmul() -> float:
    """How many times as fast as torch's own product that of the models' linear maps is, where both are at their peak.

    They take turns, and the median counts.
    """
    from ece.models.linear import available, product  # here, as above

    if not available():
        return 1.0
    return statistics.median([matmul_peak(multiply=product) / matmul_peak() for _ in range(5)])


def peak_memory() -> float:
    """Most memory this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def report(title: str, rows: list[dict[str, Any]], found: dict[str, Any], file: Path | None) -> None:
    """Print a table; write everything as JSON where a file is given."""
    table = Table(title=title)
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading == next(iter(rows[0])) else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(file=sys.stdout, width=110).print(table)
    if file:
        file.write_text(json.dumps(found | {"machine": description()}, indent=1) + "\n")
