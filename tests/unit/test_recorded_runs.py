"""Looking at past runs: conversations, trees, timelines and moments follow from the log of a whole crew, in trouble too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random

import msgspec
import pytest
from msgspec.structs import replace
from support.histories import recorded_history, write_history
from support.played import eventful_logs, histories, quiet_log

from crewlog.agents.recorded_task import asked_request, conversation, folded
from crewlog.agents.rederive import replay_task
from crewlog.events.store import Recorded
from crewlog.orchestrator.causes import causes
from crewlog.orchestrator.debug_text import BAR_CHARS, WORDS_CHARS, conversation_lines, moment_lines, timeline_lines, tree_lines
from crewlog.orchestrator.moments import conversation_at, describe_moment, moment_at, moments
from crewlog.orchestrator.replay import fold_streams
from crewlog.orchestrator.run_diff import diff_runs
from crewlog.orchestrator.run_history import RunHistory, parse_place
from crewlog.orchestrator.run_timeline import timeline
from crewlog.orchestrator.run_tree import build_tree
from crewlog.schemas.blocks import Text, ToolResult, ToolUse
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import RunId
from crewlog.schemas.payload import pack
from crewlog.schemas.task_events import ModelCallFinished, ModelCallStarted, ToolStarted
from crewlog.schemas.usage import format_usd


def runs() -> Iterator[RunHistory]:
    yield from histories(quiet_log())
    for log in eventful_logs():
        yield from histories(log)


def planned_run() -> RunHistory:
    """The run of three steps."""
    return next(run for run in histories(quiet_log()) if len(run.task_streams) == 3)


def with_events(history: RunHistory, events: list[Recorded]) -> RunHistory:
    return RunHistory(history.run_id, tuple(events), history.texts)


def test_every_request_is_rebuilt_from_the_log() -> None:
    checked = 0
    for history in runs():
        for stream in history.task_streams:
            events = history.streams[stream]
            for at, recorded in enumerate(events):
                event = recorded.event()
                if isinstance(event, ModelCallStarted):
                    request = asked_request(folded(events[:at]), event, history.read)
                    assert request is not None
                    assert request.request_hash() == event.request_hash
                    checked += 1
    assert checked > 20


def test_a_conversation_is_what_the_last_call_saw_and_what_came_behind_it() -> None:
    history = planned_run()
    talk = conversation(history.streams[history.task_streams[0]], history.read)

    assert talk.system.startswith("Do what you are told.")
    assert {"look", "put", "send", "submit"} <= set(talk.tools)
    assert [line.role for line in talk.lines] == ["user", "assistant"] * 3 + ["user"]
    assert [line.turn for line in talk.lines] == [0, 1, 0, 2, 0, 3, 0]
    assert [line.is_unsent for line in talk.lines] == [False] * 5 + [True] * 2
    assert [block.name for block in talk.lines[1].content if isinstance(block, ToolUse)] == ["look", "put", "book"]
    assert [block.content for block in talk.lines[2].content if isinstance(block, ToolResult)] == ["look done", "put done", "book done"]
    shown = "\n".join(conversation_lines("a", talk))
    assert "turn 1 calls look" in shown
    assert "result of submit" in shown


def test_reasoning_is_kept_apart_and_left_out_unless_it_is_asked_for() -> None:
    history = planned_run()
    events = list(history.streams[history.task_streams[0]])
    at = next(n for n, r in enumerate(events) if r.type == "ModelCallFinished")
    said = events[at].event()
    assert isinstance(said, ModelCallFinished)
    thought = replace(said, thinking=pack("I had better look first.")[0])
    events[at] = replace(events[at], data=msgspec.json.encode(thought))

    silent, open_ = (conversation(events, history.read, with_reasoning=told) for told in (False, True))

    assert "better look" not in msgspec.json.encode(silent).decode() + "\n".join(conversation_lines("a", silent))
    assert open_.lines[1].reasoning == "I had better look first."
    assert not any(isinstance(b, Text) and "better look" in b.text for line in open_.lines for b in line.content)
    assert "turn 1 reasoning" in "\n".join(conversation_lines("a", open_))


def test_a_tree_holds_every_call_and_what_all_of_them_cost() -> None:
    for history in runs():
        tree = build_tree(history)
        events = [recorded.event() for recorded in history.events]
        assert tree.status in ("completed", "failed")
        assert [f"task/{task.task_id}" for task in tree.tasks] == sorted(history.task_streams, key=[f"task/{t.task_id}" for t in tree.tasks].index)
        calls = [call for task in tree.tasks for call in task.calls()]
        undone = {(recorded.stream, e.call_id) for recorded, e in zip(history.events, events, strict=True) if isinstance(e, ToolStarted) and e.undoes}
        assert len([c for c in calls if c.what == "tool"]) == len(undone) + sum(len(e.tool_calls) for e in events if isinstance(e, ModelCallFinished))
        assert len({(task.task_id, call.call_id) for task in tree.tasks for call in task.calls() if call.what == "model"}) >= sum(
            isinstance(e, ModelCallStarted) for e in events
        ) - sum(e.type == "TaskStarted" for e in history.events)
        states = {s: replay_task(history.streams[s], history.read, verify=False).state for s in history.task_streams}
        assert tree.cost_micro_usd == sum(state.cost_micro_usd for state in states.values())
        for task in tree.tasks:
            assert task.finished_us is None or not [call for call in task.calls() if call.status in ("running", "asked", "waits")]
        assert "\n".join(tree_lines(tree)).count("\n") >= len(calls)


def test_a_timeline_is_in_order_and_within_the_run() -> None:
    for history in runs():
        spans = timeline(history)
        assert [span.started_us for span in spans] == sorted(span.started_us for span in spans)
        assert min(span.started_us for span in spans) >= 0
        assert {"queue", "tool"} <= {span.what for span in spans}
        assert "model" in {span.what for span in spans} or b'"rollback"' in history.events[0].data
        assert len(list(timeline_lines(spans))) == len(spans)
        whole, narrow = timeline_lines(spans), timeline_lines(spans, 80)
        assert all(len(line) - len(short) == BAR_CHARS - (80 - WORDS_CHARS) for line, short in zip(whole, narrow, strict=True))
    asked = [span for history in runs() for span in timeline(history) if span.what == "person"]
    assert {span.status for span in asked} & {"happened", "did_not_happen"}


def test_moments_are_the_folds_of_every_prefix_and_end_where_a_replay_ends() -> None:
    for history in runs():
        last = None
        for moment in moments(history):
            described = describe_moment(history, moment)
            msgspec.json.encode(described)
            assert described["index"] == moment.index
            assert list(moment_lines(moment, described, history.events[0].occurred_us))
            last = described
        assert last is not None
        assert {task["phase"] for task in last["tasks"]} == {"ended"}
        assert {task["next"]["step"] for task in last["tasks"]} == {"Done"}
        assert last["run"]["status"] in ("completed", "failed")
        report = fold_streams(history.run_id, history.streams, history.texts, verify=True)
        assert report.divergence is None


def test_a_moment_says_what_was_spent_by_then() -> None:
    """Also of tasks under way, of which the run has not heard yet."""
    history = planned_run()
    spent = []
    for moment in moments(history):
        _, run, *_ = moment_lines(moment, describe_moment(history, moment), 0)
        spent.append(build_tree(history.until(moment.index)).cost_micro_usd)
        assert run.endswith(f"  {format_usd(spent[-1])}")
    assert len(set(spent)) > len(history.task_streams), "there is more than one paid call in each task"


def test_the_pending_step_is_the_one_that_follows() -> None:
    history = planned_run()
    for index, (recorded, following) in enumerate(zip(history.events, history.events[1:], strict=False), 1):
        if recorded.type == "TaskStarted":
            moment = moment_at(history, index)
            described = describe_moment(history, moment)
            assert described["task"]["next"]["step"] == "AskModel"
            assert following.type == "ModelCallStarted"
            talk = conversation_at(history, moment)
            assert talk is not None
            assert [(line.role, line.is_unsent) for line in talk.lines] == [("user", True)]
        elif recorded.type == "ModelCallStarted":
            assert describe_moment(history, moment_at(history, index))["task"]["next"]["step"] == "Answer"


def test_an_event_of_an_unknown_type_is_shown_and_passed_over() -> None:
    history = planned_run()
    at = next(n for n, r in enumerate(history.events) if r.type == "ToolFinished")
    stream = history.events[at].stream
    strange = replace(history.events[at], type="Later", data=b'{"what":"new"}')
    later = [replace(r, version=r.version + 1) if r.stream == stream and r.position >= strange.position else r for r in history.events]
    grown = with_events(history, [*later[:at], strange, *later[at:]])

    described = describe_moment(grown, moment_at(grown, at + 1))

    assert described["task"]["version"] == strange.version
    assert "does not know" in "\n".join(moment_lines(moment_at(grown, at + 1), described, 0))
    assert describe_moment(grown, moment_at(grown, len(grown.events)))["run"]["status"] == "completed"
    assert conversation(grown.streams[stream], grown.read) == conversation(history.streams[stream], history.read)
    assert build_tree(grown).cost_micro_usd == build_tree(history).cost_micro_usd


@pytest.mark.parametrize(
    ("text", "name", "index", "position"),
    [
        ("abc", "abc", None, None),
        ("abc:7", "abc", 7, None),
        ("abc@70", "abc", None, 70),
        ("@last", "@last", None, None),
        ("@last:3", "@last", 3, None),
        ("-", "-", None, None),
    ],
)
def test_places(text: str, name: str, index: int | None, position: int | None) -> None:
    place = parse_place(text)
    assert (place.name, place.index, place.position) == (name, index, position)


def test_a_place_is_found_by_index_and_by_position() -> None:
    history = planned_run()
    third = history.events[2]
    assert history.index_of(parse_place("x:3")) == history.index_of(parse_place(f"x@{third.position}")) == 3
    assert history.index_of(parse_place("x")) == len(history.events)
    assert history.until(3).events[-1] == third
    for missing in ("x:0", "x@0", f"x:{len(history.events) + 1}"):
        with pytest.raises(NotFound, match="events 1 to"):
            history.index_of(parse_place(missing))


def test_a_blob_that_is_missing_is_named() -> None:
    history = planned_run()
    payload, _ = pack("x" * 5000)
    with pytest.raises(ContractError, match="is not there"):
        history.read(payload)
    assert "5000 bytes" in history.shown(payload)


def written_runs(seed: int) -> dict[RunId, list[Recorded]]:
    """Runs that nobody carried out, with everything that may happen to one."""
    _, events = asyncio.run(recorded_history(write_history(Random(seed), runs=4, moves=160)))
    by_run: dict[RunId, list[Recorded]] = {}
    for recorded in events:
        if recorded.run_id is not None:
            by_run.setdefault(recorded.run_id, []).append(recorded)
    return by_run


@pytest.mark.hand_written("histories of every shape")
@pytest.mark.parametrize("seed", range(12))
def test_trees_timelines_and_causes_take_histories_of_every_shape(seed: int) -> None:
    for run_id, own in written_runs(seed).items():
        for end in {len(own) // 3, len(own) // 2, len(own)} - {0}:
            history = RunHistory(run_id, tuple(own[:end]))
            tree = build_tree(history)
            assert {f"task/{task.task_id}" for task in tree.tasks} >= set(history.task_streams)
            assert all(call.index <= end and (call.end_index is None or call.index <= call.end_index <= end) for t in tree.tasks for call in t.calls())
            said = [event for r in history.events if isinstance(event := r.event(), ModelCallFinished)]
            assert sum(call.what == "tool" for t in tree.tasks for call in t.calls()) == sum(len(event.tool_calls) for event in said)
            assert len(list(timeline_lines(timeline(history)))) == len(timeline(history))
            assert all(1 <= cause.at <= end and cause.at != n for n, follows in enumerate(causes(history.events), 1) for cause in follows)
            assert diff_runs(history, history).is_identical


@pytest.mark.hand_written("histories of every shape")
def test_a_tree_says_what_waits_for_a_person_and_what_for_money() -> None:
    seen = set()
    for history in (RunHistory(run_id, tuple(own)) for seed in range(4) for run_id, own in written_runs(seed).items()):
        for index, recorded in enumerate(history.events, 1):
            if recorded.type in {"TaskSuspended", "TaskHeld", "RunHeld", "RunReleased"}:
                tree = build_tree(history.until(index))
                seen |= {(recorded.type, tree.status, task.status) for task in tree.tasks if task.status in {"suspended", "held"}}
    assert {("TaskSuspended", "open", "suspended"), ("TaskHeld", "open", "held"), ("RunHeld", "held", "held")} <= seen
    assert {status for type_, status, _ in seen if type_ == "RunReleased"} <= {"open"}
