"""Runs of other program versions: older events are lifted and replay like new ones, unknown and damaged ones are shown and passed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from support.played import histories, quiet_log

from crewlog.events.memory_store import MemoryStore, restored
from crewlog.events.store import Recorded
from crewlog.orchestrator.bundle import Bundle, collect, pack_bundle, unpack_bundle
from crewlog.orchestrator.debug_text import explanation_lines, tree_lines
from crewlog.orchestrator.event_text import event_line
from crewlog.orchestrator.explain import explain
from crewlog.orchestrator.replay import ReplayReport, fold_streams, replay
from crewlog.orchestrator.run_history import RunHistory, load_shown
from crewlog.orchestrator.run_tree import build_tree
from crewlog.schemas import codec
from crewlog.schemas.codec import Unknown
from crewlog.schemas.errors import ContractError

RENAMED = {"ToolFinished": ("took_ms", "latency_ms"), "TaskReviewed": ("judgement", "verdict"), "ModelCallStarted": ("digest", "request_hash")}
"""What fields of version 0 would have been called, had there been one: a record of an agent, a decision, and what a replay compares."""


@pytest.fixture(scope="module")
def history() -> RunHistory:
    """The run of three steps."""
    return next(run for run in histories(quiet_log()) if len(run.task_streams) == 3)


def replayed(history: RunHistory) -> ReplayReport:
    return fold_streams(history.run_id, history.streams, history.texts, verify=True)


def aged(recorded: Recorded) -> Recorded:
    """Store an event as version 0 would have."""
    names = RENAMED.get(recorded.type)
    if names is None:
        return recorded
    then, now = names
    fields = msgspec.json.decode(recorded.data)
    return replace(recorded, schema_version=0, data=msgspec.json.encode({(then if name == now else name): value for name, value in fields.items()}))


def lifted(then: str, now: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda fields: {(now if name == then else name): value for name, value in fields.items()}


def test_a_run_of_an_older_version_replays_to_the_same_state(history: RunHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    old = RunHistory(history.run_id, tuple(map(aged, history.events)), history.texts)
    assert {r.type for r in old.events if r.schema_version == 0} == set(RENAMED)
    with pytest.raises(ContractError, match="v0 does not decode"):
        replayed(old)
    for type_, (then, now) in RENAMED.items():
        monkeypatch.setitem(codec.UPCASTERS, (type_, 0), lifted(then, now))

    found = replayed(old)

    assert found == replayed(history)
    assert found.divergence is None
    assert build_tree(old) == build_tree(history)


def test_a_decision_of_an_older_version_is_still_compared(history: RunHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codec.UPCASTERS, ("TaskReviewed", 0), lambda fields: {**lifted("judgement", "verdict")(fields), "verdict": "flagged"})
    events = tuple(aged(r) if r.type == "TaskReviewed" else r for r in history.events)
    found = replayed(RunHistory(history.run_id, events, history.texts)).divergence
    assert found is not None
    assert found.stream == f"run/{history.run_id}"


@pytest.mark.parametrize("category", ["run", "task"])
def test_events_of_unknown_types_are_passed_over_and_counted(category: str, history: RunHistory) -> None:
    at = next(n for n, r in enumerate(history.events) if r.type == ("TaskReviewed" if category == "run" else "ToolFinished"))
    stream = history.events[at].stream
    strange = replace(history.events[at], type="FromTheFuture", schema_version=7, data=b'{"what":1}')
    later = [replace(r, version=r.version + 1) if r.stream == stream and r.position >= strange.position else r for r in history.events]
    moved = [replace(r, position=n + 1) for n, r in enumerate([*later[:at], strange, *later[at:]])]
    grown = RunHistory(history.run_id, tuple(moved), history.texts)

    found = replayed(grown)

    assert isinstance(strange.event(), Unknown)
    assert found.divergence is None, str(found.divergence)
    assert found.unknown == {"FromTheFuture v7": 1}
    assert "does not know" in event_line(strange, 0)


@pytest.mark.hand_written("an event is damaged on purpose")
async def test_an_event_that_was_damaged_hides_no_other_and_a_replay_names_it(history: RunHistory) -> None:
    at = next(n for n, recorded in enumerate(history.events) if recorded.type == "ToolFinished")
    damaged = replace(history.events[at], data=b'{"nonsense":1}')
    bundle = Bundle(history.run_id, [*history.events[:at], damaged, *history.events[at + 1 :]], {ref: text.encode() for ref, text in history.texts.items()})
    log = MemoryStore(restored(bundle.events, bundle.blobs.values()))
    with pytest.raises(ContractError, match=f"{damaged.stream} version {damaged.version} at position {damaged.position}: .*does not decode"):
        damaged.event()

    seen = await load_shown(log, history.run_id)

    assert [type(recorded) for n, recorded in enumerate(seen.events) if n != at] == [Recorded] * (len(seen.events) - 1)
    assert "cannot be read" in event_line(seen.events[at], 0)
    assert list(tree_lines(build_tree(seen)))
    assert '   {"nonsense":1}' in list(explanation_lines(explain(seen, at + 1)))
    assert unpack_bundle(pack_bundle(await collect(log, history.run_id)), "file").events[at] == damaged
    folded = await replay(log, history.run_id, verify=False)
    assert (folded.unknown, folded.divergence) == ({"ToolFinished v1": 1}, None)
    divergence = (await replay(log, history.run_id)).divergence
    assert divergence is not None
    assert (divergence.stream, divergence.version, divergence.field) == (damaged.stream, damaged.version, "data")
    assert "missing required field" in divergence.got
