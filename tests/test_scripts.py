"""The scripts under `benchmarks/`, on a tiny model and facts of ours: they run, and write what their tables show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import alone
import pytest
import tiny as make
import update

import ece
from ece.facts import shipped_file
from ece.methods.engine import written_contexts

QUICK = ["corpus=python", "tokens=600", "layers=0,1", "targets.descent.evaluations=3"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a script loads the embedded model, it finds a tiny one."""
    monkeypatch.setattr(ece, "load", lambda: make.build("llama"))


def written(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_batches_alone_see_only_their_own_edit(tmp_path: Path):
    found: list[dict[str, Any]] = []
    for batch_size, facts in ((2, 4), (2, 2)):
        file = tmp_path / f"{facts}.json"
        asked = [f"ece:{option}" for option in QUICK]
        alone.main(shipped_file(), "ece", first=0, facts=facts, batch_size=batch_size, set=asked, json=file)
        found.append(written(file))
    both, one = found
    assert both["batch_size"] == 2
    assert both["methods"]["ece"]["efficacy"]["records"] == 4
    assert "specificity_kept" in both["methods"]["ece"]
    # The first batch's records are half of the four, and nothing of the second batch's edit reached them.
    model, records = make.build("llama"), ece.read_counterfact(shipped_file())[:4]
    method = ece.method("ece").with_options(dict(option.split("=", 1) for option in QUICK))
    scores = [
        score
        for batch in (records[:2], records[2:])
        for score in alone.alone(model, batch, method, written_contexts(model))[0]
    ]
    assert ece.summary(scores)["efficacy"].mean == pytest.approx(both["methods"]["ece"]["efficacy"]["mean"])
    assert ece.summary(scores[:2])["efficacy"].mean == pytest.approx(one["methods"]["ece"]["efficacy"]["mean"])


def test_settings_of_the_update_share_their_targets(tmp_path: Path):
    file = tmp_path / "update.json"
    update.main(shipped_file(), 0, 4, 2, every=2, only=["default", "lambda 100"], text=None, set=QUICK, json=file)
    found = written(file)
    assert found["facts"] == 4
    assert found["default"]["efficacy"]["records"] == 2
    assert {"default", "lambda 100", "lambda 10000"} <= found.keys()
    assert found["lambda 100"]["missed"] < found["default"]["missed"] < found["lambda 10000"]["missed"]
