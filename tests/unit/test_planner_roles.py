"""The planner's small tasks: routing a goal and judging an outcome, as tools and by the offline rules."""

from __future__ import annotations

from typing import Any

import pytest
from support.solo import carry_out
from support.toolbox import Bench, bench, earlier

from crewlog.agents.offline import OfflineModel
from crewlog.agents.spec import ToolFailed
from crewlog.agents.specialist_planner import planner_agent
from crewlog.schemas.values import ContextItem, Outcome

PLANNER = planner_agent()
KINDS = ContextItem("@kinds", "system", "", Outcome("", [{"kind": "research", "description": "reads documents"}, {"kind": "data", "description": "counts"}]))


async def routing(goal: str, **given: Any) -> Bench:
    return await bench(goal, kind="planner", key="@router", context=[KINDS], **given)


async def judging(summary: str, *criteria: str) -> Bench:
    rubric = ContextItem("@rubric", "system", "", Outcome("", list(criteria)))
    return await bench("Judge it.", kind="planner", key="@critic-a-0", context=[earlier("a", summary), rubric])


async def test_each_has_the_tool_that_ends_it() -> None:
    assert [t.name for t in PLANNER.tools_for((await routing("x")).task)] == ["submit_route"]
    assert [t.name for t in PLANNER.tools_for((await judging("x", "y")).task)] == ["submit_verdict"]


async def test_a_route_to_nobody_is_refused_with_the_kinds_there_are() -> None:
    with pytest.raises(ToolFailed, match="there is no kind 'cook'; the kinds are research, data, or say 'plan'"):
        await (await routing("x")).call(PLANNER, "submit_route", {"kind": "cook"})


async def test_every_criterion_is_judged_once() -> None:
    desk = await judging("x", "one", "two")
    with pytest.raises(ToolFailed, match="criteria 1 to 2, each is judged once; you judged 1, 1"):
        await desk.call(PLANNER, "submit_verdict", {"verdicts": [{"criterion": 1, "met": True}, {"criterion": 1, "met": False}]})
    output = await desk.call(PLANNER, "submit_verdict", {"verdicts": [{"criterion": 2, "met": False, "why": "no"}, {"criterion": 1, "met": True}]})
    assert output.outcome is not None
    assert output.outcome.summary == "not met: 2"


async def test_offline_one_piece_of_work_goes_to_one_specialist() -> None:
    table = {"birds.csv": b"species,count\nowl,3\nkite,5\n"}
    alone = await carry_out(PLANNER, OfflineModel(), await routing("What is the total count by species?", attachments=table))
    assert alone.outcome is not None
    assert alone.outcome.output == {"kind": "data"}
    several = await carry_out(
        PLANNER,
        OfflineModel(),
        await routing("Compute the total count by species, and find the rules for naming in rules.md", attachments={**table, "rules.md": b"# Rules"}),
    )
    assert several.outcome is not None
    assert several.outcome.output == {"kind": "plan"}


async def test_offline_a_criterion_is_met_by_its_words() -> None:
    solo = await carry_out(
        PLANNER, OfflineModel(), await judging("The largest risk is flooding of the lower lake.", "names the largest risk", "says who pays the insurance")
    )
    assert solo.outcome is not None
    assert [verdict["met"] for verdict in solo.outcome.output["verdicts"]] == [True, False]
