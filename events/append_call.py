"""One call of the gate: a batch of requests as arrays, and the answer taken apart again.

A batch of plain requests goes to `es.append_plain`, one of requests that open streams to `es.append_opening`: each writes it or leaves it to `es.append`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from crewlog.events.append_money import CALL_ARGUMENTS, LIMIT_ARGUMENTS, call_arguments, limit_arguments, plain_call_arguments, sparse
from crewlog.events.append_request import Encoded
from crewlog.events.connections import fetch
from crewlog.events.store import NO_STREAM, Appended, AppendRequest
from crewlog.schemas.codec import Event
from crewlog.schemas.errors import ConflictError, ContractError, NotAuthorised, OrchestrationError, OverBudget
from crewlog.schemas.ids import RunId, category

SQL: Final = "SELECT * FROM es.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"
SQL_WITH_CALLS: Final = SQL.removesuffix(")") + "".join(f", {name} => ${number}" for number, name in enumerate(CALL_ARGUMENTS, 18)) + ")"
SQL_WITH_LIMITS: Final = SQL_WITH_CALLS.removesuffix(")") + "".join(f", {name} => ${number}" for number, name in enumerate(LIMIT_ARGUMENTS, 25)) + ")"
SQL_PLAIN: Final = "SELECT es.append_plain($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
SQL_PLAIN_WITH_CALLS: Final = "SELECT es.append_plain($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"
SQL_OPENING: Final = f"SELECT es.append_opening({', '.join(f'${number}' for number in range(1, 21))})"


class _Special(msgspec.Struct):
    """What `es.append` says about a request that was not simply written."""

    request: int
    status: str
    stream: str = ""
    version: int = 0
    closed: bool = False
    reason: str = ""
    versions: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    warned: tuple[str, ...] = ()
    scope: str = ""
    limit: int = 0
    used: int = 0
    needed: int = 0


_specials: Final = msgspec.json.Decoder(list[_Special])


async def call(connection: Any, batch: Sequence[Encoded], actor: str, *, timeout_s: float) -> list[Appended | OrchestrationError]:
    """Send a batch to the gate on this connection and return one result or error for each request.

    Raises:
        Exception: whatever the connection or the server raise; the batch may be written all the same.
    """
    if (plain := plain_arguments(batch, actor)) is not None:
        ((positions,),) = await fetch(connection, SQL_PLAIN if len(plain) == 14 else SQL_PLAIN_WITH_CALLS, plain, timeout_s=timeout_s)
        if positions is not None:
            return narrow_answers(batch, positions)
    elif (opening := opening_arguments(batch, actor)) is not None:
        ((positions,),) = await fetch(connection, SQL_OPENING, opening, timeout_s=timeout_s)
        if positions is not None:
            return narrow_answers(batch, positions)
    given = arguments(batch, actor)
    (row,) = await fetch(connection, statement(given), given, timeout_s=timeout_s)
    return answers(batch, row, actor)


def plain_arguments(batch: Sequence[Encoded], actor: str) -> list[Any] | None:
    """Lay out a batch as the parameters of `es.append_plain`, see there; None when it is not plain."""
    if not all(encoded.is_plain for encoded in batch):
        return None
    requests = [encoded.request for encoded in batch]
    writes = [request.writes[0] for request in requests]
    streams = [write.stream for write in writes]
    prefix = category(streams[0]) + "/"
    if len(set(streams)) < len(streams) or not all(stream.startswith(prefix) for stream in streams):
        return None
    e_type, types = _numbered([event.__class__ for write in writes for event in write.events])
    counts = [] if len(e_type) == len(writes) else [len(write.events) for write in writes]  # one each: nothing to say
    given = [
        *(streams, [write.expected for write in writes], counts, *_columns_of(requests)),
        *([cls.__name__ for cls in types], [cls.schema_version for cls in types], e_type),
        *([event_id for request in requests for event_id in request.event_ids], [text for encoded in batch for text in encoded.documents], actor),
    ]
    return given + plain_call_arguments(requests) if any(encoded.has_money for encoded in batch) else given


def opening_arguments(batch: Sequence[Encoded], actor: str) -> list[Any] | None:
    """Lay out a batch as the parameters of `es.append_opening`, see there; None when it does not only open streams."""
    requests = [encoded.request for encoded in batch]
    writes = [write for request in requests for write in request.writes]
    streams = [write.stream for write in writes]
    if any(write.expected != NO_STREAM for write in writes) or len(set(streams)) < len(streams):
        return None
    if any(request.reserve is not None or request.settle or request.limits for request in requests):
        return None
    e_type, types = _numbered([event.__class__ for write in writes for event in write.events])
    return [
        *(streams, sparse([write.kind for write in writes]), [len(write.events) for write in writes]),
        [number for number, request in enumerate(requests, 1) for _ in request.writes],
        *_columns_of(requests),
        *([cls.__name__ for cls in types], [cls.schema_version for cls in types], e_type),
        *([event_id for request in requests for event_id in request.event_ids], [text for encoded in batch for text in encoded.documents], actor),
        *limit_arguments(requests)[:5],
    ]


def narrow_answers(batch: Sequence[Encoded], positions: Sequence[int]) -> list[Appended | OrchestrationError]:
    """Take the answer of a narrow function apart: one result for each request, at the versions it expected."""
    found: list[Appended | OrchestrationError] = []
    at = 0
    for request, documents, *_ in batch:
        if len(documents) == 1:
            found.append(Appended([request.writes[0].expected + 1], [positions[at]]))
        else:
            versions = [version for write in request.writes for version in range(write.expected + 1, write.expected + 1 + len(write.events))]
            found.append(Appended(versions, positions[at : at + len(documents)]))
        at += len(documents)
    return found


def statement(given: Sequence[Any]) -> str:
    """Return the call that takes these arguments: those about money are left out where there is none, because each array has its price."""
    return {17: SQL, 24: SQL_WITH_CALLS}.get(len(given), SQL_WITH_LIMITS)


def arguments(batch: Sequence[Encoded], actor: str) -> list[Any]:
    """Lay out a batch as the parameters of `es.append`, see there."""
    names = sorted({write.stream for request, *_ in batch for write in request.writes})  # code points sort like the server's "C"
    number = {name: index for index, name in enumerate(names, 1)}
    w_request: list[int] = []
    w_stream: list[int] = []
    w_expected: list[int] = []
    w_events: list[int] = []
    w_kind: list[str | None] = []
    classes: list[type[Event]] = []
    e_id: list[Any] = []
    e_data: list[str] = []
    for index, (request, documents, *_) in enumerate(batch, 1):
        for stream, events, expected, kind, _ in request.writes:
            w_request.append(index)
            w_stream.append(number[stream])
            w_expected.append(expected)
            w_events.append(len(events))
            w_kind.append(kind)
            classes += [event.__class__ for event in events]
        e_id += request.event_ids
        e_data += documents
    e_type, types = _numbered(classes)
    requests = [request for request, *_ in batch]
    given = [
        *(names, w_request, w_stream, w_expected, w_events, sparse(w_kind)),
        *_columns_of(requests),
        *([cls.__name__ for cls in types], [cls.schema_version for cls in types]),
        *(e_type, e_id, e_data, actor),
    ]
    if any(encoded.has_money for encoded in batch):
        given += call_arguments(requests)
        if any(request.limits or any(write.scopes for write in request.writes) for request in requests):
            given += limit_arguments(requests)
    return given


def answers(batch: Sequence[Encoded], row: Any, actor: str) -> list[Appended | OrchestrationError]:
    """Take the answer apart: one result or error for each request."""
    versions, positions, special = row
    found: list[Appended | OrchestrationError] = []
    at = 0
    for _, documents, *_ in batch:
        end = at + len(documents)
        found.append(Appended(versions[at:end], positions[at:end]))
        at = end
    if special is not None:
        for item in _specials.decode(special):
            index = item.request - 1
            written = found[index]
            if item.status == "warned" and isinstance(written, Appended):
                found[index] = written._replace(warned=item.warned)
            else:
                found[index] = _special_answer(item, batch[index].request, actor)
    return found


def _special_answer(item: _Special, request: AppendRequest, actor: str) -> Appended | OrchestrationError:
    match item.status:
        case "duplicate":
            return Appended(item.versions, item.positions, duplicate=True, warned=item.warned)
        case "conflict":
            expected = next(write.expected for write in request.writes if write.stream == item.stream)
            return ConflictError(item.stream, expected=expected, actual=item.version, closed=item.closed)
        case "partial":
            return partly_known(request)
        case "denied":
            return NotAuthorised(actor, "append", reason=item.reason)
        case "over_budget":
            return OverBudget(item.scope, limit_micro_usd=item.limit, used_micro_usd=item.used, needed_micro_usd=item.needed)
        case "unreserved":
            return unreserved(item.stream)
        case "reserved":
            return reserved_already(item.stream, UUID(item.reason))
        case _:
            return ContractError(f"append: {item.reason}")


def partly_known(request: AppendRequest) -> ContractError:
    """Say that some event ids of a request are taken, but not all of them by the same request."""
    return ContractError(
        f"append to {', '.join(write.stream for write in request.writes)}: some of its event ids are in the log already; make fresh ids for a new request"
    )


def reserved_already(stream: str, reservation_id: UUID) -> ContractError:
    """Say that a reservation is there already, open or given back."""
    return ContractError(f"append to {stream}: {reservation_id} is reserved already; each model call has a reservation of its own")


def unreserved(stream: str) -> ContractError:
    """Say that a model call on a stream with budgets was recorded without the money for it."""
    return ContractError(
        f"append to {stream}: ModelCallStarted on a stream with budgets is one per append, in its first write, and needs a reservation, of 0 if it is free"
    )


def another_run(stream: str, own: RunId | None, run_id: RunId | None) -> ContractError:
    """Say that events name another run than that of their stream."""
    return ContractError(f"append: {stream} is of run {own or 'none'}, and its events cannot be of run {run_id}")


def beside_no_run(stream: str, run_id: RunId) -> ContractError:
    """Say that events name a run without being beside events of that run."""
    return ContractError(f"append: {stream} is of no run, and its events are of run {run_id} only beside events of that run")


def _columns_of(requests: Sequence[AppendRequest]) -> list[list[Any]]:
    """Lay out q_occurred_us … q_trace."""
    return [
        *([r.occurred_us for r in requests], sparse([r.run_id for r in requests]), sparse([r.task_id for r in requests])),
        *(sparse([r.causation_id for r in requests]), sparse([r.trace_id for r in requests])),
    ]


def _numbered(classes: Sequence[type[Event]]) -> tuple[list[int], list[type[Event]]]:
    """Return for each event the number of its type, from 1, and the types."""
    numbers: dict[type[Event], int] = {}
    return [numbers.setdefault(cls, len(numbers) + 1) for cls in classes], list(numbers)
