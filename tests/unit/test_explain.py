"""Why an event happened: causes and effects, exact requests, rules of tool calls, and decisions with their alternatives."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from msgspec.structs import replace
from support.played import eventful_logs, histories, quiet_log

from crewlog.orchestrator.causes import causes, effects
from crewlog.orchestrator.debug_text import explanation_lines
from crewlog.orchestrator.explain import explain, needed
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas.task_events import ModelCallFinished, TaskStarted, ToolFinished


def runs() -> Iterator[RunHistory]:
    yield from histories(quiet_log())
    for log in eventful_logs():
        yield from histories(log)


def indexes(history: RunHistory, type_: str) -> list[int]:
    return [n for n, recorded in enumerate(history.events, 1) if recorded.type == type_]


def without_texts(history: RunHistory) -> RunHistory:
    return RunHistory(history.run_id, history.events)


def test_every_event_follows_from_earlier_ones_and_links_are_told_from_both_ends() -> None:
    for history in runs():
        found = causes(history.events)
        led = effects(found)
        for n, (recorded, follows) in enumerate(zip(history.events, found, strict=True), 1):
            assert follows or recorded.type == "RunSubmitted", f"{recorded.type} has no cause"
            assert all(1 <= cause.at < n for cause in follows)
            for cause in follows:
                assert (n, cause.relation) in [tuple(effect) for effect in led[cause.at - 1]]


def relations(history: RunHistory, index: int) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for link in explain(history, index).caused_by:
        found.setdefault(link.relation, set()).add(link.type)
    return found


def test_links_say_how_events_belong_together() -> None:
    history = next(run for run in histories(quiet_log()) if len(run.task_streams) == 3)
    first_call, *_ = indexes(history, "ModelCallStarted")
    assert relations(history, first_call) == {"next step": {"TaskStarted"}}
    assert relations(history, indexes(history, "TaskStarted")[0]) == {"dispatch": {"TaskDispatched"}}
    assert relations(history, indexes(history, "ModelCallFinished")[0]) == {"intent": {"ModelCallStarted"}}
    assert relations(history, indexes(history, "ToolStarted")[0]) == {"asked for": {"ModelCallFinished"}}
    assert relations(history, indexes(history, "ToolFinished")[0]) == {"intent": {"ToolStarted"}}
    last = explain(history, indexes(history, "TaskDispatched")[-1])
    assert sorted(link.relation for link in last.caused_by) == ["depends_on", "depends_on", "plan"]
    assert {link.type for link in last.led_to} == {"TaskOpened", "TaskStarted"}
    assert relations(history, indexes(history, "RunCompleted")[0]) == {"decision": {"TaskReviewed"}}
    second = next(n for n in indexes(history, "ModelCallStarted") if b'"turn":2' in history.events[n - 1].data)
    assert [link.type for link in explain(history, second).caused_by] == ["ToolFinished"] * 3


def test_a_permit_leads_from_the_question_over_the_answer_to_the_call() -> None:
    history = next(run for run in runs() if indexes(run, "ApprovalDecided"))
    decided = explain(history, indexes(history, "ApprovalDecided")[0])
    assert [link.type for link in decided.caused_by] == ["ApprovalRequested"]
    assert {link.type for link in decided.led_to} & {"ToolStarted", "ToolFinished"}
    asked = explain(history, indexes(history, "ApprovalRequested")[0])
    assert asked.call is not None
    assert asked.call["may_have_happened"] is True
    assert asked.call["approval"]["binds_this_call"] is True
    assert asked.call["rules"]["effect"] == "irreversible"
    assert {"TaskSuspended", "TaskResumed", "ApprovalDecided"} <= {link.type for link in asked.led_to}
    assert decided.decision is not None
    assert decided.decision["command"]["command"] == "DecideApproval"
    assert [a["choice"] for a in decided.decision["alternatives"] if a["taken"]] in (["happened"], ["did_not_happen"])


def test_every_model_call_has_its_exact_request_and_needs_only_the_texts_that_are_listed() -> None:
    checked = 0
    for history in runs():
        for type_ in ("ModelCallStarted", "ModelCallFinished", "ModelCallFailed"):
            for n in indexes(history, type_):
                wanted = {p.ref for p in needed(without_texts(history), n)}
                little = RunHistory(history.run_id, history.events, {ref: text for ref, text in history.texts.items() if ref in wanted})
                told = explain(little, n)
                assert told.request is not None
                assert told.request["is_exact"] is True
                assert told.request["messages"][0]["role"] == "user"
                assert {tool["name"] for tool in told.request["tools"]} >= {"look", "send"}
                assert [link["taken"] for link in told.request["chain"]] == [True]
                checked += 1
    assert checked > 40


def test_a_request_that_is_not_the_recorded_one_is_said_to_be_so() -> None:
    history = next(histories(quiet_log()).__iter__())
    at = next(n for n in indexes(history, "ToolFinished") if b"look done" in history.events[n - 1].data) - 1
    event = history.events[at].event()
    assert isinstance(event, ToolFinished)
    data = history.events[at].data.replace(b"look done", b"look what")
    touched = RunHistory(history.run_id, (*history.events[:at], replace(history.events[at], data=data), *history.events[at + 1 :]), history.texts)
    following = next(n for n in indexes(history, "ModelCallStarted") if n > at and history.events[n - 1].stream == history.events[at].stream)

    told = explain(touched, following)

    assert told.request is not None
    assert (told.request["is_exact"], explain(history, following).request["is_exact"]) == (False, True)  # type: ignore[index]
    assert "does not give the recorded hash" in "\n".join(explanation_lines(told))


def test_what_is_missing_is_said_instead_of_guessed() -> None:
    history = next(run for run in runs() if any(p.ref for p in needed(run, indexes(run, "ModelCallStarted")[0])))
    with pytest.raises(Exception, match="is not there"):
        explain(without_texts(history), indexes(history, "ToolStarted")[0])


def test_reasoning_is_left_out_unless_it_is_asked_for() -> None:
    history = next(histories(quiet_log()).__iter__())
    n = indexes(history, "ModelCallFinished")[0]
    said = history.events[n - 1].event()
    assert isinstance(said, ModelCallFinished)
    thought = msgspec.json.decode(history.events[n - 1].data) | {"thinking": {"size": 6, "inline": "secret"}}
    events = (*history.events[: n - 1], replace(history.events[n - 1], data=msgspec.json.encode(thought)), *history.events[n:])
    history = RunHistory(history.run_id, events, history.texts)

    assert "secret" not in msgspec.json.encode(explain(history, n)).decode()
    assert "secret" in msgspec.json.encode(explain(history, n, with_reasoning=True)).decode()


def test_every_decision_of_the_orchestrator_is_derived_again() -> None:
    commands = set()
    for history in runs():
        for n, recorded in enumerate(history.events, 1):
            told = explain(history, n)
            msgspec.json.encode(told)
            assert list(explanation_lines(told))
            if recorded.stream.startswith("run/") or recorded.type in ("TaskOpened", "ApprovalDecided", "TaskFailed", "TaskCancelled"):
                assert told.decision is not None
                assert told.decision["problem"] == ""
                assert told.decision["decided"]
                commands.add(told.decision["command"]["command"])
                if recorded.type in ("TaskRetryScheduled", "TaskReviewed"):
                    assert sum(choice["taken"] for choice in told.decision["alternatives"]) == 1
                    assert all(choice["why"] for choice in told.decision["alternatives"]), "also of what was not decided it is said why"
            elif recorded.stream.startswith("task/") and recorded.type != "TaskStarted":
                assert told.decided_by["agent_version"]
    assert commands >= {"SubmitRun", "TaskEnded", "AttemptEnded", "ApprovalAsked", "DecideApproval"}


def test_a_retry_says_what_the_policy_had_to_choose_from() -> None:
    history = next(run for run in runs() if indexes(run, "TaskRetryScheduled"))
    told = explain(history, indexes(history, "TaskRetryScheduled")[0])
    assert told.decision is not None
    choices = {choice["choice"]: choice for choice in told.decision["alternatives"]}
    assert choices["retry"]["taken"] is True
    assert "attempt 1 of at most 20" in choices["retry"]["why"]
    assert choices["fail"]["taken"] is choices["hold"]["taken"] is False


def test_whoever_begins_a_task_is_named_with_it() -> None:
    for log in eventful_logs():
        for history in histories(log):
            for index in indexes(history, "TaskStarted"):
                event = history.events[index - 1].event()
                assert isinstance(event, TaskStarted)
                assert explain(history, index).decided_by["worker"] == event.worker


def test_an_unknown_event_of_the_run_is_explained_as_far_as_it_goes() -> None:
    history = next(run for run in histories(quiet_log()) if len(run.task_streams) == 3)
    events = list(history.events)
    at = indexes(history, "RunPlanned")[0] - 1
    events[at] = replace(events[at], type="RunPlannedOtherwise", data=b'{"how":"new"}')

    told = explain(RunHistory(history.run_id, tuple(events), history.texts), at + 1)

    assert told.event["data"] == {"how": "new"}
    assert told.decided_by["actor"]
    assert '   {"how":"new"}' in list(explanation_lines(told)), "shown, though nobody knows what it means"
