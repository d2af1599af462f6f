"""Money in the log: reserved before the call, settled behind it, never more than the limit. Memory and Postgres alike."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import pytest
import pytest_asyncio
from support.logs import CLOCK, InPostgres, Log, asked, completed, new_run, new_task, opening, request, started, to_task
from support.money import calling, changing, opened, over, scoped, settling, settling_elsewhere

from crewlog.events.grants import OPERATOR, ORCHESTRATOR, PROJECTOR, SPECIALIST
from crewlog.events.store import ANY, NO_STREAM, AppendRequest, BudgetState, EventStore, Reservation, Settlement, Write
from crewlog.schemas.budget import MICRO_USD_MAX, ScopeLimit, run_scope, tenant_scope
from crewlog.schemas.errors import ConflictError, ContractError, NotAuthorised, OverBudget
from crewlog.schemas.ids import RunId, Stream, TaskId, budget_stream, reservation_id, task_stream
from crewlog.schemas.system_events import AgentStopped, BudgetChanged
from crewlog.schemas.task_events import TaskCancelled

TENANT = tenant_scope("default", "2026-11-25")
FAR_US = 2**60


@pytest_asyncio.fixture
async def store(log: Log) -> EventStore:
    """Return the orchestrator's store."""
    return await log.open()


@pytest_asyncio.fixture
async def worker(log: Log) -> EventStore:
    """Return the store of a research agent."""
    return await log.open("crewlog_research")


async def task(store: EventStore, *limits: ScopeLimit, kind: str = "research", run_id: RunId | None = None) -> TaskId:
    """Open a task that is charged to these scopes."""
    task_id = new_task()
    await store.append(opened(task_id, *limits, kind=kind)._replace(run_id=run_id))
    return task_id


async def state(store: EventStore, scope: str = "run/1") -> tuple[int, int]:
    """Return what is spent and reserved."""
    found = (await store.budgets([scope]))[scope]
    return found.spent, found.reserved


async def open_ids(store: EventStore) -> list[UUID]:
    return [reservation.reservation_id for reservation in await store.open_reservations(FAR_US, 1000)]


# binding


async def test_scopes_are_bound_when_the_stream_is_opened(store: EventStore) -> None:
    await task(store, ScopeLimit("run/1", 70, 100), ScopeLimit(TENANT, None, None))
    assert await store.budgets(["run/1", TENANT, "run/2"]) == {"run/1": BudgetState(70, 100, 0, 0), TENANT: BudgetState(None, None, 0, 0)}
    assert await store.budgets([]) == {}


async def test_a_stream_knows_the_budgets_it_is_charged_to(store: EventStore, worker: EventStore) -> None:
    charged, free = await task(store, ScopeLimit("run/1", 70, 100), ScopeLimit(TENANT, None, None)), await task(store)
    assert await worker.budgets_of(task_stream(charged)) == {"run/1": BudgetState(70, 100, 0, 0), TENANT: BudgetState(None, None, 0, 0)}
    await worker.append(calling(charged, 60))
    assert (await worker.budgets_of(task_stream(charged)))["run/1"] == BudgetState(70, 100, 0, 60)
    assert await worker.budgets_of(task_stream(free)) == await worker.budgets_of(task_stream(new_task())) == {}


async def test_budgets_with_room_are_found_by_what_is_needed_of_each(store: EventStore, worker: EventStore) -> None:
    charged = await task(store, ScopeLimit("run/1", 70, 100), ScopeLimit("run/2", 70, 100), ScopeLimit(TENANT, None, None))
    await worker.append(calling(charged, 60))
    assert set(await store.budgets_with_room({"run/1": 40, "run/2": 41, TENANT: 10**9, "run/unknown": 0})) == {"run/1", TENANT}
    assert not await store.budgets_with_room({"run/1": 41})


async def test_a_known_scope_keeps_its_limits(store: EventStore, worker: EventStore) -> None:
    first = await task(store, ScopeLimit("run/1", 70, 100))
    await worker.append(calling(first, 60))
    await task(store, ScopeLimit("run/1", 700, 1000))
    assert await store.budgets(["run/1"]) == {"run/1": BudgetState(70, 100, 0, 60)}


async def test_scopes_come_only_with_the_first_event(store: EventStore) -> None:
    task_id = await task(store)
    for expected in (1, ANY):
        with pytest.raises(ContractError, match="opened"):
            await store.append(request(Write(task_stream(task_id), [TaskCancelled("r", "a")], expected, None, scoped(ScopeLimit("run/1", None, None)))))
    with pytest.raises(ConflictError):
        await store.append(opened(task_id, ScopeLimit("run/1", None, None)))
    assert await store.budgets(["run/1"]) == {}


async def test_only_who_may_open_binds(worker: EventStore) -> None:
    with pytest.raises(NotAuthorised):
        await worker.append(opened(new_task(), ScopeLimit("run/1", None, None)))
    assert await worker.budgets(["run/1"]) == {}


async def test_only_task_streams_are_bound_so_that_agents_make_no_budgets(worker: EventStore) -> None:
    """Agents open streams of other categories: with scopes there, they could make tomorrow's budget with limits of their own."""
    bound = opened(new_task(), ScopeLimit(TENANT, None, None))
    with pytest.raises(ContractError, match="task stream"):
        await worker.append(bound._replace(writes=[bound.writes[0]._replace(stream=Stream("doc/default/x"))]))
    assert await worker.budgets([TENANT]) == {}


async def test_a_refused_opening_leaves_no_budget(store: EventStore) -> None:
    task_id = new_task()
    refused = opened(task_id, ScopeLimit("run/1", 1, 1))
    denied = Write(Stream("doc/default/x"), [AgentStopped("x", "y")], 5)
    refused = refused._replace(writes=[*refused.writes, denied], event_ids=[CLOCK.new_id(), CLOCK.new_id()])
    with pytest.raises(NotAuthorised):
        await store.append(refused)
    lost = opened(task_id, ScopeLimit("run/1", 1, 1))
    lost = lost._replace(writes=[*lost.writes, Write(Stream("agent/research"), [AgentStopped("research", "w")], 5)], event_ids=[CLOCK.new_id(), CLOCK.new_id()])
    won = opened(task_id, ScopeLimit("run/1", 2, 3))
    answers = await asyncio.gather(store.append(lost), store.append(won), return_exceptions=True)
    assert isinstance(answers[0], ConflictError)
    assert await store.budgets(["run/1"]) == {"run/1": BudgetState(2, 3, 0, 0)}


async def test_opening_twice_is_one_binding(store: EventStore) -> None:
    task_id = new_task()
    request_ = opened(task_id, ScopeLimit("run/1", 1, 2))
    await store.append(request_)
    assert (await store.append(request_)).duplicate
    assert await store.budgets(["run/1"]) == {"run/1": BudgetState(1, 2, 0, 0)}


# reserving


async def test_a_reservation_is_charged_to_every_scope(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100), ScopeLimit(TENANT, None, None))
    await worker.append(calling(task_id, 60, "m1-1"))
    assert (await state(store), await state(store, TENANT)) == ((0, 60), (0, 60))
    await worker.append(settling(task_id, 25, "m1-1"))
    assert (await state(store), await state(store, TENANT)) == ((25, 0), (25, 0))
    assert await open_ids(store) == []


async def test_what_does_not_fit_is_refused_without_a_trace(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit(TENANT, None, None), ScopeLimit("run/1", None, 100))
    await worker.append(calling(task_id, 60, "m1-1"))
    with pytest.raises(OverBudget) as caught:
        await worker.append(calling(task_id, 41, "m1-2"))
    refused = caught.value
    assert (refused.scope, refused.limit_micro_usd, refused.used_micro_usd, refused.needed_micro_usd) == ("run/1", 100, 60, 41)
    assert (await state(store), await state(store, TENANT)) == ((0, 60), (0, 60))
    assert await open_ids(store) == [reservation_id(task_id, "m1-1")]
    assert len(await store.read_streams({task_stream(task_id): 0})) == 2
    await worker.append(calling(task_id, 40, "m1-3"))
    assert await state(store) == (0, 100)


async def test_the_scope_that_is_full_is_named_whichever_it_is(store: EventStore, worker: EventStore) -> None:
    limits = [ScopeLimit(f"scope/{n}", None, 10 + n) for n in range(4)]
    for n, named in enumerate(("scope/0", "scope/1", "scope/0", "scope/0")):  # the first that is full, in the order they were bound
        task_id = await task(store, *limits[n:], *limits[:n])
        with pytest.raises(OverBudget) as caught:
            await worker.append(calling(task_id, 12))
        assert caught.value.scope == named
    assert await store.budgets([limit.scope for limit in limits]) == {limit.scope: BudgetState(None, limit.hard_micro_usd, 0, 0) for limit in limits}


async def test_a_limit_of_none_is_no_limit_but_counted(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, None))
    await worker.append(calling(task_id, MICRO_USD_MAX))
    assert await state(store) == (0, MICRO_USD_MAX)


async def test_a_limit_of_zero_allows_only_what_is_free(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", 0, 0))
    with pytest.raises(OverBudget):
        await worker.append(calling(task_id, 1, "m1-1"))
    assert (await worker.append(calling(task_id, 0, "m1-2"))).warned == ()


async def test_requests_sent_together_cannot_overspend_together(store: EventStore, worker: EventStore) -> None:
    tasks = [await task(store, ScopeLimit("run/1", None, 100)) for _ in range(20)]
    answers = await asyncio.gather(*(worker.append(calling(task_id, 30)) for task_id in tasks), return_exceptions=True)
    assert [isinstance(answer, OverBudget) for answer in answers] == [False] * 3 + [True] * 17
    assert await state(store) == (0, 90)


async def test_a_smaller_call_goes_on_behind_one_that_was_too_large(store: EventStore, worker: EventStore) -> None:
    tasks = [await task(store, ScopeLimit("run/1", None, 100)) for _ in range(4)]
    amounts = [80, 30, 20, 1]
    answers = await asyncio.gather(*(worker.append(calling(task_id, amount)) for task_id, amount in zip(tasks, amounts, strict=True)), return_exceptions=True)
    assert [isinstance(answer, OverBudget) for answer in answers] == [False, True, False, True]
    assert over(answers[1]) == ("run/1", 100, 80, 30)
    assert over(answers[3]) == ("run/1", 100, 100, 1)


async def test_a_call_without_reservation_is_refused(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, None))
    with pytest.raises(ContractError, match="reservation"):
        await worker.append(to_task(task_id, started(), asked(), expected=1))
    twice = to_task(task_id, asked("m1-1"), asked("m1-2"), expected=1)._replace(reserve=Reservation(CLOCK.new_id(), 0))
    with pytest.raises(ContractError, match="one per append"):
        await worker.append(twice)
    assert (await worker.append(to_task(task_id, started(), expected=1))).versions == [2]


async def test_a_call_cannot_hide_behind_another_stream(store: EventStore, worker: EventStore) -> None:
    free, task_id = await task(store), await task(store, ScopeLimit("run/1", None, 1))
    hidden = request(Write(task_stream(free), [started()], 1), Write(task_stream(task_id), [asked()], 1))
    with pytest.raises(ContractError, match="first write"):
        await worker.append(hidden._replace(reserve=Reservation(CLOCK.new_id(), 0)))
    assert await store.open_reservations(FAR_US, 10) == []


async def test_a_stream_without_scopes_needs_no_reservation(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store)
    await worker.append(to_task(task_id, started(), asked(), expected=1))
    await worker.append(calling(task_id, 50))
    assert [(r.reservation_id, r.amount_micro_usd) for r in await store.open_reservations(FAR_US, 10)] == [(reservation_id(task_id, "m1-1"), 50)]
    await worker.append(settling(task_id, 40))
    assert await open_ids(store) == []


async def test_one_reservation_is_made_once(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    await worker.append(calling(task_id, 10))
    with pytest.raises(ContractError, match="reserved already"):
        await worker.append(calling(task_id, 10))
    await worker.append(settling(task_id, None))
    with pytest.raises(ContractError, match="reserved already"):
        await worker.append(calling(task_id, 10))
    assert await state(store) == (0, 0)


async def test_a_conflict_reserves_nothing(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    with pytest.raises(ConflictError):
        await worker.append(calling(task_id, 1000, expected=7))
    assert (await state(store), await open_ids(store)) == ((0, 0), [])


# sent again


async def test_the_same_request_again_reserves_and_settles_nothing_more(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", 50, 100))
    call, end = calling(task_id, 60), settling(task_id, 55)
    original = await worker.append(call)
    for _ in range(2):
        again = await worker.append(call)
        assert (again.duplicate, list(again.versions), list(again.positions)) == (True, list(original.versions), list(original.positions))
        assert list(again.warned) == list(original.warned) == ["run/1"]
    assert await state(store) == (0, 60)
    await worker.append(end)
    again = await worker.append(end)
    assert (again.duplicate, list(again.warned)) == (True, ["run/1"])
    assert (await worker.append(call)).duplicate
    assert (await state(store), await open_ids(store)) == ((55, 0), [])


async def test_a_duplicate_is_answered_although_it_would_not_fit_any_more(store: EventStore, worker: EventStore) -> None:
    tasks = [await task(store, ScopeLimit("run/1", None, 100)) for _ in range(2)]
    call = calling(tasks[0], 60)
    await worker.append(call)
    await worker.append(calling(tasks[1], 40))
    answers = await asyncio.gather(worker.append(call), worker.append(calling(tasks[1], 1, "m2-1")), return_exceptions=True)
    assert not isinstance(answers[0], BaseException)
    assert answers[0].duplicate
    assert isinstance(answers[1], OverBudget)


async def test_a_refused_request_may_be_sent_again_later(store: EventStore, worker: EventStore) -> None:
    tasks = [await task(store, ScopeLimit("run/1", None, 100)) for _ in range(2)]
    await worker.append(calling(tasks[0], 60))
    call = calling(tasks[1], 60)
    with pytest.raises(OverBudget):
        await worker.append(call)
    await worker.append(settling(tasks[0], 10))
    assert not (await worker.append(call)).duplicate
    assert await state(store) == (10, 60)


# settling


async def test_a_settlement_is_never_refused_for_money(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    await worker.append(calling(task_id, 10))
    assert (await worker.append(settling(task_id, 250))).duplicate is False
    assert await state(store) == (250, 0)
    with pytest.raises(OverBudget) as caught:
        await worker.append(calling(task_id, 1, "m2-1"))
    assert caught.value.used_micro_usd == 250


async def test_settling_twice_has_no_effect(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    await worker.append(calling(task_id, 10))
    for actual in (7, 9, None, 8):
        await worker.append(settling(task_id, actual))
    assert await state(store) == (7, 0)


async def test_a_release_gives_back_and_a_late_price_still_counts(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    await worker.append(calling(task_id, 80))
    for _ in range(2):
        await worker.append(settling(task_id, None))
        assert (await state(store), await open_ids(store)) == ((0, 0), [])
    for _ in range(2):
        await worker.append(settling(task_id, 33))
        assert await state(store) == (33, 0)


async def test_what_was_never_reserved_is_left_alone(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    await worker.append(settling(task_id, 50, "never"))
    assert await state(store) == (0, 0)


async def test_settling_makes_room_in_the_same_append(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    await worker.append(calling(task_id, 100, "m1-1"))
    next_call = calling(task_id, 90, "m1-2")._replace(settle=[Settlement(reservation_id(task_id, "m1-1"), 10)])
    await worker.append(next_call)
    assert await state(store) == (10, 90)
    too_much = calling(task_id, 100, "m1-3")._replace(settle=[Settlement(reservation_id(task_id, "m1-2"), 10)])
    with pytest.raises(OverBudget) as caught:
        await worker.append(too_much)
    assert caught.value.used_micro_usd == 20
    assert (await state(store), await open_ids(store)) == ((10, 90), [reservation_id(task_id, "m1-2")])


async def test_a_call_may_be_settled_in_the_append_that_reserves_it(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    own = Settlement(reservation_id(task_id, "m1-1"), 5)
    answer = await worker.append(calling(task_id, 80)._replace(settle=[own, own]))
    assert (answer.versions, await state(store), await open_ids(store)) == ([2], (5, 0), [])
    with pytest.raises(OverBudget):
        await worker.append(calling(task_id, 96, "m2-1")._replace(settle=[Settlement(reservation_id(task_id, "m2-1"), 0)]))
    await worker.append(calling(task_id, 50, "m3-1")._replace(settle=[Settlement(reservation_id(task_id, "m3-1"), None)]))
    assert (await state(store), await open_ids(store)) == ((5, 0), [])
    await worker.append(settling(task_id, 4, "m3-1"))
    assert await state(store) == (9, 0)


async def test_requests_of_one_batch_see_each_other_in_order(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    requests = [
        calling(task_id, 100, "a", expected=1),
        settling(task_id, 60, "a", expected=2),
        calling(task_id, 50, "b", expected=3),  # refused, and so nobody stands at version 4
        calling(task_id, 40, "c", expected=3),
        settling(task_id, None, "c", expected=4),
        settling(task_id, 30, "c", expected=5),
        calling(task_id, 10, "c", expected=6),
        settling(task_id, 9, "a", expected=7),
    ]
    answers = await asyncio.gather(*map(worker.append, requests), return_exceptions=True)
    assert [answer.versions[0] if not isinstance(answer, BaseException) else type(answer) for answer in answers] == [2, 3, OverBudget, 4, 5, 6, 7, 8]
    assert await state(store) == (90, 10)


async def test_the_orchestrator_settles_what_a_dead_worker_left(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    await worker.append(calling(task_id, 80))
    await store.append(settling_elsewhere(task_id, 80))
    assert (await state(store), await open_ids(store)) == ((80, 0), [])


async def test_a_kind_settles_only_its_own(store: EventStore, worker: EventStore, log: Log) -> None:
    mine, other = await task(store, ScopeLimit("run/1", None, 100)), await task(store, ScopeLimit("run/1", None, 100))
    await worker.append(calling(mine, 30))
    for role in ("crewlog_data", SPECIALIST):
        stranger = await log.open(role)
        with pytest.raises(NotAuthorised):
            await stranger.append(settling_elsewhere(mine, 1))
    assert await state(store) == (0, 30)
    # written to the stream of another task it is left alone; beside its own it counts, which may be closed
    await worker.append(settling(mine, 20)._replace(writes=[Write(task_stream(other), [started()], 1)]))
    assert await state(store) == (0, 30)
    await store.append(to_task(mine, TaskCancelled("late", "test"), expected=2))
    await worker.append(settling_elsewhere(mine, 20))
    assert await state(store) == (20, 0)


async def test_one_foreign_settlement_refuses_only_its_own_request(store: EventStore, worker: EventStore, log: Log) -> None:
    mine, theirs = await task(store, ScopeLimit("run/1", None, 100)), await task(store, ScopeLimit("run/1", None, 100), kind="data")
    data = await log.open("crewlog_data")
    await data.append(calling(theirs, 10))
    answers = await asyncio.gather(worker.append(settling_elsewhere(theirs, 0)), worker.append(calling(mine, 20, expected=1)), return_exceptions=True)
    assert isinstance(answers[0], NotAuthorised)
    assert not isinstance(answers[1], BaseException)
    assert await state(store) == (0, 30)


# the soft limit


async def test_the_soft_limit_warns_each_request_that_is_over_it(store: EventStore, worker: EventStore) -> None:
    tasks = [await task(store, ScopeLimit("run/1", 70, 100), ScopeLimit(TENANT, 90, None)) for _ in range(4)]
    answers = await asyncio.gather(*(worker.append(calling(task_id, amount)) for task_id, amount in zip(tasks, (70, 10, 10, 1), strict=True)))
    assert [list(answer.warned) for answer in answers] == [[], ["run/1"], ["run/1"], ["run/1", TENANT]]
    settled = await worker.append(settling(tasks[0], 1))
    assert list(settled.warned) == []
    assert list((await worker.append(settling(tasks[1], 69))).warned) == ["run/1"]


async def test_what_costs_nothing_warns_of_nothing(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", 10, 100))
    await worker.append(calling(task_id, 90, "m1-1"))
    assert list((await worker.append(calling(task_id, 0, "m1-2"))).warned) == []
    assert list((await worker.append(settling(task_id, 0, "m1-2"))).warned) == []
    assert list((await worker.append(to_task(task_id, started()))).warned) == []


# limits


async def test_limits_change_with_their_event(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", 70, 100))
    await worker.append(calling(task_id, 100, "m1-1"))
    with pytest.raises(OverBudget):
        await worker.append(calling(task_id, 1, "m1-2"))
    await store.append(changing(ScopeLimit("run/1", 700, 1000), ScopeLimit("run/new", None, 5)))
    assert await store.budgets(["run/1", "run/new"]) == {"run/1": BudgetState(700, 1000, 0, 100), "run/new": BudgetState(None, 5, 0, 0)}
    await worker.append(calling(task_id, 900, "m1-3"))
    await store.append(changing(ScopeLimit("run/1", None, None)))
    await worker.append(calling(task_id, 900, "m1-4"))
    await store.append(changing(ScopeLimit("run/1", 0, 0)))
    with pytest.raises(OverBudget):
        await worker.append(calling(task_id, 1, "m1-5"))
    assert [event.type for event in await store.read_streams({budget_stream("run/1"): 0})] == ["BudgetChanged"] * 3


async def test_a_change_sent_again_does_not_undo_a_later_one(store: EventStore) -> None:
    first = changing(ScopeLimit("run/1", 1, 2))
    await store.append(first)
    await store.append(changing(ScopeLimit("run/1", 3, 4)))
    assert (await store.append(first)).duplicate
    assert (await store.budgets(["run/1"]))["run/1"] == BudgetState(3, 4, 0, 0)


async def test_only_who_may_write_the_event_changes_a_limit(store: EventStore, log: Log) -> None:
    await task(store, ScopeLimit("run/1", 1, 1))
    for role in ("crewlog_research", SPECIALIST, OPERATOR, PROJECTOR):
        stranger = await log.open(role)
        with pytest.raises(NotAuthorised):
            await stranger.append(changing(ScopeLimit("run/1", None, None)))
    assert (await store.budgets(["run/1"]))["run/1"] == BudgetState(1, 1, 0, 0)


async def test_a_refused_change_changes_nothing(store: EventStore) -> None:
    await task(store, ScopeLimit("run/1", 1, 1))
    made = changing(ScopeLimit("run/1", 5, 5), ScopeLimit("run/new", 5, 5))
    with pytest.raises(ConflictError):
        await store.append(made._replace(writes=[write._replace(expected=9) for write in made.writes]))
    assert await store.budgets(["run/1", "run/new"]) == {"run/1": BudgetState(1, 1, 0, 0)}


async def test_a_raised_limit_holds_for_what_stands_behind_it_in_one_batch(store: EventStore, log: Log) -> None:
    owner = await log.open_as_owner() if isinstance(log, InPostgres) else await log.open("owner")
    task_id = await task(store, ScopeLimit("run/1", None, 10))
    requests = [calling(task_id, 11, "a"), changing(ScopeLimit("run/1", None, 20)), calling(task_id, 11, "b"), changing(ScopeLimit("run/1", None, 5))]
    requests.append(calling(task_id, 1, "c"))  # too few for a second lane: they travel together
    answers = await asyncio.gather(*map(owner.append, requests), return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["OverBudget", "Appended", "Appended", "Appended", "OverBudget"]
    assert await store.budgets(["run/1"]) == {"run/1": BudgetState(None, 5, 0, 11)}


# looking


@pytest.mark.hand_written("tries the ledger")
async def test_open_reservations_are_listed_oldest_first(store: EventStore, worker: EventStore) -> None:
    run_id = new_run()
    task_id = await task(store, ScopeLimit("run/1", None, None), run_id=run_id)
    for since_us, call_id in ((30, "c"), (10, "a"), (20, "b"), (5, "released")):
        await worker.append(calling(task_id, since_us, call_id)._replace(occurred_us=since_us, run_id=run_id, task_id=task_id))
    await worker.append(settling(task_id, None, "released"))
    assert [r.reservation_id for r in await store.open_reservations(FAR_US, 2)] == [reservation_id(task_id, "a"), reservation_id(task_id, "b")]
    assert await store.open_reservations(10, 10) == []
    (oldest,) = await store.open_reservations(11, 10)
    assert oldest == (reservation_id(task_id, "a"), task_stream(task_id), run_id, task_id, 10, 10)


async def test_every_login_may_look(store: EventStore, log: Log) -> None:
    await task(store, ScopeLimit("run/1", 1, 1))
    for role in (PROJECTOR, OPERATOR, ORCHESTRATOR, SPECIALIST, "crewlog_data"):
        reader = await log.open(role)
        assert await reader.budgets(["run/1"]) == {"run/1": BudgetState(1, 1, 0, 0)}
        assert await reader.open_reservations(FAR_US, 1) == []


async def test_plain_appends_reserve_and_settle_on_their_own_streams(store: EventStore, worker: EventStore) -> None:
    """Batches of what comes most: at the version that is expected, one reservation or settlement each."""
    tasks = [await task(store, ScopeLimit("run/1", None, 100), ScopeLimit(f"tree/{n % 2}", None, None)) for n in range(4)]
    await asyncio.gather(*(worker.append(calling(task_id, 10 + n, expected=1)) for n, task_id in enumerate(tasks)))
    assert (await state(store), await state(store, "tree/0"), await state(store, "tree/1")) == ((0, 46), (0, 22), (0, 24))
    assert sorted(await open_ids(store)) == sorted(reservation_id(task_id, "m1-1") for task_id in tasks)
    await asyncio.gather(*(worker.append(settling(task_id, n, expected=2)) for n, task_id in enumerate(tasks)))
    assert (await state(store), await state(store, "tree/0"), await open_ids(store)) == ((6, 0), (2, 0), [])
    again = await worker.append(settling(tasks[3], 50, expected=3))
    assert (again.versions, await state(store)) == ([4], (6, 0)), "only the first one counts"


async def test_a_reservation_of_anothers_is_reserved_already(store: EventStore, worker: EventStore, log: Log) -> None:
    """Whoever makes one of that id, and settles it at once, learns no more of whose it is than anybody else."""
    own, anothers = await task(store, ScopeLimit("run/1", None, 100)), await task(store, ScopeLimit("run/1", None, 100), kind="code")
    taken = Reservation(reservation_id(anothers, "m1-1"), 10)
    coder = await log.open("crewlog_code")
    await coder.append(calling(anothers, 10)._replace(reserve=taken))
    for settled in ([], [Settlement(taken.reservation_id, 3)]):
        with pytest.raises(ContractError, match="reserved already"):
            await worker.append(calling(own, 10)._replace(reserve=taken, settle=settled))
    assert (await state(store), await open_ids(store)) == ((0, 10), [taken.reservation_id])


async def test_what_is_reserved_and_settled_at_once_leaves_nothing_on_whatever_stream(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    both = settling_elsewhere(task_id, 3)
    await worker.append(both._replace(reserve=Reservation(both.settle[0].reservation_id, 60)))
    assert (await state(store), await open_ids(store)) == ((0, 0), []), "what stands beside a task is bound to no scope of its own"


async def test_a_plain_reservation_that_does_not_fit_is_refused_alone(store: EventStore, worker: EventStore) -> None:
    tasks = [await task(store, ScopeLimit("run/1", 50, 100)) for _ in range(3)]
    answers = await asyncio.gather(*(worker.append(calling(task_id, 45, expected=1)) for task_id in tasks), return_exceptions=True)
    assert over(answers[2]) == ("run/1", 100, 90, 45)
    assert [list(answer.warned) for answer in answers[:2] if not isinstance(answer, BaseException)] == [[], ["run/1"]]
    assert (await state(store), len(await open_ids(store))) == ((0, 90), 2)
    assert (await worker.append(calling(tasks[2], 10, expected=1))).versions == [2]


async def test_a_plain_reservation_is_settled_from_anywhere_it_may_be(store: EventStore, worker: EventStore) -> None:
    """What one append keeps in the plainest way, another finds: a late worker's, one with more to say, one that gives it back."""
    tasks = [await task(store, ScopeLimit("run/1", None, 1000)) for _ in range(4)]
    late, several, released, twice = tasks
    await asyncio.gather(*(worker.append(calling(task_id, 10, expected=1)) for task_id in tasks))
    await worker.append(settling_elsewhere(late, 3))
    await worker.append(calling(several, 20, "m1-2", expected=2)._replace(settle=[Settlement(reservation_id(several, "m1-1"), 4)]))
    await worker.append(settling(released, None, expected=2))
    with pytest.raises(ContractError, match="reserved already"):
        await worker.append(calling(twice, 10, expected=2))
    assert await state(store) == (7, 30)
    assert sorted(await open_ids(store)) == sorted([reservation_id(several, "m1-2"), reservation_id(twice, "m1-1")])
    await worker.append(calling(twice, 1, "second", expected=2))
    assert (await state(store), len(await open_ids(store))) == ((7, 31), 3), "a stream may have two"
    for call_id, version in (("m1-1", 3), ("second", 4)):
        await worker.append(settling(twice, 1, call_id, expected=version))
    await worker.append(settling(released, 5, expected=3))
    await worker.append(settling(several, 6, "m1-2", expected=3))
    assert (await state(store), await open_ids(store)) == ((20, 0), [])


@pytest.mark.hand_written("tries the ledger")
@pytest.mark.parametrize("by_worker", [True, False])
async def test_what_is_reserved_when_a_task_ends_is_left_over(store: EventStore, worker: EventStore, *, by_worker: bool) -> None:
    run_id = new_run()
    ended, open_, idle = [await task(store, ScopeLimit("run/1", None, 1000), run_id=run_id) for _ in range(3)]
    for task_id in (ended, open_):
        await worker.append(calling(task_id, 10, expected=1)._replace(run_id=run_id, task_id=task_id))
    (before,) = [r for r in await store.open_reservations(FAR_US, 9) if r.task_id == ended]
    assert await store.open_reservations(FAR_US, 9, left_over=True) == []
    await (worker if by_worker else store).append(to_task(ended, completed() if by_worker else TaskCancelled("late", "test"), expected=2))
    await worker.append(to_task(idle, completed(), expected=1))
    assert await store.open_reservations(FAR_US, 9, left_over=True) == [before]
    await store.append(settling_elsewhere(ended, 10))
    assert (await state(store), await open_ids(store)) == ((10, 10), [reservation_id(open_, "m1-1")])
    assert await store.open_reservations(FAR_US, 9, left_over=True) == []


async def test_the_end_of_a_task_leaves_its_reservations_to_be_settled(store: EventStore, worker: EventStore) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    await worker.append(calling(task_id, 40))
    await worker.append(to_task(task_id, completed(), expected=2)._replace(settle=[Settlement(reservation_id(task_id, "m1-1"), 39)]))
    assert (await state(store), await open_ids(store)) == ((39, 0), [])


# malformed


BAD_AMOUNTS: Sequence[object] = (-1, MICRO_USD_MAX + 1, 2**63, 1.0, float("nan"), True, "5")


@pytest.mark.parametrize("amount", BAD_AMOUNTS)
async def test_amounts_that_are_no_money_are_refused_in_the_caller(store: EventStore, worker: EventStore, amount: int) -> None:
    task_id = await task(store, ScopeLimit("run/1", None, 100))
    bad: list[AppendRequest] = [
        calling(task_id, amount),
        settling(task_id, amount),
        opened(new_task(), ScopeLimit("run/2", None, amount)),
        opened(new_task(), ScopeLimit("run/2", amount, None)),
        changing(ScopeLimit("run/2", None, amount)),
    ]
    for made in bad:
        with pytest.raises(ContractError):
            pytest.fail(f"{made}: {await store.append(made)}")
    assert await store.budgets(["run/1", "run/2"]) == {"run/1": BudgetState(None, 100, 0, 0)}


async def test_requests_that_contradict_themselves_are_refused_in_the_caller(store: EventStore) -> None:
    task_id, limit = await task(store, ScopeLimit("run/1", None, 100)), ScopeLimit("run/1", 1, 2)
    change = changing(limit)
    bad = {
        "reservation id": calling(task_id, 1)._replace(reserve=Reservation("x", 1)),  # type: ignore[arg-type]
        "settlement id": calling(task_id, 1)._replace(settle=[Settlement("x", 1)]),  # type: ignore[arg-type]
        "soft above hard": opened(new_task(), ScopeLimit("run/2", 3, 2)),
        "scope twice": opened(new_task(), limit, limit),
        "no name": opened(new_task(), ScopeLimit("", 1, 2)),
        "NUL": opened(new_task(), ScopeLimit("a\0", 1, 2)),
        "surrogate": opened(new_task(), ScopeLimit("a\ud800", 1, 2)),
        "no task's stream": request(opened(new_task(), limit).writes[0]._replace(stream=Stream("task"))),
        "long name": opened(new_task(), ScopeLimit("a" * 301, 1, 2)),
        "too many scopes": opened(new_task(), *(ScopeLimit(f"s/{n}", 1, 2) for n in range(17))),
        "too many settlements": settling(task_id, 1)._replace(settle=[Settlement(CLOCK.new_id(), 1) for _ in range(257)]),
        "a limit without its event": settling(task_id, 1)._replace(limits=[limit]),
        "an event without its limit": change._replace(limits=[]),
        "another limit than the event": change._replace(limits=[ScopeLimit("run/1", 1, 3)]),
        "a limit twice": change._replace(limits=[limit, limit]),
        "another stream than the scope's": request(Write(budget_stream("run/9"), [BudgetChanged("run/1", 1, 2, "a")]))._replace(limits=[limit]),
        "two changes": request(Write(budget_stream("run/1"), [BudgetChanged("run/1", 1, 2, "a"), BudgetChanged("run/1", 2, 3, "a")]))._replace(limits=[limit]),
    }
    for name, made in bad.items():
        with pytest.raises(ContractError):
            pytest.fail(f"{name}: {await store.append(made)}")
    assert await store.budgets(["run/1", "run/2"]) == {"run/1": BudgetState(None, 100, 0, 0)}


async def test_names_are_only_names(store: EventStore, worker: EventStore) -> None:
    scopes = ["größe 🎉", "a'b\"c\\", "{1,2}", "NULL", "%s", run_scope(new_run())]
    task_id = await task(store, *(ScopeLimit(scope, None, 5) for scope in scopes))
    await worker.append(calling(task_id, 3))
    assert await store.budgets(scopes) == {scope: BudgetState(None, 5, 0, 3) for scope in scopes}
    with pytest.raises(OverBudget) as caught:
        await worker.append(calling(task_id, 3, "m2-1"))
    assert caught.value.scope == scopes[0]


async def test_money_in_the_append_that_opens(store: EventStore, log: Log) -> None:
    owner = await log.open_as_owner() if isinstance(log, InPostgres) else await log.open("owner")
    task_id, limit = new_task(), ScopeLimit("run/1", 5, 10)
    both = Write(task_stream(task_id), [*opened(task_id).writes[0].events, asked("m1-1")], NO_STREAM, "research", [limit])
    with pytest.raises(ContractError, match="reservation"):
        await owner.append(request(both))
    with pytest.raises(OverBudget):
        await owner.append(request(both)._replace(reserve=Reservation(reservation_id(task_id, "m1-1"), 11)))
    assert await store.budgets(["run/1"]) == {}
    answer = await owner.append(request(both)._replace(reserve=Reservation(reservation_id(task_id, "m1-1"), 10)))
    assert list(answer.warned) == ["run/1"]
    assert (await store.budgets(["run/1"]))["run/1"] == BudgetState(5, 10, 0, 10)


@pytest.mark.hand_written("tries the ledger")
async def test_opening_and_spending_in_one_batch(store: EventStore, log: Log) -> None:
    owner = await log.open_as_owner() if isinstance(log, InPostgres) else await log.open("owner")
    run_id, task_id = new_run(), new_task()
    requests = [opened(task_id, ScopeLimit("run/1", 5, 10)), calling(task_id, 6, "a"), calling(task_id, 5, "b"), settling(task_id, 4, "a")]
    answers = await asyncio.gather(*(owner.append(r._replace(run_id=run_id)) for r in (*requests, opening(run_id))), return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Appended", "Appended", "OverBudget", "Appended", "Appended"]
    assert await state(store) == (4, 0)
