"""Read a task that somebody sent: one strict way for the queue and for the API, pure, with a clear error for everything."""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID, uuid5

import msgspec

from crewlog.schemas.errors import ContractError
from crewlog.schemas.payload import content_hash
from crewlog.schemas.task import TASK_BYTES_MAX, AgentTask, parse_task

_LONE_SURROGATE: Final = re.compile(
    rb"(?<!\\)(?:\\\\)*(\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F][0-9a-fA-F]{2}))",
)
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_NAMESPACE: Final = UUID("0b6a2c0e-33a7-5f0e-8d52-1d2a5b8f7c61")


def read_submission(data: bytes, *, tenant: str, type_: str | None, task_id: UUID) -> AgentTask:
    """Decode and check one submitted task.

    Args:
        tenant: from the subject; fills a task without one, and must fit a task that has one.
        type_: from the subject, None when the subject names none; likewise.
        task_id: for a task without one.

    Raises:
        ContractError: with every problem that was found.
    """
    if len(data) > TASK_BYTES_MAX:
        raise ContractError(f"the task is {len(data)} bytes, at most {TASK_BYTES_MAX} are accepted; attach larger texts as files")
    fields = _object(data)
    problems = [
        (f"/{name}", f"{fields[name]!r} does not fit the subject, which says {wanted!r}")
        for name, wanted in (("tenant", tenant), ("type", type_))
        if wanted is not None and fields.get(name) not in (None, wanted)
    ]
    if problems:
        raise ContractError("the task was sent to the wrong subject", problems=tuple(problems))
    if fields.get("task_id") is None:
        fields["task_id"] = str(task_id)
    fields["tenant"] = tenant
    if type_ is not None:
        fields["type"] = type_
    return parse_task(fields)


def _object(data: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not data.strip():
            raise ContractError("the message is empty; send the task as a JSON object") from None
        if found := _LONE_SURROGATE.search(data):
            raise ContractError(
                f"the message holds half of a surrogate pair, {found.group(1).decode()}, at byte {found.start(1)}; send valid Unicode text"
            ) from None
        raise ContractError(f"the message is not valid JSON: {error}") from None
    except RecursionError:
        raise ContractError("the message is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ContractError(f"the message must be a JSON object, got {type(fields).__name__}")
    if b"\x00" in data or (b"\\u0000" in data and _NUL.search(data)):
        raise ContractError("the message contains a NUL character, which neither files nor databases can hold; leave it out")
    return fields


def queued_task_id(data: bytes, sequence: int, kept_us: int) -> UUID:
    """Derive an id for a queued task that came without one, so that the same message delivered twice is the same task.

    Args:
        sequence: of the message in its stream.
        kept_us: when the stream took it: a stream that is made anew counts from 1 again.
    """
    return uuid5(_NAMESPACE, f"{sequence}/{kept_us}/{content_hash(data)}")
