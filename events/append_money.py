"""What append requests say about money: checked in the caller, and laid out as arrays for one call of `es.append`."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final, TypeVar
from uuid import UUID

from crewlog.events.store import NO_STREAM, SCOPES_PER_STREAM_MAX, SETTLEMENTS_PER_APPEND_MAX, AppendRequest, Reservation, Settlement, Write
from crewlog.schemas.budget import MICRO_USD_MAX, SCOPE_CHARS_MAX, ScopeLimit
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import budget_stream
from crewlog.schemas.system_events import BudgetChanged

CALL_ARGUMENTS: Final = ("p_held", "r_request", "r_held", "r_amount", "t_request", "t_held", "t_actual")
LIMIT_ARGUMENTS: Final = ("p_scope", "p_soft", "p_hard", "b_write", "b_limit", "l_request", "l_limit")

T = TypeVar("T")

_int: Final = attrgetter("int")  # ids in the server's order, compared fast


def check_money(request: AppendRequest) -> None:
    """Check reservation, settlements, limits, and the scopes that streams are opened with.

    Raises:
        ContractError: the text says what is wrong.
    """
    stream = request.writes[0].stream
    is_about_limits = bool(request.limits)
    for write in request.writes:
        is_about_limits = is_about_limits or write.stream.startswith("budget/")
        if write.scopes:
            _check_scopes(write)
    if request.reserve is not None:
        _check_id(stream, request.reserve.reservation_id)
        _check_amount(stream, "a reservation", request.reserve.amount_micro_usd)
    if len(request.settle) > SETTLEMENTS_PER_APPEND_MAX:
        raise ContractError(f"append to {stream}: {len(request.settle)} settlements, at most {SETTLEMENTS_PER_APPEND_MAX}")
    for reservation_id, actual in request.settle:
        _check_id(stream, reservation_id)
        if actual is not None:
            _check_amount(stream, "a settlement", actual)
    if is_about_limits:
        _check_limits(request)


def call_arguments(requests: Sequence[AppendRequest]) -> list[Any]:
    """Lay out reservations and settlements of a batch as the parameters of `es.append` that CALL_ARGUMENTS names, see there."""
    settled = [settlement.reservation_id for request in requests for settlement in request.settle]
    settled.sort(key=_int)
    held = {reservation_id: index for index, reservation_id in enumerate(dict.fromkeys(settled), 1)}
    r_request: list[int] = []
    r_held: list[int] = []
    r_amount: list[int] = []
    t_request: list[int] = []
    t_held: list[int] = []
    t_actual: list[int | None] = []
    for number, request in enumerate(requests, 1):
        if request.reserve is not None:
            reservation_id, amount = request.reserve
            r_request.append(number)
            r_held.append(held.setdefault(reservation_id, len(held) + 1))
            r_amount.append(amount)
        for reservation_id, actual in request.settle:
            t_request.append(number)
            t_held.append(held[reservation_id])
            t_actual.append(actual)
    return [list(held), r_request, r_held, r_amount, t_request, t_held, t_actual]


def is_plain(request: AppendRequest) -> bool:
    """Tell whether `es.append_plain` takes a request: one write to a stream that is there, and one reservation or one settlement, or none."""
    stream, _, expected, _, scopes = request.writes[0]
    reserve, settle = request.reserve, request.settle
    if len(request.writes) > 1 or expected < 1 or scopes or request.limits or stream.startswith("budget/") or len(settle) > 1:
        return False
    if not settle:
        return True
    return settle[0].actual_micro_usd is not None if reserve is None else _is_free(reserve, settle[0])


def plain_call_arguments(requests: Sequence[AppendRequest]) -> list[Any]:
    """Lay out what plain requests reserve or settle as the last parameters of `es.append_plain`, see there."""
    ids: list[UUID | None] = []
    amounts: list[int | None] = []
    prices: list[int | None] = []
    for request in requests:
        reserve, settle = request.reserve, request.settle[0] if request.settle else None
        held, amount, price = None, None, None
        if reserve is not None and settle is not None:
            amount = 0  # a free call leaves nothing to keep
        elif reserve is not None:
            held, amount = reserve
        elif settle is not None:
            held, price = settle
        ids.append(held)
        amounts.append(amount)
        prices.append(price)
    return [sparse(ids), sparse(amounts), sparse(prices)]


def sparse(values: list[T]) -> list[T]:
    """Return a column as the gate's functions take it: all NULL, it is an empty array, which costs nothing."""
    return values if any(value is not None for value in values) else []


def _is_free(reserve: Reservation, settlement: Settlement) -> bool:
    return reserve.amount_micro_usd == 0 and settlement == (reserve.reservation_id, 0)


def limit_arguments(requests: Sequence[AppendRequest]) -> list[Any]:
    """Lay out scopes and limits of a batch as the parameters of `es.append` that LIMIT_ARGUMENTS names, see there."""
    limits: dict[ScopeLimit, int] = {}
    binds: list[tuple[int, int]] = []
    changes: list[tuple[int, int]] = []
    write_number = 0
    for number, request in enumerate(requests, 1):
        for write in request.writes:
            write_number += 1
            binds += [(write_number, limits.setdefault(limit, len(limits) + 1)) for limit in write.scopes]
        changes += [(number, limits.setdefault(limit, len(limits) + 1)) for limit in request.limits]
    return [
        *([limit.scope for limit in limits], [limit.soft_micro_usd for limit in limits], [limit.hard_micro_usd for limit in limits]),
        *(*_columns(binds), *_columns(changes)),
    ]


def _columns(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    return [[pair[column] for pair in pairs] for column in (0, 1)]


def _check_scopes(write: Write) -> None:
    if write.expected != NO_STREAM or not write.stream.startswith("task/"):
        raise ContractError(f"append to {write.stream}: scopes are bound to a task stream when it is opened, with expected version {NO_STREAM}")
    if len(write.scopes) > SCOPES_PER_STREAM_MAX or len({limit.scope for limit in write.scopes}) < len(write.scopes):
        raise ContractError(f"append to {write.stream}: a stream has at most {SCOPES_PER_STREAM_MAX} scopes, each once; got {len(write.scopes)}")
    for limit in write.scopes:
        _check_limit(write.stream, limit)


def _check_limits(request: AppendRequest) -> None:
    said = {
        (write.stream, event.scope, event.soft_micro_usd, event.hard_micro_usd)
        for write in request.writes
        for event in write.events
        if isinstance(event, BudgetChanged)
    }
    for limit in request.limits:
        _check_limit(request.writes[0].stream, limit)
    asked = {(budget_stream(limit.scope), limit.scope, limit.soft_micro_usd, limit.hard_micro_usd) for limit in request.limits}
    if said != asked or len(asked) < len(request.limits) or len({scope for _, scope, _, _ in asked}) < len(asked):
        stream = request.writes[0].stream
        raise ContractError(f"append to {stream}: a limit is changed once, together with the BudgetChanged in budget/<scope> that says the same")


def _check_limit(stream: str, limit: ScopeLimit) -> None:
    if not 1 <= len(limit.scope) <= SCOPE_CHARS_MAX or not limit.scope.isprintable():
        raise ContractError(f"append to {stream}: {limit.scope[:40]!r} is no name of a scope: it takes 1 to {SCOPE_CHARS_MAX} characters that can be printed")
    for amount in (limit.soft_micro_usd, limit.hard_micro_usd):
        if amount is not None:
            _check_amount(stream, f"a limit of {limit.scope}", amount)
    if limit.soft_micro_usd is not None and limit.hard_micro_usd is not None and limit.soft_micro_usd > limit.hard_micro_usd:
        raise ContractError(f"append to {stream}: the soft limit of {limit.scope} ({limit.soft_micro_usd}) is above its hard limit ({limit.hard_micro_usd})")


def _check_id(stream: str, reservation_id: Any) -> None:
    if not isinstance(reservation_id, UUID):
        raise ContractError(f"append to {stream}: reservation id {reservation_id!r} is not a UUID")


def _check_amount(stream: str, what: str, amount: Any) -> None:
    # Values arrive from prices that others compute: a float (NaN!) or a bool is as wrong as a negative amount.
    if type(amount) is not int or not 0 <= amount <= MICRO_USD_MAX:
        raise ContractError(f"append to {stream}: {what} is a whole number of micro-USD from 0 to {MICRO_USD_MAX}, not {amount!r}")
