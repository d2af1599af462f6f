from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from support.toolbox import Bench, bench, earlier

from crewlog.agents.spec import ToolFailed
from crewlog.agents.specialist_planner import SubmitPlan, planner_agent
from crewlog.schemas.parse import contract_error, parse
from crewlog.schemas.plan import Plan
from crewlog.schemas.values import Citation, ContextItem, Outcome

PLANNER = planner_agent()
KINDS = ContextItem("@kinds", "system", "", Outcome("", [{"kind": "research", "description": "reads"}, {"kind": "data", "description": "counts"}]))
STEP = {"key": "rules", "type": "research", "objective": "Find the rules."}


async def planning(**given: Any) -> Bench:
    return await bench("Say what the rules are.", kind="planner", key="@plan", context=[KINDS], **given)


async def synthesis(*items: ContextItem) -> Bench:
    return await bench("Say what the rules are.", kind="planner", key="@synthesis", context=items)


async def test_the_key_of_the_task_decides_which_tool_there_is() -> None:
    assert [t.name for t in PLANNER.tools_for((await planning()).task)] == ["submit_plan"]
    assert [t.name for t in PLANNER.tools_for((await synthesis()).task)] == ["submit_answer"]
    assert [t.name for t in PLANNER.tools_for((await bench(key="@replan-1")).task)] == ["submit_plan"]


async def test_a_plan_is_handed_on_as_data_that_is_a_plan() -> None:
    desk = await planning(attachments={"a.md": b"x"})
    second = {
        "key": "count",
        "type": "data",
        "objective": "Count.",
        "depends_on": ["rules"],
        "attachments": ["a.md"],
        "constraints": {"words_max": 50, "files_exist": ["*.svg"]},
    }
    output = await desk.call(PLANNER, "submit_plan", {"steps": [STEP, second], "note": "Two steps."})
    assert output.outcome is not None
    assert output.outcome.output["note"] == "Two steps."
    plan = parse(Plan, {"steps": output.outcome.output["steps"]}, "no plan")
    assert [(s.key, s.type, s.depends_on, s.attachments, s.constraints.words_max) for s in plan.steps] == [
        ("rules", "research", (), None, None),
        ("count", "data", ("rules",), ("a.md",), 50),
    ]
    assert output.outcome.summary == "Two steps."
    assert output.outcome.trust == "trusted"


async def test_a_step_for_a_kind_that_cannot_work_is_refused_with_what_it_lacks() -> None:
    lacks = "missing duckdb; install with: pip install 'crewlog[data]'"
    away = ContextItem("@away", "system", "", Outcome("", [{"kind": "data", "unavailable": lacks}]))
    desk = await bench("Count.", kind="planner", key="@plan", context=[KINDS, away])
    with pytest.raises(ToolFailed) as failed:
        await desk.call(PLANNER, "submit_plan", {"steps": [{"key": "count", "type": "data", "objective": "Count."}]})
    assert f"step 'count': kind 'data' cannot work here: {lacks}" in str(failed.value)


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([], "/steps: Tuple should have at least 1 item"),
        ([STEP, STEP], "step keys must be unique; used more than once: rules"),
        ([{**STEP, "depends_on": ["x"]}], "step 'rules' depends on unknown x"),
        ([{**STEP, "depends_on": ["b"]}, {**STEP, "key": "b", "depends_on": ["rules"]}], "the plan has a cycle"),
        ([{**STEP, "type": "web search"}], "/steps/0/type: must match"),
        ([{**STEP, "key": "@plan"}], "/steps/0/key: String should match pattern"),
        ([{**STEP, "objective": ""}], "/steps/0/objective: String should have at least 1 character"),
        ([{**STEP, "tool": "x"}], "/steps/0/tool: there is no such field; known fields: key, type, objective,"),
        ([{**STEP, "constraints": {"words": 3}}], "/steps/0/constraints/words: there is no such field; did you mean words_max?"),
    ],
)
async def test_a_malformed_plan_is_refused_with_the_place(steps: list[Any], problem: str) -> None:
    with pytest.raises(ValidationError) as failed:
        await (await planning()).call(PLANNER, "submit_plan", {"steps": steps})
    assert problem in str(contract_error("not a plan", failed.value, SubmitPlan.model_json_schema()))


async def test_unknown_kinds_and_attachments_are_refused_together() -> None:
    desk = await planning(attachments={"a.md": b"x"})
    steps = [{**STEP, "type": "poet"}, {**STEP, "key": "b", "attachments": ["a.md", "b.md"]}]
    with pytest.raises(ToolFailed) as failed:
        await desk.call(PLANNER, "submit_plan", {"steps": steps})
    assert "- step 'rules': there is no kind 'poet'; the kinds are research, data" in str(failed.value)
    assert "- step 'b': there is no attachment b.md; attached: a.md" in str(failed.value)


async def test_without_a_list_of_kinds_any_kind_may_be_planned() -> None:
    desk = await bench("Do it.", kind="planner", key="@plan")
    assert (await desk.call(PLANNER, "submit_plan", {"steps": [{**STEP, "type": "poet"}]})).outcome is not None


async def test_every_field_of_a_plan_is_described() -> None:
    schema = PLANNER.tools_for((await planning()).task)[0].definition().parameters
    for definition in (schema, *schema["$defs"].values()):
        assert definition["additionalProperties"] is False
        assert [name for name, field in definition["properties"].items() if "description" not in field] == []


async def test_the_answer_is_a_file_and_keeps_the_citations_it_uses() -> None:
    a, b = Citation("rules.md", 3, "within 14 days"), Citation("rules.md", 8, "five seats")
    desk = await synthesis(
        KINDS, earlier("rules", citations=[a], flags=["simulated"], trust="untrusted"), earlier("seats", citations=[b], flags=["simulated", "not_found"])
    )
    output = await desk.call(PLANNER, "submit_answer", {"title": "Rules", "markdown": "Refunds take 14 days [rules.md:3]."})
    outcome = output.outcome
    assert outcome is not None
    assert outcome.summary == "Refunds take 14 days [rules.md:3]."
    assert outcome.citations == (a,)
    assert outcome.flags == ("simulated", "not_found")
    assert outcome.trust == "untrusted"
    (ref,) = outcome.artifacts
    assert (ref.name, ref.media_type) == ("answer.md", "text/markdown")
    assert desk.artifacts.files[ref.hash] == b"# Rules\n\nRefunds take 14 days [rules.md:3].\n"


async def test_a_title_in_the_text_is_not_doubled() -> None:
    desk = await synthesis()
    output = await desk.call(PLANNER, "submit_answer", {"title": "Rules", "markdown": "# My rules\n\nNone.\n\n"})
    assert desk.artifacts.files[output.artifacts[0].hash] == b"# My rules\n\nNone.\n"


async def test_an_invented_reference_is_refused() -> None:
    desk = await synthesis(earlier("rules", citations=[Citation("rules.md", 3, "within 14 days")]))
    with pytest.raises(ToolFailed, match=r"refers to \[rules.md:4\], which no outcome cites; the citations are \[rules.md:3\]"):
        await desk.call(PLANNER, "submit_answer", {"title": "Rules", "markdown": "Refunds [rules.md:3] and [rules.md:4]."})
