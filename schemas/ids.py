"""Identifiers and stream names.

Every identifier is a `NewType` over `uuid.UUID`, so a task id cannot be passed where a run id is meant. Stream names are
`<category>/<id>`; the category decides who may write to the stream (see the grants in the log's migrations).
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha1
from typing import Final, NewType
from uuid import UUID

import msgspec

RunId = NewType("RunId", UUID)
TaskId = NewType("TaskId", UUID)
EventId = NewType("EventId", UUID)
ApprovalId = NewType("ApprovalId", UUID)

Stream = NewType("Stream", str)
Hash = NewType("Hash", str)
"""sha-256 of the uncompressed bytes, 64 lower-case hex digits."""

TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a tenant, kind or user name may be: it becomes part of a NATS subject, so no dots, blanks or wildcards."""
WORKER: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""The same for workers, whose names begin with their kind's."""

_NAMESPACE: Final = UUID("6f0f6d0e-6a52-5d0c-9d5f-6d1f2a1c7b11")
_BEHIND_NAMESPACE: Final = sha1(_NAMESPACE.bytes, usedforsecurity=False)


def id_text(id_: UUID) -> str:
    """Return `str(id_)` in a fifth of the time: a run writes its ids a hundred times."""
    text: str = msgspec.to_builtins(id_)
    return text


def read_id(text: str) -> UUID:
    """Return `UUID(text)` in a fifth of the time.

    Raises:
        ValueError: it is no id.
    """
    try:
        return msgspec.convert(text, UUID)
    except msgspec.ValidationError as error:
        raise ValueError(f"{text!r} is no id: {error}") from None


def run_stream(run_id: RunId) -> Stream:
    """Name the stream that the orchestrator writes for one run."""
    return Stream("run/" + id_text(run_id))


def task_stream(task_id: TaskId) -> Stream:
    """Name the stream that the agent holding one task writes."""
    return Stream("task/" + id_text(task_id))


def document_stream(tenant: str, content: Hash) -> Stream:
    """Name the stream of one document ingested for a tenant; the same bytes are the same document."""
    return Stream(f"doc/{tenant}/{content}")


def mcp_stream(server: str) -> Stream:
    """Name the stream of what the tools of one MCP server are pinned to."""
    return Stream(f"mcp/{server}")


def memory_stream(tenant: str, user: str, content: Hash) -> Stream:
    """Name the stream of one thing that is remembered for a user, or for the whole tenant when `user` is empty."""
    return Stream(f"memory/{tenant}/{user or '@'}/{content}")


def remembered_event_id(idempotency_key: str) -> EventId:
    """Derive the event id of what one tool call remembers: the call remembers it once, however often it runs."""
    return EventId(_derived(f"{idempotency_key}/remembered"))


def agent_stream(kind: str) -> Stream:
    """Name the stream of registrations of one agent kind."""
    return Stream(f"agent/{kind}")


def budget_stream(scope: str) -> Stream:
    """Name the stream of the changes of one budget's limits."""
    return Stream(f"budget/{scope}")


def schedule_stream(tenant: str, name: str) -> Stream:
    """Name the stream of one schedule."""
    return Stream(f"schedule/{tenant}/{name}")


def scheduled_run_id(tenant: str, name: str, *, generation: int, due_us: int, number: int = 1) -> RunId:
    """Derive the id of the run of one due time: whoever fires it second submits a duplicate.

    Args:
        generation: how often a schedule of this name has been added.
        number: from 1; somebody else's run may have the ids before this one.
    """
    return RunId(_derived(f"schedule/{tenant}/{name}/{generation}/{due_us}" + (f"/{number}" if number > 1 else "")))


CONTROL_STREAM: Final = Stream("control/@all")
"""What operators pause, quarantine and drain: one stream, so that one read tells a process all there is."""


def shadow_run_id(run_id: RunId) -> RunId:
    """Derive the id of a run's shadow: whoever starts it second submits a duplicate."""
    return RunId(_derived(f"{run_id}/shadow"))


def control_event_id(command_id: UUID, scope: str) -> EventId:
    """Derive the event id of what one command says about one scope: sent again, however late, it says nothing anew."""
    return EventId(_derived(f"{command_id}/control/{scope}"))


def spend_stream(task_id: TaskId) -> Stream:
    """Name the stream of money that was spent for a task whose own stream is closed."""
    return Stream(f"spend/{task_id}")


def alert_stream(run_id: RunId) -> Stream:
    """Name the stream of alerts about one run."""
    return Stream(f"alert/{run_id}")


def provider_stream(provider: str) -> Stream:
    """Name the stream of what workers observe of one provider."""
    return Stream(f"provider/{provider}")


def import_stream(run_id: RunId) -> Stream:
    """Name the stream that says where a run was read from; the gate writes it, see `es.import_run`."""
    return Stream(f"import/{run_id}")


def archive_stream(run_id: RunId) -> Stream:
    """Name the stream that says to which file a run went."""
    return Stream(f"archive/{run_id}")


def person_stream(tenant: str, user: str) -> Stream:
    """Name the stream that says when the data of a person was erased."""
    return Stream(f"person/{tenant}/{user}")


def erasure_event_id(tenant: str, user: str, *, erased_us: int, part: int) -> EventId:
    """Derive the event id of what is said about one erasure: told again, it is told once.

    Args:
        part: from 0; many runs are told in several events.
    """
    return EventId(_derived(f"{tenant}/{user}/erased/{erased_us}/{part}"))


def category(stream: str) -> str:
    """Return what stands before the first slash of a stream name."""
    return stream.split("/", 1)[0]


def derived_task_id(run_id: RunId, *, key: str, revision: int) -> TaskId:
    """Derive the task id of one plan step, so that deciding twice about the same run names the same task."""
    return TaskId(_derived(f"{id_text(run_id)}/{key}/{revision}"))


def derived_approval_id(task_id: TaskId, *, call_id: str) -> ApprovalId:
    """Derive the approval id of one tool call: asking again after a crash asks for the same approval."""
    return ApprovalId(_derived(f"{task_id}/approval/{call_id}"))


@lru_cache(maxsize=1024)  # asked for when a call begins and when it ends
def reservation_id(task_id: TaskId, call_id: str) -> UUID:
    """Derive the id of the money reserved for one model call: whoever knows the task and the call can settle it."""
    return _derived(f"{id_text(task_id)}/reservation/{call_id}")


def settled_event_id(task_id: TaskId, call_id: str) -> EventId:
    """Derive the event id under which a model call is settled outside of its task's stream: whoever comes second is answered as a duplicate."""
    return EventId(_derived(f"{task_id}/settled/{call_id}"))


def corrected_event_id(task_id: TaskId, call_id: str) -> EventId:
    """Derive the event id under which the bill of a model call is corrected: that happens once."""
    return EventId(_derived(f"{task_id}/corrected/{call_id}"))


def standstill_event_id(run_id: RunId, state: str) -> EventId:
    """Derive the event id under which a standstill is recorded: the state that a run stands in is the same for every orchestrator."""
    return EventId(_derived(f"{run_id}/standstill/{state}"))


def behind_event_id(event_id: UUID) -> EventId:
    """Derive the event id of what can follow a fact once, whoever of several processes writes it."""
    return EventId(_derived(f"{event_id}/behind"))


def idempotency_key(run_id: RunId, task_id: TaskId, call_id: str) -> str:
    """Derive the key under which an effect may happen once. It never contains the attempt or the worker.

    No argument takes part: those of a call are fixed by its record before it runs, so no try of it can have others.
    """
    return _derived(f"{id_text(run_id)}/{id_text(task_id)}/effect/{call_id}").hex


def compensation_key(key: str) -> str:
    """Derive the key under which an effect is taken back: the same however often, and by whom, that is tried."""
    return _derived(f"{key}/undo").hex


def rollback_run_id(run_id: RunId, *, number: int) -> RunId:
    """Derive the id of a run's rollback: two who ask for it at the same time ask for the same one.

    Args:
        number: from 1; a rollback that left something behind may be followed by another one.
    """
    return RunId(_derived(f"{run_id}/rollback/{number}"))


def _derived(name: str) -> UUID:
    """Return `uuid5(_NAMESPACE, name)` (RFC 9562, section 5.5) in half the time: each task and each call has several such ids."""
    hashing = _BEHIND_NAMESPACE.copy()
    hashing.update(name.encode())
    digest = bytearray(hashing.digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return msgspec.convert(bytes(digest), UUID)
