"""What the pages say about methods is true."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny as make
import torch
from typer.testing import CliRunner

import ece
from ece.cli import app
from ece.cli.options import chosen_method
from ece.edits.edit import Edit
from ece.facts import Fact
from ece.methods.engine import edit
from ece.methods.recipe import Recipe
from ece.methods.registry import METHODS, as_recipe
from ece.models import Model

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def options_of(command: str) -> tuple[str, list[str]]:
    """The method and the `--set` options of a command."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    sets = [word for flag, word in zip(words, words[1:], strict=False) if flag == "--set"]
    return words[words.index("--method") + 1], sets


def test_a_new_recipe_is_a_short_declaration_that_edits(tiny_llama: Model, facts: list[Fact]):
    code = blocks("add-a-method.md", "python")[0]
    assert len(code.splitlines()) < 30
    names: dict[str, Any] = {}
    exec(compile(code, "mine.py", "exec"), names)
    mine: Recipe = names["MINE"]
    method, sets = options_of(blocks("add-a-method.md", "")[0])
    named = {"name": mine.name, "summary": mine.summary, "source": mine.source}
    assert replace(chosen_method(method, sets), **named) == mine
    made = edit(tiny_llama, facts, replace(mine, layers=(0, 1, 2), tokens=512), before=make.OPENINGS)
    assert sorted(made.deltas) == [0, 2]
    assert made.manifest.method == "mine"


def test_a_new_choice_works_in_a_recipe(tiny_llama: Model, facts: list[Fact]):
    names: dict[str, Any] = {}
    exec(compile(blocks("add-a-method.md", "python")[1], "strongest.py", "exec"), names)
    recipe = replace(as_recipe("memit"), layers=(1, 2), tokens=512)
    plain = edit(tiny_llama, facts, recipe, before=make.OPENINGS)
    made = edit(tiny_llama, facts, replace(recipe, after=names["Strongest"]()), before=make.OPENINGS)
    for layer in (1, 2):
        whole = plain.deltas[layer].left @ plain.deltas[layer].right
        kept = made.deltas[layer].left @ made.deltas[layer].right
        assert torch.linalg.matrix_rank(kept) == 1
        strongest = torch.linalg.svdvals(whole)[0]
        assert float(torch.linalg.svdvals(kept)[0]) == pytest.approx(float(strongest), rel=1e-4)


def test_every_method_has_its_row():
    page = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("methods.md", "methods-other.md"))
    rows = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert {name for name in METHODS if f"`{name}`" not in rows} == set()


@pytest.mark.parametrize("command", blocks("methods.md", "")[0].splitlines())
def test_options_that_the_page_names(command: str):
    name, sets = options_of(command)
    assert chosen_method(name, sets) != METHODS[name]


def test_the_readme_edits_saves_and_reads(tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ece, "load", lambda name: tiny_llama, raising=False)
    names: dict[str, Any] = {}
    exec(compile(blocks("../README.md", "python")[0], "readme.py", "exec"), names)
    made: Edit = names["edit"]
    assert made.manifest.method == "ece"
    changed = tiny_llama.weight(made.manifest.layers[0]).clone()
    made.revert(tiny_llama)
    (saved,) = tmp_path.iterdir()
    (read,) = ece.load_edits(saved, tiny_llama)
    assert not torch.equal(tiny_llama.weight(made.manifest.layers[0]), changed)
    read.apply(tiny_llama)
    assert torch.equal(tiny_llama.weight(made.manifest.layers[0]), changed)


def commands(page: str) -> list[list[str]]:
    """The words of each `ece` command that a page has on lines of its own."""
    text = (DOCS / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^ *(ece [a-z].*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("page", ["../README.md", *sorted(path.name for path in DOCS.glob("*.md"))])
def test_options_of_the_commands_that_a_page_shows(page: str):
    for words in commands(page):
        name = words[: 2 if words[0] == "train" else 1]
        shown = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200"}, catch_exceptions=False)
        assert shown.exit_code == 0, words
        known = set(re.findall(r"--[a-z][a-z-]*", shown.output))
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, words


PAGES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What can be linked to in a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_links_lead_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_results_and_scripts_that_a_page_names_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/])(?:benchmarks|docs|src/ece)/[\w./-]+\.\w+", text):
        assert (DOCS.parent / name).exists() or name.endswith("/mine.py"), name
