"""What the fold of runs makes of budgets: a hold with its partial result, warnings, and every call charged exactly once."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from support.run_tables import Tables, fold_pages

from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import ANY, AppendRequest, Write
from crewlog.schemas.codec import Event
from crewlog.schemas.ids import Hash, RunId, Stream, TaskId, run_stream, spend_stream, task_stream
from crewlog.schemas.payload import EMPTY, Payload
from crewlog.schemas.run_events import RunCancelled, RunHeld, RunPlanned, RunReleased, RunSubmitted, Step, TaskDispatched, TaskHeld
from crewlog.schemas.system_events import CallSettled
from crewlog.schemas.task_events import BudgetWarned, ModelCallFailed, ModelCallFinished, ModelCallStarted, TaskCancelled, TaskOpened, TaskStarted
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import ArtifactRef, Failure, Shortfall

pytestmark = pytest.mark.hand_written("views of budgets are tried on events alone")

RUN, TASK = RunId(UUID(int=1)), TaskId(UUID(int=1))
SCOPE = f"run/{RUN}"
BEGIN: list[tuple[Stream, Event]] = [
    (run_stream(RUN), RunSubmitted(RUN, "default", "eve", "x", msgspec.Raw(msgspec.json.encode({"task_id": RUN, "type": "data"})), "api")),
    (run_stream(RUN), RunPlanned((Step("task", "data", "x", (), msgspec.Raw(b"{}")),), "single")),
    (run_stream(RUN), TaskDispatched(TASK, "task", "data", 1, 0, 9)),
    (task_stream(TASK), TaskOpened("data", "task", 0, msgspec.Raw(b"{}"))),
    (task_stream(TASK), TaskStarted("w1", 1, "1", "m", "acme", False, EMPTY, EMPTY)),
]
HELD: list[tuple[Stream, Event]] = [
    (run_stream(RUN), TaskHeld(TASK, "task", 1, Failure("budget", "no room"), Shortfall(SCOPE, 10, 8, 5))),
    (run_stream(RUN), RunHeld("budget", SCOPE, 10, 8, 5, Payload(6, inline="so far"), (ArtifactRef("a", Hash("a" * 64), 1),), 7, 9)),
]
ASKED = (task_stream(TASK), ModelCallStarted("m1-1", 1, "acme", "m", Hash("a" * 64), 1))
CANCELLED: list[tuple[Stream, Event]] = [(run_stream(RUN), RunCancelled("enough", "eve")), (task_stream(TASK), TaskCancelled("enough", "eve"))]
SETTLED = (spend_stream(TASK), CallSettled(TASK, RUN, "m1-1", "acme", "m", Usage(4, 2), Price(30, "worst case")))


async def folded(*events: tuple[Stream, Event]) -> Tables:
    store = MemoryStore()
    for number, (stream, event) in enumerate(events, 1):
        await store.append(AppendRequest((Write(stream, (event,), ANY, "data"),), (UUID(int=number),), number, RUN, TASK))
    recorded = (await store.read_all(0, 1000)).events
    at_once, one_by_one = await fold_pages(store, [recorded]), await fold_pages(store, [[r] for r in recorded], open_runs_max=1)
    assert vars(at_once) == vars(one_by_one)
    return at_once


async def test_a_held_run_shows_which_budget_and_where_its_partial_result_is() -> None:
    tables = await folded(*BEGIN, *HELD)

    run, task = tables.runs[RUN,], tables.tasks[RUN, "task", 0]
    assert (run["status"], run["hold_position"], task["status"], task["error_code"]) == ("held", 7, "held", "budget")
    hold = msgspec.json.decode(run["hold"])
    assert hold == {
        "reason": "budget", "scope": SCOPE, "limit_micro_usd": 10, "used_micro_usd": 8, "needed_micro_usd": 5, "since_us": 7, "expires_us": 9
    }  # fmt: skip
    assert "a" * 64 in run["artifacts"]


async def test_a_released_run_is_at_work_again() -> None:
    again = TaskDispatched(TASK, "task", "data", 2, 0, 9)
    tables = await folded(*BEGIN, *HELD, (run_stream(RUN), RunReleased(SCOPE, 20, 8)), (run_stream(RUN), again))

    run, task = tables.runs[RUN,], tables.tasks[RUN, "task", 0]
    assert (run["status"], run["hold"], run["hold_position"], run["artifacts"]) == ("running", None, None, "[]")
    assert (task["status"], task["attempt"]) == ("queued", 2)


async def test_an_ended_run_is_not_held() -> None:
    tables = await folded(*BEGIN, *HELD, *CANCELLED)

    assert (tables.runs[RUN,]["status"], tables.runs[RUN,]["hold"]) == ("cancelled", None)


async def test_a_warning_is_kept_once_per_scope() -> None:
    warned = (task_stream(TASK), BudgetWarned(SCOPE, "m1-1"))
    tables = await folded(*BEGIN, warned, warned, (task_stream(TASK), BudgetWarned("tree/1", "m1-1")))

    assert msgspec.json.decode(tables.runs[RUN,]["warnings"]) == [SCOPE, "tree/1"]


async def test_a_call_that_is_settled_behind_the_end_of_its_task_is_charged_to_it() -> None:
    tables = await folded(*BEGIN, ASKED, *CANCELLED, SETTLED)

    (call,) = tables.model_calls.values()
    assert (call["status"], call["cost_micro_usd"], call["price_source"], call["input_tokens"]) == ("unused", 30, "worst case", 4)
    task = tables.tasks[RUN, "task", 0]
    assert (task["cost_micro_usd"], task["model_calls"], task["input_tokens"]) == (30, 1, 4)


async def test_a_call_of_a_dead_worker_that_the_next_one_settles_is_one_call() -> None:
    started = (task_stream(TASK), TaskStarted("w2", 1, "1", "m", "acme", False, EMPTY, EMPTY, taken_over_from="w1"))
    lost = ModelCallFailed("m1-1", 1, "acme", "m", Failure("model_interrupted", "its worker died"), 0, Price(30, "worst case"))
    tables = await folded(*BEGIN, ASKED, started, (task_stream(TASK), lost))

    (call,) = tables.model_calls.values()
    assert (call["status"], call["cost_micro_usd"]) == ("failed", 30)
    assert (tables.tasks[RUN, "task", 0]["cost_micro_usd"], tables.tasks[RUN, "task", 0]["model_calls"]) == (30, 1)


BESIDE = (task_stream(TASK), ModelCallStarted("m1-2", 1, "other", "n", Hash("a" * 64), 1, hedge=True))


async def test_two_calls_side_by_side_are_two_calls_and_each_is_charged_once() -> None:
    lost = ModelCallFailed("m1-1", 1, "acme", "m", Failure("hedge_lost", "another model answered first"), 3, Price(30, "worst case"))
    won = ModelCallFinished("m1-2", 1, "end_turn", EMPTY, (), Usage(4, 2), Price(5, "test"), "other", "n", False, 3)
    tables = await folded(*BEGIN, ASKED, BESIDE, (task_stream(TASK), lost), (task_stream(TASK), won))

    calls = [(call["call_id"], call["status"], call["error_code"], call["cost_micro_usd"]) for call in tables.model_calls.values()]
    assert calls == [("m1-1", "failed", "hedge_lost", 30), ("m1-2", "ok", None, 5)]
    task = tables.tasks[RUN, "task", 0]
    assert (task["cost_micro_usd"], task["model_calls"], task["input_tokens"]) == (35, 2, 4)


async def test_while_two_calls_are_under_way_the_task_waits_for_both_and_its_end_closes_both() -> None:
    tables = await folded(*BEGIN, ASKED, BESIDE)
    assert tables.tasks[RUN, "task", 0]["waiting_reason"] == "working: turn 1, model call to acme/m, and beside it to other/n"
    assert [call["status"] for call in tables.model_calls.values()] == ["running", "running"]

    tables = await folded(*BEGIN, ASKED, BESIDE, *CANCELLED)
    assert [call["status"] for call in tables.model_calls.values()] == ["abandoned", "abandoned"]
