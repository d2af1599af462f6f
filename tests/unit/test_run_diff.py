"""Comparing runs: the same run is identical, a touched one differs first where it was touched, beginnings lack what came later."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace
from support.played import histories, quiet_log, troubled_log

from crewlog.events.store import Recorded
from crewlog.orchestrator.diff_text import diff_lines
from crewlog.orchestrator.run_diff import diff_runs
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas.codec import encode
from crewlog.schemas.task_events import ModelCallSkipped, ModelCallStarted


def planned_run() -> RunHistory:
    """The run of three steps."""
    return next(run for run in histories(quiet_log()) if len(run.task_streams) == 3)


def touched(history: RunHistory, at: int, **fields: object) -> RunHistory:
    data = msgspec.json.encode(msgspec.json.decode(history.events[at].data) | fields)
    events: list[Recorded] = list(history.events)
    events[at] = replace(events[at], data=data)
    return RunHistory(history.run_id, tuple(events), history.texts)


def test_a_run_is_identical_with_itself() -> None:
    for history in (*histories(quiet_log()), *histories(troubled_log(9)), *histories(troubled_log(13))):
        found = diff_runs(history, history)
        assert found.is_identical
        assert found.first is found.saw is None
        assert found.steps
        assert list(diff_lines(found, 120))[-1].startswith("identical:")


def test_ids_times_and_order_of_other_tasks_are_no_difference() -> None:
    one, other = (next(run for run in histories(quiet_log(seed)) if len(run.task_streams) == 3) for seed in (1, 2))
    assert one.run_id != other.run_id
    found = diff_runs(one, other)
    assert [(step.key, step.turn, step.call_id, step.differs) for step in found.steps if step.differs] == []
    assert found.is_identical


def test_the_first_difference_is_named_and_what_it_led_to_is_another() -> None:
    history = planned_run()
    at = next(n for n, r in enumerate(history.events) if r.type == "ToolFinished" and b"look done" in r.data)
    call_id = msgspec.json.decode(history.events[at].data)["call_id"]
    other = touched(history, at, result={"size": 9, "inline": "look what"})

    found = diff_runs(history, other)

    assert not found.is_identical
    assert found.first is not None
    step = found.steps[found.first]
    assert (step.what, step.call_id, step.differs) == ("tool", call_id, ("output",))
    assert step.a is not None
    assert step.b is not None
    assert (step.a.output, step.b.output) == ("look done", "look what")
    assert [s.differs for s in found.steps if s is not step] == [()] * (len(found.steps) - 1)
    text = "\n".join(diff_lines(found, 100))
    assert "first difference" in text
    assert "look done" in text
    assert "│" in text


def test_what_differs_of_a_task_alone_is_said() -> None:
    history = planned_run()
    at = next(n for n, r in enumerate(history.events) if r.type == "TaskStarted")
    found = diff_runs(history, touched(history, at, agent_version="7"))
    assert (found.first, found.differs) == (None, ("tasks",))
    key = next(task.key for task in found.tasks if task.b is not None and task.b["agent_version"] == "7")
    assert f"≠ {key}: agent_version 1 / 7" in list(diff_lines(found, 100))


def test_a_request_that_differs_says_in_which_part() -> None:
    history = planned_run()
    at = next(n for n, r in enumerate(history.events) if r.type == "ToolFinished" and b"look done" in r.data)
    following = next(n for n, r in enumerate(history.events) if n > at and r.type == "ModelCallStarted" and r.stream == history.events[at].stream)
    other = touched(touched(history, at, result={"size": 9, "inline": "look what"}), following, request_hash="0" * 64)
    same_result = touched(history, following, request_hash="0" * 64)

    found = diff_runs(same_result, history)
    assert found.first is not None
    assert found.steps[found.first].differs == ("request",)
    assert found.saw is None, "rebuilt, the two are the same"

    without = RunHistory(other.run_id, other.events, other.texts)
    results = diff_runs(history, without)
    assert [step.differs for step in results.steps if step.differs] == [("output",), ("request",)]


def test_another_prompt_is_the_first_difference_and_shown() -> None:
    history = planned_run()
    texts = {ref: text.replace("Do what you are told.", "Do as you like.") for ref, text in history.texts.items()}
    at = next(n for n, r in enumerate(history.events) if r.type == "ModelCallStarted")
    other = touched(RunHistory(history.run_id, history.events, texts), at, request_hash="0" * 64)

    found = diff_runs(history, other)

    assert found.saw is not None
    assert found.saw.where == "system"
    assert found.saw.a.startswith("Do what you are told.")
    assert found.saw.b.startswith("Do as you like.")
    assert "different system" in "\n".join(diff_lines(found, 100))


def test_what_the_models_saw_is_also_found_where_one_was_skipped_in_only_one_run() -> None:
    """In one run a breaker was open, so that the same request went out as the second call of its turn."""
    history = planned_run()
    texts = {ref: text.replace("Do what you are told.", "Do  what you are told.") for ref, text in history.texts.items()}
    at = next(n for n, r in enumerate(history.events) if r.type == "ModelCallStarted")
    asked = touched(RunHistory(history.run_id, history.events, texts), at, request_hash="0" * 64)

    found = diff_runs(history, skipped_before(asked, at))

    assert found.first is not None
    assert {"request", "status"} <= set(found.steps[found.first].differs)
    assert found.saw is not None
    assert (found.saw.where, found.saw.b[:8]) == ("system", "Do  what")
    assert diff_runs(history, skipped_before(history, at)).saw is None, "both were told the same"


def skipped_before(history: RunHistory, at: int) -> RunHistory:
    """Let another model be skipped before the call that begins with an event, which is the second one of its turn then."""
    begun = history.events[at].event()
    assert isinstance(begun, ModelCallStarted)
    skipped = encode(ModelCallSkipped(begun.call_id, begun.turn, begun.wire, "away", "away-1", "breaker_open"))
    events = [replace(r, position=2 * r.position) for r in history.events]
    end = next(n for n, r in enumerate(events) if n > at and r.stream == events[at].stream and r.type == "ModelCallFinished")
    for n in (at, end):
        events[n] = replace(events[n], data=msgspec.json.encode(msgspec.json.decode(events[n].data) | {"call_id": "m1-2"}))
    before = replace(events[at], type="ModelCallSkipped", data=skipped, position=events[at].position - 1)
    return RunHistory(history.run_id, (*events[:at], before, *events[at:]), history.texts)


def test_two_positions_of_one_run() -> None:
    history = planned_run()
    half = history.until(len(history.events) // 2)

    found = diff_runs(half, history)

    assert not found.is_identical
    assert {"status", "answer"} <= set(found.differs)
    assert any(step.differs == ("only in b",) for step in found.steps)
    assert not any(step.differs == ("only in a",) for step in found.steps)
    msgspec.json.encode(found)
    assert list(diff_lines(found, 80))


@pytest.mark.parametrize(
    ("text", "shown"), [("look\N{NO-BREAK SPACE}done", "'look\\xa0done'"), ("look done ", "'look done '"), ("look done\u200b", "'look done\\u200b'")]
)
def test_what_nobody_can_see_is_written_with_escapes(text: str, shown: str) -> None:
    history = planned_run()
    at = next(n for n, r in enumerate(history.events) if r.type == "ToolFinished" and b"look done" in r.data)
    lines = [*diff_lines(diff_runs(history, touched(history, at, result={"size": len(text.encode()), "inline": text})), 100)]
    (line,) = (line for line in lines if shown in line)
    assert "'look done'" in line.partition("│")[0]
    assert f"character {5 if text[4] != ' ' else 10}: {shown}" in line


def test_no_text_moves_the_cursor() -> None:
    history = planned_run()
    at = next(n for n, r in enumerate(history.events) if r.type == "ToolFinished" and b"look done" in r.data)
    found = diff_runs(history, touched(history, at, result={"size": 9, "inline": "\x1b[2Jevil"}))
    assert "\x1b" not in "\n".join(diff_lines(found, 100))
