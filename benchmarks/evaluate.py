"""Seconds of CounterFact evaluation: one prompt and one target at a time through the plain model, against ours.

python benchmarks/evaluate.py --data counterfact.json [--records 100] [--texts 20] [--json FILE]
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import COUNTERFACT, matmul_peak, report, start
from operations import counted

import ece
from ece.evaluation.counterfact import CounterFact
from ece.models.likelihood import Question, likelihoods
from ece.models.tokens import encode

WHOLE = 2000
"""Records for which the time is foretold."""


@torch.no_grad()
def plain(model: ece.Model, prompt: str, target: str) -> tuple[float, bool]:
    """Mean log-probability of a target's tokens and whether each is the most probable one: a pass for each text."""
    ids, _, start = encode(model, prompt, target)
    likely = model.network(torch.tensor([ids], device=model.device)).logits[0, start - 1 : -1].float().log_softmax(-1)
    wanted = torch.tensor(ids[start:], device=likely.device)
    return likely.gather(1, wanted[:, None]).mean().item(), bool((likely.argmax(1) == wanted).all())


def questions(benchmark: CounterFact) -> list[Question]:
    """All prompts, each with both objects."""
    found = []
    for record in benchmark.records:
        true = record.requested_rewrite.target_true
        candidates = (record.fact().target, true.text if true else "")
        prompts = (record.fact().question, *record.paraphrase_prompts, *record.neighborhood_prompts)
        found += [Question(prompt, candidates) for prompt in prompts]
    return found


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = COUNTERFACT,
    records: Annotated[int, typer.Option(help="How many, from the first.")] = 100,
    plain_records: Annotated[int, typer.Option(help="How many of them one at a time.")] = 10,
    texts: Annotated[int, typer.Option(min=1, help="Records whose texts are written.")] = 20,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Time both ways, check that they agree, and print the share of the matrix-multiplication peak."""
    model = ece.load()
    whole = ece.read_benchmark(data, "counterfact")
    assert isinstance(whole, CounterFact)
    some = whole.part(0, records)
    asked, few = questions(some), questions(whole.part(0, plain_records))
    peak = matmul_peak(model.device, model.network.dtype)
    likelihoods(model, few[:8])  # the first pass is slower

    began = time.perf_counter()
    slow = [plain(model, q.prompt, candidate) for q in few for candidate in q.candidates]
    plain_seconds = (time.perf_counter() - began) / plain_records
    began = time.perf_counter()
    fast = likelihoods(model, asked)
    seconds = (time.perf_counter() - began) / len(some.records)
    with counted() as counter:
        likelihoods(model, asked)
    operations = counter.get_total_flops() / len(some.records)
    flat = [answer for answers in fast[: len(few)] for answer in answers]
    off = max(abs(a - b.log_probability) for (a, _), b in zip(slow, flat, strict=True))
    differing = sum(exact != b.exact for (_, exact), b in zip(slow, flat, strict=True))

    began = time.perf_counter()
    written = whole.part(0, texts)
    prompts = [prompt for record in written.records for prompt in record.generation_prompts]
    written.writing.write(model, prompts)
    writing = (time.perf_counter() - began) / len(written.records)
    began = time.perf_counter()
    ece.evaluate(model, written.records, generated=True)
    generated = (time.perf_counter() - began) / len(written.records)

    rows = [
        {"what": "one prompt and target at a time", "s / record": plain_seconds, "times as fast": 1.0, "% of peak": ""},
        {
            "what": "likelihoods",
            "s / record": seconds,
            "times as fast": plain_seconds / seconds,
            "% of peak": 100 * operations / seconds / peak,
        },
        *(
            {"what": what, "s / record": value, "times as fast": "", "% of peak": ""}
            for what, value in (("with *_generated", generated), (f"texts of {whole.writing.tokens} tokens", writing))
        ),
    ]
    minutes, writing_minutes = seconds * WHOLE / 60, writing * 200 / 60
    found = {
        "seconds_per_record": {"plain": plain_seconds, "ours": seconds, "generated": generated, "texts": writing},
        "plain_over_ours": plain_seconds / seconds,
        "share_of_peak": operations / seconds / peak,
        "peak_gflops": peak / 1e9,
        f"minutes_for_{WHOLE}_records": minutes,
        "minutes_for_texts_of_200_records": writing_minutes,
        "largest_difference_in_nats": off,
        "differing_exact_answers": differing,
        "records": {"ours": len(some.records), "plain": plain_records, "texts": texts},
        "prompts_of_texts": len(prompts),
    }
    title = (
        f"CounterFact evaluation; {minutes:.1f} min for {WHOLE} records, {writing_minutes:.1f} min for texts of 200; "
        f"peak {peak / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads"
    )
    report(title, rows, found, json)


if __name__ == "__main__":
    start(main)
