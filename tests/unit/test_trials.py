"""Trials: how they are compared, and the shadows of live runs, made by a real orchestrator and real workers on a log in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scripted import Recorder, ScriptedModel, calls
from support.toolbox import MemoryArtifacts

from crewlog.agents.model import Model
from crewlog.events.clock import SystemClock
from crewlog.orchestrator.golden_observe import Observed
from crewlog.orchestrator.memory_crew import QUIET, MemoryCrew, memory_crew
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.shadows import is_chosen, parse_shadow
from crewlog.orchestrator.trials import compare, first_divergence, summarised, wilson
from crewlog.schemas.errors import ConfigError, ContractError
from crewlog.schemas.ids import RunId, shadow_run_id
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import ToolStarted

TASK = {"task_id": "00000000-0000-4000-8000-000000000001", "type": "data", "objective": "count"}


def seen(**changes: Any) -> Observed:
    task = {"kind": "data", "verdict": "accepted", "tools": ["look", "submit"], "output": {"n": 1}, "summary": "one"}
    fields: dict[str, Any] = {"status": "completed", "plan": ("task: data",), "answer": "", "artifacts": (), "flags": (), "cost_micro_usd": 4, "steps": 2}
    return Observed(**{**fields, "tasks": {"task": {**task, **changes.pop("task", {})}}, "seconds": 1.0, **changes})


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"answer": "other words", "cost_micro_usd": 9, "task": {"summary": "eins"}}, ""),
        ({"task": {"tools": ["look", "look", "submit"]}}, "task: call 2 is submit / look"),
        ({"task": {"tools": ["look"]}}, "task: call 2 is submit / the end"),
        ({"task": {"output": {"n": 2}}}, "task: another output"),
        ({"task": {"verdict": "flagged"}}, "task: another verdict"),
        ({"plan": ("a: data", "b: code after a")}, "plan: task: data / a: data; b: code after a"),
        ({"tasks": {}}, "task: only in the original"),
        ({"status": "failed"}, "ended completed / failed"),
    ],
)
def test_the_first_decision_that_differs_is_named(change: dict[str, Any], first: str) -> None:
    assert first_divergence(seen(), seen(**change)) == first


def test_a_trial_is_worse_when_it_fails_or_leaves_something_open() -> None:
    def worse(**change: Any) -> bool:
        return compare("a", "b", "goal", seen(), seen(**change), model_ms=(1, 2)).is_worse

    assert worse(status="failed")
    assert worse(flags=("failed:a",))
    assert not worse(flags=("simulated", "stubbed:note"))
    assert not worse(task={"output": {"n": 2}})


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    """Newcombe 1998, table I: 81 of 263, and 0 of 20."""
    many, none = wilson(81, 263), wilson(0, 20)
    assert (round(many.low, 4), round(many.high, 4)) == (0.2553, 0.3662)
    assert (none.low, round(none.high, 4)) == (0.0, 0.1611)


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_interval_holds_the_share_and_lies_within_0_and_1(count: int, more: int) -> None:
    found = wilson(count, count + more)
    assert 0 <= found.low <= found.share <= found.high <= 1


def test_a_summary_counts_what_is_different_and_what_it_cost() -> None:
    pairs = [compare(f"{n}", "t", "goal", seen(), seen(cost_micro_usd=n, task={"verdict": "flagged"} if n else {}), model_ms=(10, n)) for n in range(3)]
    found = summarised(pairs, unfinished=1)
    assert (found.pairs, found.diverging.count, found.worse.count, found.open) == (3, 2, 0, 1)
    assert (found.cost_micro_usd, found.trial_cost_micro_usd, found.model_ms, found.trial_model_ms) == (12, 3, 10, 1)


def test_rules_for_shadows_are_read() -> None:
    rules = parse_shadow("research=0.1:anthropic:m > openai:n, data=1:offline")
    assert {type_: tuple(rule) for type_, rule in rules.items()} == {"research": (0.1, "anthropic:m > openai:n"), "data": (1.0, "offline")}
    assert parse_shadow("") == {}


@pytest.mark.parametrize("text", ["research", "research=2:offline", "research=0.1", "research=0.1:nobody:x", "a=1:offline,a=1:offline", "a=.:offline"])
def test_a_rule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"CREWLOG_SHADOW|unknown provider"):
        parse_shadow(text)


def test_about_the_share_of_runs_is_chosen_and_always_the_same_ones() -> None:
    runs = [RunId(UUID(int=n)) for n in range(1000)]
    chosen = [is_chosen(run, 0.2) for run in runs]
    assert 150 < sum(chosen) < 250
    assert chosen == [is_chosen(run, 0.2) for run in runs]
    assert all(is_chosen(run, 1.0) for run in runs)


def test_a_trial_has_a_name_that_a_budget_can_have() -> None:
    with pytest.raises(ContractError, match="a trial is named with letters"):
        parse_task({**TASK, "trial": {"name": "a/b"}})


@asynccontextmanager
async def shadowed(folder: Path, *, hard_micro_usd: int) -> AsyncIterator[tuple[MemoryCrew, Recorder, RunId]]:
    """A crew that has carried out one run, and shadows every run."""
    tools, lines = Recorder(), [calls(("look", '{"text":"x"}')), calls(("send", '{"text":"y"}')), calls(("submit", '{"text":"done"}'))]
    other = ScriptedModel(list(lines), wire="puppet.wire", provider="puppets", name="other-1", simulated=False)

    def chain(models: str, _: str) -> tuple[Model, ...]:
        assert models == "openai:other-1"
        return (other,)

    settings = QUIET._replace(shadow=parse_shadow("data=1:openai:other-1"), shadow_max_micro_usd=hard_micro_usd)
    shadows = {"shadow_agents": [tools.agent()]}
    own = {**shadows, "trial_chain": chain, "prices": {"puppets:*": TokenPrices(input=Decimal(1), output=Decimal(2))}, "settings": settings}
    crew = memory_crew([tools.agent()], lambda _: (ScriptedModel(list(lines)),), clock=SystemClock(), artifacts=MemoryArtifacts(), folder=folder, **own)
    async with asyncio.timeout(60), crew as up:
        run_id = await up.submit(parse_task(TASK))
        await up.end(run_id)
        yield up, tools, run_id


async def test_a_shadow_asks_the_other_model_and_its_effects_are_answered_from_the_record(tmp_path: Path) -> None:
    async with shadowed(tmp_path, hard_micro_usd=1_000_000) as (crew, tools, run_id):
        shadow = shadow_run_id(run_id)
        end = await crew.end(shadow)
        events = [recorded.event() for recorded in crew.log.events if recorded.run_id == shadow]
        assert end.type == "RunCompleted"
        assert {event.tool: event.stub for event in events if isinstance(event, ToolStarted)} == {"look": "recorded", "send": "recorded", "submit": ""}
        assert [tool for tool, *_ in tools.calls] == ["look", "send", "submit", "submit"]
        charged = {scope: state for name in crew.log.streams for scope, state in (await crew.store.budgets_of(name)).items() if scope.startswith("trial/")}
        ((scope, state),) = charged.items()
        assert scope.startswith("trial/default/shadow-data-")
        assert (state.hard, state.spent, state.reserved) == (1_000_000, 60, 0)
        assert (await replay(crew.store, shadow)).divergence is None


async def test_a_shadow_without_money_left_is_stopped_and_the_run_knows_nothing_of_it(tmp_path: Path) -> None:
    async with shadowed(tmp_path, hard_micro_usd=0) as (crew, _, run_id):
        end = await crew.end(shadow_run_id(run_id))
        assert end.type == "RunCancelled"
        assert b"the shadows of today have spent what they may" in end.data
        ended = crew.ended(run_id)
        assert ended is not None
        assert ended.type == "RunCompleted"
