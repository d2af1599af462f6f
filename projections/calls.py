"""Fold of model calls and tool calls into rows and into the totals of their task."""

from __future__ import annotations

from crewlog.projections.json_text import to_json
from crewlog.projections.projection import Fact
from crewlog.projections.rows import ModelCallRow, ToolCallRow
from crewlog.projections.run_state import Changed, RunState, TaskState, add_artifacts, close_model_call
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import spend_stream, task_stream
from crewlog.schemas.system_events import BillCorrected, CallSettled
from crewlog.schemas.task_events import ModelCallFailed, ModelCallFinished, ModelCallStarted, ToolFinished, ToolStarted
from crewlog.schemas.usage import Usage


def model_call_started(task: TaskState, fact: Fact, event: ModelCallStarted, changed: Changed) -> None:
    """Open a row; a call still open then belongs to a worker that died, unless this one is made beside it."""
    if not event.hedge:
        close_model_call(task, changed)
    call = _new_model_call(task, fact, event, turn=event.turn)
    if event.hedge:
        task.hedge = call
    else:
        task.model_call = call
    changed.model_calls[call] = None
    changed.tasks[task.row] = None


def model_call_finished(task: TaskState, fact: Fact, event: ModelCallFinished, changed: Changed) -> None:
    """Close the row with what the answer used and cost, and note the tool calls it asks for."""
    call = _close(task, fact, event, changed)
    call.status, call.stop, call.simulated = "ok", event.stop, event.simulated
    task.row.turns += 1
    task.row.tool_calls += len(event.tool_calls)
    for asked in event.tool_calls:
        row = ToolCallRow(task.row.task_id, asked.call_id, task.row.run_id, event.turn, asked.tool, "requested", fact.occurred_us)
        row.requested_position = fact.position
        task.tool_calls[asked.call_id] = row
        changed.tool_calls[row] = None


def model_call_failed(task: TaskState, fact: Fact, event: ModelCallFailed, changed: Changed) -> None:
    """Close the row with the error and with what was billed all the same."""
    call = _close(task, fact, event, changed)
    call.status, call.error_code, call.error = "failed", event.error.code, event.error.message


def call_settled(run: RunState, fact: Fact, event: CallSettled, changed: Changed) -> None:
    """Charge a call to its task, which is over. The first bill of a call counts, as in the budgets: a second one changes nothing.

    Raises:
        ContractError: the run has no such task, or this is not where its calls are settled.
    """
    task = _billed(run, fact, event)
    call = task.model_calls.get(event.call_id)
    if call is not None and call.outcome_position is not None:
        return
    call = _bill(task, call or _new_model_call(task, fact, event, turn=task.row.turns + 1), fact, event, changed)
    call.status = "unused"
    _count_usage(task, call, event.usage)


def bill_corrected(run: RunState, fact: Fact, event: BillCorrected, changed: Changed) -> None:
    """Put what a call cost in fact in place of the worst case it was settled at.

    Raises:
        ContractError: the run knows no such call, or this is not where it is settled.
    """
    task = _billed(run, fact, event)
    if (call := task.model_calls.get(event.call_id)) is None:
        raise ContractError(f"{fact.stream} version {fact.version} corrects call {event.call_id} of task {event.task_id}, which run {run.row.run_id} lacks")
    price, row = event.price, task.row
    row.cost_micro_usd += (price.cost_micro_usd or 0) - (call.cost_micro_usd or 0)
    call.cost_micro_usd, call.price_source, call.uncached_micro_usd = price.cost_micro_usd, price.source, price.uncached_micro_usd
    _count_usage(task, call, event.usage)
    changed.model_calls[call] = None
    changed.tasks[row] = None


def tool_started(task: TaskState, fact: Fact, event: ToolStarted, changed: Changed) -> None:
    """Note that a call runs now, under which key and by whose permit."""
    call = task.tool_calls.get(event.call_id) or _new_tool_call(task, fact, event)
    task.tool_calls[event.call_id] = call
    call.status, call.tool_version, call.effect = "running", event.tool_version, event.effect
    call.idempotency_key, call.approval_id = event.idempotency_key, event.approval_id
    call.started_us = fact.occurred_us
    call.starts += 1
    call.fingerprint, call.stub = event.fingerprint or None, event.stub or None
    if event.compensation is not None:
        call.compensation = to_json(event.compensation)
    changed.tool_calls[call] = None


def tool_finished(task: TaskState, fact: Fact, event: ToolFinished, changed: Changed) -> None:
    """Close the row; what the call made belongs to the task."""
    add_artifacts(task, event.artifacts, changed)
    call = task.tool_calls.pop(event.call_id, None) or _new_tool_call(task, fact, event)
    call.status, call.trust, call.latency_ms = event.status, event.trust, event.latency_ms
    call.finished_us, call.outcome_position = fact.occurred_us, fact.position
    if event.compensation:
        call.compensation = to_json(event.compensation)
    if event.reused:
        call.reused = to_json(event.reused)
    changed.tool_calls[call] = None


def _billed(run: RunState, fact: Fact, event: CallSettled | BillCorrected) -> TaskState:
    """Return whose call an event beside task streams is about. Every agent may write to those: what one says of another's task does not count."""
    task = run.by_stream.get(task_stream(event.task_id)) if fact.stream == spend_stream(event.task_id) else None
    if task is None:
        raise ContractError(f"{fact.stream} version {fact.version} is about a call of task {event.task_id}, which run {run.row.run_id} does not know there")
    return task


def _close(task: TaskState, fact: Fact, event: ModelCallFinished | ModelCallFailed, changed: Changed) -> ModelCallRow:
    call = task.model_calls.get(event.call_id)
    if call is None or call.outcome_position is not None:
        # an outcome without an intent, or a second one: still a call that happened and may have cost money
        call = _new_model_call(task, fact, event, turn=event.turn)
    call.latency_ms = event.latency_ms
    call.wire, call.request_id = event.wire or None, event.request_id or None
    _count_usage(task, call, event.usage)
    return _bill(task, call, fact, event, changed)


def _bill(task: TaskState, call: ModelCallRow, fact: Fact, event: ModelCallFinished | ModelCallFailed | CallSettled, changed: Changed) -> ModelCallRow:
    if call is task.model_call:
        task.model_call, task.hedge = task.hedge, None
    elif call is task.hedge:
        task.hedge = None
    price = event.price
    call.provider, call.model = event.provider, event.model
    call.cost_micro_usd, call.price_source, call.uncached_micro_usd = price.cost_micro_usd, price.source, price.uncached_micro_usd
    call.finished_us, call.outcome_position = fact.occurred_us, fact.position
    if price.cost_micro_usd is None:
        task.row.unpriced_calls += 1
    else:
        task.row.cost_micro_usd += price.cost_micro_usd
    changed.model_calls[call] = None
    changed.tasks[task.row] = None
    return call


def _count_usage(task: TaskState, call: ModelCallRow, usage: Usage) -> None:
    call.input_tokens, call.output_tokens, call.reasoning_tokens = usage.input_tokens, usage.output_tokens, usage.reasoning_tokens
    call.cache_read_tokens, call.cache_write_tokens = usage.cache_read_tokens, usage.cache_write_tokens
    total = task.row
    total.input_tokens += usage.input_tokens
    total.output_tokens += usage.output_tokens
    total.cached_tokens += usage.cache_read_tokens


def _new_model_call(task: TaskState, fact: Fact, event: ModelCallStarted | ModelCallFinished | ModelCallFailed | CallSettled, *, turn: int) -> ModelCallRow:
    row = task.row
    row.model_calls += 1
    call = ModelCallRow(row.task_id, row.model_calls, row.run_id, event.call_id, turn, event.provider, event.model, "running", fact.occurred_us)
    task.model_calls[event.call_id] = call
    return call


def _new_tool_call(task: TaskState, fact: Fact, event: ToolStarted | ToolFinished) -> ToolCallRow:
    return ToolCallRow(task.row.task_id, event.call_id, task.row.run_id, task.row.turns, event.tool, "requested", fact.occurred_us)
