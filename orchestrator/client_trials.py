"""The client's part about trials: which runs can be tried again, how a trial compares with its run, and the shadows of live runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec

from crewlog.events.store import EventStore
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.golden_observe import Observed, observe
from crewlog.orchestrator.outcome_check import run_check
from crewlog.orchestrator.raised_budget import raised_budget
from crewlog.orchestrator.run_history import RunHistory, load_history, with_texts
from crewlog.orchestrator.run_tree import build_tree
from crewlog.orchestrator.trials import Check, Pair, compare
from crewlog.projections.query_rows import RunView
from crewlog.schemas.errors import NotFound
from crewlog.schemas.ids import RunId, run_stream, shadow_run_id
from crewlog.schemas.payload import content_hash
from crewlog.schemas.run_events import RunCancelled, RunCompleted, RunFailed, RunSubmitted
from crewlog.schemas.task import AgentTask, read_task
from crewlog.schemas.task_events import TERMINAL_TYPES, ModelCallStarted, TaskStarted

CHECK_TIMEOUT_S: Final = 60.0
HANDED_IN: Final = ("api", "subject")
"""Sources of runs that somebody asked for."""


class Tried(NamedTuple):
    """What became of one trial: a comparison, or why there is none."""

    run: RunView
    pair: Pair | None
    why: str = ""
    was_begun: bool = True


async def submitted_task(store: EventStore, run_id: RunId) -> AgentTask | None:
    """Return the task that a run was submitted with, and with the budget that somebody gave it since; None for a run that was not submitted, whose
    person's data was erased, or that is a trial itself."""
    for recorded in await store.read_streams({run_stream(run_id): 0}, types=frozenset({RunSubmitted.__name__})):
        event = recorded.event()
        if isinstance(event, RunSubmitted) and not recorded.erased_us:
            task = read_task(event.task)
            return None if task.trial is not None else replace(task, budget=await raised_budget(store, run_id) or task.budget)
    return None


async def finished_runs(client: Client, *, last: int, type_: str | None, tenant: str) -> list[RunView]:
    """List the runs that ended last, the newest first, without trials and forks."""
    found: list[RunView] = []
    async with aclosing(client.queries().every_run(tenant=tenant, trials=False)) as runs:
        async for run in runs:
            if run.status in ("completed", "failed") and run.source in HANDED_IN and type_ in (None, run.type):
                found.append(run)
            if len(found) >= last:
                break
    return found


async def compared(store: EventStore, run_id: RunId, trial_id: RunId, *, check: Sequence[str] = ()) -> Pair:
    """Read a run and its trial, and hold them against each other.

    Raises:
        NotFound: the log has no such runs.
    """
    original, trial = [await _with_answer(store, await load_history(store, run)) for run in (run_id, trial_id)]
    goal = next((e.goal for r in original.run_events if isinstance(e := r.event(), RunSubmitted)), "")
    ours, theirs = observe(original), observe(trial)
    said = await _checked(check, ours, theirs) if check else "none"
    return compare(str(run_id), str(trial_id), goal, ours, theirs, model_ms=(_model_ms(original), _model_ms(trial)), check=said)


async def _checked(command: Sequence[str], original: Observed, trial: Observed) -> Check:
    """Ask a command; one that takes too long refuses."""
    body = msgspec.json.encode({"original": original, "trial": trial})
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return "passed" if await run_check(command, body) == 0 else "failed"
    except TimeoutError:
        return "failed"


async def shadows(client: Client, runs: Sequence[RunView]) -> AsyncIterator[Tried]:
    """Yield, for each of these runs that has a shadow, how the two compare; one that was stopped, or that no worker ever took, says nothing."""
    store = await client.store()
    for run in runs:
        shadow = shadow_run_id(RunId(run.run_id))
        try:
            history = await load_history(store, shadow)
        except NotFound:
            continue
        why = why_incomparable(history)
        yield Tried(run, None, why) if why else Tried(run, await compared(store, RunId(run.run_id), shadow))


def why_incomparable(trial: RunHistory) -> str:
    """Say why a trial or shadow says nothing about what is tried; empty when it does. One that failed before any model was asked, for want of a worker
    or of a key, is no worse than its run."""
    end = next((r.event() for r in trial.run_events if r.type in TERMINAL_TYPES), None)
    types = {r.type for r in trial.events}
    if end is None:
        return "it is not over" if TaskStarted.__name__ in types else "it waits for a worker"
    if isinstance(end, RunCancelled):
        return f"it was stopped: {end.reason}"
    if isinstance(end, RunFailed) and ModelCallStarted.__name__ not in types:
        return f"no model was asked for it: {end.error.message}"
    return ""


async def kept_prompts(store: EventStore, prompts: Mapping[str, str]) -> dict[str, str] | None:
    """Store prompts in the log and return kind -> name of the blob."""
    if not prompts:
        return None
    await store.put_blobs([text.encode() for text in prompts.values()])
    return {kind: content_hash(text.encode()) for kind, text in prompts.items()}


async def _with_answer(store: EventStore, history: RunHistory) -> RunHistory:
    ends = [e for r in history.run_events if isinstance(e := r.event(), RunCompleted | RunFailed)]
    return await with_texts(store, history, [end.answer if isinstance(end, RunCompleted) else end.partial for end in ends])


def _model_ms(history: RunHistory) -> int:
    return sum(call.latency_ms for task in build_tree(history).tasks for call in task.calls() if call.what == "model")
