"""The turn machine: what an agent does next, decided purely from the state of its task (see `task_state`).

Everything a decision depends on is a recorded fact, so a replay derives each one again. Nothing here waits, reads a clock or knows
a provider; the shell in `work` performs a step and records what happened.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from crewlog.agents.setup import Setup
from crewlog.agents.task_state import Call, Exchange, TaskState, joined
from crewlog.agents.trajectory import describe_cycle, find_cycle
from crewlog.schemas.ids import ApprovalId, Hash, TaskId, derived_approval_id
from crewlog.schemas.payload import content_hash
from crewlog.schemas.task import AgentTask
from crewlog.schemas.values import SUMMARY_CHARS_MAX, Failure, Outcome

NUDGES_MAX = 1


class Start(msgspec.Struct, frozen=True):
    """Record that this worker has the task."""


class AskModel(msgspec.Struct, frozen=True):
    """Call the model with the conversation so far."""

    call_id: str
    turn: int


class Nudge(msgspec.Struct, frozen=True):
    """Tell the model that it goes round in circles."""

    text: str


class RunCalls(msgspec.Struct, frozen=True):
    """Check, and then run, ask about, or refuse these calls."""

    calls: tuple[Call, ...]


class Wait(msgspec.Struct, frozen=True):
    """A person must decide; nothing holds the task meanwhile."""

    approvals: tuple[ApprovalId, ...]


class Finish(msgspec.Struct, frozen=True):
    """The task is done."""

    outcome: Outcome


class Fail(msgspec.Struct, frozen=True):
    """This attempt is over."""

    failure: Failure


class Done(msgspec.Struct, frozen=True):
    """Nothing to do here: the stream or this attempt has its end, or a call is running."""


Step = Start | AskModel | Nudge | RunCalls | Wait | Finish | Fail | Done


def next_step(state: TaskState, setup: Setup | None) -> Step:
    """Decide what comes next. `setup` is None until the task was started."""
    match state.phase:
        case "absent" | "ended" | "between_attempts":
            return Done()
        case "opened":
            return Start()
        case "working":
            assert setup is not None
            return _next_while_working(state, setup)
        case _:
            assert_never(state.phase)


def _next_while_working(state: TaskState, setup: Setup) -> Step:
    task = state.task
    assert task is not None
    if state.failure is not None:
        return Fail(state.failure)
    if state.outcome is not None:
        return Finish(_finished(state, state.outcome))
    if state.stop == "refusal":
        return Fail(Failure("model_content_filter", "the model refused to answer; rephrase the objective"))
    if state.stop == "max_tokens":
        return Fail(Failure("model_truncated", f"the answer was cut at {setup.max_tokens} tokens; ask for less in one task"))
    open_calls = tuple(c for c in state.calls if c.status in ("new", "interrupted", "approved", "denied"))
    if open_calls and state.tool_calls > task.limits.tool_calls_max:
        return Fail(limit_failure("tool_calls_max", state.tool_calls, task.limits.tool_calls_max))
    if open_calls:
        return RunCalls(open_calls)
    if any(c.status == "running" for c in state.calls):
        return Done()
    if waiting := tuple(c.approval_id for c in state.calls if c.status == "asked" and c.approval_id):
        return Wait(waiting)
    last = state.exchanges[-1] if state.exchanges else None
    if last is not None and not last.calls and (not setup.nudge or state.nudges > NUDGES_MAX):
        return Finish(_finished(state, Outcome(summary=last.text.inline or "", artifacts=state.artifacts, flags=("plain_answer",) if setup.nudge else ())))
    if limit := _limit_reached(state, task):
        return Fail(limit)
    if setup.repeats_max and (cycle := find_cycle(state.exchanges[state.looped_turn :], setup.repeats_max)):
        return _stop_cycle(state, cycle, setup.repeats_max)
    return AskModel(f"m{state.turn + 1}-{state.tries + 1}", state.turn + 1)


def _limit_reached(state: TaskState, task: AgentTask) -> Failure | None:
    limits, used = task.limits, state.usage
    if state.turn >= limits.turns_max:
        return limit_failure("turns_max", state.turn, limits.turns_max)
    if limits.output_tokens_max is not None and used.output_tokens >= limits.output_tokens_max:
        return limit_failure("output_tokens_max", used.output_tokens, limits.output_tokens_max)
    if limits.tokens_max is not None and used.input_tokens + used.output_tokens >= limits.tokens_max:
        return limit_failure("tokens_max", used.input_tokens + used.output_tokens, limits.tokens_max)
    hard = task.budget.hard_micro_usd
    if hard is not None and state.cost_micro_usd > 0 and state.cost_micro_usd >= hard:
        return Failure("budget", f"budget reached: {state.cost_micro_usd} of {hard} micro-USD spent on this task")
    return None


def limit_failure(name: str, used: int, limit_max: int, *, retryable: bool = False) -> Failure:
    """Say which of the task's `Limits` was reached. Each has a code of its own, `limit_<name>`."""
    reached = f"limit {name} reached: {used} of max {limit_max}, raise limits.{name} to go on"
    return Failure(f"limit_{name}", reached, retryable)


def _stop_cycle(state: TaskState, cycle: tuple[Exchange, ...], repeats: int) -> Nudge | Fail:
    """Tell the model once; when it goes on in circles all the same, stop."""
    named = describe_cycle(cycle)
    if not state.looped_turn:
        return Nudge(
            f"You are going round in circles: {named} was done {repeats} times and gave the same results each time. "
            "Doing it again will not change them. Try something else, or finish with what you have and say what is missing."
        )
    first = state.turn - len(cycle) * repeats + 1
    return Fail(
        Failure(
            "loop_detected",
            f"the agent goes round in circles: turns {first} to {state.turn} repeat {named} {repeats} times with the same results, "
            f"although it was told so behind turn {state.looped_turn}; say in the objective what else to try, or use another model",
        )
    )


def approval_of(state: TaskState, call: Call) -> ApprovalId:
    """Name the approval that `call` would ask for next: asking again after a decision is a new question."""
    assert state.task is not None
    return derived_approval_id(TaskId(state.task.task_id), call_id=f"{call.call.call_id}/{call.asks}")


def digest_of(state: TaskState, setup: Setup, call: Call) -> Hash:
    """Bind a permit to what may be done with it: tool, version, arguments, agent kind, task and run."""
    assert state.task is not None
    tool = setup.tool(call.call.tool)
    parts = [call.call.tool, tool.version if tool else "", setup.kind, str(state.task.run_id), str(state.task.task_id)]
    return content_hash(msgspec.json.encode([*parts, msgspec.to_builtins(call.call.arguments)]))


def _finished(state: TaskState, outcome: Outcome) -> Outcome:
    flags = tuple(dict.fromkeys([*outcome.flags, *(("simulated",) if state.simulated else ())]))
    return Outcome(
        summary=outcome.summary[:SUMMARY_CHARS_MAX],
        output=outcome.output,
        artifacts=outcome.artifacts,
        citations=outcome.citations,
        flags=flags,
        trust=joined((outcome.trust, state.trust)),
    )
