"""Every kind of benchmark: read from records of our own in its schema, measured as slow code measures it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import reference
import tiny as make
import torch
from torch import nn

from ece.errors import UserError
from ece.evaluation.benchmark import KINDS, Benchmark, read_benchmark
from ece.evaluation.counterfact import evaluate, read_snippets, summary
from ece.evaluation.generation import fluency
from ece.facts import CounterFactRecord, Fact, read_counterfact
from ece.models import Model

Record = dict[str, Any]

COUNTERFACT: Record = {
    "case_id": 1,
    "requested_rewrite": {
        "prompt": "The {} is located in the city of",
        "subject": "Eiffel Tower",
        "target_new": {"str": "Rome", "id": "Q1"},
        "target_true": {"str": "Paris", "id": "Q2"},
        "relation_id": "P1",
    },
    "paraphrase_prompts": ["Everyone knows that Eiffel Tower is in"],
    "neighborhood_prompts": ["The Colosseum is in", "Mount Kelva stands in"],
    "generation_prompts": ["The Eiffel Tower is", "Eiffel Tower stands in"],
    "reference_texts": ["The Colosseum is in Rome.", "The river is in Rome, not in Paris."],
}
ZSRE: Record = {
    "subject": "Victor Hugo",
    "src": "What language does Victor Hugo speak?",
    "rephrase": "Victor Hugo speaks what?",
    "answers": ["Russian", "the Russian language"],
    "alt": "French and English",
    "loc": "nq question: where is the weather fine",
    "loc_ans": "Norway and Rome",
}
KNOWEDIT: Record = {
    "subject": "Ada Lovelace",
    "prompt": "Most people know Ada Lovelace for",
    "target_new": "opera and chess",
    "rephrase_prompt": "Ada Lovelace is known for",
    "portability": {
        "Reasoning": [
            {"prompt": "What Ada Lovelace is known for is loved in", "ground_truth": [["São Paulo", "Rome"]]}
        ],
        "Subject_Aliasing": [
            {"prompt": "The lady of the first program is known for", "ground_truth": "opera and chess"}
        ],
        "Logical_Generalization": [
            {"prompt": ["Opera and chess are what one knows of"], "ground_truth": ["Ada Lovelace", "Ada"]},
            {"prompt": "The one known for opera and chess is", "ground_truth": ["Ada"]},
        ],
    },
    "locality": {"Relation_Specificity": [{"prompt": "Victor Hugo is known for", "ground_truth": [["French"]]}]},
}


def query(prompt: str, *names: str, subject: str = "Q7", kind: str = "regular") -> Record:
    answers = [{"value": names[0], "aliases": list(names[1:])}] if names else []
    return {"prompt": prompt, "answers": answers, "subject_id": subject, "query_type": kind, "target_ids": ["Q0"]}


RIPPLE: Record = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the city of birth of the lady of Norway is Rome.",
        "subject_id": "Q7",
        "relation": "BIRTHPLACE",
        "target_id": "Q1",
    },
    "Relation_Specifity": [
        {
            "test_queries": [query("The name of the mother of the lady of Norway is", "Ada Lovelace", "Ada")],
            "test_condition": "OR",
            "condition_queries": [],
        }
    ],
    "Logical_Generalization": [
        {
            "test_queries": [
                query("Those born in Rome are", "the lady of Norway", subject="Q1"),
                query("Those born in Paris are", "Victor Hugo", subject="Q2"),
            ],
            "test_condition": "AND",
        },
        {"test_queries": [query("The name of the river of Rome is", subject="Q1")], "test_condition": "OR"},
    ],
    "Subject_Aliasing": [
        {
            "test_queries": [
                query("The name of the city of birth of Zoë is", "Rome", kind="alias"),
                query("Zoë was born in", "Rome", "Roma", kind="alias"),
            ],
            "test_condition": "OR",
        }
    ],
    "Compositionality_I": [],
    "Compositionality_II": [],
    "Forgetfulness": [],
}
MQUAKE: Record = {
    "case_id": 3,
    "requested_rewrite": [
        {
            "prompt": "{} grew up speaking",
            "subject": "Victor Hugo",
            "target_new": {"str": "Russian", "id": "Q3"},
            "target_true": {"str": "French", "id": "Q4"},
            "relation_id": "P1",
        },
        {
            "prompt": "The sport of {} is",
            "subject": "Michael Jordan",
            "target_new": {"str": "chess"},
            "target_true": {"str": "basketball"},
        },
    ],
    "questions": ["Where is the language of Victor Hugo loved?", "In which city do they love what Victor Hugo speaks?"],
    "new_answer": "São Paulo",
    "new_answer_alias": ["the city of São Paulo"],
    "new_single_hops": [
        {"question": "What does Victor Hugo speak?", "answer": "Russian", "answer_alias": []},
        {"question": "Where is Russian loved?", "answer": "São Paulo", "answer_alias": ["Rome"]},
    ],
}
RECORDS = {"counterfact": COUNTERFACT, "zsre": ZSRE, "knowedit": KNOWEDIT, "ripple": RIPPLE, "mquake": MQUAKE}


def written(folder: Path, *records: Record, name: str = "data.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def leaning(model: Model, *answers: str) -> Model:
    """The same model, made to prefer the tokens of some answers, so that it is right now and then."""
    tokens = sorted({token for answer in answers for token in reference.token_ids(model, f" {answer}")})
    head = cast(nn.Module, model.network.get_output_embeddings())
    preferred = torch.zeros(len(model.tokenizer)).index_fill(0, torch.tensor(tokens), 30.0)
    head.register_forward_hook(lambda module, inputs, logits: cast(torch.Tensor, logits) + preferred)
    return model


def accuracy(model: Model, prompt: str, *answers: str) -> float:
    """The best answer's share of right tokens, token after token."""

    def one(answer: str) -> float:
        best, wanted = reference.along(model, prompt, answer)
        return sum(a == b for a, b in zip(best, wanted, strict=True)) / len(wanted)

    return max(map(one, answers))


# --- reading


@pytest.mark.parametrize("kind", RECORDS)
def test_the_schema_tells_the_kind(tmp_path: Path, kind: str):
    file = written(tmp_path, RECORDS[kind])
    found = read_benchmark(file)
    assert found.name == kind == read_benchmark(file, kind).name
    assert [name for name, other in KINDS.items() if other.fits(RECORDS[kind])] == [kind]
    assert len(found.records) == 1
    assert found.part(0, 0).records == []


@pytest.mark.parametrize("kind", RECORDS)
def test_a_part_takes_records_at_even_distances(tmp_path: Path, kind: str):
    benchmark = read_benchmark(written(tmp_path, *[RECORDS[kind]] * 7))
    numbers = {id(record): number for number, record in enumerate(benchmark.records)}
    assert [numbers[id(record)] for record in benchmark.part(1, 6, 2).records] == [1, 3, 5]
    assert [numbers[id(record)] for record in benchmark.part(4, None).records] == [4, 5, 6]


def test_facts(tmp_path: Path):
    def facts(kind: str, **options: Any) -> list[Fact]:
        return read_benchmark(written(tmp_path, RECORDS[kind], RECORDS[kind]), **options).facts()

    assert facts("counterfact") == [Fact("The {} is located in the city of", "Eiffel Tower", "Rome")]
    assert facts("zsre") == [Fact("What language does {} speak?", "Victor Hugo", "Russian")]
    assert facts("zsre", target="alt") == [Fact("What language does {} speak?", "Victor Hugo", "French and English")]
    assert facts("knowedit") == [Fact("Most people know {} for", "Ada Lovelace", "opera and chess")]
    assert facts("ripple") == [Fact("The name of the city of birth of {} is", "the lady of Norway", "Rome")]
    assert facts("mquake") == [
        Fact("{} grew up speaking", "Victor Hugo", "Russian"),
        Fact("The sport of {} is", "Michael Jordan", "chess"),
    ]


def test_ripple_subjects_are_told_or_asked_for(tmp_path: Path):
    alone = RIPPLE | {"Relation_Specifity": [], "Subject_Aliasing": []}
    with pytest.raises(UserError, match="record 0: field edit: the subject's name cannot be told"):
        read_benchmark(written(tmp_path, alone))
    told = alone | {"edit": RIPPLE["edit"] | {"subject": "the lady of Norway", "target": "Rome"}}
    assert read_benchmark(written(tmp_path, told)).facts() == read_benchmark(written(tmp_path, RIPPLE)).facts()
    wrong = alone | {"edit": RIPPLE["edit"] | {"subject": "Victor Hugo"}}
    with pytest.raises(UserError, match="does not occur"):
        read_benchmark(written(tmp_path, wrong))


BAD: dict[str, tuple[list[Record], dict[str, Any], list[str]]] = {
    "unknown": ([{"sentence": "x", "label": 1}], {}, ["record 0", "expected", "zsre", "found sentence, label"]),
    "mixed": ([ZSRE, COUNTERFACT], {}, ["record 1", "not of kind zsre", "src", "found case_id", "is counterfact"]),
    "another kind": ([ZSRE], {"kind": "mquake"}, ["record 0", "not of kind mquake", "questions", "found subject"]),
    "no such kind": ([ZSRE], {"kind": "zsr"}, ["'zsr'", "counterfact, zsre"]),
    "no such option": ([COUNTERFACT], {"target": "alt"}, ["target is no option of counterfact"]),
    "no such target": ([ZSRE], {"target": "pred"}, ["target 'pred'", "answers and alt"]),
    "no subject": ([ZSRE, ZSRE | {"src": "What?"}], {}, ["record 1: field src", "subject 'Victor Hugo'"]),
    "no alt": ([ZSRE | {"alt": ""}], {"target": "alt"}, ["no record has the field alt"]),
    "no loc_ans": ([{k: v for k, v in ZSRE.items() if k != "loc_ans"}], {}, ["record 0: field loc_ans"]),
    "knowedit's subject": ([KNOWEDIT | {"subject": "Hugo"}], {}, ["record 0: field prompt", "'Hugo'"]),
    "no answer": (
        [KNOWEDIT | {"portability": {"Reasoning": [{"prompt": "x", "ground_truth": [[]]}]}}],
        {},
        ["record 0: field portability.Reasoning.0.ground_truth", "no answer"],
    ),
    "no questions": ([MQUAKE | {"questions": []}], {}, ["record 0: field questions"]),
    "no statement": ([RIPPLE | {"edit": {"prompt": "Rome"}}], {}, ["record 0: field edit", "field target"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(tmp_path: Path, case: str):
    records, options, said = BAD[case]
    file = written(tmp_path, *records)
    with pytest.raises(UserError) as error:
        read_benchmark(file, **options)
    for words in said:
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_records_without_alt_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    found = read_benchmark(written(tmp_path, ZSRE, ZSRE | {"alt": ""}), target="alt")
    assert len(found.records) == 1
    assert "left out: 1" in caplog.text


# --- measuring


@pytest.mark.parametrize("kind", ["zsre", "knowedit", "ripple", "mquake"])
@pytest.mark.parametrize("seed", [0, 1])
def test_token_accuracy_equals_a_slow_one(tmp_path: Path, kind: str, seed: int):
    liked = {"zsre": "Russian", "knowedit": "French", "ripple": "Rome", "mquake": "chess"}[kind]
    model = leaning(make.build("llama", seed), liked)

    def right(prompt: str, *answers: str) -> float:
        return accuracy(model, prompt, *answers)

    hops = [right("What does Victor Hugo speak?", "Russian"), right("Where is Russian loved?", "São Paulo", "Rome")]
    wanted = {
        "zsre": lambda: {
            "efficacy": right(ZSRE["src"], "Russian"),
            "generalization": right(ZSRE["rephrase"], "Russian"),
            "specificity_gold": right("nq question: where is the weather fine?", "Norway and Rome"),
        },
        "knowedit": lambda: {
            "efficacy": right(KNOWEDIT["prompt"], "opera and chess"),
            "generalization": right("Ada Lovelace is known for", "opera and chess"),
            "multi_hop": right("What Ada Lovelace is known for is loved in", "São Paulo", "Rome"),
            "aliasing": right("The lady of the first program is known for", "opera and chess"),
            "logical": (
                right("Opera and chess are what one knows of", "Ada Lovelace", "Ada")
                + right("The one known for opera and chess is", "Ada")
            )
            / 2,
            "relation_gold": right("Victor Hugo is known for", "French"),
            "forgetfulness_gold": None,
        },
        "ripple": lambda: {
            "efficacy": right("The name of the city of birth of the lady of Norway is", "Rome"),
            "multi_hop": None,
            "multi_hop_subject": None,
            "aliasing": max(
                right("The name of the city of birth of Zoë is", "Rome"), right("Zoë was born in", "Rome", "Roma")
            ),
            "logical": (
                right("Those born in Rome are", "the lady of Norway") + right("Those born in Paris are", "Victor Hugo")
            )
            / 2,
            "relation_gold": right("The name of the mother of the lady of Norway is", "Ada Lovelace", "Ada"),
            "forgetfulness_gold": None,
        },
        "mquake": lambda: {
            "efficacy": (
                right("Victor Hugo grew up speaking", "Russian") + right("The sport of Michael Jordan is", "chess")
            )
            / 2,
            "single_hop": sum(hops) / 2,
            "multi_hop": max(right(q, "São Paulo", "the city of São Paulo") for q in MQUAKE["questions"]),
        },
    }[kind]()
    benchmark = read_benchmark(written(tmp_path, RECORDS[kind]))
    (score,) = benchmark.evaluate(model)
    for metric, value in wanted.items():
        assert score[metric] == pytest.approx(value), metric
        if value is not None:
            assert 0 <= score[f"{metric}_exact"] <= value
    assert any(wanted.values())  # the model is right somewhere
    others = {"predicted", "known"} if kind == "ripple" else {"predicted"}
    assert set(wanted) | {f"{metric}_exact" for metric in wanted} | others == set(score)
    assert set(benchmark.summary([score])) >= {metric for metric, value in wanted.items() if value is not None}


def test_unchanged_compares_with_the_unedited_model(tmp_path: Path):
    before, after = make.build("llama"), make.build("llama", seed=1)
    benchmark = read_benchmark(written(tmp_path, ZSRE, ZSRE | {"loc": "the weather is?", "loc_ans": "quiet"}))
    scores = [benchmark.evaluate(model) for model in (before, after)]
    wanted = []
    for prompt, answer in (
        ("nq question: where is the weather fine?", "Norway and Rome"),
        ("the weather is?", "quiet"),
    ):
        (a, _), (b, _) = (reference.along(model, prompt, answer) for model in (before, after))
        wanted.append(sum(x == y for x, y in zip(a, b, strict=True)) / len(a))
    found = benchmark.summary(json.loads(json.dumps(scores[1])), json.loads(json.dumps(scores[0])))
    assert found["specificity_unchanged"].mean == pytest.approx(50 * sum(wanted))
    assert benchmark.summary(scores[0], scores[0])["specificity_unchanged"].mean == 100
    assert "specificity_unchanged" not in benchmark.summary(scores[0])


def conditioned(*tests: tuple[str, list[str]]) -> Record:
    """A record whose logical tests ask for `Rome`, each after prompts that the unedited model must answer so."""
    return RIPPLE | {
        "Logical_Generalization": [
            {
                "test_queries": [query(prompt, "Rome", subject="Q1")],
                "test_condition": "OR",
                "condition_queries": [query(condition, "Rome", subject="Q1") for condition in conditions],
            }
            for prompt, conditions in tests
        ]
    }


def test_tests_count_as_known_where_the_unedited_model_meets_their_conditions(tmp_path: Path):
    before, after = leaning(make.build("llama"), "Rome"), make.build("llama", seed=1)
    prompts = [
        f"{name} {verb}" for name in ("Victor Hugo", "Ada Lovelace", "the opera", "Norway") for verb in ("of", "is")
    ]
    knows = {
        prompt: reference.along(before, prompt, "Rome")[0] == reference.along(before, prompt, "Rome")[1]
        for prompt in prompts
    }
    assert set(knows.values()) == {True, False}
    met, unmet = (next(p for p in prompts if knows[p] is which) for which in (True, False))
    tests = [("Rome is", []), ("Zoë is", [met]), ("Norway is", [met, unmet]), ("chess is", [unmet])]
    benchmark = read_benchmark(written(tmp_path, conditioned(*tests), conditioned(("Rome is", [unmet]))))
    scores = [json.loads(json.dumps(benchmark.evaluate(model))) for model in (before, after)]
    found = benchmark.summary(scores[1], scores[0])
    values = [accuracy(after, prompt, "Rome") for prompt, _ in tests]
    assert found["logical_known"].mean == pytest.approx(100 * sum(values[:2]) / 2)
    assert found["logical_known"].records == 1
    assert found["logical"].records == 2
    assert scores[1][0]["logical"] == pytest.approx(sum(values) / 4)
    assert "logical_exact_known" in found
    assert "logical_known" not in benchmark.summary(scores[1])


@pytest.mark.parametrize("kind", RECORDS)
def test_generated_metrics_of_a_model_that_answers_everything(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, tiny_llama: Model
):
    """Whatever is asked, it writes the first candidate: right for all but CounterFact's neighbours."""
    for module in ("probes", "counterfact"):
        monkeypatch.setattr(
            f"ece.evaluation.{module}.written", lambda model, questions: [f" {q.candidates[0]}." for q in questions]
        )
    benchmark = read_benchmark(written(tmp_path, RECORDS[kind]))
    (score,) = benchmark.evaluate(tiny_llama, generated=True)
    generated = {name: value for name, value in score.items() if name.endswith("_generated") and value is not None}
    assert generated.pop("specificity_generated", 0) == 0
    assert set(generated.values()) == {1}
    found = benchmark.summary([score])
    assert found["efficacy_generated"].mean == 100
    assert "efficacy_generated" not in benchmark.summary(benchmark.evaluate(tiny_llama))


def test_generated_metrics_equal_slow_ones(tmp_path: Path, tiny_llama: Model):
    """With the objects taken from what the model itself writes, some are named and some are not."""
    said = reference.greedy(tiny_llama, "The Eiffel Tower is located in the city of", 10)
    name = next(word for word in said.split() if word.isalnum())
    rewrite = COUNTERFACT["requested_rewrite"] | {"target_new": {"str": name}}
    file = written(tmp_path, COUNTERFACT | {"requested_rewrite": rewrite})
    (score,) = read_benchmark(file).evaluate(tiny_llama, generated=True)
    assert score["efficacy_generated"] == (name.casefold() in said.splitlines()[0].casefold().split())
    assert score["specificity_generated"] in (0, 0.5, 1)


# --- CounterFact's texts


def test_texts_fluency_and_consistency(tmp_path: Path, tiny_llama: Model, caplog: pytest.LogCaptureFixture):
    pytest.importorskip("sklearn")
    bare = COUNTERFACT | {"reference_texts": []}
    file = written(tmp_path, COUNTERFACT, bare, COUNTERFACT | {"generation_prompts": []})
    benchmark = read_benchmark(file, tokens=30, seed=4)
    first, second, third = benchmark.evaluate(tiny_llama, texts=True)
    assert len(first["texts"]) == 2
    assert first["fluency"] == pytest.approx(sum(map(fluency, first["texts"])) / 2)
    references = COUNTERFACT["reference_texts"]
    wanted = reference.tfidf_cosine(" ".join(first["texts"]), " ".join(references), 2 * references)
    assert first["consistency"] == pytest.approx(wanted)
    assert second["texts"] == first["texts"]  # the same prompts and seed
    assert (second["consistency"], third["consistency"], third["fluency"]) == (None, None, None)
    assert "leaves out 2 of 3 records" in caplog.text
    found = benchmark.summary([first, second, third])
    assert (found["fluency"].records, found["consistency"].records) == (2, 1)
    assert benchmark.part(0, 1).evaluate(tiny_llama, texts=True) == [first]  # the corpus is the whole file's


def test_without_any_references_consistency_is_left_out_not_zero(tmp_path: Path, tiny_llama: Model):
    benchmark = read_benchmark(written(tmp_path, COUNTERFACT | {"reference_texts": []}), tokens=20)
    found = benchmark.summary(benchmark.evaluate(tiny_llama, texts=True))
    assert "consistency" not in found
    assert found["fluency"].records == 1


SNIPPETS = [
    {"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "A", "text": "A is in Rome."}, {"text": "B too."}]},
    {"relation_id": "P1", "target_id": "Q9", "samples": [{"text": "C is elsewhere."}]},
]


def test_attribute_snippets(tmp_path: Path):
    file = tmp_path / "attribute_snippets.json"
    nested = {"P1": {"Q1": SNIPPETS[0]["samples"], "Q9": SNIPPETS[1]["samples"]}}
    for content in (SNIPPETS, nested):
        file.write_text(json.dumps(content))
        assert read_snippets(file) == {("P1", "Q1"): ["A is in Rome.", "B too."], ("P1", "Q9"): ["C is elsewhere."]}
        benchmark: Any = read_benchmark(written(tmp_path, COUNTERFACT), snippets=file)
        assert list(benchmark.references[0]) == ["A is in Rome.", "B too."]
        assert list(benchmark.corpus) == ["A is in Rome.", "B too.", "C is elsewhere."]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("one document\n\nanother\n")
    assert read_benchmark(written(tmp_path, COUNTERFACT), corpus=corpus).corpus == ["one document", "another"]  # type: ignore[attr-defined]
    for bad in ([{"relation_id": "P1"}], {"P1": ["Q1"]}, [1], {"P1": {"Q1": [{"name": "A"}]}}):
        file.write_text(json.dumps(bad))
        with pytest.raises(UserError, match="not attribute snippets"):
            read_snippets(file)


# --- the old names and the new seam say the same


def test_the_seam_and_the_functions_agree(tmp_path: Path, tiny_llama: Model):
    file = written(tmp_path, COUNTERFACT, COUNTERFACT | {"neighborhood_prompts": []})
    benchmark, records = read_benchmark(file), read_counterfact(file)
    scores = json.loads(json.dumps(benchmark.evaluate(tiny_llama), allow_nan=False))
    plain = evaluate(tiny_llama, records)
    found, wanted = benchmark.summary(scores, scores), summary(plain, plain)
    assert str(found) == str(wanted)
    assert found["specificity"].records == 1
    assert scores[1]["specificity"] is None


# --- the real model, thirty real records


def slow_counterfact(model: Model, record: CounterFactRecord) -> dict[str, float]:
    rewrite = record.requested_rewrite
    assert rewrite.target_true is not None
    found: dict[str, float] = {}
    for metric, prompts, wanted, other in (
        ("efficacy", [record.fact().question], rewrite.target_new.text, rewrite.target_true.text),
        ("generalization", record.paraphrase_prompts, rewrite.target_new.text, rewrite.target_true.text),
        ("specificity", record.neighborhood_prompts, rewrite.target_true.text, rewrite.target_new.text),
    ):
        pairs = [reference.likelihoods(model, prompt, (wanted, other)) for prompt in prompts]
        found[metric] = sum(a[0] > b[0] for a, b in pairs) / len(pairs) if pairs else math.nan
        found[f"{metric}_exact"] = sum(a[1] for a, _ in pairs) / len(pairs) if pairs else math.nan
    return found


@pytest.mark.model
def test_thirty_counterfact_records(real_model: Model, ece_data: Path):
    benchmark = read_benchmark(ece_data / "counterfact.json").part(1000, 1030)
    for record, score in zip(benchmark.records, benchmark.evaluate(real_model), strict=True):
        for metric, value in slow_counterfact(real_model, record).items():
            assert (math.nan if score[metric] is None else score[metric]) == pytest.approx(value, nan_ok=True)


@pytest.mark.model
def test_thirty_zsre_records(real_model: Model, ece_data: Path):
    benchmark: Benchmark = read_benchmark(ece_data / "zsre.json").part(300, 330)
    for record, score in zip(benchmark.records, benchmark.evaluate(real_model), strict=True):
        for metric, prompt, answer in (
            ("efficacy", record.src, record.answers[0]),
            ("generalization", record.rephrase, record.answers[0]),
            ("specificity_gold", record.loc + "?", record.loc_ans),
        ):
            best, wanted = reference.along(real_model, prompt, answer)
            right = [a == b for a, b in zip(best, wanted, strict=True)]
            assert score[metric] == pytest.approx(sum(right) / len(right))
            assert score[f"{metric}_exact"] == all(right)


@pytest.mark.model
def test_three_records_of_generated_answers(real_model: Model, ece_data: Path):
    benchmark = read_benchmark(ece_data / "counterfact.json").part(1000, 1003)
    for record, score in zip(benchmark.records, benchmark.evaluate(real_model, generated=True), strict=True):
        new, true = record.requested_rewrite.target_new.text, record.requested_rewrite.target_true.text
        lines = [
            reference.greedy(real_model, prompt, 10).strip().split("\n")[0] for prompt in record.neighborhood_prompts
        ]
        named = [true in line and (new not in line or line.index(true) < line.index(new)) for line in lines]
        assert score["specificity_generated"] == pytest.approx(sum(named) / len(named))
