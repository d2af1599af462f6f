"""Decide what follows from a command: plain functions from (command, state, time, known kinds) to events.

The same arguments give the same decision, byte for byte: ids and jitter are derived, never drawn. A command that is no news (the
event was dealt with before, the run is over) gives an empty decision, so reading an event twice does no harm.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, Literal, assert_never

import msgspec

from crewlog.orchestrator import critic
from crewlog.orchestrator.advance import advance, fail, is_plan, step_of
from crewlog.orchestrator.brief import GOAL_CHARS_MAX
from crewlog.orchestrator.commands import (
    CLOCK,
    AbortRun,
    AlreadyDecided,
    ApprovalAsked,
    AttemptEnded,
    BuryTask,
    CancelRun,
    Command,
    ContinueRollback,
    DecideApproval,
    ForkRun,
    HandedBack,
    LiftQuarantine,
    PauseRun,
    QuarantineRun,
    ReleaseRun,
    ResumeRun,
    SubmitRun,
    TaskEnded,
    Tick,
    TooLate,
)
from crewlog.orchestrator.dispatch import fit_outcome, outcomes_of
from crewlog.orchestrator.draft import Decision, Draft
from crewlog.orchestrator.forking import fork
from crewlog.orchestrator.interventions import intervene, note_at_submission
from crewlog.orchestrator.planning import SINGLE_KEY, Kinds, check_kinds, given_steps, planned_steps, single_step
from crewlog.orchestrator.repeats import NO_PROGRESS, work_hash
from crewlog.orchestrator.rollback import wants_more
from crewlog.orchestrator.run import (
    CRITIC_PREFIX,
    ROUTER,
    PendingApproval,
    RunState,
    TaskState,
    answers_goal,
    current_task,
    has_clock,
    judged_by,
    next_due_us,
    starving,
)
from crewlog.orchestrator.run_controls import is_paused
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import ApprovalId, RunId
from crewlog.schemas.plan import read_constraints
from crewlog.schemas.retry import RetryPolicy
from crewlog.schemas.run_events import (
    RollbackContinued,
    RunCancelled,
    RunHeld,
    RunPlanned,
    RunReleased,
    RunSubmitted,
    Step,
    TaskHeld,
    TaskResumed,
    TaskRetryScheduled,
    TaskReviewed,
    TaskSuspended,
)
from crewlog.schemas.sparse import sparse_json
from crewlog.schemas.task import RUN, AgentTask
from crewlog.schemas.task_events import ApprovalDecided, TaskFailed
from crewlog.schemas.text import shorten
from crewlog.schemas.undo_steps import undo_steps
from crewlog.schemas.usage import Usage, format_usd
from crewlog.schemas.values import Failure, Issue, Outcome, Shortfall

REVISIONS_MAX: Final = 2
"""Times the critic may send one step's work back; after that it is accepted with a flag."""
PLAN_CORRECTIONS_MAX: Final = 1
"""Times a planner may correct a plan that breaks the rules."""
SUBMITTED_BYTES_MAX: Final = 96 * 1024
"""A submitted task as JSON. Larger texts belong into attachments: the log keeps the task with every run."""
DEADLINE: Final = "deadline"
WAIT_S_MAX: Final = 1e9
"""Longest wait for another attempt, in seconds: beyond any deadline, and small enough to be a time. What an agent writes may be any number."""
BUDGET: Final = "budget"
POISON: Final = "poison"

Verdict = Literal["accepted", "judging", "revise", "flagged", "failed"]

NOTHING_USED: Final = Usage()
NO_KINDS: Final[Kinds] = MappingProxyType({})


def decide(command: Command, state: RunState, now_us: int, kinds: Kinds = NO_KINDS) -> Decision:  # noqa: C901, PLR0912  (one arm per command)
    """Decide what follows from a command.

    Args:
        now_us: the time of the decision; it becomes `occurred_us` of what is appended.
        kinds: the agent kinds there are; read when a run is submitted and when a planner is asked.

    Raises:
        ContractError: a submitted task cannot be carried out (unknown kind, too large, unusable schema).
        NotFound: no such approval.
        AlreadyDecided: somebody else has answered first.
        TooLate: the run is over.
    """
    draft = Draft(state, now_us, kinds)
    match command:
        case SubmitRun():
            _submit(draft, command)
        case ForkRun():
            fork(draft, command)
        case TaskEnded():
            _task_ended(draft, command)
        case AttemptEnded():
            _attempt_ended(draft, command)
        case BuryTask():
            _bury(draft, command)
        case ApprovalAsked():
            _approval_asked(draft, command)
        case DecideApproval():
            _decide_approval(draft, command)
        case ReleaseRun():
            _release(draft, command)
        case HandedBack() | PauseRun() | ResumeRun() | QuarantineRun() | LiftQuarantine():
            intervene(draft, command)
        case ContinueRollback():
            if wants_more(state) and state.rollback is not None and len(state.rollback.orders) == command.behind:
                draft.emit(RollbackContinued(command.page))
                advance(draft)
        case CancelRun():
            if state.status == "open":
                draft.close_tasks(command.reason, command.actor)
                draft.emit(RunCancelled(command.reason, command.actor))
        case AbortRun():
            if state.status == "open":
                fail(draft, command.error, ended=command.ended)
        case Tick():
            _tick(draft)
        case _:
            assert_never(command)
    return draft.decision()


def _submit(draft: Draft, command: SubmitRun) -> None:
    if draft.state.status != "new":
        return
    task = command.task
    if command.rollback is None:  # what a rollback is about names kinds that there are, and asks no planner
        check_kinds(task, draft.kinds)
    recorded = _checked_json(task)
    draft.emit(
        RunSubmitted(
            run_id=RunId(task.run_id),
            tenant=task.tenant,
            user=task.user,
            goal=shorten(task.objective, GOAL_CHARS_MAX),
            task=msgspec.Raw(recorded),
            source=command.source,
            deadline_us=draft.now_us + task.timeout_seconds * 1_000_000,
            limits=command.terms.limits,
            tree=command.terms.tree,
            hold_s=command.terms.hold_s,
            caller=command.terms.caller,
            rollback=command.rollback,
        )
    )
    note_at_submission(draft, command.pauses, command.quarantines)
    if command.rollback is not None:
        draft.emit(RunPlanned(undo_steps(command.rollback.orders, command.rollback.kinds), "rollback", note=command.rollback.reason))
    elif task.type != RUN:
        draft.emit(RunPlanned((single_step(task),), "single"))
    elif task.plan is not None:
        draft.emit(RunPlanned(given_steps(task.plan), "given"))
    advance(draft)


def _checked_json(task: AgentTask) -> bytes:
    if task.key is not None and task.key.startswith("@"):
        raise ContractError(f"key {task.key!r} is reserved for the orchestrator", problems=(("/key", "must not begin with '@'"),))
    if task.undo is not None:
        raise ContractError("undo is reserved for the orchestrator", problems=(("/undo", "must be left out: take a run back with crewlog rollback"),))
    if task.output_schema is not None:
        if task.type == RUN and (task.synthesis or ("planner" if task.plan is None else "collect")) == "collect":
            raise ContractError(
                "output_schema needs one task that writes the output",
                problems=(("/output_schema", "set synthesis to 'planner', or leave the schema out: a run that collects its steps' outcomes has no output"),),
            )
        critic.check_schema(task.output_schema)
    recorded = sparse_json(task)
    if len(recorded) > SUBMITTED_BYTES_MAX:
        raise ContractError(f"the task is {len(recorded)} bytes of JSON, at most {SUBMITTED_BYTES_MAX} are kept in the log; attach larger texts as files")
    return recorded


def _task_ended(draft: Draft, command: TaskEnded) -> None:
    task = current_task(draft.state, command.task_id)
    if task is None:
        return
    done = command.event
    outcome = _labelled(draft.state, task, done.outcome, unpriced=done.unpriced_calls > 0)
    if is_plan(task.key):
        _plan_arrived(draft, command, task, outcome)
    elif task.key == ROUTER:
        _route_arrived(draft, command, task, outcome)
    elif task.key.startswith(CRITIC_PREFIX):
        _judgement_arrived(draft, command, task, outcome)
    else:
        _work_arrived(draft, command, task, outcome)
    advance(draft)


def _labelled(state: RunState, task: TaskState, outcome: Outcome, *, unpriced: bool) -> Outcome:
    """Bound an outcome, and label it with what its agent need not be believed about: taint of its sources, calls without a price."""
    flags = (*outcome.flags, "unpriced") if unpriced else outcome.flags
    sources = [s.key for s in state.steps] if task.key.startswith("@") else step_of(state, task).depends_on
    tainted = state.brief.is_tainted or any(item.outcome.trust == "untrusted" for item in outcomes_of(state, sources))
    return fit_outcome(replace(outcome, flags=tuple(dict.fromkeys(flags)), trust="untrusted" if tainted else outcome.trust))


def _review_event(
    task: TaskState, command: TaskEnded, outcome: Outcome, verdict: Verdict, issues: tuple[Issue, ...], error: Failure | None = None
) -> TaskReviewed:
    done = command.event
    return TaskReviewed(task.task_id, task.key, verdict, issues, outcome, error, done.usage, done.cost_micro_usd)


def _work_arrived(draft: Draft, command: TaskEnded, task: TaskState, outcome: Outcome) -> None:
    state = draft.state
    step = step_of(state, task)
    issues = _judge(state, task, step, command.event.outcome)
    # the same work again, although its issues were named: naming them once more will not help
    repeated = bool(issues) and work_hash(step, outcome) in state.rejected
    verdict, outcome = _verdict(task, outcome, issues, repeated=repeated)
    if verdict == "accepted" and critic.rubric_of(step):
        verdict = "judging"
    draft.emit(_review_event(task, command, outcome, verdict, issues))


def _verdict(task: TaskState, outcome: Outcome, issues: tuple[Issue, ...], *, repeated: bool) -> tuple[Verdict, Outcome]:
    if not issues:
        return "accepted", outcome
    if task.revised < REVISIONS_MAX and not repeated:
        return "revise", outcome
    why = ("review_failed", NO_PROGRESS) if repeated else ("review_failed",)
    return "flagged", _flagged(outcome, *why)


def _flagged(outcome: Outcome, *flags: str) -> Outcome:
    return replace(outcome, flags=tuple(dict.fromkeys((*outcome.flags, *flags))))


def _judgement_arrived(draft: Draft, command: TaskEnded, task: TaskState, outcome: Outcome) -> None:
    """Take what a critic said about another task's outcome; one that cannot be understood leaves a flag, never work undone."""
    draft.emit(_review_event(task, command, outcome, "accepted", ()))
    judged = judged_by(draft.state, task)
    if judged is None or judged.outcome is None:
        return
    step = step_of(draft.state, judged)
    try:
        issues = critic.read_judgement(command.event.outcome.output, critic.rubric_of(step))
    except ContractError:
        _not_judged(draft, judged)
        return
    repeated = bool(issues) and work_hash(step, judged.outcome) in draft.state.rejected
    verdict, final = _verdict(judged, judged.outcome, issues, repeated=repeated)
    draft.emit(TaskReviewed(judged.task_id, judged.key, verdict, issues, final))


def _not_judged(draft: Draft, judged: TaskState) -> None:
    assert judged.outcome is not None
    draft.emit(TaskReviewed(judged.task_id, judged.key, "flagged", (), _flagged(judged.outcome, "not_judged")))


def _route_arrived(draft: Draft, command: TaskEnded, task: TaskState, outcome: Outcome) -> None:
    """Hand the whole goal to the kind that the router named; anything else is the planner's business."""
    draft.emit(_review_event(task, command, outcome, "accepted", ()))
    output = command.event.outcome.output
    kind = output.get("kind") if isinstance(output, dict) else None
    if kind in task.offered:
        brief = draft.state.brief
        draft.emit(RunPlanned((Step(SINGLE_KEY, str(kind), brief.objective, (), brief.constraints),), "router", draft.state.plans))


def _judge(state: RunState, task: TaskState, step: Step, outcome: Outcome) -> tuple[Issue, ...]:
    schema: Mapping[str, Any] | None = state.brief.output_schema if answers_goal(state, task.key) else None
    if schema is None and bytes(step.constraints) == b"{}":
        return ()
    return critic.review(outcome, read_constraints(step.constraints), schema)


def _plan_arrived(draft: Draft, command: TaskEnded, task: TaskState, outcome: Outcome) -> None:
    try:
        steps, note = planned_steps(draft.state, command.event.outcome, task.offered)
    except ContractError as error:
        issues = tuple(Issue("plan", f"{pointer}: {text}" if pointer else text) for pointer, text in error.problems) or (Issue("plan", error.message),)
        if task.revised < PLAN_CORRECTIONS_MAX:
            draft.emit(_review_event(task, command, outcome, "revise", issues))
        else:
            draft.emit(_review_event(task, command, outcome, "failed", issues, Failure("contract", f"the planner made no usable plan: {error}")))
        return
    draft.emit(_review_event(task, command, outcome, "accepted", ()))
    draft.emit(RunPlanned(steps, "planner", draft.state.plans, note))


def _attempt_ended(draft: Draft, command: AttemptEnded) -> None:
    state, failed = draft.state, command.event
    task = current_task(state, command.task_id)
    if task is None or task.phase == "retrying" or failed.attempt != task.attempt or failed.attempt == task.failed:
        return
    policy = RetryPolicy(attempts_max=state.brief.attempts_max)
    counted = failed.attempt - task.holds
    if failed.error.retryable and counted < policy.attempts_max:
        wait_s = max(policy.delay_s(counted, _jitter(task)), min(failed.error.retry_after_s or 0.0, WAIT_S_MAX))
        due_us = draft.now_us + round(wait_s * 1e6)
        if state.paused_since_us or due_us < state.deadline_us:  # a deadline that stands still cannot come first
            draft.emit(TaskRetryScheduled(task.task_id, task.key, failed.attempt + 1, due_us, failed.error))
            advance(draft)
            return
    if isinstance(failed.shortfall, Shortfall):  # another attempt costs nobody anything; when none is left, more money helps
        draft.emit(TaskHeld(task.task_id, task.key, failed.attempt, failed.error, failed.shortfall, failed.usage, failed.cost_micro_usd))
    else:
        _give_up(draft, task, failed.error, failed.usage, failed.cost_micro_usd)
    advance(draft)


def _bury(draft: Draft, command: BuryTask) -> None:
    task = current_task(draft.state, command.task_id)
    if task is None or task.phase != "dispatched" or (task.kind, task.attempt, task.dispatches) != (command.kind, command.attempt, command.serial):
        return  # not a message that this task waits for: it went on, or somebody of another kind says so
    _give_up(draft, task, Failure(POISON, command.history))
    advance(draft)


def _jitter(task: TaskState) -> float:
    """Derive a fraction in [0, 1) that differs between tasks and attempts and is the same whenever it is decided."""
    return zlib.crc32(task.task_id.bytes + task.attempt.to_bytes(4, "big")) / 2**32


def _give_up(draft: Draft, task: TaskState, error: Failure, usage: Usage = NOTHING_USED, cost_micro_usd: int = 0) -> None:
    draft.write(task.task_id, TaskFailed(error))
    draft.emit(TaskReviewed(task.task_id, task.key, "failed", error=error, usage=usage, cost_micro_usd=cost_micro_usd))
    if task.key.startswith(CRITIC_PREFIX) and (judged := judged_by(draft.state, task)) is not None:
        _not_judged(draft, judged)


def _approval_asked(draft: Draft, command: ApprovalAsked) -> None:
    state, asked = draft.state, command.event
    task = current_task(state, command.task_id)
    if task is None or asked.approval_id in task.pending or asked.approval_id in state.approvals:
        return
    draft.emit(
        TaskSuspended(
            task_id=task.task_id,
            key=task.key,
            approval_id=asked.approval_id,
            tool=asked.tool,
            expires_us=asked.expires_us,
            call_id=asked.call_id,
            digest=asked.digest,
            since_us=draft.now_us,
            question=asked.question,
        )
    )
    advance(draft)


def _decide_approval(draft: Draft, command: DecideApproval) -> None:
    decided = draft.state.approvals.get(command.approval_id)
    if decided is not None:
        if (decided.decision, decided.actor) != (command.decision, command.actor):
            raise AlreadyDecided(f"approval {command.approval_id}", decision=decided.decision, actor=decided.actor)
        return
    task = next((t for t in draft.state.tasks.values() if command.approval_id in t.pending), None)
    if task is None:
        raise NotFound("approval", str(command.approval_id))
    if draft.state.status != "open":
        raise TooLate(f"approval {command.approval_id}: run {draft.state.run_id} is over ({draft.state.status})")
    if task.pending[command.approval_id].expires_us <= draft.now_us and not draft.state.pauses:
        raise AlreadyDecided(f"approval {command.approval_id}", decision="expired", actor=CLOCK)
    _check_answer(task.pending[command.approval_id], command)
    _answer(draft, task, command.approval_id, command.decision, command.actor, command.note)


def _check_answer(asked: PendingApproval, command: DecideApproval) -> None:
    """Refuse an answer to another question: a yes to `did it happen?` must never be taken for a permit to do it again."""
    if asked.asks_outcome == (command.decision in ("approved", "denied")):
        what = f"whether {asked.tool} happened" if asked.asks_outcome else f"whether {asked.tool} may run"
        answers = "happened, did_not_happen or give_up (crewlog resolve)" if asked.asks_outcome else "approved or denied (crewlog approve, crewlog deny)"
        raise ContractError(f"approval {command.approval_id} asks {what}, which {command.decision!r} does not answer: say {answers}")


def _answer(draft: Draft, task: TaskState, approval_id: ApprovalId, decision: Any, actor: str, note: str = "") -> None:
    asked, state = task.pending[approval_id], draft.state
    draft.write(task.task_id, ApprovalDecided(approval_id, asked.call_id, asked.digest, decision, actor, note))
    is_last = sum(len(t.pending) for t in state.tasks.values()) == 1 and state.hold is None and not state.pauses
    run_deadline_us = state.deadline_us + draft.now_us - state.paused_since_us if is_last else 0
    draft.emit(TaskResumed(task.task_id, task.key, approval_id, decision, actor, run_deadline_us))
    left = draft.state.tasks[task.key]
    if not left.pending and not starving(draft.state) and not is_paused(draft.state):
        draft.dispatch_again(left, left.attempt)


def _release(draft: Draft, command: ReleaseRun) -> None:
    state = draft.state
    if state.status != "open" or state.hold is None or all(task.shortfall is None or task.shortfall.scope != command.scope for task in starving(state)):
        return
    stands = bool(state.pauses) or any(task.pending for task in state.tasks.values())
    run_deadline_us = 0 if stands else state.deadline_us + draft.now_us - state.paused_since_us
    draft.emit(RunReleased(command.scope, command.limit_micro_usd, command.used_micro_usd, run_deadline_us))
    for task in state.tasks.values():
        if task.phase == "held" and not is_paused(state):  # one that only waited for the others goes on with the attempt it is in
            draft.dispatch_again(task, task.attempt + 1 if task.shortfall is not None else task.attempt)
    advance(draft)


def _tick(draft: Draft) -> None:
    due_us = next_due_us(draft.state)
    if due_us is None or due_us > draft.now_us:
        return
    if 0 < draft.state.deadline_us <= draft.now_us and not draft.state.paused_since_us:
        brief = draft.state.brief
        fail(draft, Failure(DEADLINE, f"run {draft.state.run_id} did not finish within timeout_seconds={brief.timeout_seconds}"))
        return
    if draft.state.hold is not None and draft.state.hold.expires_us <= draft.now_us and not draft.state.pauses:
        _end_hold(draft, draft.state.hold)
        return
    for key in list(draft.state.tasks):
        task = draft.state.tasks[key]
        if task.is_active and task.due_us <= draft.now_us and has_clock(draft.state, task):
            _task_due(draft, task)
    advance(draft)


def _end_hold(draft: Draft, hold: RunHeld) -> None:
    used, limit, needed = map(format_usd, (hold.used_micro_usd, hold.limit_micro_usd, hold.needed_micro_usd))
    error = Failure(BUDGET, f"budget {hold.scope} had no room for {needed} ({used} of {limit} used), and nobody raised it within {draft.state.hold_s} s")
    for task in starving(draft.state):
        _give_up(draft, task, error, task.usage, task.cost_micro_usd)
    fail(draft, error)


def _task_due(draft: Draft, task: TaskState) -> None:
    match task.phase:
        case "dispatched":
            _give_up(draft, task, Failure(DEADLINE, f"task {task.task_id} ({task.key}) did not end in time, its wait in the queue included"))
        case "retrying":
            if not starving(draft.state):
                draft.dispatch_again(task, task.attempt)
        case "suspended":
            for approval_id, asked in task.pending.items():
                if asked.expires_us <= draft.now_us:
                    _answer(draft, draft.state.tasks[task.key], approval_id, "expired", CLOCK)
        case "held" | "judging" | "accepted" | "flagged" | "revise" | "failed":
            pass
        case _:
            assert_never(task.phase)
