"""The command line as a user types it, on a tiny model on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny as make
import torch
from safetensors.torch import load_file
from shell import Ece

from ece.edits.journal import Journal
from ece.errors import UserError
from ece.facts import Fact
from ece.models import load

FAST = ["--set", "layers=1-2", "--set", "tokens=512", "--set", "targets.descent.evaluations=3", "--batch-size", "2"]


def test_edit_ask_evaluate_export_explain(
    ece: Ece, checkpoint: Path, facts_file: Path, records_file: Path, tmp_path: Path
) -> None:
    edits, merged = tmp_path / "edits", tmp_path / "merged"
    base = {path.name: path.read_bytes() for path in checkpoint.iterdir()}

    made = ece("edit", "--model", checkpoint, "--facts", facts_file, "--out", edits, *FAST, "--json")
    assert made.code == 0, made.err
    assert (made.json["facts"], made.json["batches"], made.json["layers"]) == (5, 3, [1, 2])
    assert sorted(path.name for path in edits.iterdir()) == ["batch-0001", "batch-0002", "batch-0003"]
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == base

    asked = ece("ask", "--model", checkpoint, "--edits", edits, "--tokens", 3, "The Eiffel Tower is in", "--json")
    assert set(asked.json["answers"][0]) == {"prompt", "unedited", "edited"}

    measured = ece("evaluate", "--model", checkpoint, "--edits", edits, "--data", records_file, "--json")
    assert measured.json["records"] == 2
    assert {"mean", "se", "records"} == set(measured.json["efficacy"])
    assert {"score", "efficacy_exact", "specificity_kept", "unedited"} <= set(measured.json)

    exported = ece("export", "--model", checkpoint, "--edits", edits, "--out", merged, "--json")
    assert exported.code == 0, exported.err
    assert exported.json["verified"]
    again = ece("ask", "--model", merged, "--tokens", 3, "The Eiffel Tower is in", "--json")
    assert again.json["answers"][0]["unedited"] == asked.json["answers"][0]["edited"]
    changed = {
        name
        for name, tensor in load_file(merged / "model.safetensors").items()
        if not torch.equal(tensor, load_file(checkpoint / "model.safetensors")[name])
    }
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)}

    explained = ece("explain", "--model", checkpoint, "--edits", edits, "--plots", tmp_path / "plots", "--json")
    assert explained.code == 0, explained.err
    assert all(Path(plot).stat().st_size > 5000 for plot in explained.json["plots"])


def test_tables_for_people(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path) -> None:
    made = ece("edit", "--model", checkpoint, "--facts", facts_file, "--out", tmp_path / "edits", *FAST)
    assert "seconds per edit" in made.out
    explained = ece("explain", "--model", checkpoint, "--facts", facts_file, "--set", "layers=1-2", "--limit", 2)
    assert make.FACTS[0].subject in explained.out
    listed = ece("methods")
    assert "memit-history" in listed.out
    assert "targets.descent.aim" in ece("methods", "ece").out


def test_the_demonstration_shows_what_ask_says(ece: Ece, checkpoint: Path, tmp_path: Path) -> None:
    edits = tmp_path / "edits"
    shown = ece("demo", "--model", checkpoint, "--facts", 3, "--method", "memit", "--out", edits, "--json")
    assert shown.code == 0, shown.err
    assert len(shown.json["facts"]) == 3
    for row in shown.json["facts"]:
        prompts = [row["prompt"], row["paraphrase"], row["neighbour"]]
        asked = ece("ask", "--model", checkpoint, "--edits", edits, "--tokens", 4, *prompts, "--json").json["answers"]
        unedited, edited = ([" ".join(a[which].split()) for a in asked] for which in ("unedited", "edited"))
        assert (row["before"], row["neighbour_before"]) == (unedited[0], unedited[2])
        assert (row["after"], row["paraphrase_after"], row["neighbour_after"]) == tuple(edited)
    assert shown.json["before"]["efficacy"]["records"] == 3
    again = ece("demo", "--model", checkpoint, "--out", edits)
    assert (again.code, again.out) == (2, "")
    assert f"{edits} exists already" in again.err


def test_one_fact_without_a_file(ece: Ece, checkpoint: Path, tmp_path: Path) -> None:
    fact = ["--subject", "Eiffel Tower", "--prompt", "{} is located in the city of", "--target", "Rome"]
    made = ece("edit", "--model", checkpoint, *fact, "--out", tmp_path / "edits", *FAST, "--json")
    assert made.code == 0, made.err
    assert made.json["facts"] == 1


@pytest.mark.parametrize("method", ["ece-as", "ece-wi", "ece-rs", "memit", "memit-history", "ece"])
def test_every_method(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path, method: str) -> None:
    options = ["--set", "layers=1-2", "--set", "tokens=512", "--batch-size", 3]
    made = ece(
        "edit",
        "--model",
        checkpoint,
        "--facts",
        facts_file,
        "--out",
        tmp_path / "e",
        "--method",
        method,
        *options,
        "--json",
    )
    assert made.code == 0, made.err
    assert (made.json["method"], made.json["facts"], made.json["failed"]) == (method, 5, [])


def test_a_stopped_run_goes_on_to_the_same_bits(
    ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["edit", "--model", checkpoint, "--facts", facts_file, *FAST, "--json"]
    assert ece(*command, "--out", tmp_path / "whole").code == 0

    with monkeypatch.context() as patch:
        saved = Journal.batch

        def stopping(journal: Journal, edit: Any, **more: Any) -> Journal:
            grown = saved(journal, edit, **more)
            if len(grown.entries) == 1:
                raise KeyboardInterrupt
            return grown

        patch.setattr(Journal, "batch", stopping)
        stopped = ece(*command, "--out", tmp_path / "stopped")
        assert stopped.code == 130
        assert "saved" in stopped.err
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["batch-0001"]

    resumed = ece(*command, "--out", tmp_path / "stopped")
    assert (resumed.json["facts"], resumed.json["already_there"]) == (3, 2)
    for batch in ("batch-0001", "batch-0002", "batch-0003"):
        a, b = (load_file(tmp_path / run / batch / "edit.safetensors") for run in ("whole", "stopped"))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_known_and_failed_facts_are_said(ece: Ece, tmp_path: Path) -> None:
    model = make.build("llama")
    poisoned = model.tokenizer("ß")["input_ids"][-1]
    with torch.no_grad():
        model.network.get_input_embeddings().weight[poisoned] = torch.nan  # type: ignore[index,operator]
    folder = tmp_path / "poisoned"
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    facts = [
        {"prompt": "{} is in", "subject": "Eiffel Tower", "target": "Rome"},
        {"prompt": "{} loves ß in", "subject": "Victor Hugo", "target": "Rome"},
    ]
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(facts))
    made = ece("edit", "--model", folder, "--facts", file, "--out", tmp_path / "e", "--set", "layers=1-2", "--set",
               "tokens=512", "--json")  # fmt: skip
    assert made.code == 0, made.err
    assert made.json["failed"] == ["Victor Hugo loves ß in -> Rome"]
    loaded = load_file(tmp_path / "e" / "batch-0001" / "edit.safetensors")
    assert all(tensor.isfinite().all() for tensor in loaded.values())


BAD = {
    "malformed JSON": ("[{", "line 1"),
    "missing field": ('[{"prompt": "{} is", "subject": "A"}]', "record 0: field target"),
    "no braces": ('[{"prompt": "it is", "subject": "A", "target": "B"}]', "record 0: field prompt"),
    "two braces": ('[{"prompt": "{} is {}", "subject": "A", "target": "B"}]', "record 0: field prompt"),
    "empty subject": ('[{"prompt": "{} is", "subject": " ", "target": "B"}]', "record 0: field subject"),
    "empty target": ('[{"prompt": "{} is", "subject": "A", "target": ""}]', "record 0: field target"),
    "contradiction": (
        '[{"prompt": "{} is", "subject": "A", "target": "B"}, {"prompt": "{} is", "subject": "A", "target": "C"}]',
        "facts 0 and 1 contradict",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_facts_end_with_one_line(ece: Ece, checkpoint: Path, tmp_path: Path, kind: str) -> None:
    text, reason = BAD[kind]
    file = tmp_path / "bad.json"
    file.write_text(text)
    result = ece("edit", "--model", checkpoint, "--facts", file, "--out", tmp_path / "edits")
    assert result.code == 2
    assert reason in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "edits").exists()


def test_bad_commands_end_with_one_line(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path) -> None:
    edit = ["edit", "--facts", facts_file, "--out", tmp_path / "edits"]
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"model_type": "bert"}')
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    cases = [
        ([*edit, "--model", checkpoint, "--method", "ece-sr"], "did you mean 'ece-rs'"),
        ([*edit, "--model", checkpoint, "--set", "layres=3"], "did you mean 'layers'"),
        ([*edit, "--model", checkpoint, "--set", "layers=40-44"], "has layers 0 to"),
        ([*edit, "--model", strange], "no known family"),
        ([*edit, "--model", tmp_path / "nowhere.gguf"], "no such file"),
        (["edit", "--model", checkpoint, "--out", tmp_path / "edits"], "--facts FILE"),
        (["edit", "--model", checkpoint, "--facts", facts_file, "--out", full], "not edits"),
        (["ask", "--model", checkpoint, "--edits", tmp_path / "none", "x"], "no edits"),
        (["evaluate", "--model", checkpoint, "--data", facts_file], "requested_rewrite"),
    ]
    for command, reason in cases:
        result = ece(*command)
        assert result.code == 2, command
        assert reason in result.err, command
        assert len(result.err.strip().splitlines()) == 1, result.err
        assert not (tmp_path / "edits").exists()


def test_edits_of_another_model_are_refused(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path) -> None:
    edits, other = tmp_path / "edits", tmp_path / "other"
    assert ece("edit", "--model", checkpoint, "--facts", facts_file, "--out", edits, *FAST).code == 0
    model = make.build("llama")
    with torch.no_grad():
        model.weight(0)[0, 0] += 1
    model.network.save_pretrained(other)
    model.tokenizer.save_pretrained(other)
    there = sorted(edits.rglob("*"))
    for command in (
        ["edit", "--facts", facts_file, "--out", edits],
        ["ask", "--edits", edits, "x"],
        ["export", "--edits", edits, "--out", tmp_path / "merged"],
    ):
        result = ece(*command, "--model", other)
        assert result.code == 2
        assert "made for" in result.err
    assert sorted(edits.rglob("*")) == there
    assert not (tmp_path / "merged").exists()


def test_too_little_memory_is_said_before_anything_is_written(
    ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ece.methods.memory.available", lambda device: 1000)
    result = ece("edit", "--model", checkpoint, "--facts", facts_file, "--out", tmp_path / "edits", *FAST)
    assert result.code == 2
    assert "memory" in result.err
    assert "layers" in result.err
    assert not (tmp_path / "edits").exists()


@pytest.mark.parametrize("command", [[str(Path(sys.executable).with_name("ece"))], [sys.executable, "-m", "ece"]])
def test_the_installed_command_says_what_it_can_do(command: list[str]) -> None:
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    for name in ("edit", "ask", "evaluate", "export", "explain", "methods", "demo"):
        assert name in shown


ZSRE = {
    "subject": "Victor Hugo",
    "src": "What language does Victor Hugo speak?",
    "rephrase": "Victor Hugo speaks what?",
    "answers": ["Russian"],
    "alt": "French",
    "loc": "nq question: where is the weather fine",
    "loc_ans": "Norway",
}


def test_evaluate_with_generation_and_provenance(ece: Ece, checkpoint: Path, records_file: Path) -> None:
    records = json.loads(records_file.read_text())
    for record in records:
        record |= {"generation_prompts": ["The Eiffel Tower is"], "reference_texts": ["The Colosseum is in Rome."]}
    records_file.write_text(json.dumps(records))
    command = ["evaluate", "--model", checkpoint, "--data", records_file, "--generate", "--seed", 3, "--json"]
    measured = ece(*command)
    assert measured.code == 0, measured.err
    assert {"efficacy_generated", "score_generated", "fluency", "consistency"} <= set(measured.json)
    assert "unedited" not in measured.json
    source = measured.json["provenance"]
    assert source["data"]["records"]["sha256"] == hashlib.sha256(records_file.read_bytes()).hexdigest()
    assert source["model"]["sha256"] == load(str(checkpoint)).fingerprint
    assert (source["seed"], source["configuration"]["kind"]) == (3, "counterfact")
    assert {"torch", "transformers", "scikit-learn", "python"} <= set(source["versions"])
    assert ece(*command).json["fluency"] == measured.json["fluency"]


def test_evaluate_zsre_beside_the_unedited_model(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path) -> None:
    data, edits = tmp_path / "zsre.json", tmp_path / "edits"
    data.write_text(json.dumps([ZSRE, ZSRE | {"loc_ans": "Rome"}]))
    assert ece("edit", "--model", checkpoint, "--facts", facts_file, "--out", edits, *FAST).code == 0
    command = ["evaluate", "--model", checkpoint, "--data", data, "--edits", edits]
    measured = ece(*command, "--target", "alt", "--limit", 1, "--json")
    assert measured.code == 0, measured.err
    assert measured.json["records"] == 1
    assert "specificity_unchanged" in measured.json
    assert "specificity_unchanged" not in measured.json["unedited"]
    assert set(measured.json["unedited"]) < set(measured.json)
    table = ece(*command)
    for word in ("unedited", "edited", "specificity_gold", "zsre, 2 records"):
        assert word in table.out


def test_evaluate_says_what_is_wrong_with_the_data(ece: Ece, checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "zsre.json"
    data.write_text(json.dumps([ZSRE, ZSRE | {"subject": "Hugo Victor"}]))
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps([ZSRE]))
    cases = [
        (["--data", data], "record 1: field src"),
        (["--data", whole, "--kind", "mquake"], "not of kind mquake"),
        (["--data", whole, "--kind", "zrse"], "no kind of benchmark"),
        (["--data", whole, "--target", "pred"], "answers and alt"),
        (["--data", whole, "--snippets", whole], "snippets is no option of zsre"),
        (["--data", tmp_path / "none.json"], "cannot be read"),
    ]
    for command, reason in cases:
        result = ece("evaluate", "--model", checkpoint, *command, "--json")
        assert (result.code, result.out) == (2, ""), command
        assert reason in result.err, command
        assert len(result.err.strip().splitlines()) == 1, result.err


def test_methods_say_what_they_are_and_what_options_mean(ece: Ece) -> None:
    listed = ece("methods", "--json").json
    assert {"rome", "r-rome", "emmet", "pmet", "prune", "rect", "alphaedit", "nse", "encore"} <= listed.keys()
    assert all({"summary", "source", "cost", "needs"} == set(about) for about in listed.values())
    shown = ece("methods", "alphaedit", "--json").json
    assert shown["options"]["solve"] == {"kind": "null-space", "threshold": 0.02, "ridge": 10.0}
    assert "eigenvalues" in shown["meanings"]["solve.threshold"].lower()
    assert shown["presets"]["llama3-8b"]["options"]["layers"] == [4, 5, 6, 7, 8]


def test_rome_edits_the_facts_of_a_batch_one_by_one(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path):
    fast = ["--set", "layers=1-2", "--set", "tokens=512", "--set", "targets.descent.steps=2"]
    made = ece("edit", "--model", checkpoint, "--facts", facts_file, "--out", tmp_path / "edits", "--method", "rome",
               "--batch-size", 100, *fast, "--json")  # fmt: skip
    assert made.code == 0, made.err
    assert made.json["facts"] == 5
    assert made.json["batches"] == 1
    assert made.json["layers"] == [2]


def test_presets(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path) -> None:
    edit = ["edit", "--model", checkpoint, "--facts", facts_file, "--out", tmp_path / "edits"]
    wrong = ece(*edit, "--preset", "llama3")
    assert wrong.code == 2
    assert "did you mean 'llama3-8b'" in " ".join(wrong.err.split())
    too_high = ece(*edit, "--method", "memit", "--preset", "llama3-8b")
    assert too_high.code == 2
    assert "layers" in too_high.err
    over = ["--method", "memit", "--preset", "llama3-8b", "--set", "layers=1-2", "--set", "targets.descent.steps=2"]
    made = ece(*edit, *over, "--set", "tokens=512", "--json")
    assert made.code == 0, made.err
    manifest = json.loads((tmp_path / "edits" / "batch-0001" / "manifest.json").read_text())
    assert manifest["options"]["regularise"] == 15000
    assert manifest["layers"] == [1, 2]


def test_causal_tracing(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path) -> None:
    traced = ["trace", "--model", checkpoint, "--facts", facts_file, "--limit", 2, "--samples", 2]
    found = ece(*traced, "--part", "ffn", "--plots", tmp_path, "--json")
    assert found.code == 0, found.err
    assert len(found.json["effects"]) == len(found.json["positions"]) == 6
    assert Path(found.json["plots"][0]).stat().st_size > 5000
    assert "with the subject corrupted" in " ".join(ece(*traced).out.split())
    assert ece(*traced, "--part", "heads").code == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["edit", "--subject", "a", "--prompt", "{} is", "--target", "b", "--on-guard", "skip"], "--guard FILE"),
        (["edit", "--subject", "a", "--prompt", "{} is", "--target", "b", "--guard-perplexity", "2"], "--guard FILE"),
        (["evaluate", "--seed", "0"], "--seed does nothing without --generate"),
        (["evaluate", "--top-k", "5"], "--top-k does nothing without --generate"),
        (["explain", "--edits", "x", "--set", "layers=1"], "--set does nothing without --facts"),
        (["explain", "--edits", "x", "--limit", "3"], "--limit does nothing without --facts"),
        (
            ["abilities", "--text", "x.txt", "--shots", "2"],
            "--shots does nothing without --data FOLDER or --harness TASKS",
        ),
        (["abilities", "--data", "x", "--text-tokens", "20"], "--text-tokens does nothing without --text FILE"),
        (["trace", "--facts", "x.json", "--window", "3"], "--window does nothing without --part ffn"),
        (["export", "--edits", "x", "--base", "m"], "--base does nothing without --lora"),
        (["diff", "x@²", "x"], "write FOLDER@N"),
    ],
)
def test_options_that_would_do_nothing(
    ece: Ece, records_file: Path, tmp_path: Path, command: list[str], said: str
) -> None:
    more = {
        "edit": ["--out", tmp_path / "out"],
        "export": ["--out", tmp_path / "out"],
        "evaluate": ["--data", records_file],
    }
    result = ece(*command, *more.get(command[0], []))
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_one_saved_edit_is_asked(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path) -> None:
    made = ece("edit", "--model", checkpoint, "--facts", facts_file, "--out", tmp_path / "edits", *FAST, "--json")
    whole = ece("ask", "--model", checkpoint, "--edits", tmp_path / "edits", "Paris is", "--json")
    one = ece("ask", "--model", checkpoint, "--edits", tmp_path / "edits" / "batch-0001", "Paris is", "--json")
    assert (made.code, whole.code, one.code) == (0, 0, 0)
    assert one.json["answers"][0]["unedited"] == whole.json["answers"][0]["unedited"]


def test_sizes_and_places_that_cannot_be(ece: Ece, checkpoint: Path, facts_file: Path, tmp_path: Path) -> None:
    edits = tmp_path / "edits"
    assert ece("edit", "--model", checkpoint, "--facts", facts_file, "--out", edits, *FAST).code == 0
    wrong = ece("export", "--model", checkpoint, "--edits", edits, "--out", tmp_path / "new", "--shard", "big")
    assert (wrong.code, "give a size, such as 4GB" in wrong.err) == (2, True)
    (tmp_path / "file").write_text("")
    nowhere = ece("export", "--model", checkpoint, "--edits", edits, "--out", tmp_path / "file" / "new")
    assert nowhere.code == 2
    assert nowhere.err.strip().splitlines()[-1].endswith("File exists")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("prompt", ["{} is \udcff", "\ud800{} is"])
def test_prompts_that_are_no_text(prompt: str) -> None:
    with pytest.raises(UserError, match="surrogate"):
        Fact(prompt, "Paris", "Rome")


def test_no_gpu_and_a_damaged_checkpoint(ece: Ece, checkpoint: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        refused = ece("ask", "--model", checkpoint, "--device-map", "cuda", "Paris is")
        assert (refused.code, "cannot load model" in refused.err) == (2, True)
    shutil.copytree(checkpoint, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    cut = ece("ask", "--model", tmp_path / "cut", "Paris is")
    assert (cut.code, "cannot load model" in cut.err) == (2, True)


def test_weights_are_never_read_from_pickles(ece: Ece, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "pickled")
    file = tmp_path / "pickled" / "model.safetensors"
    torch.save(load_file(file), tmp_path / "pickled" / "pytorch_model.bin")
    file.unlink()
    refused = ece("ask", "--model", tmp_path / "pickled", "Paris is")
    assert (refused.code, "safetensors" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["explain", "--facts", "none.json", "--plots", "plots"], "plots"),
        (["trace", "--facts", "none.json", "--plots", "plots"], "plots"),
        (["study", "methods", "--data", "none.json", "--out", "study"], "studies"),
        (["abilities", "--data", "none"], "eval"),
        (["serve", "--edits", "none"], "serve"),
    ],
)
def test_missing_extras_are_said_before_the_work(
    ece: Ece, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], extra: str
) -> None:
    monkeypatch.setattr("ece.errors.find_spec", lambda module: None)
    result = ece(*command, "--model", checkpoint)
    assert result.code == 2
    assert f"run: pip install 'ece-edit[{extra}]'" in result.err
    assert len(result.err.strip().splitlines()) == 1
