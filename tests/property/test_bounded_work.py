"""Whatever a model asks for and its provider refuses: a task comes to an end by itself, and its log derives every decision again."""

from __future__ import annotations

from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.alone import carried_out
from support.scripted import Line, ScriptedModel, calls, says

from crewlog.agents.model import ModelError
from crewlog.agents.rederive import replay_task

ENDS = {"TaskCompleted", "AttemptFailed"}

look = st.builds(lambda n, size: ("look", f'{{"text":"{n} {"row " * size}"}}'), st.integers(0, 3), st.sampled_from([0, 1_500]))
uses = st.one_of(look, st.sampled_from([("recall_result", '{"call_id":"t1-1"}'), ("look", '{"text":"fail"}'), ("fly", "{}"), ("put", '{"text":"b"}')]))
asked = st.lists(uses, min_size=1, max_size=3).map(lambda some: calls(*some))
rarely: st.SearchStrategy[Line] = st.sampled_from([says("I think so."), ModelError("context_length", "too many tokens")])
blocks: st.SearchStrategy[list[Line]] = st.tuples(st.lists(asked, min_size=1, max_size=4), st.integers(1, 4)).map(lambda block: block[0] * block[1])
scripts: st.SearchStrategy[list[Line]] = st.tuples(st.lists(blocks, min_size=1, max_size=4), st.lists(rarely, max_size=2)).map(
    lambda parts: [line for n, block in enumerate(parts[0]) for line in (*block, *parts[1][n : n + 1])]
)


@given(scripts, st.integers(4_000, 40_000))
@settings(max_examples=60)
def test_every_task_ends_and_every_decision_follows_from_its_log(script: list[Line], window: int) -> None:
    model = ScriptedModel([*script, *[calls(("submit", '{"text":"done"}'))] * 3], provider="test", wire="test.wire", simulated=False)

    stretch = carried_out(model, context_window=window)

    for type_ in {r.type for r in stretch.recorded}:
        event(type_)
    assert stretch.ended in {"completed", "failed"}
    assert stretch.recorded[-1].type in ENDS
    replayed = replay_task(stretch.recorded, stretch.read)
    assert replayed.divergence is None, str(replayed.divergence)
