"""Whatever operators, dead letters and workers that give work back do, at any moment: no command breaks a run, and none leaves it standing."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st
from property.test_run_machine import KINDS, World, submissions

from crewlog.events.controls import Control, Controls, kind_scope, run_scope, tenant_scope
from crewlog.orchestrator.commands import AbortRun, BuryTask, Command, DecideApproval, LiftQuarantine, ReleaseRun, Tick
from crewlog.orchestrator.interventions import due_interventions
from crewlog.orchestrator.rederive import verify_run
from crewlog.orchestrator.report import run_report
from crewlog.orchestrator.run import TaskState, active_tasks, next_due_us, starving, waits_for_person
from crewlog.orchestrator.run_controls import is_at_rest
from crewlog.orchestrator.step_waits import waiting_reason
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import ApprovalId, Hash, TaskId
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.run_events import TaskDispatched
from crewlog.schemas.task_events import ApprovalRequested, TaskHandedBack
from crewlog.schemas.values import Failure

MOVES_MAX = 60
OFTEN = ["pause", "pause", "quarantine", "resume", "release", "lift", "question", "question", "answer", "answer", "money", "hand back"]
RARELY = ["bury", "abort"]


class Steered(World):
    """A world with operators; what is in force is noted before anything else is decided, as the driver does."""

    def __init__(self, data: st.DataObject, fields: dict[str, object]) -> None:
        self.controls = Controls()
        self.returns: Counter[TaskId] = Counter()
        super().__init__(data, fields)

    def steer(self) -> None:
        """Let somebody do something that need not fit."""
        state = self.log.state
        tasks = sorted(state.tasks.values(), key=lambda task: task.key)
        task = self.data.draw(st.sampled_from(tasks), label="about") if tasks else None
        match self.data.draw(st.sampled_from(OFTEN * 4 + RARELY), label="steered"):
            case "pause" | "quarantine" as what:
                self._put_in_force(what, True)
            case "resume" | "release" as what:
                self._put_in_force("pause" if what == "resume" else "quarantine", False)
            case "lift":
                for kept in state.quarantines[:1]:
                    self.ask(LiftQuarantine(kept.scope, kept.control, "bob"))
            case "question" if task is not None and task.phase == "dispatched":
                self.question(task)
            case "answer":
                approval_id = next((key for one in tasks for key in one.pending), ApprovalId(self.log.spec.state.run_id))
                self.ask(DecideApproval(approval_id, self.data.draw(st.sampled_from(["approved", "approved", "denied", "happened"])), "bob"))
            case "money":
                self.ask(ReleaseRun(f"run/{self.data.draw(st.integers(1, 2))}", None, 7))
            case "bury" if task is not None:
                self.ask(BuryTask(task.task_id, task.kind, task.attempt, task.dispatches, "whoever got it died"))
            case "abort":
                self.ask(AbortRun(Failure("internal", "the log refuses it")))
            case "hand back" if task is not None and task.phase == "dispatched":
                self.hand_back(task)
            case _:
                self.ask(Tick())

    def ask(self, command: Command) -> None:
        """Have a command decided: it is carried out, is no news, or is refused with the reason."""
        self.note()
        with suppress(ContractError):
            self.log.decides(command, after_s=0)
        self.check()

    def hand_back(self, task: TaskState) -> None:
        """A worker gives a task back between two steps."""
        self.note()
        self.returns[task.task_id] += 1
        if not self.log.is_closed(task.task_id):
            self.log.says(task.task_id, TaskHandedBack(task.attempt, run_scope(self.log.state.run_id), self.returns[task.task_id]))
        self.check()

    def question(self, task: TaskState) -> None:
        """A worker asks a person."""
        self.note()
        self.approvals += 1
        expires_us = self.log.spec.now_us + 60_000_000
        asked = ApprovalRequested(ApprovalId(UUID(int=self.approvals)), f"t{self.approvals}", "send_email", EMPTY, Hash("d" * 64), "sends", expires_us)
        if not self.log.is_closed(task.task_id):
            self.log.says(task.task_id, asked, after_s=0)
        self.check()

    def note(self) -> None:
        """Take note of what is in force."""
        for intervention in list(due_interventions(self.log.state, self.controls)):
            self.log.decides(intervention, after_s=0)
            self.check()

    def end_it_all(self) -> None:
        """Take everything back that operators have put in force, and everybody does their part."""
        self.controls = Controls(self.controls.version + 1)
        self.ask(Tick())
        for _ in range(200):
            state = self.log.state
            if state.status != "open":
                return
            assert not is_at_rest(state), "at rest although nothing is in force"
            self.move(calm=True)
        raise AssertionError("the run does not end although everybody does their part")

    def check(self) -> None:
        """Hold what must hold after every append, whatever is in force."""
        state, before = self.log.state, self.before
        self.before = state
        run_report(state)
        if before.paused_since_us and before.paused_since_us == state.paused_since_us:
            assert before.deadline_us == state.deadline_us, "a deadline that stands still has moved"
        if state.status != "open":
            assert all(self.log.is_closed(task.task_id) for task in state.tasks.values()), "an ended run left a task open"
            return
        assert waits_for_person(state) == bool(state.paused_since_us), "the clock stands still without a reason, or runs in spite of one"
        assert state.quarantines or state.results_held is None
        active = list(active_tasks(state))
        for task in active:
            assert waiting_reason(state, task.key) is not None, f"{task.key} waits for nothing"
        if is_at_rest(state):
            assert not any(isinstance(event, TaskDispatched) for event in self.log.spec.last.events) or state.results_held is not None
            return
        assert active, "an open run with nothing under way"
        assert next_due_us(state) is not None or state.pauses or state.hold is not None
        assert starving(state) or all(task.phase != "held" for task in active), "a task that nothing holds waits for its dispatch"

    def _put_in_force(self, what: str, begins: bool) -> None:
        number = self.controls.version + 1
        scopes = [*[run_scope(self.log.state.run_id)] * 5, tenant_scope("default"), *map(kind_scope, (*KINDS, "planner"))]
        scope = self.data.draw(st.sampled_from(scopes), label="scope")
        before = self.controls.pauses if what == "pause" else self.controls.quarantines
        after = {name: control for name, control in before.items() if name != scope}
        if begins:
            after[scope] = before.get(scope, Control(scope, number, "ada", "", self.log.spec.now_us))
        pauses, quarantines = (after, self.controls.quarantines) if what == "pause" else (self.controls.pauses, after)
        self.controls = Controls(number, pauses, quarantines)
        self.ask(Tick())


@settings(max_examples=150)
@given(st.data(), submissions())
def test_no_command_breaks_a_run_or_leaves_it_standing(data: st.DataObject, fields: dict[str, object]) -> None:
    world = Steered(data, fields)
    for _ in range(MOVES_MAX):
        if world.log.state.status != "open":
            break
        if data.draw(st.integers(0, 2), label="who") == 0 or is_at_rest(world.log.state) or not any(active_tasks(world.log.state)):
            world.steer()
        else:
            world.note()
            if world.log.state.status == "open" and not is_at_rest(world.log.state):
                world.move(calm=False)
    world.end_it_all()

    assert world.log.folded() == world.log.state, "the stored stream folds to another state"
    assert verify_run(world.log.run_events, world.log.task_events) is None
