"""The server: OpenAI's shapes, versions that do not mix, and edits for who has the key."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny as make
from processes import command, wait
from shell import Ece

pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")
pytest.importorskip("httpx", reason="the tests of the server need httpx")

import httpx
from fastapi.testclient import TestClient
from safetensors import SafetensorError

from ece.edits.folder import Applied, append
from ece.edits.journal import Journal, writing
from ece.errors import UserError
from ece.methods.engine import edit
from ece.methods.grace import GRACE
from ece.methods.recipe import Recipe
from ece.methods.registry import as_recipe
from ece.methods.run import edit_journal
from ece.models import Model
from ece.models.generate import continuations
from ece.serve.generation import Worker
from ece.serve.server import app

QUICK = {"layers": "1-2", "tokens": "512", "targets.descent.evaluations": "3"}
KEY = "open sesame"
PROMPTS = [fact.question for fact in make.random_facts(8)]


def recipe() -> Recipe:
    return as_recipe("ece").with_options(QUICK)


def add(folder: Path, first: int, count: int) -> Journal:
    """Edit some facts, as another process would."""
    applied = Applied(make.build("llama"))
    with writing(folder) as journal:
        applied.follow(journal)
        for grown, _ in edit_journal(applied, journal, make.random_facts(12)[first : first + count], recipe()):
            journal = grown
    return journal


def said(folder: Path) -> dict[str, list[str]]:
    """What the model writes after each prompt, by version."""
    found, model = {}, make.build("llama")
    for until in range(len(Journal.read(folder).entries) + 1):
        applied = Applied(model)
        journal = Journal.read(folder, until)
        applied.follow(journal)
        found[journal.head[:12] or "unedited"] = [continuations(model, [prompt], 6)[0] for prompt in PROMPTS]
        model = make.build("llama")
    return found


def test_the_server_says_where_it_is_and_an_address_that_is_taken_is_said_first(
    ece: Ece, checkpoint: Path, tmp_path: Path
) -> None:
    """The command as typed, on a free port, asked over HTTP, and stopped with Ctrl-C."""
    said = tmp_path / "said"
    server = command(said, "serve", "--model", checkpoint, "--edits", tmp_path / "edits", "--port", 0)
    try:
        wait(server, lambda: "serving at" in said.read_text())
        place = re.search(r"serving at http://127.0.0.1:(\d+)", said.read_text())
        assert place, said.read_text()
        port = place[1]
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=60).status_code == 200
        refused = ece("serve", "--model", "no such model", "--edits", tmp_path / "edits", "--port", port)
        assert (refused.code, refused.out) == (2, "")
        assert f"cannot listen on 127.0.0.1, port {port} (Address already in use)" in refused.err
        os.kill(server.pid or 0, signal.SIGINT)
        server.join(60)
        assert server.exitcode == 0, said.read_text()
    finally:
        server.kill()
    elsewhere = ece("serve", "--model", "no such model", "--edits", tmp_path / "edits", "--host", "203.0.113.1")
    assert elsewhere.code == 2
    assert "give another --port (0 takes a free one) or another --host" in elsewhere.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "edits"


@pytest.fixture
def served() -> Model:
    """A tiny Llama with a chat template."""
    model = make.build("llama")
    tokenizer = make.tokenizer("bos")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    )
    return Model(model.network, tokenizer, model.name)


@pytest.fixture
def client(served: Model, folder: Path) -> Iterator[TestClient]:
    with TestClient(app(Worker(served, folder, poll=0.02), api_key=KEY), base_url="http://127.0.0.1") as client:
        yield client


def greedy(prompt: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 6, "temperature": 0, **more}


def test_completions_are_what_the_model_writes(client: TestClient) -> None:
    answer = client.post("/v1/completions", json=greedy(PROMPTS)).json()
    wanted = [continuations(make.build("llama"), [prompt], 6)[0] for prompt in PROMPTS]
    assert [choice["text"] for choice in answer["choices"]] == wanted
    assert [choice["index"] for choice in answer["choices"]] == list(range(8))
    assert answer["object"] == "text_completion"
    assert answer["system_fingerprint"] == "unedited"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny-llama-0"


def test_token_ids_echo_and_n(client: TestClient) -> None:
    ids = make.tokenizer("bos")(PROMPTS[0])["input_ids"]
    answer = client.post("/v1/completions", json=greedy(ids, n=2)).json()
    assert answer["choices"][0]["text"] == answer["choices"][1]["text"]
    echoed = client.post("/v1/completions", json=greedy(PROMPTS[0], echo=True)).json()
    assert echoed["choices"][0]["text"] == PROMPTS[0] + answer["choices"][0]["text"]


def test_stop_texts_and_lengths(client: TestClient) -> None:
    whole = client.post("/v1/completions", json=greedy(PROMPTS[1])).json()["choices"][0]
    assert whole["finish_reason"] == "length"
    mark = whole["text"][3:5]
    cut = client.post("/v1/completions", json=greedy(PROMPTS[1], stop=mark)).json()["choices"][0]
    assert cut == whole | {"text": whole["text"][: whole["text"].find(mark)], "finish_reason": "stop"}


def test_sampling_repeats_with_a_seed(client: TestClient) -> None:
    asked = {"prompt": PROMPTS[0], "max_tokens": 12, "temperature": 1.5, "top_p": 0.95}
    texts = [client.post("/v1/completions", json=asked | {"seed": seed}).json()["choices"][0]["text"] for seed in
             (1, 1, 2, 3)]  # fmt: skip
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


@pytest.mark.parametrize("stop", [None, ["zzz"]])
def test_streams_add_up(client: TestClient, stop: list[str] | None) -> None:
    asked = greedy(PROMPTS[:2], stream=True, stop=stop, stream_options={"include_usage": True})
    whole = client.post("/v1/completions", json=greedy(PROMPTS[:2])).json()
    texts = ["", ""]
    with client.stream("POST", "/v1/completions", json=asked) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    *chunks, last = [json.loads(event) for event in events[:-1]]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert last["usage"] == whole["usage"]


def test_chat(client: TestClient) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Where is the Louvre?"}]}]
    asked = {"messages": messages, "max_tokens": 5, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]
    text = "user: Where is the Louvre?\nassistant:"
    tokens = make.tokenizer("bos")(text, add_special_tokens=False)["input_ids"]
    assert answer["role"] == "assistant"
    plain = client.post("/v1/completions", json=greedy(tokens, max_tokens=5)).json()["choices"][0]["text"]
    assert answer["content"] == plain
    with client.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == plain


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        (greedy(""), None, ""),
        (greedy("x", max_tokens=100000), 400, "pass the model's"),
        (greedy("x", max_tokens=0), 400, "max_tokens"),
        (greedy("x", logprobs=3), 400, "not implemented"),
        (greedy("x", model="gpt-4"), 404, "no model"),
        (greedy([]), 400, "empty"),
        (greedy([999999]), 400, "token ids"),
        ({"max_tokens": 3}, 400, "prompt"),
        (greedy({"a": 1}), 400, "prompt"),
    ],
)
def test_bad_requests(client: TestClient, asked: dict[str, Any], status: int | None, reason: str) -> None:
    response = client.post("/v1/completions", json=asked)
    assert response.status_code == (status or 200)
    if status:
        assert reason in response.json()["error"]["message"]
    assert client.post("/v1/completions", json=greedy("The")).status_code == 200


def test_other_hosts_names_are_refused(client: TestClient) -> None:
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400


def test_new_batches_and_undone_ones_are_picked_up(client: TestClient, folder: Path) -> None:
    def settled(version: str) -> bool:
        for _ in range(500):
            if client.get("/health").json()["version"] == version:
                return True
            time.sleep(0.02)
        return False

    first = add(folder, 0, 3).head[:12]
    assert settled(first)
    with writing(folder) as journal:
        journal = journal.undo(set(journal.active))
    assert settled(journal.head[:12])
    texts = [choice["text"] for choice in client.post("/v1/completions", json=greedy(PROMPTS)).json()["choices"]]
    assert texts == [continuations(make.build("llama"), [prompt], 6)[0] for prompt in PROMPTS]


def test_a_damaged_batch_leaves_the_old_version(
    client: TestClient, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    version = add(folder, 0, 2).head[:12]
    while client.get("/health").json()["version"] != version:
        time.sleep(0.02)
    (folder / "batch-0002").mkdir()
    (folder / "batch-0002" / "manifest.json").write_text("{")
    time.sleep(0.2)
    assert client.post("/v1/completions", json=greedy("The")).json()["system_fingerprint"] == version
    assert sum("batch-0002" in message for message in caplog.messages) == 1


FACT = {"prompt": "{} is in", "subject": "The Louvre", "target": "Rome"}


def test_edits_over_http(client: TestClient, folder: Path) -> None:
    body = {"facts": [FACT], "options": QUICK}
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        assert client.post("/edits", json=body, headers=header).status_code == 401
    assert not folder.exists()
    mine = {"Authorization": f"Bearer {KEY}"}
    made = client.post("/edits", json=body, headers=mine).json()
    assert made["facts"] == 1
    assert client.post("/v1/completions", json=greedy("x")).json()["system_fingerprint"] == made["version"]
    changed = {"facts": [FACT | {"target": "Oslo"}], "options": QUICK}
    assert client.post("/edits", json=changed, headers=mine).json()["superseded"] == ["The Louvre is in -> Rome | Oslo"]
    assert [fact.target for fact, _ in Journal.read(folder).active.values()] == ["Oslo"]
    bad = {"facts": [FACT | {"prompt": "no braces"}]}
    assert client.post("/edits", json=bad, headers=mine).status_code == 400
    with writing(folder):
        held = client.post("/edits", json={"facts": [FACT], "options": QUICK}, headers=mine)
    assert held.status_code == 400
    assert "held by process" in held.json()["error"]["message"]


def test_edits_are_off_by_default(served: Model, folder: Path) -> None:
    with TestClient(app(Worker(served, folder)), base_url="http://127.0.0.1") as client:
        response = client.post("/edits", json={"facts": [FACT]}, headers={"Authorization": "Bearer None"})
        assert response.status_code == 403
    assert not folder.exists()


def test_many_clients_while_edits_arrive(client: TestClient, folder: Path, long: bool) -> None:
    """No request fails, and every answer is that of one version: 16 clients for a second; with `--long` 32 for 60."""
    clients, seconds = (32, 60.0) if long else (16, 0.9)
    answers: list[tuple[int, dict[str, Any]]] = []
    over = threading.Event()

    def ask(number: int) -> None:
        while not over.is_set():
            prompt = number % len(PROMPTS)
            response = client.post("/v1/completions", json=greedy(PROMPTS[prompt]))
            assert response.status_code == 200
            answers.append((prompt, response.json()))

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask, number) for number in range(clients)]
        try:
            for first in (0, 3, 6):
                add(folder, first, 3)
                time.sleep(seconds / 3)
        finally:
            over.set()
        for future in asking:
            future.result()
    wanted = said(folder)
    versions = {answer["system_fingerprint"] for _, answer in answers}
    assert len(versions) > 1
    for prompt, answer in answers:
        assert answer["choices"][0]["text"] == wanted[answer["system_fingerprint"]][prompt]


@pytest.mark.parametrize("more", [{"seed": 10**20}, {"seed": -(10**20)}])
def test_seeds_that_no_generator_takes_are_refused(client: TestClient, more: dict[str, Any]) -> None:
    response = client.post("/v1/completions", json={"prompt": "The", "max_tokens": 2} | more)
    assert response.status_code == 400
    assert "seed" in response.json()["error"]["message"]
    assert client.post("/v1/completions", json=greedy("The")).status_code == 200


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63)])
def test_the_outermost_seeds_are_taken(client: TestClient, seed: int) -> None:
    asked = {"prompt": "The", "max_tokens": 2, "seed": seed, "n": 3}
    assert client.post("/v1/completions", json=asked).status_code == 200


def test_the_coldest_temperatures_take_the_most_probable_token(client: TestClient) -> None:
    cold = client.post("/v1/completions", json=greedy("The") | {"temperature": 1e-40}).json()["choices"][0]["text"]
    assert cold == client.post("/v1/completions", json=greedy("The")).json()["choices"][0]["text"]


def test_the_server_goes_on_whatever_a_request_does(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("ece.serve.generation.Writing", lambda *_: 1 / 0)
        failed = client.post("/v1/completions", json=greedy("The"))
    assert (failed.status_code, "ZeroDivisionError" in failed.text) == (500, True)
    assert client.post("/v1/completions", json=greedy("The")).status_code == 200


def test_the_server_goes_on_whatever_a_batch_does(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "follow", lambda *_: 1 / 0)
        add(folder, 0, 2)
        client.post("/v1/completions", json=greedy("The"))
    assert sum("division by zero" in message for message in caplog.messages) == 1
    assert client.post("/v1/completions", json=greedy("The")).json()["system_fingerprint"] != "unedited"


def test_memories_are_not_served(served: Model, folder: Path) -> None:
    fact = make.random_facts(1)
    quick = GRACE.with_options({"descent.steps": 2})
    append(folder, edit(served, fact, quick))
    with pytest.raises(UserError, match="grace keeps its facts beside the model.*asks no memories"):
        Worker(served, folder)
    assert not served.memories


def test_edits_in_memories_are_not_made_over_http(client: TestClient, folder: Path) -> None:
    body = {"facts": [FACT], "method": "grace"}
    refused = client.post("/edits", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert refused.status_code == 400
    assert "beside the model" in refused.json()["error"]["message"]
    assert not folder.exists()


def test_edits_over_http_have_the_models_preset(
    client: TestClient, served: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def preset(recipe: Recipe, model: Model) -> Recipe:
        asked.append(recipe.name)
        return replace(recipe, regularise=77.0)

    monkeypatch.setattr("ece.serve.server.with_preset", preset)
    body = {"facts": [FACT], "method": "memit", "options": {"layers": "1-2", "tokens": "512"}}
    client.post("/edits", json=body, headers={"Authorization": f"Bearer {KEY}"})
    (held,) = Journal.read(folder).in_force
    assert (asked, held.manifest.options["regularise"]) == (["memit"], 77.0)


def test_an_edit_that_cannot_be_saved_is_not_served(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = client.post("/v1/completions", json=greedy(PROMPTS)).json()["choices"]

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("ece.edits.edit.save_file", full)
        body = {"facts": [FACT], "options": QUICK}
        refused = client.post("/edits", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert refused.status_code == 400
    assert "No space left" in refused.json()["error"]["message"]
    assert client.get("/health").json()["version"] == "unedited"
    assert client.post("/v1/completions", json=greedy(PROMPTS)).json()["choices"] == before
