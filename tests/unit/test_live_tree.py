"""The live tree shows the end of what a model is writing, and nothing that could move the cursor; an answer's numbers get their sources."""

from __future__ import annotations

import json
import os
import sys
from typing import Any
from uuid import UUID

import pytest

from crewlog.events.bus import Message
from crewlog.orchestrator.cli_live import WRITTEN_CHARS_MAX, _LiveTree, redraws
from crewlog.orchestrator.cli_run import sources
from crewlog.projections.query_rows import TaskView
from crewlog.schemas.ids import RunId
from crewlog.schemas.values import Citation, Outcome

RUN, TASK = RunId(UUID(int=1)), UUID(int=2)
VIEWS: Any = None
"""Never asked."""


def piece(text: str, call_id: str = "m1-1") -> Message:
    return Message(f"live.default.{RUN}.{TASK}", json.dumps({"call_id": call_id, "text": text}).encode(), {})


def task(waiting_reason: str) -> TaskView:
    fields: dict[str, Any] = dict.fromkeys(TaskView.__struct_fields__) | {"task_id": TASK, "waiting_reason": waiting_reason}
    return TaskView(**fields)


async def test_what_a_model_writes_is_shown_while_it_writes() -> None:
    tree = _LiveTree(VIEWS, RUN)
    asked = task("working: turn 1, model call to acme/a")
    assert tree._note(asked) == "working: turn 1, model call to acme/a"
    await tree.heard(piece("Once upon "))
    await tree.heard(piece("a\x1b[2J time"))
    assert tree._note(asked) == "✎ Once upon a [2J time"
    assert tree._note(task("working: tool look")) == "working: tool look"
    await tree.heard(piece("x" * 500, "m1-2"))
    assert tree._note(asked) == "✎ " + "x" * WRITTEN_CHARS_MAX, "another call starts again"


async def test_what_is_no_piece_is_let_go() -> None:
    tree = _LiveTree(VIEWS, RUN)
    await tree.heard(Message(f"live.default.{RUN}.{TASK}", b'{"text": 7}', {}))
    await tree.heard(Message(f"live.default.{RUN}.{TASK}", b"\xff", {}))
    assert tree._note(task("model call")) == "model call"


def cited(key: str, summary: str, *places: tuple[str, int]) -> TaskView:
    outcome = Outcome(summary, citations=tuple(Citation(source, line, "quote") for source, line in places))
    return TaskView(**(dict.fromkeys(TaskView.__struct_fields__) | {"key": key, "outcome": outcome}))


def test_the_numbers_of_an_answer_get_their_sources() -> None:
    one = cited("rules", "Two years [1], 85 % [2].", ("a.md", 4), ("b\x1b.md", 7))
    assert sources([one], "Two years [1], 85 % [2].") == ["", "Sources:", "[1] a.md:4", "[2] b .md:7"]
    other = cited("more", "Never [1].", ("c.md", 1))
    both = sources([one, other], "## rules\n\nTwo years [1], 85 % [2].\n\n## more\n\nNever [1].")
    assert both == ["", "Sources of rules:", "[1] a.md:4", "[2] b .md:7", "", "Sources of more:", "[1] c.md:1"]


def test_an_answer_that_names_its_sources_gets_no_list() -> None:
    step = cited("rules", "Two years [1].", ("a.md", 4))
    assert sources([step, cited("@synthesis", "Two years [a.md:4].", ("a.md", 4))], "Two years [a.md:4].") == []
    assert sources([step], "") == []


@pytest.mark.parametrize(("kind", "is_live"), [("xterm", True), ("dumb", False)])
def test_a_dumb_terminal_gets_a_line_for_each_event(kind: str, is_live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", kind)
    main, terminal = os.openpty()
    try:
        with open(terminal, "w", encoding="utf-8") as stderr:  # noqa: PTH123  (a descriptor)
            monkeypatch.setattr(sys, "stderr", stderr)
            assert redraws() is is_live
            monkeypatch.undo()
    finally:
        os.close(main)
