"""One call of the gate: a batch of requests as arrays, and the answer taken apart again.

A plain request that travels alone goes to `es.append_one`, which writes it or leaves it to `es.append`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from crewlog.events.append_money import CALL_ARGUMENTS, LIMIT_ARGUMENTS, call_arguments, limit_arguments
from crewlog.events.append_request import Encoded
from crewlog.events.connections import fetch
from crewlog.events.store import Appended, AppendRequest, Settlement
from crewlog.schemas.codec import Event
from crewlog.schemas.errors import ConflictError, ContractError, NotAuthorised, OrchestrationError, OverBudget

SQL: Final = "SELECT * FROM es.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"
SQL_WITH_CALLS: Final = SQL.removesuffix(")") + "".join(f", {name} => ${number}" for number, name in enumerate(CALL_ARGUMENTS, 18)) + ")"
SQL_WITH_LIMITS: Final = SQL_WITH_CALLS.removesuffix(")") + "".join(f", {name} => ${number}" for number, name in enumerate(LIMIT_ARGUMENTS, 25)) + ")"
SQL_ONE: Final = "SELECT * FROM es.append_one($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"

T = TypeVar("T")


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
    if len(batch) == 1 and (one := one_argument_list(batch[0], actor)) is not None:
        try:
            ((positions,),) = await fetch(connection, SQL_ONE, one, timeout_s=timeout_s)
        except asyncpg.UniqueViolationError:
            positions = None  # an event id is known: es.append says which, and where
        if positions is not None:
            expected = batch[0].request.writes[0].expected
            return [Appended(list(range(expected + 1, expected + 1 + len(positions))), positions)]
    given = arguments(batch, actor)
    (row,) = await fetch(connection, statement(given), given, timeout_s=timeout_s)
    return answers(batch, row, actor)


def one_argument_list(encoded: Encoded, actor: str) -> list[Any] | None:
    """Lay out a request as the parameters of `es.append_one`, see there; None when it is not plain."""
    request = encoded.request
    stream, events, expected, _, scopes = request.writes[0]
    is_free = request.reserve is not None and request.reserve.amount_micro_usd == 0 and list(request.settle) == [Settlement(request.reserve.reservation_id, 0)]
    if len(request.writes) > 1 or expected < 1 or scopes or (encoded.has_money and not is_free):
        return None
    types = [event.__class__ for event in events]
    return [
        *(stream, expected, request.occurred_us, request.run_id, request.task_id, request.causation_id, request.trace_id),
        *([cls.__name__ for cls in types], [cls.schema_version for cls in types], request.event_ids, encoded.documents, actor, is_free),
    ]


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
    types: dict[type[Event], int] = {}
    e_type: list[int] = []
    e_id: list[Any] = []
    e_data: list[str] = []
    for index, (request, documents, *_) in enumerate(batch, 1):
        for stream, events, expected, kind, _ in request.writes:
            w_request.append(index)
            w_stream.append(number[stream])
            w_expected.append(expected)
            w_events.append(len(events))
            w_kind.append(kind)
            for event in events:
                cls = event.__class__
                e_type.append(types.get(cls) or types.setdefault(cls, len(types) + 1))
        e_id += request.event_ids
        e_data += documents
    requests = [request for request, *_ in batch]
    given = [
        *(names, w_request, w_stream, w_expected, w_events, _sparse(w_kind)),
        *([r.occurred_us for r in requests], _sparse([r.run_id for r in requests]), _sparse([r.task_id for r in requests])),
        *(_sparse([r.causation_id for r in requests]), _sparse([r.trace_id for r in requests])),
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


def _sparse(values: list[T]) -> list[T]:
    return values if any(value is not None for value in values) else []  # all NULL: an empty array costs nothing
