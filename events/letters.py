"""Dead letters: how a message that nobody could handle is kept on `dlq.<kind>`, and how it is read again.

A letter is the message as it was, body and headers, with headers of ours that say why it is there:

    Dead-Cause        `failed`: its handler raised, each time      `unanswered`: whoever got it died, each time
                      `handed_back`: it did nothing wrong, but its count is used up; the orchestrator publishes it anew
    Dead-Reason       the last error
    Dead-Deliveries   how often it was handed out
    Dead-Subject      where it was published, `Dead-Message-Id` under which id

The process that was handed the message writes the letter, rather than one that listens to the server's advisories: the reason is known
there. When it dies in between, the next hand-out is over the limit as well, and is buried by whoever gets it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, Protocol, get_args
from uuid import UUID

import msgspec

from crewlog.events import faults
from crewlog.events.bus import Delivery
from crewlog.schemas import subjects
from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.payload import content_hash

Cause = Literal["failed", "unanswered", "handed_back"]
Bury = Callable[[Delivery, Cause, str], Awaitable[None]]
"""Keeps a copy of a delivery with the cause and the reason."""

REASON_CHARS_MAX: Final = 1_000
FINGERPRINT_CHARS: Final = 12

_OURS: Final = ("Nats-", "Dead-")
_ID: Final = re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b|\b0x[0-9a-f]+\b|\b[0-9a-f]{12,}\b", re.IGNORECASE)
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")


class Enqueuer(Protocol):
    """The part of the bus that dead letters need."""

    async def enqueue(self, subject: str, data: bytes, *, message_id: str, headers: Mapping[str, str] | None = None) -> int: ...


class Letter(msgspec.Struct, frozen=True):
    """A dead letter. What its headers do not say, or say in a way that cannot be true, is empty or None: an agent wrote them."""

    sequence: int
    kind: str
    cause: Cause
    reason: str
    deliveries: int
    subject: str
    message_id: str
    run_id: RunId | None
    task_id: TaskId | None
    attempt: int

    @property
    def fingerprint(self) -> str:
        """Name what went wrong, the same for all messages that met the same error."""
        return fingerprint(self.reason)


def dead_letters(bus: Enqueuer, stream: str) -> Bury:
    """Return what keeps dead deliveries of a stream on `dlq.<kind>`."""

    async def keep(delivery: Delivery, cause: Cause, reason: str) -> None:
        kind = delivery.subject.split(".")[1]
        original = {key: value for key, value in delivery.headers.items() if not key.startswith(_OURS)}
        message_id = delivery.headers.get("Nats-Msg-Id", f"{stream}-{delivery.sequence}")
        headers = {
            **original,
            "Dead-Cause": cause,
            "Dead-Reason": " ".join(reason.split())[:REASON_CHARS_MAX],
            "Dead-Deliveries": str(delivery.deliveries),
            "Dead-Subject": delivery.subject,
            "Dead-Message-Id": message_id,
        }
        if faults.hook is not None:
            faults.hook("before_letter_kept")
        await bus.enqueue(subjects.dead_letter(kind), delivery.data, message_id=f"dead-{message_id}", headers=headers)
        if faults.hook is not None:
            faults.hook("after_letter_kept")

    return keep


def read_letter(sequence: int, subject: str, headers: Mapping[str, str]) -> Letter:
    """Read what the headers of a letter say.

    Args:
        subject: where the letter is kept. The server lets each kind of agent write to its own only, so that the kind can be believed.
    """
    cause = headers.get("Dead-Cause")
    return Letter(
        sequence=sequence,
        kind=subject.partition(".")[2],
        cause=cause if cause in get_args(Cause) else "failed",  # type: ignore[arg-type]  # mypy does not narrow by get_args
        reason=headers.get("Dead-Reason", ""),
        deliveries=_number(headers.get("Dead-Deliveries", "")),
        subject=headers.get("Dead-Subject", ""),
        message_id=headers.get("Dead-Message-Id", ""),
        run_id=None if (run := _id(headers.get("Run-Id", ""))) is None else RunId(run),
        task_id=None if (task := _id(headers.get("Task-Id", ""))) is None else TaskId(task),
        attempt=_number(headers.get("Attempt", "")),
    )


def fingerprint(reason: str) -> str:
    """Hash a reason with its ids and numbers left out.

    >>> fingerprint("run 7 of 0b6a2c0e-33a7-5f0e-8d52-1d2a5b8f7c61 took 3.5 s") == fingerprint("run 12 of deadbeef0123 took 60 s")
    True
    """
    return content_hash(_NUMBER.sub("<n>", _ID.sub("<id>", reason)).encode())[:FINGERPRINT_CHARS]


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
