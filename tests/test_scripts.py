"""The scripts under `benchmarks/`, on a tiny model and facts of ours: they run, and write what their tables show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import alone
import pytest
import questions
import tiny as make
import update

import ece
from ece.evaluation.benchmark import read_benchmark
from ece.evaluation.zsre import Zsre
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


def test_questions_are_of_tuning_records_alone_and_unrelated_ones_are_not_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    records = [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": prompt,
                "subject": f"Thing {number}",
                "target_new": {"str": f"New {number % 3}"},
                "target_true": {"str": f"Old {number}"},
            },
            "paraphrase_prompts": [f"Thing {number} is"],
            "neighborhood_prompts": ["Another thing is"],
        }
        for number, prompt in enumerate(["{} is located in", "{} hums", "{} speaks", "{} was born in"] * 4)
    ]
    data, out = tmp_path / "records.json", tmp_path / "questions.json"
    data.write_text(json.dumps(records))
    monkeypatch.setattr(questions, "TUNED", slice(4, 16))
    questions.main(data, facts=5, out=out)
    made: list[dict[str, Any]] = json.loads(out.read_text())
    read = read_benchmark(out)
    assert isinstance(read, Zsre)
    edited = [f"Thing {number}" for number in (4, 6, 7, 8, 10)]  # nobody asks how it hums
    assert [fact.subject for fact in read.facts()] == edited
    assert read.facts()[0].prompt == "Where is {} located?"
    assert [record["answers"][0].count(" and ") for record in made] == [0, 1, 0, 1, 0]
    assert all(subject not in record["loc"] for record in made for subject in edited)
    assert questions.form_of("{} hums") is None
    with pytest.raises(ece.UserError, match="smaller number with --facts"):
        questions.main(data, facts=9, out=out)
