"""Outcomes of earlier tasks: told at the start, or listed and fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.toolbox import TASK_ID, MemoryArtifacts, earlier

from crewlog.agents.fresh_setup import make_setup
from crewlog.agents.recall import PART_CHARS, READ_CONTEXT, RECALL, ReadContext, RecallResult, read_context, recall_result
from crewlog.agents.setup import opening_message
from crewlog.agents.spec import AgentSpec, ToolContext, ToolFailed, ToolOutput
from crewlog.schemas.task import AgentTask
from crewlog.schemas.values import ContextItem, Outcome

KINDS = ContextItem("@kinds", "system", "kinds", Outcome("data: counts"))
FACTS = earlier("facts", "It lasts two years.")
TASK = AgentTask(task_id=TASK_ID, run_id=TASK_ID, type="data", objective="Report", context=(FACTS, KINDS))
SPEC = AgentSpec("data", "counts", "Count.")


def opened(context: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(opening_message(TASK, context).split("```json\n")[1].removesuffix("\n```"))
    return found


def at(task: AgentTask = TASK, **results: str) -> ToolContext:
    async def recall(call_id: str) -> ToolOutput | None:
        return ToolOutput(results[call_id], trust="untrusted") if call_id in results else None

    return ToolContext(task, "c1", "0" * 32, MemoryArtifacts(), Path("/nonexistent"), recall=recall)


def test_injected_outcomes_stand_in_the_opening_message() -> None:
    assert [item["key"] for item in opened("inject")["context"]] == ["facts", "@kinds"]
    assert "available_context" not in opened("inject")


def test_retrieved_outcomes_are_listed_and_what_the_orchestrator_says_is_told() -> None:
    content = opened("retrieve")
    assert [item["key"] for item in content["context"]] == ["@kinds"]
    (listed,) = content["available_context"]
    assert listed.pop("size") > len("It lasts two years.")
    assert listed == {"key": "facts", "type": "research", "objective": "Objective of facts."}


def test_which_way_it_is_stands_in_the_setup() -> None:
    told, fetched = make_setup(SPEC, ())[0], make_setup(SPEC, (), "retrieve")[0]
    assert (told.context, fetched.context) == ("inject", "retrieve")
    assert told.tool(READ_CONTEXT) is None
    assert fetched.tool(READ_CONTEXT) is not None
    assert [t.is_late for t in fetched.tools if t.definition.name == RECALL] == [True]


def test_what_an_agent_has_not_is_told_and_costs_no_word_where_it_has_everything() -> None:
    told = opening_message(TASK, lacking=("The tools of the MCP server x are not there: it is down",))
    assert '"not_available":["The tools of the MCP server x are not there: it is down. Say so plainly where the task needs them."]' in told
    assert opening_message(TASK).replace("}\n```", "") == told.partition(',"not_available"')[0]


async def test_reading_one_gives_its_outcome_as_json() -> None:
    output = await read_context(at(), ReadContext(key="facts"))
    assert (json.loads(output.content)["summary"], output.trust) == ("It lasts two years.", "trusted")
    with pytest.raises(ToolFailed, match="there is no earlier result 'fact'; there are: facts, @kinds"):
        await read_context(at(), ReadContext(key="fact"))


async def test_a_long_result_is_read_in_parts_that_add_up() -> None:
    text = "".join(f"line {n}\n" for n in range(4_000))
    first = (await recall_result(at(t1=text), RecallResult(call_id="t1"))).content
    head, _, body = first.partition("\n")
    assert head == "[part 1 of 4]"
    parts = [(await recall_result(at(t1=text), RecallResult(call_id="t1", part=n))).content.partition("\n")[2] for n in range(1, 5)]
    assert parts[0] == body == text[:PART_CHARS]
    assert "".join(parts) == text
    with pytest.raises(ToolFailed, match="it has 4 parts, there is no part 5"):
        await recall_result(at(t1=text), RecallResult(call_id="t1", part=5))


async def test_a_short_result_comes_back_as_it_was() -> None:
    assert await recall_result(at(t1="42"), RecallResult(call_id="t1")) == ToolOutput("42", trust="untrusted")
    with pytest.raises(ToolFailed, match="no call 't9' of this task has a result"):
        await recall_result(at(), RecallResult(call_id="t9"))
