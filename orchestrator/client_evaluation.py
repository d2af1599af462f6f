"""The client's part about evaluations: hand finished runs in again, follow them, and say what came of each. What to wait for is chosen in `evaluating`.

One loop does everything in turn, so nothing is decided on what is no longer so: it reads all trials at once, chooses, hands in what may begin, and
rests until something is recorded. It asks the log and the orchestrators only, no views, and says every few seconds what it waits for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec

from crewlog.events.bus import Subscription
from crewlog.events.clock import Clock
from crewlog.orchestrator.client import Client, RequestRefused
from crewlog.orchestrator.client_events import LOOK_AGAIN_S
from crewlog.orchestrator.client_trials import Tried, compared, submitted_task, why_incomparable
from crewlog.orchestrator.evaluating import STOPPED, UnderWay, choose, fold, handed_in, progress, scopes_of_held
from crewlog.orchestrator.run_history import load_history
from crewlog.projections.query_rows import RunView
from crewlog.schemas.budget import trial_scope
from crewlog.schemas.errors import ContractError, OrchestrationError, TenantFull, Unavailable
from crewlog.schemas.ids import RunId
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.trial import Trial

SURFACE: Final = "trial"
"""Where trials come from: the operator may set budgets for that surface."""
NOT_BEGUN: Final = f"not begun: {STOPPED}"
LEFT: Final = "the evaluation was given up"
TELL_AT_LEAST_S: Final = 120.0


class Pace(NamedTuple):
    """How fast an evaluation goes, and how long it waits."""

    at_once: int = 4
    """Trials under way at the same time."""
    patience_s: float = 900.0
    """A trial of which nothing was recorded for so many seconds is stopped: as long as one task may take, unless it says otherwise."""
    look_s: float = LOOK_AGAIN_S
    """How long it trusts that a hint would have come, in seconds."""
    tell_s: float = 10.0
    """How often it says what it waits for, in seconds; half as often each time, as long as nothing was done since."""


USUAL: Final = Pace()


class Bill(NamedTuple):
    """What an evaluation has spent, of what it may."""

    scope: str
    spent_micro_usd: int
    hard_micro_usd: int | None


class Evaluation:
    """Tries finished runs again. One of these per evaluation; its runs are charged to one budget, beyond which none starts a model call.

    A trial that its budget holds waits for those under way, whose calls may turn out cheaper than was reserved for them; meanwhile none begins. When
    that cannot make room any more, the evaluation is over its budget: what is held is cancelled, and the others are not begun.
    """

    def __init__(
        self, client: Client, clock: Clock, trial: Trial, *, tenant: str, tell: Callable[[str], None], pace: Pace = USUAL, check: Sequence[str] = ()
    ) -> None:
        """Prepare; nothing is handed in before `run`.

        Args:
            trial: its name, models, prompts and limit; each run is its own source.
            tell: called with what is under way and what that waits for.
            check: a command that is given what came of a run and of its trial as JSON, and ends with 0 when the trial is good enough.
        """
        self._client, self._clock, self._trial, self._tenant, self._tell, self._pace, self._check = client, clock, trial, tenant, tell, pace, check
        self.compared = 0
        self.full = ""
        """The budget that has ended it, because there is no room for what its trials need; empty while none has."""
        self.left: Sequence[RunId] = ()
        """Trials that are under way although it was given up: nobody could be told to cancel them."""
        self._hint = asyncio.Event()
        self._trials: dict[RunId, UnderWay] = {}
        self._runs: dict[RunId, RunView] = {}
        """Trial -> the run that it repeats."""
        self._hearing: dict[RunId, Subscription] = {}
        self._sending: asyncio.Task[object] | None = None
        self._comparing: set[asyncio.Task[Tried]] = set()
        self._told_s, self._tell_s = clock.monotonic(), pace.tell_s

    @property
    def scope(self) -> str:
        """Name the budget of this evaluation."""
        return trial_scope(self._tenant, self._trial.name)

    async def bill(self) -> Bill:
        """Return what was spent, as the log has it."""
        state = (await (await self._client.store()).budgets([self.scope])).get(self.scope)
        return Bill(self.scope, 0 if state is None else state.spent, self._trial.hard_micro_usd)

    async def run(self, runs: Sequence[RunView]) -> AsyncGenerator[Tried, None]:
        """Try these runs again and yield each as it is done. Left early, it cancels what is under way: close it then, see `contextlib.aclosing`.

        Raises:
            Unavailable: the log cannot be reached, or no orchestrator took a trial for as long as patience lasts.
        """
        waiting, done = deque(runs), 0
        try:
            while waiting or self._trials or self._comparing:
                self._hint.clear()
                async for tried in self._next(waiting):
                    done += 1
                    self._told_s, self._tell_s = self._clock.monotonic(), self._pace.tell_s
                    yield tried
                is_news = await self._look()
                if self._trials or self._comparing:
                    self._report(done, len(runs))
                    if not is_news:
                        await self._rest()
        finally:
            await self._give_up()

    async def _next(self, waiting: deque[RunView]) -> AsyncIterator[Tried]:
        """Yield what was compared since, and what is not tried at all; hand in what may begin."""
        for task in [task for task in self._comparing if task.done()]:
            self._comparing.discard(task)
            tried = task.result()
            self.compared += tried.pair is not None
            yield tried
        while waiting and (self.full or self._may_begin()):
            run = waiting.popleft()
            why = NOT_BEGUN if self.full else await self._begin(run)
            if why:
                yield Tried(run, None, why, was_begun=False)

    def _may_begin(self) -> bool:
        return len(self._trials) + len(self._comparing) < self._pace.at_once and not any(trial.is_held for trial in self._trials.values())

    async def _begin(self, run: RunView) -> str:
        """Hand a run in again; returns why it cannot be tried, or nothing."""
        task = await submitted_task(await self._client.store(), RunId(run.run_id))
        if task is None:
            return "it was not submitted but forked or imported, or its person's data was erased"
        trial = self._changed(task, run)
        trial_id = RunId(trial.run_id)
        self._runs[trial_id], self._trials[trial_id] = run, handed_in(trial_id, self._clock.monotonic())
        self._hearing[trial_id] = await self._client.hear_of(trial_id, self._hint)
        try:
            await self._hand_in(trial)
        except (ContractError, RequestRefused, TenantFull) as error:
            await self._forget(trial_id)
            return f"not begun: {error}"
        return ""

    async def _hand_in(self, trial: AgentTask) -> None:
        """Submit a trial until there is an answer. What was sent may be in the log, so whoever gives up waits for the answer first."""
        since_s = self._clock.monotonic()
        while True:
            self._sending = asyncio.create_task(self._client.submit(trial))
            try:
                await asyncio.shield(self._sending)
            except Unavailable as error:
                if self._clock.monotonic() - since_s >= self._pace.patience_s:
                    raise
                self._tell(f"trial {str(trial.run_id)[:8]} is handed in again: {error}")
                self._hint.clear()
                await self._rest()
            else:
                return

    def _changed(self, task: AgentTask, run: RunView) -> AgentTask:
        trial = replace(self._trial, source=run.run_id)
        own = {"task_id": str(self._clock.random_id()), "run_id": None, "parent_task_id": None, "surface": SURFACE, "priority": "low", "auto_approve": True}
        return parse_task({**msgspec.to_builtins(task), **own, "trial": msgspec.to_builtins(trial)})

    async def _look(self) -> bool:
        """Read what the trials have recorded, and stop those that wait in vain; says whether anything was new."""
        if not self._trials:
            return False
        store, asked_s = await self._client.store(), self._clock.monotonic()
        scopes = scopes_of_held(self._trials)
        budgets = await store.budgets(scopes) if scopes else {}
        owners = {stream: trial_id for trial_id, trial in self._trials.items() for stream in trial.read}
        after = {stream: version for trial in self._trials.values() for stream, version in trial.read.items()}
        news, now_s = await store.read_streams(after), self._clock.monotonic()
        for recorded in news:
            trial_id = owners[recorded.stream]
            self._trials[trial_id] = fold(self._trials[trial_id], recorded, now_s)
        choice = choose(self._trials, budgets, asked_s=asked_s, now_s=now_s, patience_s=self._pace.patience_s)
        self.full = self.full or choice.full
        for trial_id, why in choice.stop.items():
            await self._stop(trial_id, why)
        for trial_id, why in choice.let_go.items():
            self._compare(trial_id, f"it does not stop, {why}: crewlog terminate {str(trial_id)[:8]}")
        for trial_id in [trial_id for trial_id, trial in self._trials.items() if trial.is_over]:
            self._compare(trial_id)
        return bool(news)

    async def _stop(self, trial_id: RunId, why: str) -> None:
        """Tell a trial to stop; its end, whichever it is, will be read. Without an answer it is told again with the next look."""
        trial, now_s = self._trials[trial_id], self._clock.monotonic()
        self._trials[trial_id] = trial = msgspec.structs.replace(trial, stop_s=now_s if trial.stop_s is None else trial.stop_s)
        with suppress(Unavailable):
            with suppress(RequestRefused):  # it has ended by itself meanwhile
                await self._client.cancel(trial_id, reason=why)
            self._trials[trial_id] = msgspec.structs.replace(trial, told=True)

    def _compare(self, trial_id: RunId, why: str = "") -> None:
        del self._trials[trial_id]
        comparing = asyncio.create_task(self._compared(trial_id, why))
        comparing.add_done_callback(lambda _: self._hint.set())
        self._comparing.add(comparing)

    async def _compared(self, trial_id: RunId, why: str) -> Tried:
        run = self._runs[trial_id]
        await self._forget(trial_id)
        store = await self._client.store()
        why = why or why_incomparable(await load_history(store, trial_id))
        return Tried(run, None, why) if why else Tried(run, await compared(store, RunId(run.run_id), trial_id, check=self._check))

    async def _forget(self, trial_id: RunId) -> None:
        self._trials.pop(trial_id, None)
        del self._runs[trial_id]
        await self._hearing.pop(trial_id).stop()

    def _report(self, done: int, of: int) -> None:
        now_s = self._clock.monotonic()
        if now_s - self._told_s >= self._tell_s:
            self._told_s, self._tell_s = now_s, min(2 * self._tell_s, TELL_AT_LEAST_S)
            self._tell(progress(self._trials, done=done, of=of, comparing=len(self._comparing), now_s=now_s))

    async def _rest(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(min(self._pace.look_s, self._pace.patience_s)):
                await self._hint.wait()

    async def _give_up(self) -> None:
        """Cancel what is under way."""
        own = [*self._comparing, *([] if self._sending is None else [self._sending])]
        for comparing in self._comparing:
            comparing.cancel()
        await asyncio.gather(*own, return_exceptions=True)
        left = [*self._trials]
        try:
            if left:
                await self._client.control.runs("terminate", left, reason=LEFT)
        except OrchestrationError:
            self.left = left
        for trial_id in [*self._hearing]:
            await self._forget(trial_id)
