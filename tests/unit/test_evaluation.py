"""Evaluations end: whatever the trials wait for, and whatever comes late. A real orchestrator, workers and the public client in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from support.evaluated import CALL_MICRO_USD, evaluated, tried, turns

from crewlog.schemas.errors import ContractError, Unavailable

LOOKS = 2_000
"""So many turns of the event loop are enough for whoever was hinted at something to look, and to act."""


async def test_a_trial_that_is_held_before_its_submission_is_answered_ends_with_the_others(tmp_path: Path) -> None:
    """What a crew under load once did: the second answer arrives when the first trial was found to be over its budget, and the second is held."""
    async with evaluated(tmp_path) as at:
        runs, submitted = await at.finished(2), 0

        async def late(subject: str, _: Mapping[str, Any]) -> None:
            nonlocal submitted
            submitted += (is_one := subject.endswith("tasks.submit"))
            if is_one and submitted == 2:
                await at.held(2)
                await at.relay()
                await turns(LOOKS)

        at.bus.late = late
        found = await tried(evaluation := at.evaluation(0), runs)
        assert [(one.pair, one.was_begun) for one in found] == [(None, True)] * 2
        assert all("the evaluation has spent what it may: trial/default/eval-1 has no room" in one.why for one in found)
        assert (evaluation.full, at.ends()) == (evaluation.scope, ["RunCancelled"] * 2)


async def test_trials_are_compared_and_charged_to_the_evaluation(tmp_path: Path) -> None:
    async with evaluated(tmp_path) as at:
        runs = await at.finished(3)
        found = await tried(evaluation := at.evaluation(1_000_000), runs)
        assert sorted(one.pair.run_id for one in found if one.pair is not None) == sorted(str(run.run_id) for run in runs)
        assert {(one.pair.trial_status, one.pair.trial_cost_micro_usd) for one in found if one.pair is not None} == {("completed", 2 * CALL_MICRO_USD)}
        assert (evaluation.full, evaluation.compared, await evaluation.bill()) == ("", 3, (evaluation.scope, 6 * CALL_MICRO_USD, 1_000_000))


async def test_a_trial_in_which_nothing_happens_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    async with evaluated(tmp_path) as at:
        runs = await at.finished(2)
        at.model.gate = asyncio.Event()

        def leap(text: str) -> None:
            if "a data agent works on task" in text and not at.clock.ahead_s:
                at.clock.ahead_s = 600.0
            elif at.clock.ahead_s and at.model.gate is not None:
                at.model.gate.set()

        at.on_told = leap
        first, second = await tried(at.evaluation(1_000_000, at_once=1, patience_s=600.0), runs)
        assert (first.pair, first.why) == (None, "it was stopped: nothing has happened in it for 600 s: a data agent works on task")
        assert second.pair is not None
        assert any(text.startswith("1 of 2 done, ") for text in at.told)


async def test_a_trial_that_nobody_can_stop_is_let_go_and_named(tmp_path: Path) -> None:
    async with evaluated(tmp_path) as at:
        runs = await at.finished(1)
        at.model.gate = asyncio.Event()

        def leap(text: str) -> None:
            at.clock.ahead_s += 300.0 * ("works on" in text)

        at.bus.lost, at.on_told = ("runs.cancel", "runs.terminate"), leap
        (one,) = await tried(at.evaluation(1_000_000, patience_s=300.0), runs)
        assert one.why.startswith("it does not stop, a data agent works on task: crewlog terminate ")


async def test_whoever_leaves_cancels_what_is_under_way_also_what_was_not_answered_yet(tmp_path: Path) -> None:
    async with evaluated(tmp_path) as at:
        runs, submitted, left = await at.finished(3), 0, asyncio.Event()
        at.model.gate = asyncio.Event()

        async def late(subject: str, _: Mapping[str, Any]) -> None:
            nonlocal submitted
            submitted += (is_one := subject.endswith("tasks.submit"))
            if is_one and submitted == 2:
                evaluating.cancel()
                await left.wait()

        at.bus.late = late
        evaluating = asyncio.create_task(tried(evaluation := at.evaluation(1_000_000), runs))
        await asyncio.wait({evaluating}, timeout=0)
        await turns(LOOKS)
        left.set()
        with pytest.raises(asyncio.CancelledError):
            await evaluating
        assert (at.ends(), evaluation.left) == (["RunCancelled"] * 2, ())


async def test_a_submission_whose_answer_is_lost_is_sent_again_and_makes_one_trial(tmp_path: Path) -> None:
    async with evaluated(tmp_path) as at:
        runs, lost = await at.finished(1), [1, 1]

        async def late(subject: str, _: Mapping[str, Any]) -> None:
            if subject.endswith("tasks.submit") and lost.pop() if lost else False:
                raise Unavailable("no answer")

        at.bus.late = late
        (one,) = await tried(at.evaluation(1_000_000), runs)
        assert one.pair is not None
        assert at.ends() == ["RunCompleted"]
        assert sum("is handed in again: no answer" in text for text in at.told) == 2


async def test_without_an_orchestrator_it_ends_with_an_error(tmp_path: Path) -> None:
    async with evaluated(tmp_path) as at:
        runs = await at.finished(1)

        def leap(_: str) -> None:
            at.clock.ahead_s += 300.0

        at.bus.lost, at.on_told = ("tasks.submit", "runs.terminate"), leap
        evaluation = at.evaluation(1_000_000, patience_s=600.0)
        with pytest.raises(Unavailable, match=r"no answer on api\.default\.tasks\.submit"):
            await tried(evaluation, runs)
        assert len(evaluation.left) == 1


async def test_a_trial_that_its_own_budget_holds_is_one_that_came_to_no_end_and_the_others_are_tried(tmp_path: Path) -> None:
    async with evaluated(tmp_path) as at:
        runs = [*await at.finished(1, budget={"hard_micro_usd": 100}), *await at.finished(1)]
        found = await tried(evaluation := at.evaluation(1_000_000, at_once=1), runs)
        assert "its own budget run/" in found[0].why
        assert found[1].pair is not None
        assert (evaluation.full, at.ends()) == ("", ["RunCancelled", "RunCompleted"])


async def test_a_trial_that_is_refused_is_not_begun_and_the_others_are_tried(tmp_path: Path) -> None:
    async with evaluated(tmp_path) as at:
        runs = await at.finished(2)
        at.model.gate = asyncio.Event()
        evaluation, refused = at.evaluation(1_000_000), [run.run_id for run in runs[:1]]

        async def late(subject: str, body: Mapping[str, Any]) -> None:
            if subject.endswith("tasks.submit") and UUID(body["trial"]["source"]) in refused:
                raise ContractError("no agent is called so")
            assert at.model.gate is not None
            at.model.gate.set()

        at.bus.late = late
        first, second = await tried(evaluation, runs)
        assert (first.why, first.was_begun) == ("not begun: no agent is called so", False)
        assert second.pair is not None
