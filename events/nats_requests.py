"""Requests over one NATS connection: many at once through one inbox.

Beyond what the client library's `request` does: a request the server refuses for lack of permission fails at once and says so, where
it would otherwise look like a timeout. It is also cheaper, and every task that is dispatched passes through here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import BadSubjectError

from crewlog.schemas.errors import NotAuthorised, OrchestrationError
from crewlog.schemas.subjects import SUBJECT_CHARS_MAX

_DENIED: Final = re.compile(r'permissions violation for publish to "([^"]+)"', re.IGNORECASE)
_NO_RESPONDERS: Final = "503"


class NoResponders(OrchestrationError):
    """Nobody listens on the subject."""

    code = "no_responders"


class _Waiting(NamedTuple):
    subject: str
    answer: asyncio.Future[Msg]


class Requests:
    """The requests under way on one connection."""

    def __init__(self, nc: Client, *, principal: str) -> None:
        """Prepare; `start` opens the inbox.

        Args:
            principal: the NATS user, for error texts.
        """
        self._nc = nc
        self._principal = principal
        self._inbox = nc.new_inbox()
        self._number = 0
        self._waiting: dict[str, _Waiting] = {}

    async def start(self) -> None:
        """Open the inbox."""
        await self._nc.subscribe(f"{self._inbox}.*", cb=self._answered)

    async def ask(self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Msg:
        """Send a request and wait for one answer.

        Raises:
            NoResponders: nobody listens on the subject.
            NotAuthorised: this user may not publish to it.
            TimeoutError: no answer in time, or the connection was lost meanwhile.
            nats.errors.Error: it could not be sent; also for a subject that is too long: the server would cut the connection.
        """
        if len(subject) > SUBJECT_CHARS_MAX:
            raise BadSubjectError
        self._number += 1
        token = str(self._number)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Msg] = loop.create_future()
        self._waiting[token] = _Waiting(subject, answer)
        timer = loop.call_later(timeout_s, _fail, answer, TimeoutError(f"none within {timeout_s:g} s"))
        try:
            await self._nc.publish(subject, data, reply=f"{self._inbox}.{token}", headers=dict(headers) if headers else None)
            msg = await answer
        finally:
            timer.cancel()
            del self._waiting[token]
        if msg.headers and not msg.data and msg.headers.get("Status") == _NO_RESPONDERS:
            raise NoResponders(subject)
        return msg

    def denied(self, error_text: str) -> None:
        """Fail the requests that a permission error of the server is about."""
        found = _DENIED.search(error_text)
        if found is None:
            return
        for waiting in self._waiting.values():
            if waiting.subject.lower() == found[1].lower():  # the client library lower-cases the server's text
                _fail(waiting.answer, NotAuthorised(self._principal, f"publish to {waiting.subject}", reason="the NATS server's permissions forbid it"))

    def lost(self) -> None:
        """Fail all requests under way: the connection they were sent on is gone, and the answers with it."""
        for waiting in self._waiting.values():
            _fail(waiting.answer, TimeoutError("the connection was lost"))

    async def _answered(self, msg: Msg) -> None:
        waiting = self._waiting.get(msg.subject.rpartition(".")[2])
        if waiting is not None and not waiting.answer.done():
            waiting.answer.set_result(msg)


def _fail(answer: asyncio.Future[Msg], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
