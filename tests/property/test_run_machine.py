"""Any plan, any behaviour of agents, people and clock: the run ends once, in order, explained at every moment, derivable from its log."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st
from support.decider import broken, done, starved, submit
from support.runlog import RunLog

from crewlog.orchestrator.commands import ApprovalAsked, CancelRun, DecideApproval, ReleaseRun, Tick
from crewlog.orchestrator.rederive import verify_run
from crewlog.orchestrator.run import TaskState, active_tasks, blocked_steps, is_finished, next_due_us, starving
from crewlog.orchestrator.step_waits import waiting_reason
from crewlog.schemas.ids import ApprovalId, Hash
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.run_events import RunCancelled, RunCompleted, RunFailed, RunReleased, TaskDispatched
from crewlog.schemas.task_events import ApprovalRequested

KINDS = ("research", "code", "data", "communicate")
ENDS = (RunCompleted, RunFailed, RunCancelled)
MOVES_MAX = 60


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    keys = [f"s{n}" for n in range(draw(st.integers(1, 6)))]
    steps = [
        {
            "key": key,
            "type": draw(st.sampled_from(KINDS)),
            "objective": f"Do {key}",
            "depends_on": draw(st.lists(st.sampled_from(keys[:n]), unique=True, max_size=3)) if n else [],
            "constraints": draw(st.sampled_from([{}, {"words_max": 1}])),
            "timeout_seconds": draw(st.sampled_from([None, 30])),
        }
        for n, key in enumerate(keys)
    ]
    return {"steps": draw(st.permutations(steps))}


@st.composite
def submissions(draw: st.DrawFn) -> dict[str, Any]:
    fields: dict[str, Any] = {"timeout_seconds": draw(st.sampled_from([60, 900]))}
    match draw(st.sampled_from(["given", "planner", "single"])):
        case "given":
            fields["plan"] = draw(plans())
            fields["synthesis"] = draw(st.sampled_from([None, "planner"]))
        case "single":
            fields |= {"type": "data", "constraints": {"words_max": 1}, "limits": {"attempts_max": 2}}
    return fields


class World:
    """Everybody around the orchestrator, as moody as Hypothesis likes."""

    def __init__(self, data: st.DataObject, fields: dict[str, Any]) -> None:
        self.data = data
        self.log = RunLog()
        self.approvals = 0
        self.before = self.log.state
        self.log.decides(submit(**fields))
        self.check()

    def move(self, *, calm: bool) -> None:
        """Let one of them do something; when calm, only what ends things."""
        tasks = sorted(active_tasks(self.log.state), key=lambda t: t.key)
        task = self.data.draw(st.sampled_from(tasks), label="task")
        match task.phase:
            case "dispatched":
                self._agent(task, calm=calm)
            case "suspended":
                self._person(task)
            case "held":
                self._budget()
            case _:
                self._clock()
        self.check()
        if not calm and self.log.state.status == "open" and self.data.draw(st.integers(0, 29), label="cancel") == 0:
            self.log.decides(CancelRun("enough", "eve"))
            self.check()

    def _agent(self, task: TaskState, *, calm: bool) -> None:
        choices = ["good"] if calm else ["good", "good", "wordy", "fail", "retry", "ask", "clock", "starve"]
        match self.data.draw(st.sampled_from(choices), label=task.key):
            case "good":
                self.log.says(task.task_id, done("fine", output=self._plan() if "plan" in task.key else None))
            case "wordy":
                self.log.says(task.task_id, done("too many words", trust="untrusted", flags=("simulated",)))
            case "fail":
                self.log.says(task.task_id, broken(attempt=task.attempt))
            case "retry":
                self.log.says(task.task_id, broken(attempt=task.attempt, retryable=True))
            case "ask":
                self.approvals += 1
                expires_us = self.log.spec.now_us + 20_000_000
                asked = ApprovalRequested(ApprovalId(UUID(int=self.approvals)), f"t{self.approvals}", "send_email", EMPTY, Hash("d" * 64), "sends", expires_us)
                self.log.says(task.task_id, asked)
                before = len(self.log.run_events)
                self.log.decides(ApprovalAsked(task.task_id, asked))
                assert len(self.log.run_events) == before, "an event that was dealt with is no news"
            case "clock":
                self._clock()
            case "starve":
                scope = self.data.draw(st.sampled_from(["run/1", "tenant/default/2025-11-21"]), label="scope")
                self.log.says(task.task_id, starved(attempt=task.attempt, scope=scope))

    def _budget(self) -> None:
        """Look at a budget that holds a task: it has room now, or the clock ends the wait."""
        hold = self.log.state.hold
        if hold is not None and self.data.draw(st.integers(0, 3), label="raise"):
            scopes = [task.shortfall.scope for task in starving(self.log.state) if task.shortfall]
            release = ReleaseRun(self.data.draw(st.sampled_from([*scopes, "run/2"]), label="scope"), None, 7)
            self.log.decides(release)
        else:
            self._clock()

    def _plan(self) -> dict[str, Any]:
        return {**self.data.draw(plans(), label="plan"), "note": "so"}

    def _person(self, task: TaskState) -> None:
        approval_id = min(task.pending)
        if self.data.draw(st.booleans(), label="answer") and task.pending[approval_id].expires_us > self.log.spec.now_us + 1_000_000:
            self.log.decides(DecideApproval(approval_id, self.data.draw(st.sampled_from(["approved", "denied"])), "eve", "because"))
        else:
            self._clock()

    def _clock(self) -> None:
        due_us = next_due_us(self.log.state)
        if due_us is None:
            assert starving(self.log.state), "an open run that waits for nothing"
            return
        self.log.decides(Tick(), after_s=max(0.0, (due_us - self.log.spec.now_us) / 1e6))

    def check(self) -> None:
        """Hold what must hold after every append."""
        state, history, before = self.log.state, self.log.spec.history, self.before
        self.before = state
        assert sum(isinstance(event, ENDS) for event in history) == (state.status != "open")
        for key in {*state.tasks, *(step.key for step in state.steps)}:
            task = state.tasks.get(key)
            waits = task is not None and (task.is_active or (task.phase == "revise" and bool(starving(state))))
            over = state.status != "open" or key in blocked_steps(state) or (task is not None and not waits)
            assert (waiting_reason(state, key) is None) == over, key
        for event in self.log.spec.last.events:
            if isinstance(event, TaskDispatched) and not event.key.startswith("@"):
                step = next(s for s in state.steps if s.key == event.key)
                assert all(is_finished(state, key) for key in step.depends_on), "dispatched before its dependencies"
        at_work = any(task.phase == "dispatched" for task in state.tasks.values())
        assert (state.hold is not None) == (state.status == "open" and bool(starving(state)) and not at_work) or state.status != "open"
        if starving(before):
            released = any(isinstance(event, RunReleased) for event in self.log.spec.last.events)
            assert released or not self.log.spec.last.dispatches, "dispatched although a budget has no room"
        if state.status == "open":
            assert next_due_us(state) is not None
            assert any(active_tasks(state)), "an open run with nothing under way"
        else:
            assert all(self.log.is_closed(task.task_id) for task in state.tasks.values()), "an ended run left a task open"


@settings(max_examples=200)
@given(st.data(), submissions())
def test_every_run_ends_once_and_can_be_derived_again(data: st.DataObject, fields: dict[str, Any]) -> None:
    world = World(data, fields)
    for _ in range(MOVES_MAX):
        if world.log.state.status != "open":
            break
        world.move(calm=False)
    moves = 0
    while world.log.state.status == "open":
        moves += 1
        assert moves < 200, "the run does not end although everybody does their part"
        world.move(calm=True)

    assert world.log.folded() == world.log.state, "the stored stream folds to another state"
    assert verify_run(world.log.run_events, world.log.task_events) is None
