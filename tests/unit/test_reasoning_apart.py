"""What models thought is kept apart from what they said: no look at a run, no export and nothing that leaves it has it unless it was asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from support.alone import carried_out
from support.scripted import ScriptedModel, calls

from crewlog.agents.recorded_task import conversation
from crewlog.orchestrator.bundle import read_bundle
from crewlog.orchestrator.debug_text import conversation_lines, explanation_lines, timeline_lines, tree_lines
from crewlog.orchestrator.event_text import event_json, event_line
from crewlog.orchestrator.explain import explain
from crewlog.orchestrator.lineage import lineage_of_answer
from crewlog.orchestrator.moments import describe_moment, moment_at
from crewlog.orchestrator.run_diff import diff_runs
from crewlog.orchestrator.run_history import RunHistory, all_payloads, load_history, with_texts
from crewlog.orchestrator.run_timeline import timeline
from crewlog.orchestrator.run_tree import build_tree
from crewlog.schemas.payload import pack
from crewlog.schemas.task_events import ModelCallFinished

THOUGHT = "a thought that is nobody's business"


@pytest.fixture(scope="module")
def thoughtful() -> RunHistory:
    """A recorded run that sends mail, every model of which thought before it spoke."""

    async def read() -> RunHistory:
        bundle = read_bundle(Path(__file__).parents[1] / "golden_tasks" / "mail-approved.golden.run")
        store = bundle.store()
        history = await load_history(store, bundle.run_id)
        return await with_texts(store, history, all_payloads(history.events))

    history = asyncio.run(read())
    events = [
        replace(recorded, data=msgspec.json.encode(replace(event, thinking=pack(THOUGHT)[0]))) if isinstance(event, ModelCallFinished) else recorded
        for recorded, event in zip(history.events, history.decoded, strict=True)
    ]
    return RunHistory(history.run_id, tuple(events), history.texts)


def _explained(history: RunHistory) -> Iterable[str]:
    for index in range(1, len(history.events) + 1):
        told = explain(history, index)
        yield from explanation_lines(told)
        yield msgspec.json.encode(msgspec.to_builtins(told, enc_hook=str)).decode()


LOOKS: dict[str, Callable[[RunHistory], Iterable[str]]] = {
    "tree": lambda history: tree_lines(build_tree(history)),
    "timeline": lambda history: timeline_lines(timeline(history)),
    "events": lambda history: (event_line(recorded, 0) for recorded in history.events),
    "events as JSON": lambda history: (json.dumps(event_json(recorded, with_reasoning=False)) for recorded in history.events),
    "conversation": lambda history: (line for s in history.task_streams for line in conversation_lines(s, conversation(history.streams[s], history.read))),
    "explain": _explained,
    "moments": lambda history: (json.dumps(describe_moment(history, moment_at(history, n)), default=str) for n in range(1, len(history.events) + 1)),
    "diff": lambda history: [msgspec.json.encode(msgspec.to_builtins(diff_runs(history, history.until(len(history.events) // 2)), enc_hook=str)).decode()],
    "lineage": lambda history: [msgspec.json.encode(lineage_of_answer(history)).decode()],
}


@pytest.mark.parametrize("name", LOOKS)
def test_no_look_tells_what_was_not_asked_for(name: str, thoughtful: RunHistory) -> None:
    shown = "\n".join(LOOKS[name](thoughtful))
    assert len(shown) > 200
    assert THOUGHT not in shown


def test_a_thought_stays_in_the_record_of_its_call() -> None:
    first, last = calls(("put", '{"text":"a"}')), calls(("submit", '{"text":"42"}'))
    stretch = carried_out(ScriptedModel([replace(reply, thinking=THOUGHT) for reply in (first, last)]))

    assert stretch.recorded[-1].type == "TaskCompleted"
    has_it = [recorded.type for recorded in stretch.recorded if THOUGHT.encode() in recorded.data]
    assert set(has_it) == {"ModelCallFinished"}
    events = [event for recorded in stretch.recorded if isinstance(event := recorded.event(), ModelCallFinished)]
    assert [event.thinking.inline for event in events if event.thinking is not None] == [THOUGHT, THOUGHT]
    assert all(THOUGHT not in (event.text.inline or "") for event in events)
