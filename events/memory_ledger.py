"""Budgets and reservations in memory: what the gate does in Postgres, written for clarity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from crewlog.events.append_call import reserved_already
from crewlog.events.store import AppendRequest, BudgetState, OpenReservation, Settlement
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.errors import OverBudget
from crewlog.schemas.ids import Stream


@dataclass(slots=True)
class _Account:
    soft: int | None
    hard: int | None
    spent: int = 0
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class _Held:
    reservation: OpenReservation
    scopes: tuple[str, ...]
    is_released: bool = False


@dataclass(slots=True)
class MemoryLedger:
    """The budgets of a log, and what is reserved: a settled reservation is forgotten, one that was given back is kept for a late price."""

    accounts: dict[str, _Account] = field(default_factory=dict)
    held: dict[UUID, _Held] = field(default_factory=dict)

    def stream_of(self, settlement: Settlement, request: AppendRequest) -> Stream | None:
        """Return the stream of the reservation that a request settles, as long as it can be settled by that."""
        held = self.held.get(settlement.reservation_id)
        return held.reservation.stream if held and held.reservation.stream == _settles_on(request) else None

    def book(self, request: AppendRequest, scopes: tuple[str, ...], opened: Sequence[ScopeLimit]) -> None:
        """Do what a request says about money, or nothing at all.

        Args:
            scopes: those of the stream of the first write.
            opened: scopes that the request binds to streams it opens.

        Raises:
            OverBudget: the reservation does not fit.
            ContractError: the reservation is there already.
        """
        draft = _Draft(self, opened)
        for limit in request.limits:
            draft.set_limit(limit)
        reserve, settled_on = request.reserve, _settles_on(request)
        for settlement in request.settle:
            if reserve is None or settlement.reservation_id != reserve.reservation_id:
                draft.settle(settlement, settled_on)
        if reserve is not None:
            run_id, task_id, stream = request.run_id, request.task_id, request.writes[0].stream
            draft.reserve(OpenReservation(reserve.reservation_id, stream, run_id, task_id, reserve.amount_micro_usd, request.occurred_us), scopes)
            for settlement in request.settle:
                if settlement.reservation_id == reserve.reservation_id:
                    draft.settle(settlement, stream)
        self.accounts.update(draft.accounts)
        self.held.update(draft.held)
        for reservation_id in draft.forgotten:
            self.held.pop(reservation_id, None)

    def correct(self, scopes: Sequence[str], difference: int) -> bool:
        """Change what is spent: a call cost another amount than it was settled at. False when less would be left than nothing: it was never charged."""
        if any(self.accounts[scope].spent + difference < 0 for scope in scopes):
            return False
        for scope in scopes:
            self.accounts[scope].spent += difference
        return True

    def warned(self, request: AppendRequest, scopes: Sequence[str]) -> tuple[str, ...]:
        """Name those of the scopes that are over their soft limit, if the request charges them anything."""
        charges = (request.reserve is not None and request.reserve.amount_micro_usd > 0) or any(s.actual_micro_usd for s in request.settle)
        return tuple(scope for scope in scopes if charges and _is_warning(self.accounts[scope]))

    def states(self, scopes: Sequence[str]) -> Mapping[str, BudgetState]:
        """Look at budgets."""
        found = {scope: self.accounts[scope] for scope in scopes if scope in self.accounts}
        return {scope: BudgetState(account.soft, account.hard, account.spent, account.reserved) for scope, account in found.items()}

    def open_reservations(self) -> Iterator[OpenReservation]:
        """Yield what is reserved and neither settled nor given back."""
        return (held.reservation for held in self.held.values() if not held.is_released)


class _Draft:
    """What a request would change."""

    def __init__(self, ledger: MemoryLedger, opened: Sequence[ScopeLimit]) -> None:
        self._ledger = ledger
        self.accounts: dict[str, _Account] = {}
        self.held: dict[UUID, _Held] = {}
        self.forgotten: set[UUID] = set()
        for limit in opened:
            if limit.scope not in ledger.accounts:
                self.accounts.setdefault(limit.scope, _Account(limit.soft_micro_usd, limit.hard_micro_usd))

    def account(self, scope: str) -> _Account:
        if scope not in self.accounts:
            known = self._ledger.accounts.get(scope)
            self.accounts[scope] = replace(known) if known else _Account(None, None)
        return self.accounts[scope]

    def set_limit(self, limit: ScopeLimit) -> None:
        account = self.account(limit.scope)
        account.soft, account.hard = limit.soft_micro_usd, limit.hard_micro_usd

    def find(self, reservation_id: UUID) -> _Held | None:
        return None if reservation_id in self.forgotten else self.held.get(reservation_id) or self._ledger.held.get(reservation_id)

    def reserve(self, reservation: OpenReservation, scopes: tuple[str, ...]) -> None:
        if self.find(reservation.reservation_id) is not None:
            raise reserved_already(reservation.stream, reservation.reservation_id)
        needed = reservation.amount_micro_usd
        for scope in scopes if needed else ():
            account = self.account(scope)
            used = account.spent + account.reserved
            if account.hard is not None and used + needed > account.hard:
                raise OverBudget(scope, limit_micro_usd=account.hard, used_micro_usd=used, needed_micro_usd=needed)
        for scope in scopes:
            self.account(scope).reserved += needed
        self.held[reservation.reservation_id] = _Held(reservation, scopes)

    def settle(self, settlement: Settlement, stream: Stream) -> None:
        held = self.find(settlement.reservation_id)
        if held is None or held.reservation.stream != stream:
            return
        actual, amount = settlement.actual_micro_usd, held.reservation.amount_micro_usd
        for scope in held.scopes:
            account = self.account(scope)
            account.reserved -= 0 if held.is_released else amount
            account.spent += actual or 0
        if actual is None:
            self.held[settlement.reservation_id] = replace(held, is_released=True)
        else:
            self.forgotten.add(settlement.reservation_id)


def _settles_on(request: AppendRequest) -> Stream:
    stream = request.writes[0].stream
    return Stream("task/" + stream.removeprefix("spend/")) if stream.startswith("spend/") else stream


def _is_warning(account: _Account) -> bool:
    return account.soft is not None and account.spent + account.reserved > account.soft
