"""A command's worth of work: what to measure, how long it takes, measuring, and the report."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ece.errors import UserError
from ece.provenance import versions
from ece.studies.cells import Track, tracks
from ece.studies.plan import Step, Timings, probe, steps
from ece.studies.progress import Progress
from ece.studies.registry import STUDIES
from ece.studies.report import report
from ece.studies.runner import SEED, Runner, largest_first
from ece.studies.setup import Setup
from ece.studies.store import Store
from ece.studies.study import Study

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Studying:
    """Some studies of one model, in one folder."""

    studies: list[Study]
    setup: Setup
    store: Store
    tracks: list[Track]
    left_out: dict[str, str]
    """By the study's name: why there is nothing to measure."""

    @classmethod
    def begin(cls, studies: Sequence[Study], setup: Setup, folder: Path) -> Studying:
        """Find out what to measure. Nothing is written yet.

        A study that has nothing to measure is left out if there are others.

        Raises:
            UserError: wrong methods, options or data; or the folder was made with other settings.
        """
        setup.check()
        cells, possible, left_out = [], [], {}
        for study in studies:
            try:
                cells += [row.cell for row in study.all_rows(setup)]
                possible.append(study)
            except UserError as error:
                if len(studies) == 1:
                    raise
                log.warning("%s is left out: %s", study.name, error)
                left_out[study.name] = str(error)
        made = tracks(largest_first(cells), setup.options)
        unedited_first = sorted(made, key=lambda track: track.run.method is not None)
        store = Store(Path(folder))
        store.check(setup.settings)
        return cls(possible, setup, store, unedited_first, left_out)

    def timings(self) -> Timings:
        """Of the folder's finished cells, and where there are none, of a quick probe."""
        timings = Timings()
        for result in self.store.results():
            timings.learn(result)
        open_tracks = [track for track in self.tracks if not all(map(self.store.has, track.cells))]
        probe(self.setup.model, self.setup.inputs, open_tracks, timings)
        return timings

    def plan(self, timings: Timings) -> list[Step]:
        """What is left to do."""
        return steps(self.tracks, self.store, timings)

    def run(self, timings: Timings) -> dict[str, str]:
        """Open the folder, measure what is left, and write the report.

        Returns:
            What could not be measured, and why.
        """
        Store.open(self.store.folder, self.setup.settings)
        with Progress(self.tracks, self.store, timings) as progress:
            runner = Runner(self.setup.model, self.setup.inputs, self.store, provenance(self.setup), progress)
            runner(self.tracks)
        failed = self.left_out | runner.failed
        self.report(failed)
        return failed

    def report(self, failed: dict[str, str] | None = None) -> Path:
        """Write tables, figures and the page: of these studies, and of others that the folder holds complete."""
        others = [study for study in STUDIES.values() if study not in self.studies and self._complete(study)]
        return report([*self.studies, *others], self.setup, self.store, failed)

    def _complete(self, study: Study) -> bool:
        try:
            return all(self.store.has(row.cell) for row in study.all_rows(self.setup))
        except UserError:  # there is nothing to measure
            return False


def provenance(setup: Setup) -> dict[str, Any]:
    """What a result was made with."""
    cuda = setup.model.device.type == "cuda"
    return {
        "model": {"name": setup.model.name, "sha256": setup.model.fingerprint},
        "data": setup.inputs.hashes,
        "seed": SEED,
        "machine": {
            "device": torch.cuda.get_device_name(setup.model.device) if cuda else _processor(),
            "threads": torch.get_num_threads(),
        },
        "versions": versions(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
