"""The HTTP side: OpenAI's completions and chat, and edits for who has the key."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, Header, HTTPException
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ece.edits.edit import kept_beside
from ece.edits.journal import writing
from ece.errors import UserError
from ece.facts import PlainRecord
from ece.methods.method import Beside
from ece.methods.presets import with_preset
from ece.methods.registry import method
from ece.methods.run import edit_journal, plan, run_of
from ece.models import Model
from ece.serve.generation import NOT_SERVED, Piece, Request, Worker

log = logging.getLogger(__name__)

COMPLETION_TOKENS = 16
"""Written where a completion does not say how many, as OpenAI's API does."""

CHAT_TOKENS = 256
"""Written at most where a chat does not say how many."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

UNSUPPORTED = (
    "best_of", "functions", "frequency_penalty", "logit_bias", "logprobs", "presence_penalty", "response_format",
    "suffix", "tools", "top_logprobs",
)  # fmt: skip
"""Fields that would change the answer and are not implemented: refused rather than ignored."""


class Sampling(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    n: Annotated[int, Field(ge=1, le=64)] | None = 1
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None


class Completion(Sampling):
    """`POST /v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool | None = False


class Part(BaseModel):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="ignore")
    role: str
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class Chat(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


class Edits(BaseModel):
    """`POST /edits`."""

    model_config = ConfigDict(extra="forbid")
    facts: Annotated[list[PlainRecord], Field(min_length=1)]
    method: str = "ece"
    options: dict[str, str] = {}
    batch_size: Annotated[int, Field(ge=1)] = 100


def listen(model: Model, edits: Path, host: str, port: int, api_key: str | None, rows: int) -> None:
    """Serve until interrupted; see `ece.serve.run`.

    Raises:
        UserError: the address cannot be had, or the journal is damaged or of another model.
    """
    if host not in LOOPBACK:
        log.warning("listening on %s: who reaches this address can use the model; there is no TLS", host)
    with bound(host, port) as place, suppress(KeyboardInterrupt):
        server = uvicorn.Server(uvicorn.Config(app(Worker(model, edits, rows), host, api_key), log_level="warning"))
        log.info("serving at http://%s:%d", f"[{host}]" if ":" in host else host, place.getsockname()[1])
        server.run(sockets=[place])
        if not server.started:
            raise RuntimeError("the server did not start")


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; who calls waits until a server answers. Port 0 is a free one.

    Raises:
        UserError: the address is taken, or not this machine's.
    """
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
        place.listen()
    except OSError as error:
        place.close()
        raise UserError(
            f"cannot listen on {host}, port {port} ({error.strerror});"
            " give another --port (0 takes a free one) or another --host"
        ) from error
    return place


def app(worker: Worker, host: str = "127.0.0.1", api_key: str | None = None) -> FastAPI:
    """The web application around a worker, which it starts and stops.

    Args:
        worker: not started.
        host: where it listens; on loopback, requests for other hosts' names are refused.
        api_key: who has it may edit.
    """

    @asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    served = FastAPI(title="ece serve", lifespan=living)
    served.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"] if host in LOOPBACK else ["*"])
    name = Path(worker.model.name).name

    @served.exception_handler(UserError)
    def _bad(_: HttpRequest, error: UserError) -> JSONResponse:
        return _error(400, str(error))

    @served.exception_handler(RequestValidationError)
    def _invalid(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(400, f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}")

    @served.exception_handler(HTTPException)
    def _refused(_: HttpRequest, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    def _error(status: int, message: str) -> JSONResponse:
        kind = "invalid_request_error" if status < 500 else "server_error"
        content = {"error": {"message": message, "type": kind, "param": None, "code": None}}
        return JSONResponse(content, status)

    @served.get("/health")
    def _health() -> dict[str, Any]:
        return {"status": "ok", "version": _short(worker.version), "batches": len(worker.applied.edits)}

    @served.get("/v1/models")
    def _models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "ece"}]}

    def check(asked: Sampling) -> None:
        if asked.model not in (None, "", name, worker.model.name):
            raise HTTPException(404, f"no model {asked.model!r}; this server has {name!r}")
        extra = {**(asked.model_extra or {})}
        for field in UNSUPPORTED:
            if extra.get(field):
                raise UserError(f"{field}: not implemented by this server")

    @served.post("/v1/completions", response_model=None)
    async def _complete(asked: Completion) -> Response:
        check(asked)
        prompts = _prompts(worker.model, asked.prompt)
        shape = _TextShape(name, [text for text, _ in prompts] if asked.echo else None, asked.n or 1)
        rows = [ids for _, ids in prompts for _ in range(asked.n or 1)]
        return await answered(asked, rows, asked.max_tokens or COMPLETION_TOKENS, shape)

    @served.post("/v1/chat/completions", response_model=None)
    async def _chat(asked: Chat) -> Response:
        check(asked)
        ids = _chat_ids(worker.model, asked.messages)
        room = _context(worker.model) - len(ids)
        limit = asked.max_completion_tokens or asked.max_tokens or max(1, min(CHAT_TOKENS, room))
        return await answered(asked, [ids] * (asked.n or 1), limit, _ChatShape(name))

    async def answered(asked: Sampling, rows: list[list[int]], limit: int, shape: _Shape) -> Response:
        for ids in rows:
            if len(ids) + limit > _context(worker.model):
                raise UserError(
                    f"{len(ids)} tokens of prompt and {limit} to write pass the model's {_context(worker.model)}"
                )
        answers = _Answers(worker, asked, rows, limit)
        if asked.stream:
            usage = bool((asked.stream_options or {}).get("include_usage"))
            return StreamingResponse(shape.streamed(answers, usage), media_type="text/event-stream")
        return JSONResponse(await shape.whole(answers))

    @served.post("/edits", response_model=None)
    async def _edit(asked: Edits, authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
        if api_key is None:
            raise HTTPException(403, "editing over HTTP is off; start the server with ECE_API_KEY set to allow it")
        if not hmac.compare_digest(authorization.encode(), f"Bearer {api_key}".encode()):
            raise HTTPException(401, "editing needs the header 'Authorization: Bearer KEY'")
        return await _on_worker(worker, lambda: _edited(worker, asked))

    return served


class _Answers:
    """The answers to one HTTP request, as their pieces come."""

    def __init__(self, worker: Worker, asked: Sampling, rows: list[list[int]], limit: int):
        loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.prompt_tokens = sum(len(ids) for ids in rows)
        self.written = [0] * len(rows)
        self.version = ""
        stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        temperature = 1.0 if asked.temperature is None else asked.temperature

        def sender(index: int) -> Callable[[Piece], None]:
            return lambda piece: _call(loop, self.pieces.put_nowait, (index, piece))

        self.requests = [
            Request(
                ids,
                limit,
                sender(index),
                temperature,
                asked.top_p or 1.0,
                tuple(text for text in stop if text),
                None if asked.seed is None else (asked.seed + index) % 2**63,
            )
            for index, ids in enumerate(rows)
        ]
        for request in self.requests:
            worker.ask(request)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """Index and piece, until all have ended. Who stops listening cancels what is not written yet."""
        left = len(self.requests)
        try:
            while left:
                index, piece = await self.pieces.get()
                self.written[index], self.version = piece.tokens, piece.version
                left -= bool(piece.finish or piece.error)
                yield index, piece
        finally:
            for request in self.requests:
                request.cancelled.set()

    @property
    def usage(self) -> dict[str, int]:
        written = sum(self.written)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }


class _Shape:
    """How an answer looks on the wire."""

    whole_object = chunk_object = prefix = ""

    def __init__(self, model: str):
        self.about: dict[str, Any] = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def opening(self, index: int) -> str:
        return ""

    def choice(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def chunk(self, index: int, text: str, finish: str | None, first: bool) -> dict[str, Any]:
        return self.choice(index, text, finish)

    async def whole(self, answers: _Answers) -> dict[str, Any]:
        texts = [self.opening(i) for i in range(len(answers.requests))]
        ends: list[str | None] = [None] * len(texts)
        async for index, piece in answers:
            if piece.error:
                raise HTTPException(500, piece.error)
            texts[index] += piece.text
            ends[index] = piece.finish or ends[index]
        choices = [self.choice(i, text, end) for i, (text, end) in enumerate(zip(texts, ends, strict=True))]
        fingerprint = {"system_fingerprint": _short(answers.version)}
        return self.about | {"object": self.whole_object, "choices": choices, "usage": answers.usage} | fingerprint

    async def streamed(self, answers: _Answers, usage: bool) -> AsyncIterator[str]:
        def event(content: dict[str, Any]) -> str:
            about = self.about | {"object": self.chunk_object, "system_fingerprint": _short(answers.version)}
            return f"data: {json.dumps(about | content, ensure_ascii=False)}\n\n"

        begun: set[int] = set()
        async for index, piece in answers:
            if piece.error:
                yield event({"error": {"message": piece.error, "type": "server_error"}})
                continue
            text = piece.text if index in begun else self.opening(index) + piece.text
            yield event({"choices": [self.chunk(index, text, piece.finish, index not in begun)]})
            begun.add(index)
        if usage:
            yield event({"choices": [], "usage": answers.usage})
        yield "data: [DONE]\n\n"


class _TextShape(_Shape):
    whole_object = chunk_object = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, echoed: list[str] | None, each: int):
        super().__init__(model)
        self.echoed, self.each = echoed, each

    def opening(self, index: int) -> str:
        return self.echoed[index // self.each] if self.echoed else ""

    def choice(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


class _ChatShape(_Shape):
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def choice(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def chunk(self, index: int, text: str, finish: str | None, first: bool) -> dict[str, Any]:
        delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _edited(worker: Worker, asked: Edits) -> dict[str, Any]:
    """Edit between two batches of answers, under the journal's lock."""
    facts = [record.fact() for record in asked.facts]
    recipe = with_preset(method(asked.method), worker.model).with_options(asked.options)
    if isinstance(recipe, Beside):
        raise kept_beside(recipe.name, NOT_SERVED)
    with writing(worker.folder) as journal:
        worker.applied.follow(journal)
        todo = plan(journal, facts, run_of(facts, recipe, asked.batch_size))
        made = [edit for _, edit in edit_journal(worker.applied, journal, facts, recipe, asked.batch_size)]
    entries = [entry for edit in made for entry in edit.manifest.facts]
    return {
        "version": _short(worker.version),
        "facts": len(entries),
        "already_there": len(todo.there),
        "superseded": [f"{old} | {new.target}" for old, new in todo.replaced],
        "failed": [str(entry.fact) for entry in entries if entry.failed],
        "batches": len(made),
    }


async def _on_worker(worker: Worker, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run something between batches and wait for what it gives."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[dict[str, Any]] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not done.done():  # the client may have gone
            setter(value)

    def work() -> None:
        try:
            _call(loop, settle, done.set_result, do())
        except Exception as error:  # noqa: BLE001  (it belongs to who waits)
            if not isinstance(error, UserError):
                log.exception("an edit over HTTP failed")
            _call(loop, settle, done.set_exception, error)

    worker.between(work)
    return await done


def _call(loop: asyncio.AbstractEventLoop, do: Callable[..., None], *arguments: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(do, *arguments)


def _prompts(model: Model, prompt: str | list[int] | list[str] | list[list[int]]) -> list[tuple[str, list[int]]]:
    """Texts and token ids of one prompt or several."""
    several = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
    found = []
    for one in several:
        ids = list(model.tokenizer(one)["input_ids"]) if isinstance(one, str) else list(one)  # type: ignore[arg-type]
        if not ids or not all(0 <= i < _vocabulary(model) for i in ids):
            raise UserError("prompt: must not be empty, and its token ids must be the model's")
        found.append((one if isinstance(one, str) else str(model.tokenizer.decode(ids)), ids))
    if not found:
        raise UserError("prompt: must not be empty")
    return found


def _chat_ids(model: Model, messages: list[Message]) -> list[int]:
    from jinja2 import TemplateError

    if not model.tokenizer.chat_template:
        raise UserError(f"{model.name} has no chat template; use /v1/completions")
    try:
        text = model.tokenizer.apply_chat_template(
            [message.plain() for message in messages], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise UserError(f"messages: the model's chat template refuses them ({error})") from error
    return list(model.tokenizer(str(text), add_special_tokens=False)["input_ids"])


def _context(model: Model) -> int:
    """Tokens of prompt and answer together, at most."""
    return model.context or 2048


def _vocabulary(model: Model) -> int:
    return int(model.network.config.vocab_size)


def _short(version: str) -> str:
    """A version for people: the head's first letters, or `unedited`."""
    return version[:12] or "unedited"
