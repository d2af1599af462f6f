"""Both stores against a model of money that is obviously right: everything is summed up from the beginning at each question."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from copy import deepcopy
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support.logs import CLOCK, new_run, new_task
from support.money import calling, changing, opened, settling
from support.postgres import Database

from crewlog.events.memory_ledger import MemoryLedger, _Draft
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import Appended, AppendRequest, BudgetState, EventStore, OpenReservation, Settlement
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.errors import ConflictError, ContractError, OverBudget
from crewlog.schemas.ids import Stream, reservation_id, task_stream

pytestmark = pytest.mark.hand_written("tries the ledger")

T = TypeVar("T")
Answer = tuple[Any, ...]
Move = tuple[Any, ...]
TASKS, SCOPES, CALLS = 3, 3, 3


class Model:
    """The rules of money, written for clarity."""

    def __init__(self) -> None:
        self.seen: set[UUID] = set()
        self.scopes: dict[Stream, list[str]] = {}
        self.versions: dict[Stream, int] = {}
        self.limits: dict[str, tuple[int | None, int | None]] = {}
        self.entries: list[tuple[list[str], int, int]] = []  # scopes, reserved, spent
        self.reservations: dict[UUID, tuple[str, int, Stream]] = {}

    def total(self, scope: str) -> tuple[int, int]:
        """Return what is spent and reserved."""
        mine = [(reserved, spent) for scopes, reserved, spent in self.entries if scope in scopes]
        return sum(spent for _, spent in mine), sum(reserved for reserved, _ in mine)

    def append(self, request: AppendRequest) -> Answer:
        before = deepcopy(self.__dict__)
        answer = self._decide(request)
        if answer[0] in ("conflict", "over", "reserved"):
            self.__dict__ = before
        return answer

    def _decide(self, request: AppendRequest) -> Answer:
        write = request.writes[0]
        if request.event_ids[0] in self.seen:
            return "again", self.warned(request)
        version = self.versions.get(write.stream, 0)
        if write.expected not in (-1, version):
            return ("conflict",)
        self.seen.update(request.event_ids)
        self.versions[write.stream] = version + len(write.events)
        for limit in write.scopes:
            self.limits.setdefault(limit.scope, (limit.soft_micro_usd, limit.hard_micro_usd))
        self.scopes.setdefault(write.stream, [limit.scope for limit in write.scopes])
        for limit in request.limits:
            self.limits[limit.scope] = (limit.soft_micro_usd, limit.hard_micro_usd)
        own = [s for s in request.settle if request.reserve and s.reservation_id == request.reserve.reservation_id]
        for settlement in request.settle:
            if settlement not in own:
                self.settle(settlement, write.stream)
        if request.reserve:
            id_, amount = request.reserve
            if id_ in self.reservations:
                return ("reserved",)
            for scope in self.scopes[write.stream]:
                used, hard = sum(self.total(scope)), self.limits[scope][1]
                if amount and hard is not None and used + amount > hard:
                    return "over", scope, hard, used, amount
            self.reservations[id_] = ("open", amount, write.stream)
            self.entries.append((self.scopes[write.stream], amount, 0))
        for settlement in own:
            self.settle(settlement, write.stream)
        return "new", self.warned(request)

    def settle(self, settlement: Settlement, settled_on: Stream) -> None:
        id_, actual = settlement
        state, amount, stream = self.reservations.get(id_, ("unknown", 0, None))
        if stream != settled_on:
            return
        scopes = self.scopes[stream]
        if state == "open":
            self.entries.append((scopes, -amount, 0))
        self.entries.append((scopes, 0, actual or 0))
        if actual is None:
            self.reservations[id_] = ("released", amount, stream)
        else:
            del self.reservations[id_]

    def warned(self, request: AppendRequest) -> list[str]:
        if not (request.reserve and request.reserve.amount_micro_usd) and not any(s.actual_micro_usd for s in request.settle):
            return []
        softs = {scope: self.limits[scope][0] for scope in self.scopes[request.writes[0].stream]}
        return [scope for scope, soft in softs.items() if soft is not None and sum(self.total(scope)) > soft]


class MoneyMachine(RuleBasedStateMachine):
    """Sends requests to a store and to the model. `store` and `loop` are set by the test."""

    store: ClassVar[EventStore]
    loop: ClassVar[asyncio.AbstractEventLoop]

    requests: Bundle[AppendRequest] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.run_id = new_run()  # one run: what is sent together travels together, in order
        self.tasks = [new_task() for _ in range(TASKS)]
        self.names = [f"scope/{new_task()}" for _ in range(SCOPES)]  # fresh names: examples may share a log

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def send(self, requests: list[AppendRequest]) -> None:
        async def together() -> list[Appended | BaseException]:
            return await asyncio.gather(*map(self.store.append, requests), return_exceptions=True)

        for request, answer in zip(requests, self.wait(together()), strict=True):
            assert told(answer) == self.model.append(request)

    def limit(self, scope: int, soft: int | None, hard: int | None) -> ScopeLimit:
        return ScopeLimit(self.names[scope], None if soft is None or hard is None else min(soft, hard), hard)

    def make(self, move: Move) -> AppendRequest:
        match move:
            case "open", task, limits:
                made = opened(self.tasks[task], *{limit[0]: self.limit(*limit) for limit in limits}.values())
            case "change", limit:
                made = changing(self.limit(*limit))
            case "call", task, call, amount, settled:
                made = calling(self.tasks[task], amount, call)._replace(settle=[self.settlement(task, *one) for one in settled])
            case "settle", task, settled:
                made = settling(self.tasks[task], 0)._replace(settle=[self.settlement(task, *one) for one in settled])
            case _:
                raise AssertionError(move)
        return made._replace(run_id=None if move[0] == "change" else self.run_id)  # limits are of no run

    def settlement(self, task: int, other: bool, call: str, actual: int | None) -> Settlement:
        return Settlement(reservation_id(self.tasks[(task + other) % TASKS], call), actual)

    tasks_ = st.integers(0, TASKS - 1)
    calls = st.integers(0, CALLS - 1).map(str)
    amounts = st.sampled_from([0, 0, 1, 5, 10, 30, 60])
    bounds = st.one_of(st.none(), st.sampled_from([0, 20, 50, 70, 100]))
    limits = st.tuples(st.integers(0, SCOPES - 1), bounds, bounds)
    settlements = st.tuples(st.sampled_from([False, False, False, True]), calls, st.one_of(st.none(), amounts))
    moves = st.one_of(
        st.tuples(st.just("open"), tasks_, st.lists(limits, max_size=3)),
        st.tuples(st.just("call"), tasks_, calls, amounts, st.just([])),
        st.tuples(st.just("call"), tasks_, calls, amounts, st.lists(settlements, max_size=2)),
        st.tuples(st.just("settle"), tasks_, st.lists(settlements, min_size=1, max_size=3)),
        st.tuples(st.just("change"), limits),
    )

    @rule(target=requests, move=moves)
    def one(self, move: Move) -> AppendRequest:
        request = self.make(move)
        self.send([request])
        return request

    paid = st.one_of(
        st.tuples(st.just("call"), tasks_, calls, amounts, st.just([])),
        st.tuples(st.just("settle"), tasks_, st.lists(st.tuples(st.just(False), calls, amounts), min_size=1, max_size=1)),
    )

    @rule(target=requests, several=st.lists(paid, min_size=1, max_size=TASKS, unique_by=lambda move: move[1]))
    def plain(self, several: list[Move]) -> AppendRequest:
        """Send such as `es.append_plain` takes, once the streams are there."""
        requests = [self.make(move) for move in several]
        exact = [r._replace(writes=[w._replace(expected=self.model.versions.get(w.stream, 0) or -1) for w in r.writes]) for r in requests]
        self.send(exact)
        return exact[0]

    @rule(target=requests, several=st.one_of(st.lists(moves, min_size=2, max_size=6), st.lists(paid, min_size=4, max_size=9)))
    def together(self, several: list[Move]) -> AppendRequest:
        requests = [self.make(move) for move in several]
        self.send(requests)
        return requests[0]

    @rule(request=requests, move=moves)
    def again(self, request: AppendRequest, move: Move) -> None:
        self.send([request, self.make(move), request])

    @invariant()
    def the_books_agree(self) -> None:
        expected = {}
        for scope in self.names:
            if scope in self.model.limits:
                expected[scope] = BudgetState(*self.model.limits[scope], *self.model.total(scope))
        assert self.wait(self.store.budgets(self.names)) == expected
        mine = {task_stream(task) for task in self.tasks}
        found = {r.reservation_id: r.amount_micro_usd for r in self.wait(self.store.open_reservations(2**60, 10_000)) if r.stream in mine}
        assert found == {id_: amount for id_, (state, amount, _) in self.model.reservations.items() if state == "open"}


def told(answer: Appended | BaseException) -> Answer:
    match answer:
        case Appended():
            return "again" if answer.duplicate else "new", list(answer.warned)
        case OverBudget():
            return "over", answer.scope, answer.limit_micro_usd, answer.used_micro_usd, answer.needed_micro_usd
        case ConflictError():
            return ("conflict",)
        case ContractError() if "reserved already" in str(answer):
            return ("reserved",)
        case _:
            raise AssertionError(repr(answer))


def run_machine(store: EventStore, loop: asyncio.AbstractEventLoop, examples: int, *, shrink: bool = True) -> None:
    machine = type("Machine", (MoneyMachine,), {"store": store, "loop": loop})
    profile = settings(
        max_examples=examples,
        stateful_step_count=25,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(machine, settings=profile)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_memory_store(loop: asyncio.AbstractEventLoop) -> None:
    run_machine(MemoryStore(), loop, 80)


def test_postgres_store(database: Database, loop: asyncio.AbstractEventLoop) -> None:
    store = loop.run_until_complete(PostgresStore.open(database.admin_url, actor="machine", clock=CLOCK, lanes=1))
    run_machine(store, loop, 40, shrink=False)
    loop.run_until_complete(store.close())


class ChargesFirstScopeOnly(_Draft):
    """Planted: the other scopes are forgotten."""

    def reserve(self, reservation: OpenReservation, scopes: tuple[str, ...]) -> None:
        super().reserve(reservation, scopes[:1])


class SettlesTwice(_Draft):
    """Planted: a settled reservation can be settled again."""

    def settle(self, settlement: Settlement) -> None:
        super().settle(settlement)
        self.forgotten.clear()


class ForgetsReleased(_Draft):
    """Planted: a late price is lost."""

    def settle(self, settlement: Settlement) -> None:
        super().settle(settlement)
        if settlement.actual_micro_usd is None:
            self.forgotten.add(settlement.reservation_id)


@pytest.mark.parametrize("broken", [ChargesFirstScopeOnly, SettlesTwice, ForgetsReleased])
def test_the_machine_finds_planted_bugs(broken: type[_Draft], loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crewlog.events.memory_ledger._Draft", broken)
    with pytest.raises(AssertionError):
        run_machine(MemoryStore(MemoryLog(ledger=MemoryLedger())), loop, 50, shrink=False)
