"""Defects planted in decision functions: `replay --verify` names the first event that the defective program would have decided otherwise.

A defect is a replaced function here, never a switch in the product. A sound log is replayed under a defective program, as by somebody who
broke a decision without noticing; some are also tried the other way round, on a log that the defective program wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import pytest
from support.decider import a_plan, broken, done, submit
from support.played import eventful_logs, histories, quiet_log
from support.runlog import RunLog

from crewlog.agents import rederive, task_state, turn
from crewlog.agents.chain import Exhausted
from crewlog.events.store import Recorded
from crewlog.orchestrator import advance, answer, critic, decide, draft
from crewlog.orchestrator.commands import Tick
from crewlog.orchestrator.rederive import verify_run
from crewlog.orchestrator.replay import fold_streams
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas.divergence import Divergence
from crewlog.schemas.ids import ApprovalId, Hash
from crewlog.schemas.values import Failure


class Defect(NamedTuple):
    """What is broken, and where a replay must see it: at the first event of this type that it `concerns`, in this field."""

    module: Any
    function: str
    broken: Callable[[Any], Any]
    """Makes the defective function of the sound one."""
    type: str
    field: str
    concerns: Callable[[Any], bool] = lambda event: True

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(self.module, self.function, self.broken(getattr(self.module, self.function)))

    def is_named_by(self, found: Divergence | None, events: Sequence[Recorded]) -> None:
        """Check what a replay found against the first event that shows the defect."""
        first = next(r for r in events if r.type == self.type and self.concerns(r.event()))
        assert found is not None
        assert (found.stream, found.version, found.field) == (first.stream, first.version, self.field), str(found)


def instead(value: Any) -> Callable[[Any], Any]:
    """Return the same whatever is asked."""
    return lambda sound: lambda *args, **named: value


def otherwise(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change what comes back."""
    return lambda sound: lambda *args, **named: change(sound(*args, **named))


def struct(**fields: Any) -> Callable[[Any], Any]:
    """Change fields of the value that comes back."""
    return otherwise(lambda value: msgspec.structs.replace(value, **fields))


def given_up_at_once(sound: Any) -> Any:
    """Let the first call that fails end the attempt."""
    return lambda chain, tried, **named: Exhausted(Failure("model_server", "it broke")) if tried else sound(chain, tried, **named)


AGENT: Final = {
    "another prompt": Defect(rederive, "build_request", struct(system="Be brief."), "ModelCallStarted", "request_hash"),
    "a permit for any arguments": Defect(rederive, "digest_of", instead(Hash("0" * 64)), "ApprovalRequested", "digest"),
    "one approval for everything": Defect(rederive, "approval_of", instead(ApprovalId(UUID(int=1))), "ApprovalRequested", "approval_id"),
    "a call that is never tried again": Defect(turn, "next_link", given_up_at_once, "ModelCallStarted", "step", lambda event: not event.call_id.endswith("-1")),
    "an effect under another key": Defect(rederive, "call_key", otherwise(lambda key: f"{key}#2"), "ToolStarted", "idempotency_key"),
    "turns that are not counted": Defect(task_state, "_answered", struct(turn=0), "ModelCallStarted", "call_id", lambda event: event.turn > 1),
    "an outcome that is cut": Defect(turn, "_finished", otherwise(lambda outcome: replace(outcome, summary="")), "TaskCompleted", "outcome"),
}
RUN: Final = {
    "retries all at once": Defect(decide, "_jitter", instead(0.999), "TaskRetryScheduled", "due_us"),
    "a critic that sees nothing": Defect(critic, "review", instead(()), "TaskReviewed", "issues", lambda event: event.key == "a" and event.issues),
    "work sent back for nothing": Defect(
        decide,
        "_verdict",
        lambda sound: lambda task, outcome, *_, **named: ("revise", outcome),
        "TaskReviewed",
        "verdict",
        lambda event: event.key == "a" and event.verdict == "accepted",
    ),
    "outcomes without their trust": Defect(
        decide, "_labelled", lambda sound: lambda state, task, outcome, **named: outcome, "TaskReviewed", "outcome", lambda event: event.key == "b"
    ),
    "steps that wait for nothing": Defect(
        advance, "ready_steps", lambda sound: lambda state: [s for s in state.steps if s.key not in state.tasks], "TaskRetryScheduled", "type"
    ),
    "tasks that are told nothing": Defect(
        draft,
        "task_message",
        lambda sound: lambda *args, **named: sound(*args, **{**named, "context": []}),
        "TaskOpened",
        "task",
        lambda event: b'"context":[{' in bytes(event.task),
    ),
    "an answer that leaves out": Defect(answer, "collected", instead("nothing"), "RunCompleted", "answer"),
}


def a_log() -> RunLog:
    """A run with a plan, a retry, a revision, and an outcome that rests on untrusted data."""
    log = RunLog()
    plan = a_plan(a="research", b="data a")
    plan["steps"][0]["constraints"] = {"words_max": 2}
    log.decides(submit(plan=plan, synthesis="collect"))
    log.says(log.state.tasks["a"].task_id, broken(retryable=True))
    log.decides(Tick())
    log.says(log.state.tasks["a"].task_id, done("far too many words"))
    log.says(log.state.tasks["a"].task_id, done("few words", trust="untrusted"))
    log.says(log.state.tasks["b"].task_id, done("fine"))
    assert log.state.status == "completed"
    return log


@pytest.fixture(scope="module")
def runs() -> list[RunHistory]:
    """Runs of a sound crew."""
    return [run for log in (quiet_log(), *eventful_logs()) for run in histories(log)]


@pytest.mark.parametrize("name", AGENT)
def test_a_defect_of_the_agent_is_named(name: str, runs: list[RunHistory], monkeypatch: pytest.MonkeyPatch) -> None:
    defect, shown = AGENT[name], 0
    defect.plant(monkeypatch)
    for run in runs:
        found = fold_streams(run.run_id, run.streams, run.texts, verify=True).divergence
        concerned = [s for s in sorted(run.streams) if any(r.type == defect.type and defect.concerns(r.event()) for r in run.streams[s])]
        if concerned:
            defect.is_named_by(found, run.streams[concerned[0]])
            shown += 1
        else:
            assert found is None, f"{found} has nothing to do with it"
    assert shown


@pytest.mark.parametrize("name", RUN)
def test_a_defect_of_the_orchestrator_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defect, log = RUN[name], a_log()
    assert verify_run(log.run_events, log.task_events) is None
    defect.plant(monkeypatch)
    in_order = sorted([*log.run_events, *log.task_events], key=lambda recorded: recorded.position)
    defect.is_named_by(verify_run(log.run_events, log.task_events), in_order)


@pytest.mark.parametrize("name", ["retries all at once", "outcomes without their trust", "an answer that leaves out"])
def test_what_a_defective_program_wrote_is_named_by_a_sound_one(name: str) -> None:
    defect = RUN[name]
    with pytest.MonkeyPatch.context() as patch:
        defect.plant(patch)
        log = a_log()
        assert verify_run(log.run_events, log.task_events) is None
    defect.is_named_by(verify_run(log.run_events, log.task_events), log.run_events)
