"""Answers while they are being written, for whoever watches: `live.<tenant>.<run>.<task>`, JSON `{"call_id", "text"}`.

For eyes only. Pieces may be lost, and a call that fails is followed by another `call_id`, which starts again; the answer is what the log
holds. Nothing here waits: a piece is handed to the bus and forgotten.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Final

from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.subjects import live

EVERY_S: Final = 0.1
"""Pieces are gathered for so long, in seconds: ten messages a second are enough for eyes."""
PIECE_CHARS_MAX: Final = 32_768

Publish = Callable[[str, bytes], Awaitable[None]]


class LiveText:
    """Where the calls of a worker tell their text."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._sending: set[asyncio.Task[None]] = set()

    def of(self, tenant: str, run_id: RunId, task_id: TaskId, call_id: str) -> LiveCall:
        """Return where one call tells its text."""
        return LiveCall(lambda text: self._send(live(tenant, run_id, task_id), {"call_id": call_id, "text": text}))

    def _send(self, subject: str, body: dict[str, str]) -> None:
        sending = asyncio.create_task(self._said(subject, json.dumps(body, ensure_ascii=False).encode()))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def _said(self, subject: str, data: bytes) -> None:
        await self._publish(subject, data)


class LiveCall:
    """The text of one call: gathered, and sent in pieces."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._pieces: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Send what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._flush()

    def heard(self, text: str) -> None:
        """Take the next piece of text."""
        self._pieces.append(text)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        text, self._pieces = "".join(self._pieces), []
        for start in range(0, len(text), PIECE_CHARS_MAX):
            self._send(text[start : start + PIECE_CHARS_MAX])
