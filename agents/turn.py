"""The turn machine: what an agent does next, decided purely from the state of its task (see `task_state`).

Everything a decision depends on is a recorded fact, so a replay derives each one again. Nothing here waits, reads a clock or knows
a provider; the shell in `work` performs a step and records what happened.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, assert_never

import msgspec

from crewlog.agents.chain import CONTEXT_LENGTH, SLOW, Exhausted, Tried, next_link
from crewlog.agents.compaction import can_shrink
from crewlog.agents.setup import Setup
from crewlog.agents.task_state import Asking, Call, Exchange, TaskState, joined, open_model_calls
from crewlog.agents.trajectory import describe_cycle, find_cycle
from crewlog.agents.undo import undone
from crewlog.schemas.effects import UndoOrder
from crewlog.schemas.ids import ApprovalId, Hash, TaskId, derived_approval_id
from crewlog.schemas.json_output import read_json, schema_problems
from crewlog.schemas.payload import content_hash
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import CallPurpose
from crewlog.schemas.text import shorten
from crewlog.schemas.values import SUMMARY_CHARS_MAX, Failure, Outcome, Shortfall

NUDGES_MAX: Final = 1
PAUSES_MAX: Final = 5
"""Times in a row that a provider may ask to be called again with what it has said so far."""
CORRECTIONS_MAX: Final = 2
"""Times a structured answer that does not satisfy its schema is sent back."""
PROBLEM_CHARS_MAX: Final = 800
OPEN: Final = frozenset({"new", "interrupted", "approved", "denied", "happened"})
"""States of a call that the worker must do something about."""


class Start(msgspec.Struct, frozen=True):
    """Record that this worker has the task."""


class AskModel(msgspec.Struct, frozen=True):
    """Call the model at place `link` of the chain with the conversation so far, after a wait of `wait_s` seconds."""

    call_id: str
    turn: int
    link: int = 0
    wait_s: float = 0.0
    purpose: CallPurpose = "turn"
    is_too_long: bool = False
    """This model, and every other that is left, found the conversation too long: something must be left out of it first."""
    estimated_tokens: int = 0
    """Of the request, once somebody had to look (see `make_room`); it goes into the log with the call."""
    is_hedge: bool = False
    """The call is made beside one that is slow."""


class GiveUpCall(msgspec.Struct, frozen=True):
    """Record that nobody will ever know how this call ended: the worker that made it died."""

    asking: Asking


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
    """This attempt is over. `shortfall`: with more money the task can go on from here."""

    failure: Failure
    shortfall: Shortfall | None = None


class Done(msgspec.Struct, frozen=True):
    """Nothing to do here: the stream or this attempt has its end, or a call is running."""


Step = Start | AskModel | GiveUpCall | Nudge | RunCalls | Wait | Finish | Fail | Done


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
    if state.asking is not None and state.asking.is_lost:
        return GiveUpCall(open_model_calls(state)[0])
    if failure := state.failure or _unusable_answer(state, setup):
        return Fail(failure)
    if state.outcome is not None:
        return _end(state, setup, task, state.outcome)
    open_calls = tuple(c for c in state.calls if c.status in OPEN)
    if open_calls and state.tool_calls > task.limits.tool_calls_max:
        return Fail(limit_failure("tool_calls_max", state.tool_calls, task.limits.tool_calls_max))
    if open_calls:
        return RunCalls(open_calls)
    if any(c.status == "running" for c in state.calls):
        return Done()
    if waiting := tuple(c.approval_id for c in state.calls if c.status == "asked" and c.approval_id):
        return Wait(waiting)
    if task.undo is not None:
        return _undone(state, task.undo)
    if (plain := _plain_answer(state, setup, task)) is not None:
        return _end(state, setup, task, plain)
    if limit := _refused_too_often(state, setup) or _limit_reached(state, task):
        return Fail(limit)
    if setup.repeats_max and (cycle := find_cycle(state.exchanges[state.looped_turn :], setup.repeats_max)):
        return _stop_cycle(state, cycle, setup.repeats_max)
    return _ask(state, setup, task, "turn")


def _undone(state: TaskState, order: UndoOrder) -> Finish | Fail:
    """End a task that takes back an effect, or its attempt, with what the tool said."""
    result = state.exchanges[-1].results[-1]
    found = undone(order, shorten(result.content.inline or "", PROBLEM_CHARS_MAX), is_error=result.is_error)
    return Finish(_finished(state, found)) if isinstance(found, Outcome) else Fail(found)


def _unusable_answer(state: TaskState, setup: Setup) -> Failure | None:
    if state.stop == "refusal":
        return Failure("model_content_filter", "the model refused to answer; rephrase the objective")
    if state.stop == "max_tokens":
        return Failure("model_truncated", f"the answer was cut at {setup.max_tokens} tokens; ask for less in one task")
    if state.stop == "pause" and all(e.is_paused for e in state.exchanges[-PAUSES_MAX - 1 :]) and len(state.exchanges) > PAUSES_MAX:
        return Failure("model_paused", f"the model paused {PAUSES_MAX + 1} times in a row without an answer")
    last = state.exchanges[-1] if state.exchanges else None
    if last is not None and last.purpose == "turn" and not last.calls and last.text.inline is None:
        return Failure(
            "output_invalid", f"the model answered with {last.text.size} bytes of plain text, which is more than a result may have; ask for less, or for a file"
        )
    return None


def _plain_answer(state: TaskState, setup: Setup, task: AgentTask) -> Outcome | None:
    """Take the last answer as the outcome when it is plain text, and the model was told often enough that a tool has to end the task or that it is empty."""
    last = next((e for e in reversed(state.exchanges) if e.purpose == "turn"), None)
    if last is None or last.calls or last.is_paused or last.said or (setup.nudge and state.nudges <= NUDGES_MAX):
        return None
    text = last.text.inline or ""
    if setup.empty_nudge and not text.strip() and state.nudges <= NUDGES_MAX:
        return None
    output = _json_of(text) if task.output_schema is not None and setup.output_prompt else None
    return Outcome(text, output, state.artifacts, flags=("plain_answer",) if setup.nudge else ())


def _end(state: TaskState, setup: Setup, task: AgentTask, outcome: Outcome) -> Step:
    """Finish, once the output satisfies the task's schema: the outcome's own, or that of a structured answer asked for behind it."""
    if task.output_schema is None or not setup.output_prompt:
        return Finish(_finished(state, outcome))
    answers = [e for e in state.exchanges if e.purpose == "output" and not e.is_paused]
    if not answers and not schema_problems(outcome.output, task.output_schema):
        return Finish(_finished(state, outcome))
    if answers and not answers[-1].problems:
        return Finish(_finished(state, replace(outcome, output=_json_of(answers[-1].text.inline or ""))))
    if len(answers) > CORRECTIONS_MAX:
        problems = shorten("; ".join(answers[-1].problems), PROBLEM_CHARS_MAX)
        return Fail(Failure("output_invalid", f"{len(answers)} answers did not satisfy output_schema; the last one: {problems}"))
    return _ask(state, setup, task, "output")


def _json_of(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError:
        return None


def _refused_too_often(state: TaskState, setup: Setup) -> Failure | None:
    for tool in setup.tools:
        if tool.refusals_max is None:
            continue
        name = tool.definition.name
        refused = [r for e in state.exchanges for r in e.results if r.tool == name and r.is_error]
        if len(refused) > tool.refusals_max:
            said = shorten(refused[-1].content.inline or "", PROBLEM_CHARS_MAX)
            return Failure("output_invalid", f"{name} was refused {len(refused)} times; the last time: {said}")
    return None


def _ask(state: TaskState, setup: Setup, task: AgentTask, purpose: CallPurpose) -> Step:
    turn = state.turn + 1
    call_id = f"m{turn}-{state.tries + 1}"
    if not state.falls_back:
        return AskModel(call_id, turn, purpose=purpose)
    found = next_link(
        state.chain, state.tried, task_id=TaskId(task.task_id), call_id=call_id, first=state.first_link, refusals_fall_through=state.refusals_fall_through
    )
    if isinstance(found, Exhausted):
        if found.too_long and can_shrink(state, setup):
            refused = next(t.link for t in reversed(state.tried) if t.kind == CONTEXT_LENGTH)
            return AskModel(call_id, turn, refused, purpose=purpose, is_too_long=True)
        return Fail(found.failure, found.shortfall)
    return AskModel(call_id, turn, found.link, found.wait_s, purpose)


def hedge_of(state: TaskState) -> AskModel | None:
    """Decide which model is asked beside the one that is slow with a structured answer; None: no other may be, or a second one was already.

    That it is slow is an observation, so this is asked by whoever made it. The offline rules are never asked so: they would always be first.
    """
    asking = state.asking
    if asking is None or state.task is None or state.hedge_after_s is None or asking.was_hedged or asking.is_lost or asking.purpose != "output":
        return None
    call_id = f"m{asking.turn}-{state.tries + 1}"
    tried = (*state.tried, Tried(asking.link, SLOW, ""))
    found = next_link(state.chain, tried, task_id=TaskId(state.task.task_id), call_id=call_id, first=state.first_link)
    if isinstance(found, Exhausted) or found.wait_s or state.chain[found.link].simulated:
        return None
    return AskModel(call_id, asking.turn, found.link, purpose=asking.purpose, is_hedge=True)


def _limit_reached(state: TaskState, task: AgentTask) -> Failure | None:
    limits, used = task.limits, state.usage
    if state.turn >= limits.turns_max:
        return limit_failure("turns_max", state.turn, limits.turns_max)
    if limits.output_tokens_max is not None and used.output_tokens >= limits.output_tokens_max:
        return limit_failure("output_tokens_max", used.output_tokens, limits.output_tokens_max)
    if limits.tokens_max is not None and used.input_tokens + used.output_tokens >= limits.tokens_max:
        return limit_failure("tokens_max", used.input_tokens + used.output_tokens, limits.tokens_max)
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
    marks = (("simulated", state.simulated), ("stubbed", state.is_stubbed))
    flags = tuple(dict.fromkeys([*outcome.flags, *(mark for mark, holds in marks if holds)]))
    return Outcome(
        summary=outcome.summary[:SUMMARY_CHARS_MAX],
        output=outcome.output,
        artifacts=outcome.artifacts,
        citations=outcome.citations,
        flags=flags,
        trust=joined((outcome.trust, state.trust)),
    )
