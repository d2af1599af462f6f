"""The client's part about dead letters: messages that nobody could handle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from crewlog.events.bus import Bus, Kept
from crewlog.events.jetstream import DLQ
from crewlog.events.letters import Letter, read_letter
from crewlog.orchestrator.client_given import must_be
from crewlog.schemas.errors import NotFound


class LetterView(msgspec.Struct, frozen=True):
    """A dead letter in a list. `kept_at`: when it was given up."""

    sequence: int
    kind: str
    run_id: UUID | None
    task_id: UUID | None
    attempt: int
    cause: str
    reason: str
    fingerprint: str
    deliveries: int
    kept_at: datetime


class LetterText(msgspec.Struct, frozen=True):
    """A dead letter with all of its headers and its body."""

    letter: LetterView
    subject: str
    headers: Mapping[str, str]
    body: bytes


class Redriven(msgspec.Struct, frozen=True):
    """What became of a letter that was to be published again. With any other status than `published` nothing was done, and `detail` says why."""

    sequence: int
    status: Literal["published", "ended", "waits", "unknown"]
    detail: str


class ClientLetters:
    """`client.letters`."""

    def __init__(self, bus: Bus, request: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self._bus, self._request = bus, request

    async def all(self, *, kind: str = "", fingerprint: str = "") -> AsyncIterator[LetterView]:
        """Yield letters, the oldest first; empty arguments choose all."""
        at = 1
        while (kept := await self._bus.first_kept(DLQ.name, at)) is not None:
            view = _view(kept)
            if kind in ("", view.kind) and fingerprint in ("", view.fingerprint):
                yield view
            at = kept.sequence + 1

    async def show(self, sequence: int) -> LetterText:
        """Return one letter.

        Raises:
            NotFound: there is none with this number.
        """
        kept = await self._bus.first_kept(DLQ.name, must_be(sequence, int, "a dead letter is named by its number"))
        if kept is None or kept.sequence != sequence:
            raise NotFound("dead letter", str(sequence))
        return LetterText(_view(kept), _letter(kept).subject, kept.headers, kept.data)

    async def redrive(self, sequence: int) -> Redriven:
        """Have the task of a letter published again, to where it came from and under a fresh message id; then the letter is gone.

        Raises:
            RequestRefused: there is no such letter.
        """
        answer = await self._request("letters.redrive", {"sequence": sequence})
        return Redriven(sequence, answer["status"], answer["detail"])

    async def drop(self, sequence: int) -> bool:
        """Delete a letter; False when it was gone already. Its task has failed already, and is not touched."""
        return await self._bus.remove(DLQ.name, must_be(sequence, int, "a dead letter is named by its number"))


def _letter(kept: Kept) -> Letter:
    return read_letter(kept.sequence, kept.subject, kept.headers)


def _view(kept: Kept) -> LetterView:
    letter = _letter(kept)
    told = {name: getattr(letter, name) for name in ("kind", "run_id", "task_id", "attempt", "cause", "reason", "fingerprint", "deliveries")}
    return LetterView(sequence=kept.sequence, kept_at=datetime.fromtimestamp(kept.kept_us / 1e6, UTC), **told)
