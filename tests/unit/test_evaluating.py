"""What an evaluation waits for: what its trials recorded is folded, and from every state something follows in the end."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from crewlog.events.store import BudgetState
from crewlog.orchestrator.brief import NO_BRIEF
from crewlog.orchestrator.evaluating import STOPPED, UnderWay, choose, handed_in, progress, scopes_of_held, waits_for
from crewlog.orchestrator.run import Phase, RunState, TaskState
from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.payload import Payload
from crewlog.schemas.run_events import RunHeld, RunPaused
from crewlog.schemas.trial import Trial
from crewlog.schemas.values import Shortfall

TRIALS = [RunId(UUID(int=n + 1, version=4)) for n in range(3)]
SHARED, OWN = "trial/default/eval-1", f"run/{TRIALS[0]}"
PATIENCE_S = 100.0


TRIED = replace(NO_BRIEF, trial=Trial(agent_version="data=2"))


def at_work(news_s: float = 0.0, phase: Phase = "dispatched", *, begun: int = 1) -> UnderWay:
    task = TaskState(TaskId(UUID(int=9)), "count", "data", 0, 0, phase, 0)
    run = RunState(run_id=TRIALS[0], status="open", tasks={"count": task})
    return replace(handed_in(TRIALS[0], news_s), run=run, begun={task.task_id: begun})


def held(*scopes: str, needed: int = 40, news_s: float = 0.0) -> UnderWay:
    """A trial whose tasks were refused by these budgets, one each."""
    trial = at_work(news_s)
    tasks = {
        str(n): TaskState(TaskId(UUID(int=n)), str(n), "data", 0, 0, "held", 0, shortfall=Shortfall(scope, 100, 70, needed)) for n, scope in enumerate(scopes)
    }
    hold = RunHeld("budget", scopes[0], 100, 70, needed, Payload(0), (), 0, 0)
    return replace(trial, run=replace(trial.run, tasks=tasks, hold=hold))


def chosen(trial: UnderWay, *others: UnderWay, spent: int = 0, reserved: int = 0, asked_s: float = 1.0, now_s: float = 1.0) -> tuple[str, str]:
    """Why the first trial is to stop, and which budget ends the evaluation."""
    budgets = {scope: BudgetState(None, 100, spent, reserved) for scope in (SHARED, OWN)}
    choice = choose(dict(zip(TRIALS, (trial, *others), strict=False)), budgets, asked_s=asked_s, now_s=now_s, patience_s=PATIENCE_S)
    return choice.stop.get(TRIALS[0], ""), choice.full


def test_a_held_trial_waits_while_what_is_reserved_may_turn_out_cheaper() -> None:
    assert chosen(held(SHARED), spent=60, reserved=40) == ("", "")
    assert chosen(held(SHARED), spent=60, reserved=0) == ("", "")
    why, full = chosen(held(SHARED), at_work(), spent=61, reserved=39)
    assert (why, full) == (f"{STOPPED}: {SHARED} has no room for its next call", SHARED)


def test_nothing_is_concluded_about_a_trial_that_may_have_been_released_since_the_budget_was_read() -> None:
    assert chosen(held(SHARED, news_s=1.0), spent=100) == ("", "")


def test_a_budget_of_its_own_stops_the_trial_and_not_the_evaluation() -> None:
    assert chosen(held(OWN), spent=61) == (f"its own budget {OWN} has no room for its next call", "")
    assert chosen(held(OWN, SHARED), spent=61)[1] == SHARED
    assert chosen(held("kind/default/data/2026-11-26", SHARED), spent=61) == ("", ""), "of one that holds it nothing is known"


def test_a_trial_in_which_nothing_happens_is_stopped_and_then_let_go() -> None:
    silent = at_work()
    assert chosen(silent, at_work(90.0), now_s=99.0) == ("", "")
    assert chosen(silent, at_work(90.0), now_s=100.0)[0] == "nothing has happened in it for 100 s: a data agent works on count"
    told = replace(silent, told=True, stop_s=130.0)
    assert chosen(told, now_s=229.0) == ("", "")
    for stopped in (told, replace(told, told=False)):  # whether or not anybody could be told
        let_go = choose({TRIALS[0]: stopped}, {}, asked_s=230.0, now_s=230.0, patience_s=PATIENCE_S).let_go
        assert let_go == {TRIALS[0]: "a data agent works on count"}
    assert not choose({TRIALS[0]: silent}, {}, asked_s=900.0, now_s=900.0, patience_s=PATIENCE_S).let_go, "a late look is no reason"


def test_a_held_trial_waits_for_as_long_as_anything_happens_in_another() -> None:
    assert chosen(held(SHARED), at_work(50.0), spent=60, reserved=40, now_s=149.0) == ("", "")
    assert "held by budget" in chosen(held(SHARED), at_work(50.0), spent=60, reserved=40, now_s=150.0)[0]


def test_what_has_ended_is_not_told_to_stop() -> None:
    over = replace(held(SHARED), run=replace(held(SHARED).run, status="completed"))
    assert chosen(over, spent=100, now_s=1_000.0) == ("", "")
    assert scopes_of_held({TRIALS[0]: over, TRIALS[1]: replace(held(SHARED), told=True)}) == []


STATES = st.one_of(
    st.builds(at_work, st.floats(0, 50), st.sampled_from(["dispatched", "retrying", "suspended", "judging", "accepted"]), begun=st.integers(0, 1)),
    st.builds(held, st.sampled_from([SHARED, OWN]), needed=st.integers(1, 100), news_s=st.floats(0, 50)),
    st.builds(handed_in, st.just(TRIALS[0]), st.floats(0, 50)),
)


@given(st.lists(STATES, min_size=1, max_size=3), st.integers(0, 100), st.integers(0, 100), st.booleans())
def test_every_state_is_left(trials: list[UnderWay], spent: int, reserved: int, are_told: bool) -> None:
    """Nothing is waited for behind the patience, and nothing that was told to stop behind another one."""
    known = {trial_id: replace(trial, told=are_told) for trial_id, trial in zip(TRIALS, trials, strict=False)}
    budgets = {SHARED: BudgetState(None, 100, spent, reserved), OWN: BudgetState(None, 100, spent, reserved)}
    late = choose(known, budgets, asked_s=50.0, now_s=50.0 + PATIENCE_S, patience_s=PATIENCE_S)
    assert are_told or set(late.stop) == set(known)
    stopped = {trial_id: replace(trial, stop_s=50.0 + PATIENCE_S) for trial_id, trial in known.items()}
    latest = choose(stopped, budgets, asked_s=50.0, now_s=50.0 + 2 * PATIENCE_S, patience_s=PATIENCE_S)
    assert set(latest.let_go) == set(known)


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        (handed_in(TRIALS[0], 0.0), "no orchestrator has taken it"),
        (at_work(begun=0), "count waits for a data agent"),
        (replace(at_work(begun=0), run=replace(at_work().run, brief=TRIED)), "count waits for a data agent of version 2"),
        (at_work(), "a data agent works on count"),
        (at_work(phase="suspended"), "count asks a person, see crewlog approvals"),
        (at_work(phase="retrying"), "count failed and waits for its next attempt"),
        (at_work(phase="accepted"), "an orchestrator has yet to look at it"),
        (held(SHARED), f"held by budget {SHARED}: $0.0001 of $0.0001 used, its next call may take $0.0000"),
        (replace(at_work(), run=replace(at_work().run, pauses=(RunPaused("kind/data", 1, "eve"),))), "paused by eve"),
    ],
)
def test_it_is_said_what_a_trial_waits_for(trial: UnderWay, words: str) -> None:
    assert waits_for(trial) == words


def test_progress_names_those_that_wait_longest() -> None:
    trials = {RunId(UUID(int=n << 96)): at_work(float(n)) for n in range(5)}
    said = progress(trials, done=2, of=9, comparing=1, now_s=10.0)
    assert said.startswith("2 of 9 done, 5 under way; 1 compared now; 00000000 for 10 s: a data agent works on count; 00000001 for 9 s: ")
    assert said.endswith("; and 2 more")
