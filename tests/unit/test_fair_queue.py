"""Who is next among tasks that wait for agents: tenants, lanes and runs in turn."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crewlog.orchestrator.dispatch import Dispatch
from crewlog.orchestrator.fair_queue import BURST, FairQueue, Waiting
from crewlog.orchestrator.window import UNHEARD, UNKNOWN, Window
from crewlog.schemas.ids import RunId, TaskId


def entry(number: int, tenant: str = "a", *, run: int = 0, lane: str = "normal") -> Waiting:
    return Waiting(tenant, RunId(UUID(int=run)), Dispatch(TaskId(UUID(int=number)), "data", lane, 1, 1, b""))


def number_of(waiting: Waiting) -> int:
    return waiting.dispatch.task_id.int


def taken(queue: FairQueue, count: int) -> list[Waiting]:
    return [queue.pop() for _ in range(count)]


def test_within_a_run_the_first_come_is_the_first_served() -> None:
    queue = FairQueue()
    for number in range(5):
        queue.push(entry(number))
    assert list(map(number_of, taken(queue, 5))) == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        queue.pop()


def test_a_tenant_that_comes_back_goes_before_thousands_of_another_and_then_shares() -> None:
    queue = FairQueue()
    for number in range(1000):
        queue.push(entry(number, "noisy", run=number))
    taken(queue, 100)
    for number in range(2000, 2100):
        queue.push(entry(number, "quiet", run=number))
    assert [e.tenant for e in taken(queue, int(BURST))] == ["quiet"] * int(BURST)
    shares = Counter(e.tenant for e in taken(queue, 100))
    assert abs(shares["quiet"] - 50) <= 1


def test_a_run_of_a_tenant_that_comes_back_gets_as_many_turns_in_a_row_as_there_are_slots() -> None:
    queue = FairQueue()
    queue.fit(64)
    for number in range(1000):
        queue.push(entry(number, "noisy", run=number))
    taken(queue, 100)
    for number in range(2000, 2100):
        queue.push(entry(number, "quiet"))
    assert [e.tenant for e in taken(queue, 64)] == ["quiet"] * 64
    assert abs(Counter(e.tenant for e in taken(queue, 30))["quiet"] - 15) <= 1


def test_what_a_tenant_left_unused_long_ago_is_gone() -> None:
    queue = FairQueue()
    queue.push(entry(1, "quiet"))
    queue.pop()
    for number in range(5000):
        queue.push(entry(10 + number, "noisy"))
    taken(queue, 4000)
    for number in range(100):
        queue.push(entry(9000 + number, "quiet"))
    first = [e.tenant for e in taken(queue, 40)]
    assert first.count("quiet") <= BURST + 14


def test_a_run_of_one_step_does_not_stand_behind_a_run_of_a_thousand() -> None:
    queue = FairQueue()
    for number in range(1000):
        queue.push(entry(number, run=1))
    taken(queue, 10)
    queue.push(entry(5000, run=2))
    assert 5000 in map(number_of, taken(queue, 2))


def test_lanes_order_the_work_of_a_tenant_and_buy_nothing_from_others() -> None:
    queue = FairQueue()
    for number in range(300):
        for n, lane in enumerate(("high", "normal", "low")):
            queue.push(entry(number * 3 + n, "a", lane=lane))
        queue.push(entry(5000 + number, "b", lane="low"))
    served = taken(queue, 240)
    tenants = Counter(e.tenant for e in served)
    assert abs(tenants["a"] - tenants["b"]) <= 1
    lanes = Counter(e.dispatch.lane for e in served if e.tenant == "a")
    assert lanes == {"high": 80, "normal": 30, "low": 10}


def test_a_task_that_is_dropped_costs_nobody_a_turn() -> None:
    queue = FairQueue()
    for number in range(10):
        queue.push(entry(number, "a"))
        queue.push(entry(100 + number, "b"))
    for number in range(9):
        queue.drop(TaskId(UUID(int=number)))
    queue.drop(TaskId(UUID(int=12345)))
    assert len(queue) == 11
    assert queue.waiting_of("a") == 1
    assert 9 in map(number_of, taken(queue, 2))


def test_a_task_that_is_dispatched_again_while_it_waits_keeps_its_place_and_is_sent_as_it_is_now() -> None:
    queue = FairQueue()
    queue.push(entry(1))
    queue.push(entry(2))
    queue.push(entry(1)._replace(nonce="x"))
    assert [(number_of(e), e.nonce) for e in taken(queue, 2)] == [(1, "x"), (2, "")]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.sampled_from(("high", "normal", "low"))), min_size=1, max_size=40), st.data())
def test_everything_comes_out_once_and_who_is_ahead_is_about_right(items: list[tuple[str, int, str]], data: st.DataObject) -> None:
    queue = FairQueue()
    for number, (tenant, run, lane) in enumerate(items):
        queue.push(entry(number, tenant, run=run, lane=lane))
    dropped = data.draw(st.sets(st.integers(0, len(items) - 1)))
    for number in dropped:
        queue.drop(TaskId(UUID(int=number)))
    if data.draw(st.booleans(), label="take the dropped ones out"):
        queue._root.keep(queue._waiting)
    left = set(range(len(items))) - dropped
    said = {number: queue.ahead_of(TaskId(UUID(int=number))) for number in left}
    order = list(map(number_of, taken(queue, len(queue))))
    assert sorted(order) == sorted(left)
    assert not len(queue)
    for place, number in enumerate(order):
        assert said[number] <= len(left) - 1
        if len({items[n][0] for n in left}) == 1 and len({items[n][2] for n in left}) == 1:
            assert abs(said[number] - place) <= 3


def ids(first: int, count: int) -> list[TaskId]:
    return [TaskId(UUID(int=first + n)) for n in range(count)]


def test_the_window_covers_the_slots_and_where_tasks_are_short_what_ends_until_the_next_one_arrives() -> None:
    window = Window()
    assert window.size(8) == 8
    for tick, task_id in enumerate(ids(1, 1000)):
        window.sent(task_id)
        window.ended(task_id, tick * 0.001)
    assert 9 <= window.size(8) - 8 <= 12  # a thousand ends a second, 10 ms ahead
    assert window.size(200) == 200  # a twentieth of them: each task takes twenty times as long as the news of its end
    window.seen(0, 0, 10.0)
    assert window.size(8) == 8


def test_an_operator_may_bound_a_kind_and_a_kind_without_workers_gets_little() -> None:
    window = Window()
    assert window.size(100, most=3) == 3
    assert window.size(0) == UNKNOWN
    assert window.size(0, all_heard=False) == UNHEARD
    assert window.size(100, all_heard=False) == 100


def test_what_the_bus_says_is_shared_out_to_own_and_others() -> None:
    window = Window()
    tasks = ids(1, 6)
    for task_id in tasks[:5]:
        window.sent(task_id)
    asked = window.own()
    window.sent(tasks[5])  # behind the question
    assert window.seen(9, asked, 1.0) == []
    assert window.in_flight == 10
    window.ended(tasks[0], 1.1)
    window.ended(tasks[0], 1.2)
    assert window.in_flight == 9, "an end counts once"
    assert window.seen(9, window.own(), 1.12) == [], "the message of an end that was just heard of may still be there"
    assert window.in_flight == 8
    assert window.seen(2, window.own(), 2.0) == tasks[1:4], "others heard of these ends: the oldest are taken for them"
    assert window.in_flight == 2
    asked = window.own()
    window.sent(tasks[0])  # again, behind the question
    assert window.seen(1, asked, 3.0) == [tasks[4]], "what was sent behind the question is not looked for"


def test_what_is_dropped_before_its_turn_is_not_kept_until_then() -> None:
    queue = FairQueue()
    queue.push(entry(0, "patient"))
    for number in range(1, 20_000):
        queue.push(entry(number, f"t{number % 7}", run=number))
        queue.drop(entry(number).dispatch.task_id)
    for number in range(20_001, 20_004):
        queue.push(entry(number, "t1", run=number))

    left = [run for tenant in queue._root.members.values() for lane in tenant.members.values() for run in lane.members]
    assert len(left) < 2_000
    assert sorted(map(number_of, taken(queue, 4))) == [0, 20_001, 20_002, 20_003]
    assert (len(queue), queue.tenants(), queue.bytes) == (0, {}, 0)
