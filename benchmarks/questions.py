"""CounterFact's tuning records as questions, in zsRE's format: something to choose options for questions on.

zsRE has no records here that are not reported. These have its shape: a question that ends in a question mark, a
rephrased one, an unrelated one about a subject that is not edited, and answers of which every second names two things.

    python benchmarks/questions.py --data counterfact.json --out questions.json
    python benchmarks/update.py --data questions.json --first 0 --facts 300 --every 1 --only default --only "lambda 400"
"""

from __future__ import annotations

import json
import logging
import random
import re
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from machine import COUNTERFACT, start
from tune import TUNED

import ece
from ece.files import new_file


class Form(NamedTuple):
    """How to ask what a prompt begins to state."""

    stated: str
    """What in a prompt tells it (a regular expression)."""

    question: str
    rephrase: str


FORMS = (
    Form(r"twin city", "What is the twin city of {}?", "Which city is twinned with {}?"),
    Form(r"position|plays as|They play as", "What position does {} play?", "In what position is {} as a player?"),
    Form(
        r"mother tongue|native speaker|native language",
        "What is the mother tongue of {}?",
        "What language is native to {}?",
    ),
    Form(
        r"official language|declares the language|they understand|In \{\},",
        "What is the official language in {}?",
        "Which language is official in {}?",
    ),
    Form(
        r"original language|language of \{\} (is|was)|written in",
        "What was the original language of {}?",
        "In what language was {} made?",
    ),
    Form(r"speaks|spoke|language used", "What language does {} speak?", "Which language is spoken by {}?"),
    Form(r"citizen", "Which country is {} a citizen of?", "What is the country of citizenship of {}?"),
    Form(r"headquarter", "Where is the headquarters of {}?", "What is the place where {} is headquartered?"),
    Form(r"continent", "Which continent is {} part of?", "On what continent is {}?"),
    Form(r"developed by|developer", "Who is the developer of {}?", "What company developed {}?"),
    Form(
        r"product of|produced by|created by|manufactur|maker",
        "Which company makes {}?",
        "What is the company that produced {}?",
    ),
    Form(
        r"debuted|released on|premiere|aired",
        "On which network did {} first air?",
        "What was the original network of {}?",
    ),
    Form(
        r"expired|passed away|died|death|lost their life|succumbed",
        "Where did {} die?",
        "What was the place of death of {}?",
    ),
    Form(r"born", "Where was {} born?", "What is the birthplace of {}?"),
    Form(r"worked|work in|employ", "In which city did {} work?", "What city was the workplace of {}?"),
    Form(
        r"created in|formed in|founded in|originate|originally|native to|from$|developed in|formulated",
        "Where does {} come from?",
        "What is the place of origin of {}?",
    ),
    Form(r"follower|religio|affiliated with", "What is the religion of {}?", "Which religion does {} have?"),
    Form(r"profession$|profession is|occupation|job|works as", "What is the occupation of {}?", "What did {} do?"),
    Form(
        r"genre|performs|performing|, who plays$|They play$|instrument|plays the",
        "What does {} play?",
        "What is played by {}?",
    ),
    Form(r"\{\} plays$|, the$|professionally plays|sport", "Which sport does {} play?", "What is the sport of {}?"),
    Form(
        r"located|is in$|, in$|location|found|situated|lies in|within|country of|belongs to|owned by|capital",
        "Where is {} located?",
        "What is the location of {}?",
    ),
)
"""The first that fits a prompt is taken."""


class Asked(NamedTuple):
    """A record, and how it is asked for."""

    form: Form
    subject: str
    new: str
    true: str


def form_of(prompt: str) -> Form | None:
    """How a prompt is asked, if any form fits."""
    return next((form for form in FORMS if re.search(form.stated, prompt)), None)


def record(asked: Asked, answer: str, unrelated: Asked) -> dict[str, object]:
    """In MEND's file format."""
    return {
        "subject": asked.subject,
        "src": asked.form.question.format(asked.subject),
        "rephrase": asked.form.rephrase.format(asked.subject),
        "answers": [answer],
        "loc": unrelated.form.question.format(unrelated.subject),
        "loc_ans": unrelated.true,
    }


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = COUNTERFACT,
    facts: Annotated[int, typer.Option(min=1, help="Asked for; the others are the unrelated ones.")] = 600,
    out: Annotated[Path, typer.Option(help="Where the records go.")] = Path("questions.json"),
) -> None:
    """Write the records."""
    found: list[Asked] = []
    for each in ece.read_counterfact(data)[TUNED]:
        rewrite = each.requested_rewrite
        form = form_of(rewrite.prompt)
        if form and rewrite.target_true:
            found.append(Asked(form, rewrite.subject, rewrite.target_new.text, rewrite.target_true.text))
    if len(found) <= facts:
        raise ece.UserError(f"{data}: {len(found)} records can be asked for; give a smaller number with --facts")
    generator, others = random.Random(0), found[facts:]
    generator.shuffle(others)
    news: dict[Form, set[str]] = {}
    for asked in found:
        news.setdefault(asked.form, set()).add(asked.new)
    made: list[dict[str, object]] = []
    for number, asked in enumerate(found[:facts]):
        answer = asked.new
        if number % 2 and (more := sorted(news[asked.form] - {asked.new})):
            answer += f" and {generator.choice(more)}"
        made.append(record(asked, answer, others[number % len(others)]))
    with new_file(out) as temporary:
        temporary.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    logging.getLogger("ece.questions").info("%s: %d questions", out, len(made))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    start(main)
