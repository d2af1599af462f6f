"""The tool calls of one task: judge each, then run, probe, take back, ask about or refuse it, and record what came of it. The shell around
`tool_runner` and `effects`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from crewlog.agents.claims import LOOK_AGAIN_FIRST_S, LOOK_AGAIN_MAX_S, read_claim, settlement, undone_claim
from crewlog.agents.effects import Owner, compensation_of, fingerprint_of, intended_compensation, probe_call
from crewlog.agents.hold import Hold
from crewlog.agents.journal import Journal
from crewlog.agents.setup import Setup, SetupTool
from crewlog.agents.spec import ToolContext, ToolFailed, ToolOutput, ToolSpec, Undo
from crewlog.agents.stand_in import StandIns
from crewlog.agents.task_state import Call
from crewlog.agents.tool_runner import Answer, Ask, Found, Probe, Ran, Refuse, Run, TakeBack, judge, run_tool
from crewlog.agents.toolbox import Toolbox
from crewlog.agents.undo import call_key, undoes
from crewlog.events.store import Write
from crewlog.schemas.effects import Compensation, EffectRef
from crewlog.schemas.ids import Hash, compensation_key, id_text
from crewlog.schemas.system_events import ClaimsOpened, EffectClaimed, EffectSettled
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import (
    ApprovalRequested,
    CompensationFinished,
    CompensationStarted,
    ToolFinished,
    ToolInDoubt,
    ToolProbed,
    ToolStarted,
    ToolWays,
)

if TYPE_CHECKING:
    from crewlog.agents.work import Workshop


class _Running(NamedTuple):
    """A call whose intent is recorded: what carries it out, its idempotency key, and the version of its `ToolStarted`."""

    call: Call
    spec: ToolSpec
    key: str
    version: int


class ToolCalls:
    """Performs what is decided about the tool calls of one task."""

    def __init__(self, shop: Workshop, journal: Journal, task: AgentTask, tools: Toolbox, moved: Callable[[], None]) -> None:
        """Prepare.

        Args:
            tools: everything that may carry out a call of the task, in all versions.
            moved: told about each sign of progress.
        """
        self._shop, self._journal, self._task, self._tools, self._moved = shop, journal, task, tools, moved
        self._owner = Owner(task.tenant, shop.spec.kind)
        self._hold = Hold(shop.clock, journal.look, fresh_s=shop.hold_fresh_s)
        self._stand_ins = None if task.trial is None else StandIns(task, journal)

    async def run(self, calls: tuple[Call, ...], setup: Setup) -> None:
        """Do what is decided about each of these calls, side by side where they run; those behind one that may change the task's files are left for then.

        A person is asked once nothing else is left to do: the answer is written to the task, and whoever was still at work on it would lose it.
        """
        journal = self._journal
        running: list[_Running] = []
        asked: list[tuple[Call, Ask, ToolSpec | None, str]] = []
        for call in calls:
            arguments, spec = journal.read(call.call.arguments), self._spec(call, setup)
            verdict = judge(call, journal.state, setup, spec, arguments)
            match verdict:
                case Refuse():
                    self._finish(call, verdict.status, verdict.message, spec)
                case Answer():
                    self._finish(call, "ok", verdict.message, spec)
                case Ask():
                    asked.append((call, verdict, spec, arguments))
                case Found():
                    self._found(call, setup, verdict.probed)
                case Probe():
                    assert spec is not None
                    await self._probe(call, spec, arguments)
                case TakeBack():
                    await self._take_back(call, verdict.compensation)
                case Run():
                    tool = setup.tool(call.call.tool)
                    assert tool is not None  # `judge` lets nothing else run
                    assert spec is not None
                    if (begun := await self._begin(call, tool, spec, arguments, verdict, may_wait=not running)) is not None:
                        running.append(begun)
                        if tool.is_contained:
                            break  # it may change the task's files: the calls behind it begin when that is known
        if running:
            await self._perform(running)
        if len(asked) == len(calls):
            for each in asked:
                self._ask(*each)

    async def _begin(self, call: Call, tool: SetupTool, spec: ToolSpec, arguments: str, verdict: Run, *, may_wait: bool) -> _Running | None:
        """Record the intent of a call; None when nothing is left to perform: its outcome stands in for it in a trial, or is that of another call
        that asked for the same, or that other call is still at it and is not waited for now."""
        journal, key = self._journal, self._key(call)
        stand_in = None if self._stand_ins is None else await self._stand_ins.for_call(call, tool)
        started = ToolStarted(call.call.call_id, call.call.tool, tool.version, tool.effect, key, verdict.approval_id, undoes=undoes(self._task))
        if stand_in is not None:
            journal.record(msgspec.structs.replace(started, stub=stand_in.stub))
            journal.record(stand_in.finished)
            return None
        if tool.effect != "read":
            try:
                compensation = intended_compensation(self._owner, spec, arguments, key=key, tools=self._tools)
            except ToolFailed as error:
                self._finish(call, "refused", str(error))
                return None
            started = msgspec.structs.replace(started, fingerprint=fingerprint_of(self._owner, spec, arguments), compensation=compensation)
        if spec.dedupe_window_s is None or self._task.undo is not None:
            journal.record(started)
        elif not await self._claimed(call, spec, started, spec.dedupe_window_s, may_wait=may_wait):
            return None
        return _Running(call, spec, key, journal.state.version)

    # ── calls that ask for the same ──

    async def _claimed(self, call: Call, spec: ToolSpec, started: ToolStarted, window_s: float, *, may_wait: bool) -> bool:
        """Record the intent of a call unless another one within the window asked for the same: then its outcome is recorded as soon as it has one.

        While that one is still at it, this one waits for as long as the tool may take; False and nothing recorded when it may not wait now.
        """
        journal, clock, wait_s = self._journal, self._shop.clock, LOOK_AGAIN_FIRST_S
        opened = ClaimsOpened(self._owner.tenant, self._owner.kind, spec.name, started.fingerprint)
        until = clock.monotonic() + spec.timeout_s
        await journal.commit()  # an earlier call of this task may be the one whose outcome is looked for
        while True:
            stream, claim = await read_claim(journal.store, clock, opened)
            now_us = clock.now_us()
            holder = claim.holder(started.idempotency_key, now_us)
            if holder is None:
                mine = EffectClaimed(self._ref(call, started.idempotency_key), now_us + round(window_s * 1e6))
                if await journal.record_if(started, Write(stream, (mine,), claim.version)):
                    return True
                continue  # another call was faster
            if claim.settled is not None:
                await self._reuse(call, holder, claim.settled)
                return False
            if not may_wait:
                return False
            if holder.task_id == self._task.task_id or clock.monotonic() + wait_s >= until:
                self._finish(
                    call, "refused", f"{spec.name} was called with the same arguments before, and what became of that is not known yet: {_named(holder)}"
                )
                return False
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, LOOK_AGAIN_MAX_S)

    async def _reuse(self, call: Call, holder: EffectRef, settled: EffectSettled) -> None:
        """Take the outcome of another call for that of this one."""
        journal = self._journal
        await journal.load([settled.result])
        said = f"{journal.read(settled.result)}\n\n[not done again: this is what came of the same call in {_named(holder)}]"
        event = ToolFinished(call.call.call_id, call.call.tool, "ok", journal.pack(said), 0, settled.trust, reused=holder)
        journal.record(msgspec.structs.replace(event, status=settled.status))

    def _ref(self, call: Call, key: str) -> EffectRef:
        return EffectRef(self._task.run_id, self._task.task_id, call.call.call_id, key)

    def _record_outcome(self, call: Call, event: ToolFinished, spec: ToolSpec | None) -> None:
        """Record what came of a call, for itself and for those that ask for the same."""
        if spec is None or spec.dedupe_window_s is None or self._task.undo is not None:
            self._journal.record(event)
            return
        begun = next((c for c in self._journal.state.calls if c.call.call_id == call.call.call_id), call)
        if not begun.fingerprint:
            self._journal.record(event)
            return
        status: Literal["ok", "error", "unknown"] = "error" if event.status == "refused" else event.status
        settled = EffectSettled(self._key(call), status, event.result, event.trust)
        self._journal.record(event, settlement(self._owner.tenant, begun.fingerprint, settled))

    def _finish(self, call: Call, status: str, message: str, spec: ToolSpec | None = None) -> None:
        event = ToolFinished(call.call.call_id, call.call.tool, "ok", self._journal.pack(message), 0)
        self._record_outcome(call, msgspec.structs.replace(event, status=status), spec)

    def _ask(self, call: Call, asked: Ask, spec: ToolSpec | None, arguments: str) -> None:
        reason = asked.reason
        if asked.question == "outcome" and spec is not None and spec.how_to_look is not None:
            reason = f"{reason}. To look: {spec.how_to_look(spec.args.model_validate_json(arguments or '{}'), self._key(call))}"
        expires_us = self._shop.clock.now_us() + round(self._shop.approval_ttl_s * 1e6)
        said = (asked.approval_id, call.call.call_id, call.call.tool, call.call.arguments, Hash(asked.digest), reason, expires_us)
        self._journal.record(ApprovalRequested(*said, question=asked.question))

    # ── calls in doubt ──

    async def _probe(self, call: Call, spec: ToolSpec, arguments: str) -> None:
        context = self._context(call, self._key(call), self._journal.state.version)
        probed = await probe_call(spec, context, arguments, self._shop.clock, self._shop.health)
        self._moved()
        result = self._journal.pack(probed.content)
        self._journal.record(ToolProbed(call.call.call_id, call.call.tool, probed.verdict, result, self._compensation(probed.undo) or None))

    def _found(self, call: Call, setup: Setup, probed: ToolProbed) -> None:
        tool = setup.tool(call.call.tool)
        assert tool is not None
        compensation = probed.compensation or msgspec.UNSET
        found = ToolFinished(call.call.call_id, call.call.tool, "ok", probed.result, 0, tool.trust, compensation=compensation)
        self._record_outcome(call, found, self._spec(call, setup))

    async def _take_back(self, call: Call, compensation: Compensation) -> None:
        """Take back a call whose outcome is not known; its intent is durable before that is tried."""
        journal, key = self._journal, compensation_key(self._key(call))
        spec = self._tools.find(compensation.tool, compensation.version)
        if spec is None:
            said = f"{compensation.tool} version {compensation.version}, which takes it back, is not here any more"
            journal.record(CompensationFinished(call.call.call_id, compensation.tool, "error", journal.pack(said), 0))
            return
        journal.record(CompensationStarted(call.call.call_id, compensation.tool, spec.version, key))
        await journal.commit()
        ran = await run_tool(spec, self._context(call, key, journal.state.version), compensation.arguments, self._shop.clock, self._shop.health)
        self._moved()
        status, result = "ok" if ran.is_ok else "error", journal.pack(ran.output.content)
        event = CompensationFinished(call.call.call_id, compensation.tool, "ok", result, ran.latency_ms)
        journal.record(msgspec.structs.replace(event, status=status))

    # ── calls that run ──

    async def _perform(self, running: Sequence[_Running]) -> None:
        """Run calls side by side, and record each outcome as soon as no other one is about to come with it."""
        journal = self._journal
        if all(one.spec.effect == "read" for one in running):
            journal.send()
        else:
            self._hold.note()
            await journal.commit()
        if len(running) == 1:
            finished = await self._perform_one(running[0])
            self._moved()
            await self._close(running[0], finished)
            return
        calls = {one.call.call.call_id: one for one in running}
        left = {asyncio.create_task(self._perform_one(one)) for one in running}
        try:
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                self._moved()
                for event in sorted((task.result() for task in done), key=lambda e: e.call_id):
                    await self._close(calls[event.call_id], event)
                if left:
                    journal.send()
        finally:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _close(self, one: _Running, event: ToolFinished | ToolInDoubt) -> None:
        if isinstance(event, ToolInDoubt):
            self._journal.record(event)
            return
        if self._task.undo is not None and event.status == "ok" and (write := await undone_claim(self._journal.store, self._task.tenant, self._task.undo)):
            self._journal.record(event, write)  # who asks for the same thing from now on gets it again
            return
        self._record_outcome(one.call, event, one.spec)

    async def _perform_one(self, one: _Running) -> ToolFinished | ToolInDoubt:
        call, spec = one.call, one.spec
        context = self._context(call, one.key, one.version)
        ran = await run_tool(spec, context, self._journal.read(call.call.arguments), self._shop.clock, self._shop.health)
        if ran.doubt:
            return ToolInDoubt(call.call.call_id, call.call.tool, ran.doubt)
        return self._finished(call, spec, ran)

    def _finished(self, call: Call, spec: ToolSpec, ran: Ran) -> ToolFinished:
        output, ways = ran.output, ran.ways
        is_plain = ways is None or (ways.tries == 1 and not spec.fallbacks)
        return ToolFinished(
            call_id=call.call.call_id,
            tool=call.call.tool,
            status="ok" if ran.is_ok else "error",
            result=self._journal.pack(output.content),
            latency_ms=ran.latency_ms,
            trust=output.trust or spec.trust,
            artifacts=output.artifacts,
            outcome=output.outcome if spec.ends_task else None,
            ways=msgspec.UNSET if ways is None or is_plain else ToolWays(ways.implementation, ways.tries, ways.degraded),
            compensation=self._compensation(output.undo),
        )

    def _compensation(self, undo: Undo | None) -> Compensation | msgspec.UnsetType:
        return msgspec.UNSET if undo is None else compensation_of(self._owner, undo, self._tools)

    def _context(self, call: Call, key: str, version: int) -> ToolContext:
        state = self._journal.state
        return ToolContext(
            task=self._task,
            call_id=call.call.call_id,
            idempotency_key=key,
            artifacts=self._shop.artifacts,
            workspace=self._shop.workspaces / id_text(self._task.task_id),
            earlier_artifacts=state.artifacts,
            recall=self._recall,
            trust=state.trust,
            version=version,
            check_hold=self._hold.check,
        )

    def _key(self, call: Call) -> str:
        return call_key(self._task, call.call.call_id)

    def _spec(self, call: Call, setup: Setup) -> ToolSpec | None:
        """Return what carries out a call, in the version that the task began with."""
        known = setup.tool(call.call.tool)
        return None if known is None else self._tools.find(call.call.tool, known.version)

    async def _recall(self, call_id: str) -> ToolOutput | None:
        journal = self._journal
        found = next((r for e in journal.state.exchanges for r in e.results if r.call_id == call_id), None)
        if found is None:
            return None
        await journal.load([found.content])
        return ToolOutput(journal.read(found.content), trust=found.trust)


def _named(holder: EffectRef) -> str:
    return f"run {holder.run_id}, task {holder.task_id}, call {holder.call_id}"
