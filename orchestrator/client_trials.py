"""The client's part about trials: finished runs are tried again on another model or prompt, and shadows of live runs are looked up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from crewlog.events.clock import Clock
from crewlog.events.store import BudgetState, EventStore
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.golden_observe import Observed, observe
from crewlog.orchestrator.run_history import RunHistory, load_history, with_texts
from crewlog.orchestrator.run_tree import build_tree
from crewlog.orchestrator.trials import Check, Pair, compare
from crewlog.projections.query_rows import RunView
from crewlog.schemas.budget import trial_scope
from crewlog.schemas.errors import NotFound
from crewlog.schemas.ids import RunId, run_stream, shadow_run_id
from crewlog.schemas.payload import content_hash
from crewlog.schemas.run_events import RunCancelled, RunCompleted, RunFailed, RunHeld, RunReleased, RunSubmitted
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import TERMINAL_TYPES, ModelCallStarted, TaskStarted
from crewlog.schemas.trial import Trial

AT_ONCE: Final = 4
"""Trials under way at the same time."""
SURFACE: Final = "trial"
"""Where trials come from: the operator may set budgets for that surface."""
PAGE: Final = 200
CHECK_TIMEOUT_S: Final = 60.0
HANDED_IN: Final = ("api", "subject")
"""Sources of runs that somebody asked for."""
STOPPED: Final = "the evaluation has spent what it may"
NOT_BEGUN: Final = f"not begun: {STOPPED}"
LEFT: Final = "the evaluation was given up"


class Tried(NamedTuple):
    """What became of one trial: a comparison, or why there is none."""

    run: RunView
    pair: Pair | None
    why: str = ""
    was_begun: bool = True


class Bill(NamedTuple):
    """What an evaluation has spent, of what it may."""

    scope: str
    spent_micro_usd: int
    hard_micro_usd: int | None


class Evaluation:
    """Tries finished runs again. One of these per evaluation; its runs are charged to one budget, beyond which none starts a model call.

    A trial that its budget holds waits for those under way, whose calls may turn out cheaper than was reserved for them; meanwhile none begins. When
    nothing is under way that could make room, the evaluation is over its budget: what is held is cancelled, and the others are not begun.
    """

    def __init__(self, client: Client, clock: Clock, trial: Trial, *, tenant: str, at_once: int = AT_ONCE, check: Sequence[str] = ()) -> None:
        """Prepare; nothing is handed in before `run`.

        Args:
            trial: its name, models, prompts and limit; each run is its own source.
            check: a command that is given what came of a run and of its trial as JSON, and ends with 0 when the trial is good enough.
        """
        self._check = check
        self._client, self._clock, self._trial, self._tenant = client, clock, trial, tenant
        self._slots = asyncio.Semaphore(at_once)
        self._under_way: set[RunId] = set()
        self._held: dict[RunId, RunHeld] = {}
        self._over, self._settled = asyncio.Event(), asyncio.Event()
        self._settled.set()

    @property
    def scope(self) -> str:
        """Name the budget of this evaluation."""
        return trial_scope(self._tenant, self._trial.name)

    @property
    def is_over_budget(self) -> bool:
        """Say whether it was stopped because no money was left."""
        return self._over.is_set()

    async def bill(self) -> Bill:
        """Return what was spent, as the log has it."""
        state = (await (await self._client.store()).budgets([self.scope])).get(self.scope)
        return Bill(self.scope, 0 if state is None else state.spent, self._trial.hard_micro_usd)

    async def run(self, runs: Sequence[RunView]) -> AsyncIterator[Tried]:
        """Try these runs again and yield each as it is done. Left early, it cancels what is under way."""
        left = {asyncio.create_task(self._try(run)) for run in runs}
        try:
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            for trial_id in list(self._under_way):
                await self._client.cancel(trial_id, reason=LEFT)
                self._under_way.discard(trial_id)

    async def _try(self, run: RunView) -> Tried:
        async with self._slots:
            await self._settled.wait()
            if self.is_over_budget:
                return Tried(run, None, NOT_BEGUN, was_begun=False)
            store = await self._client.store()
            task = await submitted_task(store, RunId(run.run_id))
            if task is None:
                return Tried(run, None, "it was not submitted but forked or imported, or its person's data was erased", was_begun=False)
            trial_id = RunId((await self._client.submit(self._changed(task, run))).run_id)
            held = await self._until_over(trial_id)
            if held is not None:
                return Tried(run, None, f"{STOPPED}: {held.scope} has no room for its next call")
            why = why_incomparable(await load_history(store, trial_id))
            return Tried(run, None, why) if why else Tried(run, await compared(store, RunId(run.run_id), trial_id, check=self._check))

    def _changed(self, task: AgentTask, run: RunView) -> AgentTask:
        trial = Trial(**{**{name: getattr(self._trial, name) for name in Trial.__slots__}, "source": run.run_id})
        own = {"task_id": str(self._clock.random_id()), "run_id": None, "parent_task_id": None, "surface": SURFACE, "priority": "low", "auto_approve": True}
        return parse_task({**task.model_dump(mode="json", exclude_defaults=True), **own, "trial": msgspec.to_builtins(trial)})

    async def _until_over(self, trial_id: RunId) -> RunHeld | None:
        """Wait for the end of a trial; one that is held when no money is left is cancelled, and what holds it returned."""
        self._under_way.add(trial_id)
        following, stopping = asyncio.create_task(self._follow(trial_id)), asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
            held = self._held.get(trial_id)
            if following.done():
                following.result()
                held = None
            elif held is not None:
                await self._client.cancel(trial_id, reason=STOPPED)
            else:
                await following
        finally:
            for task in (following, stopping):
                task.cancel()
            await asyncio.gather(following, stopping, return_exceptions=True)
        self._under_way.discard(trial_id)
        self._held.pop(trial_id, None)
        await self._look()
        return held

    async def _follow(self, trial_id: RunId) -> None:
        async for recorded in self._client.events(trial_id, follow=True):
            event = recorded.event()
            if isinstance(event, RunHeld):
                self._held[trial_id] = event
                await self._look()
            elif isinstance(event, RunReleased):
                self._held.pop(trial_id, None)
                await self._look()
            elif recorded.type in TERMINAL_TYPES and recorded.stream.startswith("run/"):
                return

    async def _look(self) -> None:
        """Let trials begin while none is held, and notice when everything is and there is no room for any."""
        if self._held and len(self._held) == len(self._under_way):
            budgets = await (await self._client.store()).budgets(sorted({held.scope for held in self._held.values()}))
            if self._held and not any(_fits(held, budgets.get(held.scope)) for held in self._held.values()):
                self._over.set()
        (self._settled.set if self.is_over_budget or not self._held else self._settled.clear)()


def _fits(held: RunHeld, budget: BudgetState | None) -> bool:
    return budget is None or budget.hard is None or budget.spent + budget.reserved + held.needed_micro_usd <= budget.hard


async def submitted_task(store: EventStore, run_id: RunId) -> AgentTask | None:
    """Return the task that a run was submitted with; None for a run that was not, whose person's data was erased, or that is a trial itself."""
    for recorded in await store.read_streams({run_stream(run_id): 0}, types=frozenset({RunSubmitted.__name__})):
        event = recorded.event()
        if isinstance(event, RunSubmitted) and not recorded.erased_us:
            task = parse_task(bytes(event.task))
            return None if task.trial is not None else task
    return None


async def finished_runs(client: Client, *, last: int, type_: str | None, tenant: str) -> list[RunView]:
    """List the runs that ended last, the newest first, without trials and forks."""
    found: list[RunView] = []
    before = None
    while len(found) < last:
        page = await client.queries().runs(tenant=tenant, before=before, limit=PAGE, trials=False)
        found += [run for run in page if run.status in ("completed", "failed") and run.source in HANDED_IN and type_ in (None, run.type)]
        if len(page) < PAGE:
            break
        before = page[-1].submitted_at
    return found[:last]


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
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await process.communicate(body)
    except TimeoutError:
        process.kill()
        await process.wait()
    return "passed" if process.returncode == 0 else "failed"


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
