"""The scripts under `benchmarks/`, on a tiny model and facts of ours: they run, and write what their tables show."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import alone
import clashes
import journal
import machine
import positions
import pytest
import questions
import sequential
import shapes
import targets
import tiny as make
import torch
import update

import ece
from ece.evaluation.benchmark import read_benchmark
from ece.evaluation.zsre import Zsre
from ece.facts import shipped_file
from ece.methods.engine import written_contexts
from ece.methods.recipe import PerFact
from ece.models.likelihood import Question, likelihoods
from ece.targets.descent import Adam, LogOdds

QUICK = ["corpus=python", "tokens=600", "layers=0,1", "targets.descent.evaluations=3"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a script loads the embedded model, it finds a tiny one, on a machine with a peak of 1 TFLOP/s."""
    monkeypatch.setattr(ece, "load", lambda: make.build("llama"))
    for script in (targets, shapes):
        monkeypatch.setattr(script, "matmul_peak", lambda *_: 1e12)


def quick() -> Any:
    """`ece` with those options."""
    return ece.method("ece").with_options(dict(option.split("=", 1) for option in QUICK))


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
    scores = [
        score
        for batch in (records[:2], records[2:])
        for score in alone.alone(model, batch, quick(), written_contexts(model))[0]
    ]
    assert ece.summary(scores)["efficacy"].mean == pytest.approx(both["methods"]["ece"]["efficacy"]["mean"])
    assert ece.summary(scores[:2])["efficacy"].mean == pytest.approx(one["methods"]["ece"]["efficacy"]["mean"])


def test_settings_of_the_update_share_their_targets(tmp_path: Path):
    file = tmp_path / "update.json"
    asked = ["default", "lambda 100", "one batch"]
    update.main(shipped_file(), 0, 4, 2, every=2, only=asked, text=None, set=QUICK, json=file)
    found = written(file)
    assert found["facts"] == 4
    assert found["default"]["efficacy"]["records"] == 2
    assert {"default", "lambda 100", "lambda 10000"} <= found.keys()
    assert found["lambda 100"]["missed"] < found["default"]["missed"] < found["lambda 10000"]["missed"]
    update.main(shipped_file(), 0, 4, 4, every=2, only=["default"], text=None, set=QUICK, json=file)
    assert found["all in one batch"] == written(file)["default"] != found["default"]


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


def test_short_searches_are_repeated_in_turn_with_the_peak(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    peaks = iter([1.0, 2.0, 3.0, 10.0])
    monkeypatch.setattr(targets.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(targets, "matmul_peak", lambda: next(peaks))
    sought: Any = iter(["first", "second", "third"])
    assert targets.in_turn(lambda: next(sought), 8) == ("third", 5.0, 2.5)


def test_searches_are_timed_and_their_edits_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    short = {"fast": PerFact(Adam(steps=3)), "default": PerFact(LogOdds(evaluations=3), views=2, warm=True)}
    monkeypatch.setattr(targets, "SEARCHES", {name: {"targets": search} for name, search in short.items()})
    file = tmp_path / "targets.json"
    targets.main(shipped_file(), facts=2, learned=0, plain_facts=1, only=["fast", "default"], at_least=0, json=file)
    found = written(file)
    assert found["seconds_per_edit"].keys() == {"plain", "fast", "default"}
    assert found["evaluations"] == {"fast": 3, "default": 3}
    assert all(0 < share < 1 for share in found["share_of_peak"].values())
    assert found["score"].keys() == {"fast", "default"}
    ratios = [found["share_of_peak"][name] / of_onednn for name, of_onednn in found["share_of_onednn_peak"].items()]
    assert ratios == pytest.approx([ratios[0]] * 2)  # one machine has one
    assert 0.5 < ratios[0] < 3


def test_every_part_of_an_edit_is_timed_at_the_shape_of_a_large_model(tmp_path: Path):
    file = tmp_path / "shapes.json"
    shapes.main(["gpt2-xl"], device="cpu", dtype="float32", scale=0.03, facts=2, plain_facts=1, json=file)
    (of,) = written(file)["shapes"].values()
    assert of["seconds_per_edit"].keys() == {"plain", "fast", "default", "update", "evaluation"}
    assert (of["facts"], of["plain_facts"], of["not_finite"]) == (2, 1, 0)


def test_a_sequence_is_timed_by_batch_and_measured_where_it_is_asked(tmp_path: Path):
    file = tmp_path / "sequential.json"
    sequential.main(shipped_file(), first=1, edits=5, batch_size=2, method="ece", set=QUICK, measure="2,5", json=file)
    found = written(file)
    assert [row["edits"] for row in found["batches"]] == [2, 4, 5]
    assert {count: of["edited"]["efficacy"]["records"] for count, of in found["quality"].items()} == {"2": 2, "5": 5}
    model, records = make.build("llama"), ece.read_counterfact(shipped_file())[1:6]
    made = list(ece.edit_in_sequence(model, [record.fact() for record in records], quick(), 2))
    assert [len(edit.manifest.facts) for edit in made] == [2, 2, 1]
    mine = ece.summary(ece.evaluate(model, records))["score"].mean
    assert found["quality"]["5"]["edited"]["score"]["mean"] == pytest.approx(mine)


def test_evaluation_both_ways_agrees(tmp_path: Path):
    # by its file: `evaluate` is a package's name too
    spec = spec_from_file_location("evaluation", Path(machine.__file__).with_name("evaluate.py"))
    assert spec
    assert spec.loader
    evaluate = module_from_spec(spec)
    spec.loader.exec_module(evaluate)
    vars(evaluate)["matmul_peak"] = lambda *_: 1e12
    file = tmp_path / "evaluate.json"
    evaluate.main(shipped_file(), records=3, plain_records=2, texts=1, json=file)
    found = written(file)
    assert found["largest_difference_in_nats"] < 1e-4
    assert found["differing_exact_answers"] == 0
    assert found["records"] == {"ours": 3, "plain": 2, "texts": 1}


def test_paraphrases_and_other_subjects_are_counted_at_each_threshold(tmp_path: Path):
    file = tmp_path / "clashes.json"
    clashes.main(shipped_file(), first=0, facts=6, json=file)
    rows = written(file)["rows"]
    near = [row["paraphrases (%)"] for row in rows[:-1]]
    assert near == sorted(near)
    assert len(near) == len(clashes.THRESHOLDS)


def test_a_change_is_laid_over_some_tokens_only(tmp_path: Path):
    file = tmp_path / "positions.json"
    positions.main(shipped_file(), first=0, facts=4, batch_size=2, every=1, each=2, set=QUICK, json=file)
    rows = {row["change at"]: row for row in written(file)["rows"]}
    assert list(rows) == list(positions.WHERE)
    assert written(file)["prompts"] == 8
    assert rows["no token"]["its size (nats)"] == 0 < rows["the subject's last"]["its size (nats)"]

    model, every = ece.load(), ece.read_counterfact(shipped_file())
    records = every[:4]
    asked = positions.neighbours(records, positions.endings(every), 2)
    list(ece.edit_in_sequence(model, [record.fact() for record in records], quick(), 2))
    edited = positions.log_probabilities(model, asked, {}, [positions.WHERE["all"]]).flatten()
    questions = [neighbour for record in records for neighbour in record.neighborhood_prompts[:2]]
    objects = [record.requested_rewrite for record in records for _ in range(2)]
    pairs = [(rewrite.target_true.text, rewrite.target_new.text) for rewrite in objects if rewrite.target_true]
    answers = likelihoods(model, [Question(prompt, pair) for prompt, pair in zip(questions, pairs, strict=True)])
    flat = torch.tensor([answer.log_probability for both in answers for answer in both])
    torch.testing.assert_close(edited, flat, rtol=1e-4, atol=1e-4)
    lead = edited.unflatten(0, (-1, 2))
    soft = (lead[:, 0] - lead[:, 1]).sigmoid().mean().item()
    assert rows["all"]["soft (%)"] == pytest.approx(100 * soft, abs=1e-3)


def test_the_journal_is_timed(capsys: pytest.CaptureFixture[str]):
    journal.main(batches=2, facts=3, layers="0,1")
    size, opened, undone = capsys.readouterr().out.splitlines()
    assert size.startswith("6 facts take ")
    assert opened.startswith("opened, checked and applied in ")
    assert undone.startswith("last batch undone in ")


def test_a_script_ends_in_one_line_where_its_data_is_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["update.py", "--data", "nowhere.json"])
    with pytest.raises(SystemExit) as ended:
        machine.start(update.main)
    assert ended.value.code == 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: nowhere.json: cannot be read")
