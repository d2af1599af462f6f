"""Evaluations in virtual time: whatever dies, is lost or is paused, each ends in time, within its limit, and leaves no trial behind."""

from __future__ import annotations

from typing import Final

import pytest
from sim.evaluations import NAME, EvaluationWorld, play
from sim.plan import draw_plan

from crewlog.orchestrator.evaluating import STOPPED
from crewlog.schemas.budget import trial_scope

SEEDS: Final = range(24)


@pytest.fixture(scope="module")
def worlds() -> list[EvaluationWorld]:
    return [play(draw_plan(seed)) for seed in SEEDS]


def test_every_evaluation_ends_and_leaves_no_trial_behind(worlds: list[EvaluationWorld]) -> None:
    for world in worlds:
        assert world.how in ("done", "given up"), (world.plan.seed, world.how)
        assert world.is_left or not world.open_trials(), world.plan.seed
        assert world.how == "given up" or len(world.tried) == world.expected, world.plan.seed


def test_none_spends_more_than_it_may(worlds: list[EvaluationWorld]) -> None:
    for world in worlds:
        found = world.budget(trial_scope("default", NAME))
        if world.hard_micro_usd is not None and found is not None:
            assert found.hard == world.hard_micro_usd, world.plan.seed
            assert world.is_left or not found.reserved, world.plan.seed
            assert found.spent <= world.hard_micro_usd, world.plan.seed


def test_where_nothing_is_in_the_way_all_are_compared(worlds: list[EvaluationWorld]) -> None:
    free = [world for world in worlds if world.is_calm and world.hard_micro_usd != 0]
    assert len(free) > 3
    for world in free:
        assert all(one.pair is not None for one in world.tried), (world.plan.seed, [one.why for one in world.tried])


def test_the_schedules_show_what_they_are_for(worlds: list[EvaluationWorld]) -> None:
    whys = [one.why for world in worlds for one in world.tried]
    for part in (STOPPED, "nothing has happened in it"):
        assert any(part in why for why in whys), part
    assert any(world.how == "given up" and world.happened["crashes"] for world in worlds)
    assert any(one.pair is not None for world in worlds if not world.is_calm for one in world.tried)
