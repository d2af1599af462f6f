"""Given events, when a command, then events: the one form of decider test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self
from uuid import UUID

from crewlog.orchestrator.commands import AttemptEnded, Command, SubmitRun, TaskEnded
from crewlog.orchestrator.decide import decide
from crewlog.orchestrator.draft import Decision
from crewlog.orchestrator.kinds import BUILT_IN
from crewlog.orchestrator.planning import Kinds
from crewlog.orchestrator.run import RunState, evolve, initial_state
from crewlog.schemas.ids import TaskId
from crewlog.schemas.run_events import RunEvent
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import AttemptFailed, TaskCompleted
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Failure, Outcome, Shortfall

RUN_UUID = UUID("00000000-0000-4000-8000-00000000000a")
START_US = 1_000_000_000
SECOND_US = 1_000_000


def a_task(**fields: Any) -> AgentTask:
    """A run with a goal; override what the test is about."""
    return parse_task({"task_id": str(RUN_UUID), "type": "run", "objective": "Write the release note", **fields})


def a_plan(**steps: str | Sequence[str]) -> dict[str, Any]:
    """A plan of `key="kind dep dep…"` steps."""
    return {"steps": [_step(key, *(text.split() if isinstance(text, str) else text)) for key, text in steps.items()]}


def _step(key: str, kind: str, *depends_on: str) -> dict[str, Any]:
    return {"key": key, "type": kind, "objective": f"Do {key}", "depends_on": list(depends_on)}


def done(summary: str = "done", *, output: Any = None, cost: int = 10, unpriced: int = 0, **outcome: Any) -> TaskCompleted:
    """What an agent says when it is done."""
    return TaskCompleted(Outcome(summary, output=output, **outcome), Usage(100, 20), cost, 1, 0, unpriced)


def broken(*, attempt: int = 1, retryable: bool = False, code: str = "model_server", retry_after_s: float | None = None) -> AttemptFailed:
    """What an agent says when it cannot go on."""
    return AttemptFailed(attempt, Failure(code, "it broke", retryable, retry_after_s))


def starved(*, attempt: int = 1, scope: str = "", used: int = 90, limit: int = 100, needed: int = 20, cost: int = 5) -> AttemptFailed:
    """What an agent says when a budget has no room for its next model call."""
    short = Shortfall(scope or f"run/{RUN_UUID}", limit, used, needed)
    return AttemptFailed(attempt, Failure("budget", f"no room in {short.scope}"), Usage(10, 5), cost, short)


class Spec:
    """One run taken through commands. Every decision is checked against the fold of its own events."""

    def __init__(self, *, kinds: Kinds = BUILT_IN) -> None:
        self.kinds = kinds
        self.state: RunState = initial_state()
        self.now_us = START_US
        self.history: list[RunEvent] = []
        self.last = Decision(self.state)

    def given(self, *commands: Command | Callable[[Spec], Command]) -> Self:
        """Bring the run into its state."""
        for command in commands:
            self.when(command)
        return self

    def when(self, command: Command | Callable[[Spec], Command], *, after_s: float = 1.0) -> Self:
        """Decide one command, `after_s` seconds later."""
        self.now_us += round(after_s * SECOND_US)
        command = command(self) if callable(command) else command
        before = self.state
        decision = decide(command, before, self.now_us, self.kinds)
        assert decide(command, before, self.now_us, self.kinds) == decision, "the same arguments gave two decisions"
        folded = before
        for event in decision.events:
            folded = evolve(folded, event)
        assert folded == decision.state, "the decision's state is not the fold of its events"
        self.last, self.state = decision, decision.state
        self.history += decision.events
        return self

    def then(self, *types: type) -> Self:
        """Expect exactly these events from the last decision."""
        assert [type(event) for event in self.last.events] == list(types)
        return self

    def event(self, type_: type) -> Any:
        """Return the one event of this type in the last decision."""
        (found,) = [event for event in self.last.events if isinstance(event, type_)]
        return found

    def events(self, type_: type) -> list[Any]:
        """Return all events of this type in the last decision."""
        return [event for event in self.last.events if isinstance(event, type_)]

    def task(self, key: str) -> TaskId:
        """Return the current task of a step."""
        return self.state.tasks[key].task_id

    def message(self, key: str) -> AgentTask:
        """Return the AgentTask that the last decision dispatched for a step, parsed as an agent does."""
        (found,) = [d.message for d in self.last.dispatches if d.task_id == self.task(key)]
        assert found is not None
        return parse_task(found)

    def written(self, type_: type) -> list[Any]:
        """Return the task events of this type that the last decision appends."""
        return [event for write in self.last.writes for event in write.events if isinstance(event, type_)]


def submit(**fields: Any) -> SubmitRun:
    """Submit a run."""
    return SubmitRun(a_task(**fields), "api")


def ends(key: str, event: TaskCompleted | None = None) -> Callable[[Spec], Command]:
    """The current task of a step is done."""
    return lambda spec: TaskEnded(spec.task(key), event or done(f"result of {key}"))


def breaks(key: str, event: AttemptFailed | None = None) -> Callable[[Spec], Command]:
    """The current attempt at a step fails."""
    return lambda spec: AttemptEnded(spec.task(key), event or broken())


def plans(key: str = "@plan", **steps: str) -> Callable[[Spec], Command]:
    """The planner is done with this plan."""
    return lambda spec: TaskEnded(spec.task(key), done("my plan", output={**a_plan(**steps), "note": "as asked"}))
