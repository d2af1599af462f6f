"""The shell around `decide`: read what is new, decide, append, publish. All choices are made elsewhere.

At most one step per run is under way in this process; wakes that arrive meanwhile become one more step. Between processes the
expected version of the run stream decides who wins; whoever lost reads again and decides again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple
from uuid import UUID

from crewlog.events import faults
from crewlog.events.clock import Clock
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.batch import Asked, Batch, decide_batch, task_of
from crewlog.orchestrator.commands import AbortRun, Command, ForkRun, SubmitRun
from crewlog.orchestrator.decide import decide
from crewlog.orchestrator.dispatcher import Dispatcher
from crewlog.orchestrator.folds import Fold, Folds
from crewlog.orchestrator.interventions import at_submission, due_interventions
from crewlog.orchestrator.kinds import KindDirectory
from crewlog.orchestrator.publisher import Publisher
from crewlog.orchestrator.run import RunState, active_tasks
from crewlog.orchestrator.terms import Allowance, terms_of
from crewlog.schemas.codec import type_name
from crewlog.schemas.effects import Rollback
from crewlog.schemas.errors import ConflictError, ContractError, NotAuthorised, NotFound, OrchestrationError, TenantFull, Unavailable
from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.subjects import SHADOW_LANE
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import TERMINAL_TYPES
from crewlog.schemas.text import shorten
from crewlog.schemas.values import Failure

NOTHING_LIMITED: Final = Allowance()
RUNS_PER_READ_MAX: Final = 128
RACES_MAX: Final = 50
"""Times one step may lose against another process before the run is left to the sweep."""
LINGER_S: Final = 0.02
"""Longest time in which the end of a task that nothing waits for is not looked at, in seconds: sibling tasks tend to end together."""
RETRY_S: Final = 1.0
"""Wait before a run is looked at again when the log was away."""

log = logging.getLogger(__name__)


class Submitted(NamedTuple):
    """What became of a submission."""

    run_id: RunId
    task_id: UUID
    status: Literal["accepted", "duplicate"]


class Driver:
    """Carries out the decisions of one process."""

    def __init__(
        self,
        store: EventStore,
        publisher: Publisher,
        dispatcher: Dispatcher,
        clock: Clock,
        kinds: KindDirectory,
        *,
        on_state: Callable[[RunState], None],
        on_left: Callable[[RunId], None],
        admit: Callable[[str], None],
        allowance: Allowance = NOTHING_LIMITED,
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            admit: called with the tenant of a new run; raises `TenantFull` when it may have no more.
            on_state: called with the state of a run after each step that read or changed it.
            on_left: called with a run that could not be looked at to the end: the sweep must come back to it.
            allowance: what runs that are submitted from now on may spend.
        """
        self._allowance = allowance
        self._store, self._publisher, self._dispatcher = store, publisher, dispatcher
        self._clock, self._kinds, self._on_state, self._on_left, self._admit = clock, kinds, on_state, on_left, admit
        self.folds = Folds(store)
        self._woken: dict[RunId, None] = {}
        self._busy: set[RunId] = set()
        self._asked: dict[RunId, list[Asked]] = {}
        self._ended: dict[RunId, set[TaskId]] = {}
        """Run -> tasks that are said to have ended well, while nothing follows from it before its other tasks have."""
        self._signal = asyncio.Event()
        self._pumping: asyncio.Task[None] | None = None
        self._steps: set[asyncio.Task[None]] = set()

    def start(self) -> asyncio.Task[None]:
        """Begin to take wakes; the returned task ends only with `stop` or a defect."""
        self._pumping = asyncio.create_task(self._pump(), name="driver")
        return self._pumping

    async def stop(self, *, grace_s: float) -> None:
        """Let the steps under way finish within `grace_s` seconds. Safe to call twice."""
        if self._pumping is None:
            return
        pumping, self._pumping = self._pumping, None
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)
        if self._steps:
            await asyncio.wait(self._steps, timeout=grace_s)
        for step in self._steps:
            step.cancel()
        await asyncio.gather(*self._steps, return_exceptions=True)
        for ask in (ask for waiting in self._asked.values() for ask in waiting):
            ask.answer.cancel()

    def wake(self, run_id: RunId, *, ended: TaskId | None = None) -> None:
        """Look at a run soon. Cheap; any number of wakes before the look are one.

        Args:
            ended: the task that is said to have ended well, when that is why. A hint: the log says what is true.
        """
        if ended is not None and self._may_wait(run_id, ended):
            return
        self._ended.pop(run_id, None)
        if not self.folds.has_ended(run_id):
            self._woken[run_id] = None
            self._signal.set()

    def _may_wait(self, run_id: RunId, ended: TaskId) -> bool:
        state = self.folds.get(run_id).state
        key = next((task.key for task in active_tasks(state) if task.task_id == ended), None)
        if key is None or any(key in step.depends_on for step in state.steps):
            return False
        siblings = self._ended.get(run_id)
        if siblings is None:
            siblings = self._ended[run_id] = set()
            asyncio.get_running_loop().call_later(LINGER_S, self.wake, run_id)
        siblings.add(ended)
        return not siblings.issuperset(task.task_id for task in active_tasks(state))

    async def submit(
        self, task: AgentTask, source: Literal["subject", "api"], *, caller: str = "", rollback: Rollback | None = None, is_shadow: bool = False
    ) -> Submitted:
        """Start a run, or recognise one that was started before. It is durable when this returns.

        Args:
            caller: the `traceparent` that came with it, if any: the run's trace is linked to it.
            rollback: what the run is to take back, when that is what it is for.
            is_shadow: the orchestrator itself makes it. Nobody else may: what a shadow costs is charged to no day of its tenant.

        Raises:
            ContractError: the task cannot be carried out, or its ids belong to another task.
            TenantFull: its tenant may have no more runs now; never for a rollback.
            Unavailable: the log cannot be reached; submitting the same task again is safe.
        """
        if task.priority == SHADOW_LANE and not is_shadow:
            raise ContractError("only orchestrators make shadows", problems=(("/priority", "say high, normal or low; CREWLOG_SHADOW has runs shadowed"),))
        try:
            if rollback is None:  # a tenant that has too much under way may still take back what it did
                self._admit(task.tenant)
        except TenantFull:
            if RunId(task.run_id) in await self.folds.states([RunId(task.run_id)]):
                return await self._known(task)  # it was accepted before
            raise
        terms = await terms_of(task, self._allowance, self._store, self.folds, caller=caller)
        fold = Fold(RunId(task.run_id))
        try:
            await self.begin(fold, SubmitRun(task, source, terms, *at_submission(task.tenant, self.folds.controls), rollback=rollback))
        except ConflictError:
            return await self._known(task)
        return Submitted(fold.run_id, task.task_id, "accepted")

    async def begin(self, fold: Fold, command: SubmitRun | ForkRun) -> None:
        """Make the first decision of a run. It is durable when this returns.

        Raises:
            ConflictError: the run exists already.
            ContractError: it cannot be carried out.
            TenantFull: it is a fork, and its tenant may have no more runs now.
            Unavailable: the log cannot be reached.
        """
        if isinstance(command, ForkRun):
            self._admit(fold.state.brief.tenant)
        batch, now_us = Batch(fold.state), self._clock.now_us()
        try:
            batch.add(decide(command, fold.state, now_us, self._kinds.offers))
        except ContractError:
            if not await self._kinds.refresh():
                raise
            batch.add(decide(command, fold.state, now_us, self._kinds.offers))
        await self._commit(fold, batch, now_us)
        self._on_state(fold.state)

    async def execute(self, run_id: RunId, command: Command) -> RunState:
        """Carry out a command from outside, behind everything the log holds by now, and return the state behind it.

        Raises:
            ContractError: there is no such run, or the command is refused.
            Unavailable: the log cannot be reached.
        """
        ask = Asked(command, asyncio.get_running_loop().create_future())
        self._asked.setdefault(run_id, []).append(ask)
        self._woken[run_id] = None
        self._signal.set()
        state = await ask.answer
        if state.status == "new":
            raise NotFound("run", str(run_id))
        return state

    async def _known(self, task: AgentTask) -> Submitted:
        run_id = RunId(task.run_id)
        state = (await self.folds.states([run_id])).get(run_id)
        if state is None:
            raise ContractError(f"task id {task.task_id} is taken by a task of another run; choose a new one")
        if (state.brief.task_id, state.brief.tenant) != (task.task_id, task.tenant):
            raise ContractError(f"run {run_id} exists and belongs to another task; leave run_id out, or choose a new one")
        return Submitted(run_id, task.task_id, "duplicate")

    async def _pump(self) -> None:
        while True:
            await self._signal.wait()
            self._signal.clear()
            runs = [run_id for run_id in self._woken if run_id not in self._busy][:RUNS_PER_READ_MAX]
            if not runs:
                continue  # all of them are busy; the end of their steps sets the signal
            for run_id in runs:
                del self._woken[run_id]
            self._busy.update(runs)
            if self._woken:
                self._signal.set()
            await self._look([self.folds.get(run_id) for run_id in runs])

    async def _look(self, folds: Sequence[Fold]) -> None:
        """Read about all of these runs at once, then step each on its own."""
        try:
            news = await self.folds.read(folds)
        except OrchestrationError as error:
            log.warning("reading %d runs: %s", len(folds), error)
            for fold in folds:
                self._leave(fold, error)
            return
        for fold in folds:
            found = news.get(fold.run_id)
            if found is None:
                self._leave(fold, ContractError(f"run {fold.run_id} holds events unknown to this program"))
                continue
            step = asyncio.create_task(self._step(fold, found))
            self._steps.add(step)
            step.add_done_callback(self._steps.discard)

    async def _step(self, fold: Fold, news: Sequence[Recorded]) -> None:
        try:
            await self._decide_and_commit(fold, news)
        except Exception as error:  # a defect in one run must not stop the others: it is logged and told to whoever asked
            if not isinstance(error, OrchestrationError):
                log.exception("a step of run %s failed", fold.run_id)
            self._leave(fold, error)
        else:
            self.folds.keep(fold)
            if fold.version:
                self._on_state(fold.state)
            self._free(fold.run_id)

    async def _decide_and_commit(self, fold: Fold, news: Sequence[Recorded]) -> None:
        for _ in range(RACES_MAX):
            now_us = self._clock.now_us()
            batch = decide_batch(fold.state, news, self._asked.get(fold.run_id, ()), now_us, self._kinds.offers, self.folds.controls)
            try:
                if not batch.is_empty:
                    await self._commit(fold, batch, now_us)
            except ConflictError as error:
                log.info("run %s: %s", fold.run_id, error)
                known = fold.version
                news = (await self.folds.read([fold])).get(fold.run_id, ())
                if error.closed and not news and fold.version == known:
                    raise ContractError(f"run {fold.run_id} was imported: it is kept to be looked at, and nothing happens in it any more") from error
                continue
            except (ContractError, NotAuthorised) as error:
                await self._abort(fold, error, news)
                raise
            self._answer(fold, batch)
            news = news[len(batch.handled) :]
            if not news and fold.run_id not in self._asked:
                return
        log.warning("run %s: lost %d races in a row, the sweep comes back to it", fold.run_id, RACES_MAX)
        self._on_left(fold.run_id)

    async def _commit(self, fold: Fold, batch: Batch, now_us: int) -> None:
        if batch.blobs:
            await self._store.put_blobs(batch.blobs, run_id=fold.run_id)
        if faults.hook is not None:
            faults.hook("before_run_append")
        appended = await self._store.append(batch.request(fold.run_id, fold.version, now_us, self._clock))
        if faults.hook is not None:
            faults.hook("after_run_append")
        fold.advance_to(batch.state, appended.versions[len(batch.events) - 1])
        self.folds.keep(fold)
        await self._dispatcher.publish(fold.run_id, batch.state.brief.tenant, batch.dispatches)
        if type_name(batch.events[-1]) in TERMINAL_TYPES:
            await self._publisher.call_off({task.kind for task in active_tasks(batch.state)})
            await self._publisher.announce(batch.state.brief.tenant, fold.run_id, batch.events[-1])
        if next(due_interventions(batch.state, self.folds.controls), None) is not None:
            self.wake(fold.run_id)  # a plan, or a task, of a kind that is paused or in quarantine

    async def _abort(self, fold: Fold, error: OrchestrationError, news: Sequence[Recorded]) -> None:
        """End a run whose next step the log refuses for good: a visible failure instead of a run that stands still."""
        log.error("run %s cannot go on: %s", fold.run_id, error)
        now_us = self._clock.now_us()
        batch = Batch(fold.state)
        ended = tuple(task_of(recorded.stream) for recorded in news if recorded.type in TERMINAL_TYPES)
        batch.add(decide(AbortRun(Failure("internal", shorten(str(error), 1000)), ended), fold.state, now_us))
        if not batch.is_empty:
            await self._commit(fold, batch, now_us)
            self._on_state(fold.state)

    def _answer(self, fold: Fold, batch: Batch) -> None:
        for recorded in batch.handled:
            fold.cursors[task_of(recorded.stream)] = recorded.version
        waiting = self._asked.get(fold.run_id)
        if not waiting:
            return
        for ask, error in batch.verdicts:
            if not ask.answer.done():  # who asked may have given up
                ask.answer.set_result(fold.state) if error is None else ask.answer.set_exception(error)
        del waiting[: len(batch.verdicts)]
        if not waiting:
            del self._asked[fold.run_id]

    def _leave(self, fold: Fold, error: Exception) -> None:
        """Forget what is known about a run after a failure, and look at it again later if the log was away."""
        self.folds.forget(fold.run_id)
        self._on_left(fold.run_id)
        for ask in self._asked.pop(fold.run_id, ()):
            if not ask.answer.done():
                ask.answer.set_exception(error)
        self._free(fold.run_id)
        if isinstance(error, Unavailable):
            asyncio.get_running_loop().call_later(RETRY_S, self.wake, fold.run_id)

    def _free(self, run_id: RunId) -> None:
        self._busy.discard(run_id)
        if run_id in self._woken:
            self._signal.set()
