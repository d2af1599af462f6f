"""Deriving decisions again: an untouched log has no divergence, a touched one is named."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace
from support.decider import a_plan, broken, done, submit
from support.runlog import RunLog

from crewlog.orchestrator.commands import AbortRun, BuryTask, CancelRun, Tick
from crewlog.orchestrator.rederive import verify_run
from crewlog.schemas.values import Failure


def a_log() -> RunLog:
    """A run with a plan, a retry, a revision and an answer."""
    log = RunLog()
    log.decides(submit(synthesis="collect"))
    plan = a_plan(a="research", b="data a")
    plan["steps"][0]["constraints"] = {"words_max": 2}
    log.says(log.state.tasks["@plan"].task_id, done("plan", output={"steps": a_plan(a="reserch")["steps"]}))
    log.says(log.state.tasks["@plan"].task_id, done("plan", output=plan))
    log.says(log.state.tasks["a"].task_id, broken(retryable=True))
    log.decides(Tick())
    log.says(log.state.tasks["a"].task_id, done("far too many words"))
    log.says(log.state.tasks["a"].task_id, done("few words"))
    log.says(log.state.tasks["b"].task_id, done("fine"))
    assert log.state.status == "completed"
    return log


def test_an_untouched_log_follows_from_itself() -> None:
    log = a_log()

    assert verify_run(log.run_events, log.task_events) is None


@pytest.mark.parametrize("command", [CancelRun("enough", "eve"), AbortRun(Failure("internal", "no"))])
def test_endings_from_outside_follow_from_themselves(command: CancelRun | AbortRun) -> None:
    log = RunLog()
    log.decides(submit(plan=a_plan(a="data", b="code")))
    log.decides(command)

    assert verify_run(log.run_events, log.task_events) is None


def test_a_task_that_was_buried_follows_from_itself() -> None:
    log = RunLog()
    log.decides(submit(plan=a_plan(a="data", b="code")))
    log.says(log.state.tasks["a"].task_id, broken(retryable=True))
    log.decides(Tick())
    log.decides(BuryTask(log.state.tasks["a"].task_id, "data", 2, 2, "its message killed whoever got it"))

    assert log.state.tasks["a"].phase == "failed"
    assert verify_run(log.run_events, log.task_events) is None


def test_a_run_under_way_follows_from_itself() -> None:
    log = a_log()

    for events in range(1, len(log.run_events)):
        if log.run_events[events].occurred_us != log.run_events[events - 1].occurred_us:
            known_us = log.run_events[events - 1].occurred_us
            assert verify_run(log.run_events[:events], [r for r in log.task_events if r.occurred_us <= known_us]) is None


@pytest.mark.parametrize(
    ("type_", "field", "value"),
    [
        ("RunSubmitted", "deadline_us", 1),
        ("RunPlanned", "note", "something else"),
        ("TaskRetryScheduled", "due_us", 1),
        ("TaskDispatched", "offered", ["code"]),
        ("TaskReviewed", "cost_micro_usd", 9),
        ("RunCompleted", "flags", ["fine"]),
    ],
)
def test_a_touched_event_is_named(type_: str, field: str, value: object) -> None:
    log = a_log()
    at = next(n for n, r in enumerate(log.run_events) if r.type == type_)
    data = msgspec.json.decode(log.run_events[at].data) | {field: value}
    log.run_events[at] = replace(log.run_events[at], data=msgspec.json.encode(data))

    found = verify_run(log.run_events, log.task_events)

    assert found is not None
    assert (found.stream, found.version, found.field, found.got) == (log.run_events[at].stream, at + 1, field, value)


def test_a_touched_task_is_named() -> None:
    log = a_log()
    events = log.task_events
    at = next(n for n, r in enumerate(events) if r.type == "TaskOpened" and msgspec.json.decode(r.data)["kind"] == "research")
    events[at] = replace(events[at], data=events[at].data.replace(b'"key":"a"', b'"key":"z"', 1))

    found = verify_run(log.run_events, events)

    assert found is not None
    assert (found.stream, found.version, found.field) == (events[at].stream, 1, "key")


def test_a_decision_without_a_cause_is_named() -> None:
    log = a_log()
    asked = next(r for r in log.task_events if r.type == "AttemptFailed")

    found = verify_run(log.run_events, [r for r in log.task_events if r is not asked])

    assert found is not None
    assert (found.field, found.got) == ("cause", None)


def test_an_event_nobody_decided_is_named() -> None:
    log = a_log()
    stray = replace(log.task_events[0], version=9)

    found = verify_run(log.run_events, [*log.task_events, stray])

    assert found is not None
    assert (found.version, found.expected, found.got) == (9, None, "TaskOpened")
