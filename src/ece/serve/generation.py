"""Answering many requests at once, each batch of them by one version of the model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from ece.edits.edit import refuse_memories
from ece.edits.folder import Applied
from ece.edits.journal import Journal, entry_folders
from ece.errors import UserError
from ece.models import Model

log = logging.getLogger(__name__)

NOT_SERVED = "and the server asks no memories; serve edits of a method that changes weights (see `ece methods`)"

COLDEST = 1e-4
"""Temperatures below are taken as 0: logits divided by less would leave the range of a float."""


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, or its end."""

    text: str = ""
    finish: str | None = None
    """`stop` or `length` at the end."""

    version: str = ""
    """The journal's head that the answer is made with."""

    tokens: int = 0
    """Written so far."""

    error: str = ""


@dataclass
class Request:
    """One answer that is wanted, and how it is to be sampled."""

    ids: list[int]
    limit: int
    """Tokens to write at most."""

    emit: Callable[[Piece], None]
    """Called by the working thread."""

    temperature: float = 1.0
    """0 always takes the most probable token."""

    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)


class Writing:
    """An answer under way."""

    def __init__(self, request: Request, model: Model, version: str):
        """Begin an answer that this version makes."""
        self.request, self.model, self.version = request, model, version
        self.written: list[int] = []
        self.sent = 0
        self.random = torch.Generator()
        if request.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(request.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token, from its logits `[vocabulary]` on the CPU."""
        if self.request.temperature < COLDEST:
            return int(logits.argmax())
        probabilities = (logits.float() / self.request.temperature).softmax(-1)
        if self.request.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            ordered[ordered.cumsum(0) - ordered >= self.request.top_p] = 0
            probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered)
        return int(torch.multinomial(probabilities, 1, generator=self.random))

    def take(self, token: int, ends: Set[int]) -> bool:
        """Add a token and send what is certain; whether the answer goes on."""
        if token in ends:
            return self._end("stop")
        self.written.append(token)
        text = self._text()
        places = [text.find(stop) for stop in self.request.stop if stop in text]
        if places:
            return self._end("stop", text[: min(places)])
        if len(self.written) >= self.request.limit:
            return self._end("length")
        # a stop text may have begun, and a letter may lack bytes
        certain = len(text) - max((len(stop) - 1 for stop in self.request.stop), default=0)
        if not text.endswith("\ufffd") and certain > self.sent:
            self._send(text[self.sent : certain])
        return True

    def _text(self) -> str:
        return str(self.model.tokenizer.decode(self.written, skip_special_tokens=True))

    def _send(self, text: str, finish: str | None = None) -> None:
        self.sent += len(text)
        self.request.emit(Piece(text, finish, self.version, len(self.written)))

    def _end(self, finish: str, text: str | None = None) -> bool:
        self._send((self._text() if text is None else text)[self.sent :], finish)
        return False


class Worker:
    """The only thread that touches the model. Requests wait in a queue; between batches the journal is followed."""

    def __init__(self, model: Model, folder: Path, rows: int = 32, poll: float = 1.0):
        """Serve this model with the edits of this folder.

        Args:
            model: without edits.
            folder: of the journal; it may be empty yet.
            rows: requests answered side by side.
            poll: seconds between looks at the journal while nothing is asked.
        """
        self.model, self.folder, self.rows, self.poll = model, folder, rows, poll
        self.applied = Applied(model)
        self.follow()
        self._queue: SimpleQueue[Request | Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ece-serve", daemon=True)
        self._complaint = ""

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what is asked already, then end."""
        self._queue.put(None)
        self._thread.join()

    def ask(self, request: Request) -> None:
        """Queue a request."""
        self._queue.put(request)

    def between(self, do: Callable[[], None]) -> None:
        """Run something on the working thread between batches; it must not raise."""
        self._queue.put(do)

    @property
    def version(self) -> str:
        """The journal's head that is served."""
        return self.applied.head

    def follow(self) -> None:
        """Bring the model to what is in force in the journal.

        Raises:
            UserError: it is damaged, of another model, or no change of weights; what was served is served on.
        """
        journal = Journal.read(self.folder)
        refuse_memories([held.manifest for held in journal.in_force], NOT_SERVED)
        self.applied.follow(journal)

    def _work(self) -> None:
        while True:
            try:
                first = self._queue.get(timeout=self.poll)
            except Empty:
                self._follow_if_grown()
                continue
            if first is None:
                return
            batch, after = self._gather(first)
            if batch:
                self._follow_if_grown()
                self._answer(batch)
            if after is None:
                return
            for do in after:
                do()

    def _gather(self, first: Request | Callable[[], None]) -> tuple[list[Request], list[Callable[[], None]] | None]:
        """What is asked now, up to `rows`, and what is to be done behind it; None behind it: the end."""
        batch: list[Request] = []
        item: Request | Callable[[], None] | None = first
        while True:
            if item is None:
                return batch, None
            if not isinstance(item, Request):
                return batch, [item]
            batch.append(item)
            if len(batch) == self.rows:
                return batch, []
            try:
                item = self._queue.get_nowait()
            except Empty:
                return batch, []

    def _follow_if_grown(self) -> None:
        try:
            places = entry_folders(self.folder)
            known = self.applied.entries
            if len(places) != known:
                self.follow()
                log.info("serving %d batches, version %s", len(self.applied.edits), self.version[:12])
            self._complaint = ""
        except Exception as error:  # noqa: BLE001  (the server goes on, whatever a batch is like)
            if str(error) != self._complaint:  # once
                known = isinstance(error, UserError | OSError)
                log.error("%s; serving version %s on", error, self.version[:12], exc_info=None if known else error)
            self._complaint = str(error)

    def _answer(self, batch: Sequence[Request]) -> None:
        try:
            self._write([Writing(request, self.model, self.version) for request in batch])
        except Exception as error:  # noqa: BLE001  (the server goes on, whatever one batch did)
            log.exception("a batch of %d requests failed", len(batch))
            for request in batch:
                request.emit(Piece(error=f"{type(error).__name__}: {error}", version=self.version))

    @torch.no_grad()
    def _write(self, writings: list[Writing]) -> None:
        """Write all answers to their ends, token by token; those that have ended leave."""
        device, rows = self.model.device, [writing.request.ids for writing in writings]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        cache, ends = DynamicCache(), self.model.ends
        while writings:
            logits = cast(Any, self.model.network)(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                **self.model.remembering(cache),
            ).logits[:, -1]
            logits = logits.cpu()
            tokens = [writing.choose(row) for writing, row in zip(writings, logits, strict=True)]
            stays = [
                i
                for i, (writing, token) in enumerate(zip(writings, tokens, strict=True))
                if writing.take(token, ends) and not writing.request.cancelled.is_set()
            ]
            if not stays:
                return
            kept = torch.tensor(stays, device=device)
            if len(stays) < len(writings):
                cache.batch_select_indices(kept)
                writings = [writings[i] for i in stays]
            ids = torch.tensor([[tokens[i]] for i in stays], device=device)
            mask = torch.cat([mask[kept], torch.ones_like(ids)], dim=1)
            positions = positions[kept, -1:] + 1
