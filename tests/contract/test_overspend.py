"""Parallel agents against one budget: whatever the order, the sum of what is settled stays within the limit, and the books balance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio
from support.logs import CLOCK, dispatched, new_run, new_task, opening, to_run
from support.money import calling, opened, settling
from support.postgres import Database

from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import Appended, AppendRequest, BudgetState, EventStore
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.errors import OverBudget
from crewlog.schemas.ids import TaskId, reservation_id

TRIALS = 100
AGENTS = 100
STORES = 4
FAR_US = 2**60


@pytest_asyncio.fixture
async def orchestrator(database: Database) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    yield store
    await store.close()


@pytest_asyncio.fixture
async def workers(database: Database) -> AsyncIterator[list[PostgresStore]]:
    """Return the stores of several processes."""
    stores = [await PostgresStore.open(database.url("crewlog_research"), actor=f"w@{n}", clock=CLOCK) for n in range(STORES)]
    yield stores
    for store in stores:
        await store.close()


class Spent:
    """What the agents know: the truth that the books are compared with."""

    def __init__(self) -> None:
        self.settled = self.left_open = self.refused = self.refused_wrongly = 0


async def work(store: EventStore, task_id: TaskId, random: Random, spent: Spent) -> None:
    """Make calls until the budget refuses one. Some are sent twice, some given back, some never settled."""
    for call in range(random.randint(1, 4)):
        worst = random.randint(0, 400)
        request = calling(task_id, worst, str(call))
        try:
            await again(store, request, random)
        except OverBudget as refused:
            spent.refused += 1
            spent.refused_wrongly += refused.used_micro_usd + worst <= refused.limit_micro_usd
            return
        await asyncio.sleep(0)
        actual = random.choice([worst, random.randint(0, worst), random.randint(0, worst), None])
        if random.random() < 0.05:
            spent.left_open += worst
            continue
        await again(store, settling(task_id, actual, str(call)), random)
        spent.settled += actual or 0


async def again(store: EventStore, request: AppendRequest, random: Random) -> None:
    """Append, and sometimes ask again as after an answer that was lost."""
    answer = await store.append(request)
    if random.random() < 0.1:
        repeated = await store.append(request)
        assert (repeated.duplicate, list(repeated.versions)) == (True, list(answer.versions))


async def test_a_hundred_agents_never_spend_more_than_the_limit(orchestrator: PostgresStore, workers: list[PostgresStore]) -> None:
    refused = 0
    for seed in range(TRIALS):
        random = Random(seed)
        limit, scope, spent = random.randint(2_000, 30_000), f"run/{new_run()}", Spent()
        tasks = [new_task() for _ in range(AGENTS)]
        await asyncio.gather(*(orchestrator.append(opened(task_id, ScopeLimit(scope, limit * 7 // 10, limit))) for task_id in tasks))
        await asyncio.gather(*(work(workers[n % STORES], task_id, Random(seed * 1_000 + n), spent) for n, task_id in enumerate(tasks)))
        found = (await orchestrator.budgets([scope]))[scope]
        assert found == BudgetState(limit * 7 // 10, limit, spent.settled, spent.left_open), f"trial {seed}"
        assert found.spent + found.reserved <= limit, f"trial {seed}"
        assert spent.refused_wrongly == 0
        refused += spent.refused
    assert refused > TRIALS  # the limits were tight enough to matter


async def test_batches_over_the_same_scopes_do_not_deadlock(orchestrator: PostgresStore, workers: list[PostgresStore], database: Database) -> None:
    scopes = [f"scope/{n}" for n in range(12)]
    random, tasks = Random(1), [new_task() for _ in range(AGENTS)]
    for task_id in tasks:
        mine = random.sample(scopes, 5)  # bound in any order, charged in one
        await orchestrator.append(opened(task_id, *(ScopeLimit(scope, None, 10**9) for scope in mine)))
    spent = Spent()
    await asyncio.gather(*(work(workers[n % STORES], task_id, Random(n), spent) for n, task_id in enumerate(tasks)))
    new = [f"new/{n}" for n in range(20)]
    stores = [*workers, orchestrator]
    openings = [opened(new_task(), *(ScopeLimit(scope, None, None) for scope in random.sample(new, 8))) for _ in range(40)]
    others = [await PostgresStore.open(database.url(ORCHESTRATOR), actor=f"o@{n}", clock=CLOCK) for n in range(3)]
    await asyncio.gather(*(others[n % 3].append(request) for n, request in enumerate(openings)))
    for store in others:
        await store.close()
    found = await stores[-1].budgets([*scopes, *new])
    assert len(found) == len(scopes) + len(new)
    assert sum(state.spent for state in found.values()) == 5 * spent.settled
    assert sum(state.reserved for state in found.values()) == 5 * spent.left_open
    connection = await database.admin()
    assert await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    await connection.close()


async def test_the_books_balance_when_backends_die(orchestrator: PostgresStore, workers: list[PostgresStore], database: Database) -> None:
    """A commit whose answer is lost is asked about again: nothing is reserved or settled twice."""
    tasks, spent = [new_task() for _ in range(AGENTS)], Spent()
    await asyncio.gather(*(orchestrator.append(opened(task_id, ScopeLimit("run/1", None, 10**9))) for task_id in tasks))
    admin = await database.admin()
    at_work = asyncio.gather(*(work(workers[n % STORES], task_id, Random(n), spent) for n, task_id in enumerate(tasks)))
    kills, pause_s = 0, 0.01
    while not at_work.done():
        kills += len(await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'crewlog w@%' AND state = 'active'"))
        pause_s = 1.2 * max(pause_s, 0.2) if kills else pause_s
        await asyncio.wait([at_work], timeout=pause_s)  # a fresh connection plans anew: leave it time to write something, and more where that was too little
    await at_work
    assert kills > 0
    assert await orchestrator.budgets(["run/1"]) == {"run/1": BudgetState(None, 10**9, spent.settled, spent.left_open)}
    left = await orchestrator.open_reservations(FAR_US, 1_000)
    assert sum(reservation.amount_micro_usd for reservation in left) == spent.left_open
    assert await admin.fetchval("SELECT count(*) FROM es.open_reservations") == len(left)
    await admin.close()


async def test_settled_reservations_leave_nothing_behind(orchestrator: PostgresStore, workers: list[PostgresStore], database: Database) -> None:
    task_id = new_task()
    await orchestrator.append(opened(task_id, ScopeLimit("run/1", None, None)))
    for call in range(30):
        await workers[0].append(calling(task_id, 10, str(call)))
        await workers[0].append(settling(task_id, 5 if call else None, str(call)))
    admin = await database.admin()
    assert await admin.fetchval("SELECT array_agg(reservation_id) FROM es.reservations") == [reservation_id(task_id, "0")]
    await admin.execute("UPDATE es.reservations SET released_at = released_at - interval '31 days'")
    await workers[0].append(calling(task_id, 10, "last"))
    await workers[0].append(settling(task_id, None, "last"))
    assert await admin.fetchval("SELECT array_agg(reservation_id) FROM es.reservations") == [reservation_id(task_id, "last")]
    await admin.close()


@pytest.mark.hand_written("tries the ledger")
async def test_what_is_free_touches_no_budget(orchestrator: PostgresStore, workers: list[PostgresStore], database: Database) -> None:
    task_id, run_id = new_task(), new_run()
    await orchestrator.append(opened(task_id, ScopeLimit("run/1", 0, 0)))
    admin = await database.admin()
    async with admin.transaction():
        await admin.execute("SELECT FROM es.budgets FOR UPDATE")  # whoever wanted to charge them would wait
        async with asyncio.timeout(60):
            await workers[0].append(calling(task_id, 0))
            await workers[0].append(settling(task_id, 0))
            await orchestrator.append(opening(run_id))
            answer: Appended = await orchestrator.append(to_run(run_id, dispatched(task_id)))
    assert answer.versions == [2]
    await admin.close()
