"""A worker: one process of one kind that fetches dispatched tasks, works on several at once, and acks what reached a resting point.

A task is taken over from another worker only when that worker does not answer for it any more; the stream version fences whoever
comes back later.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import msgspec

from crewlog.agents.journal import Journal
from crewlog.agents.model_call import given_up
from crewlog.agents.orders import Orders
from crewlog.agents.task_state import TaskState, evolve, initial_state, open_model_calls, opened_state
from crewlog.agents.versions import Versions
from crewlog.agents.work import Workshop, work
from crewlog.events import faults
from crewlog.events.bus import Bus, Consuming, Delivery, Message, Subscription
from crewlog.events.prefix import read_whole
from crewlog.events.store import EventStore
from crewlog.schemas.errors import ConflictError, ContractError, OrchestrationError, Unavailable
from crewlog.schemas.ids import RunId, TaskId, id_text, task_stream
from crewlog.schemas.subjects import LANES, SHADOW_LANE, agents, control_kind, control_worker, telemetry, wake
from crewlog.schemas.system_events import AgentRegistered, ToolInfo
from crewlog.schemas.task import AgentTask, read_task
from crewlog.schemas.task_events import AttemptFailed, TaskEvent
from crewlog.schemas.values import Failure

log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 10.0
HELD_ELSEWHERE_NAK_S: Final = 15.0
OTHER_VERSION_NAK_S: Final = 2.0
"""Until a task is handed out again that came to a worker of another version than it needs, twice as long each time: hardly ever, see `version_lane`."""
UNAVAILABLE_NAK_S: Final = 5.0
LEFT_MAX: Final = 3
"""So often a task is handed out before a worker carries it on that has not all of its tools, although it could not find out whether another has."""
HAND_ON_TIMEOUT_S: Final = 5.0
ASK_HOLDER_TIMEOUT_S: Final = 1.0
REGISTER_RETRY_S: Final = 1.0
RESTARTS_MAX: Final = 3
"""Times one delivery may lose a race for its task before it is handed back."""


class Worker:
    """Fetch, fold, step, append, ack."""

    def __init__(self, shop: Workshop, store: EventStore, bus: Bus, *, slots: int, unavailable: str = "", lanes: Sequence[str] = LANES) -> None:
        """Prepare; nothing is fetched before `start`.

        Args:
            lanes: which it takes work from, the most urgent first.
        """
        self._lanes = tuple(lanes)
        self._shop, self._store, self._bus, self._slots, self._unavailable = shop, store, bus, slots, unavailable
        self._versions = Versions(shop.spec, store, moves_tasks=shop.moves_tasks)
        self._lane_beside = ""
        """Where it finds work that needs its version; empty while the orchestrator knows of no such lane."""
        self._registered: AgentRegistered | None = None
        self._held: set[UUID] = set()
        self._orders = Orders(store, shop.clock, kind=shop.spec.kind, worker=shop.worker, on_change=self._obey)
        self.drained = asyncio.Event()
        """Set once somebody wants this worker to leave."""
        shop.health.runaways.watch(slots, self._leave)
        self._consuming: Consuming | None = None
        self._control: list[Subscription] = []
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Register with the orchestrator, then begin to fetch. A worker that lacks an extra registers and fetches nothing."""
        shop = self._shop
        self._control.append(await self._bus.subscribe(control_worker(shop.worker), self._answer))
        self._control.append(await self._bus.subscribe(control_kind(shop.spec.kind), self._told))
        await self._bus.watch("", self._orders.tell)
        await self._register()
        self._loops = [asyncio.create_task(self._beat()), asyncio.create_task(self._orders.follow(), name="orders")]
        if self._unavailable:
            log.warning("%s is unavailable: %s", shop.spec.kind, self._unavailable)
            return
        lanes = filter(None, (*self._lanes, self._lane_beside))
        consumers = {f"{shop.spec.kind}-{lane}": priority for priority, lane in enumerate(lanes)}
        self._consuming = await self._bus.consume("WORK", consumers, self.handle, slots=self._slots)
        self._obey()
        self._orders.tell()

    async def stop(self, *, grace_s: float) -> None:
        """Stop fetching, let each running task come to the end of its step within `grace_s`, hand back what is not done, and sign off. Safe to
        call twice."""
        self._orders.leave()
        if self._consuming is not None:
            consuming, self._consuming = self._consuming, None
            await consuming.stop(grace_s=grace_s)
        loops, self._loops = self._loops, []
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await self._orders.stop()
        if self._control:
            control, self._control = self._control, []
            for subscription in control:
                await subscription.stop()
            body = json.dumps({"kind": self._shop.spec.kind, "worker": self._shop.worker}).encode()
            try:
                await self._bus.request(agents("stop", self._shop.spec.kind), body, timeout_s=2.0)
            except Unavailable:
                log.info("no orchestrator heard that %s stops", self._shop.worker)

    async def handle(self, delivery: Delivery) -> None:
        """Work on one delivered task; ends with an ack or a nak.

        Raises:
            ContractError: the message, or the task's stream, cannot be read by this worker; after some tries it is a dead letter.
        """
        task = _dispatched(delivery.data)
        attempt = int(delivery.headers.get("Attempt", "1"))
        fresh = delivery.deliveries == 1 and delivery.headers.get("Task-Version") == "1"
        try:
            for _ in range(RESTARTS_MAX):
                # a fresh task's message says all there is in its stream; should somebody have written since, the first append conflicts
                state = opened_state(task) if fresh else await self._fold(task)
                fresh = False
                if state.phase in {"ended", "absent"}:
                    break
                if await self._held_elsewhere(state):
                    await delivery.nak(HELD_ELSEWHERE_NAK_S)
                    return
                if await self._left_to_another(delivery, task, state):
                    return
                if task.task_id in self._held:  # another delivery of the same task has begun here, while this one asked
                    await delivery.nak(HELD_ELSEWHERE_NAK_S)
                    return
                if await self._work(task, state, attempt):
                    break
            else:
                await delivery.nak(UNAVAILABLE_NAK_S)
                return
        except Unavailable as error:
            log.warning("task %s is handed back: %s", task.task_id, error)
            await delivery.nak(UNAVAILABLE_NAK_S)
            return
        if faults.hook is not None:
            faults.hook("before_work_ack")
        await delivery.ack()
        if faults.hook is not None:
            faults.hook("after_work_ack")

    async def _left_to_another(self, delivery: Delivery, task: AgentTask, state: TaskState) -> bool:
        """Leave a task to a worker of another version if it is for one, or began under one whose tools are not here; True when that is done."""
        wanted = self._versions.refused(task)
        version = await self._versions.better(state) if self._lane_beside and not wanted else wanted
        if not version:
            return False
        is_last_try = delivery.deliveries >= LEFT_MAX
        shares_lane = delivery.subject.endswith(f".{self._lane_beside}")
        if wanted or (shares_lane and not is_last_try):
            await delivery.nak(OTHER_VERSION_NAK_S * 2 ** (delivery.deliveries - 1))
        elif not shares_lane and await self._hand_on(task, version, is_last_try=is_last_try):
            await delivery.ack()
        else:
            return False
        log.info("task %s needs %s agent %r and is left to one; %s has %r", task.task_id, task.type, version, self._shop.worker, self._shop.spec.version)
        return True

    async def _hand_on(self, task: AgentTask, version: str, *, is_last_try: bool) -> bool:
        body = json.dumps({"run_id": str(task.run_id), "task_id": str(task.task_id), "version": version}).encode()
        try:
            answer = await self._bus.request(agents("hand_on", self._shop.spec.kind), body, timeout_s=HAND_ON_TIMEOUT_S)
        except Unavailable:
            if not is_last_try:
                raise
            return False
        return bool(json.loads(answer.data).get("handed_on"))

    async def _work(self, task: AgentTask, state: TaskState, attempt: int) -> bool:
        """Carry the task on; False when somebody else wrote to it meanwhile and it must be read again."""
        journal = Journal(self._store, self._shop.clock, state)
        self._held.add(task.task_id)
        try:
            ended = await work(self._shop, journal, attempt=attempt, orders=self._orders)
            if ended == "cut":
                await self._settle_cut(task, journal)
        except ConflictError as error:
            await journal.abandon()
            await journal.settle_elsewhere()
            log.info("task %s: %s", task.task_id, error)
            return False
        except Unavailable:
            await journal.abandon()
            raise
        except Exception as error:  # the other of two such places: a bug must end the attempt visibly, with its cause in the log
            log.exception("task %s: attempt %s failed", task.task_id, attempt)
            await journal.abandon()
            await self._record_crash(task, attempt, error, journal)
            ended = "failed"
        finally:
            self._held.discard(task.task_id)
        if ended not in ("nothing", "cut"):
            # a good end names its task, so that the orchestrator may wait for those that end at the same time
            if faults.hook is not None:
                faults.hook("before_wake_published")
            await self._bus.publish(wake(RunId(task.run_id)), id_text(task.task_id).encode() if ended == "completed" else b"")
            if faults.hook is not None:
                faults.hook("after_wake_published")
        return True

    async def _settle_cut(self, task: AgentTask, journal: Journal) -> None:
        """Settle what was under way when somebody else ended the task: its stream is closed, so it says for good which calls were begun."""
        message = "the task was ended before an answer came"
        await journal.settle_open([given_up(asking, message=message) for asking in open_model_calls(await self._fold(task)) if asking.wire])
        log.info("task %s was ended by somebody else and is cut off", task.task_id)

    async def _record_crash(self, task: AgentTask, attempt: int, error: Exception, crashed: Journal) -> None:
        """End an attempt in which something broke: what the log has, and the bills that only `crashed` knows."""
        state = await self._fold(task)
        if state.phase == "ended":
            return
        journal = Journal(self._store, self._shop.clock, state)
        retryable = not isinstance(error, OrchestrationError)
        failure = Failure("internal", f"{type(error).__name__}: {error}", retryable)
        for asking in open_model_calls(state):
            if asking.wire:  # nobody will come back to it
                late = given_up(asking, message="the attempt failed before an answer was recorded")
                journal.close_call(crashed.billed(late), reserved_micro_usd=asking.reserved_micro_usd)
        journal.record(AttemptFailed(max(state.attempt, attempt), failure, journal.state.usage, journal.state.cost_micro_usd))
        await journal.commit()

    async def _fold(self, task: AgentTask) -> TaskState:
        state = initial_state()
        for recorded in await read_whole(self._store, task_stream(TaskId(task.task_id))):
            event = recorded.event()
            if not isinstance(event, TaskEvent):
                raise ContractError(f"{recorded.stream} version {recorded.version} is a {recorded.type} v{recorded.schema_version}, unknown to this worker")
            state = evolve(state, event)
        return state

    async def _held_elsewhere(self, state: TaskState) -> bool:
        """Ask the worker that took the task last whether it still works on it; before an effect is taken back that has no recorded outcome,
        also the worker that may still be about to have it."""
        assert state.task is not None
        if state.task.task_id in self._held:
            return True
        undo = state.task.undo
        if undo is not None and undo.worker and await self._holds(undo.worker, undo.task_id):
            return True
        return state.phase == "working" and await self._holds(state.worker, state.task.task_id)

    async def _holds(self, worker: str, task_id: UUID) -> bool:
        if worker in ("", self._shop.worker):
            return task_id in self._held
        try:
            body = json.dumps({"task_id": str(task_id)}).encode()
            answer = await self._bus.request(control_worker(worker), body, timeout_s=ASK_HOLDER_TIMEOUT_S)
        except (Unavailable, ContractError):
            return False
        return bool(json.loads(answer.data).get("holds"))

    def _obey(self) -> None:
        """Fetch or not as the kind's pause says, and leave when told to."""
        if self._consuming is not None:
            (self._consuming.pause if self._orders.is_kind_paused else self._consuming.resume)()
        if self._orders.is_drained:
            self._leave()

    def _leave(self) -> None:
        self._orders.leave()
        self.drained.set()

    async def _told(self, _: Message) -> None:
        """Look now at what was paused or ended, and say that this worker is there: somebody has a command, or has just started."""
        self._orders.tell()
        await self._say_beat()

    async def _answer(self, message: Message) -> None:
        asked = json.loads(message.data)
        if message.reply:
            await self._bus.publish(message.reply, json.dumps({"holds": asked.get("task_id") in map(str, self._held)}).encode())

    async def _register(self) -> None:
        while True:
            try:
                answer = await self._ask_to_register()
            except Unavailable:
                await asyncio.sleep(REGISTER_RETRY_S)  # the orchestrator may start after us
                continue
            if not answer.get("ok"):
                raise ContractError(f"the orchestrator refused to register kind {self._shop.spec.kind!r}: {answer.get('error', {}).get('message')}")
            self._lane_beside = answer.get("lane") or ""
            return

    async def _ask_to_register(self) -> dict[str, Any]:
        registration = self._registration()
        reply = await self._bus.request(agents("register", self._shop.spec.kind), msgspec.json.encode(registration), timeout_s=5.0)
        answer: dict[str, Any] = json.loads(reply.data)
        self._registered = registration
        return answer

    async def _register_anew(self) -> None:
        """Tell of tools that came, went or changed since it registered, such as those of an MCP server that was not there then."""
        if self._registration() == self._registered:
            return
        try:
            answer = await self._ask_to_register()
        except Unavailable as error:
            log.info("nobody heard yet that the tools of %s are others: %s", self._shop.worker, error)
            return
        if not answer.get("ok"):
            log.warning("the tools of %s are others, which is refused: %s", self._shop.worker, answer.get("error", {}).get("message"))

    def _registration(self) -> AgentRegistered:
        shop = self._shop
        return AgentRegistered(
            kind=shop.spec.kind,
            worker=shop.worker,
            description=shop.spec.description,
            version=shop.spec.version,
            slots=self._slots,
            model=" > ".join(f"{model.provider}/{model.name}" for model in shop.chain),
            simulated=shop.chain[0].simulated,
            tools=tuple(ToolInfo(t.name, t.description, t.effect, t.needs_approval, t.version) for t in shop.spec.known_tools()),
            unavailable=self._unavailable,
            lane="shadow" if self._lanes == (SHADOW_LANE,) else msgspec.UNSET,
        )

    async def _beat(self) -> None:
        while True:
            await self._say_beat()
            await self._register_anew()
            await asyncio.sleep(HEARTBEAT_S)

    async def _say_beat(self) -> None:
        shop = self._shop
        beat = {"kind": shop.spec.kind, "worker": shop.worker, "slots": self._slots, "busy": sorted(map(str, self._held)), "at_us": shop.clock.now_us()}
        if self._lanes == (SHADOW_LANE,):
            beat["lane"] = SHADOW_LANE
        if self._lane_beside:
            beat["lanes"] = [self._lane_beside]
        if asked := shop.breakers.states():
            beat["providers"] = {f"{model.provider}/{model.name}": state for model, state in asked}
        await self._bus.publish(telemetry(shop.spec.kind, shop.worker), json.dumps(beat).encode())


def _dispatched(data: bytes) -> AgentTask:
    """Read a task as an orchestrator dispatched it: it was checked when it was accepted, and one of a newer version may say more than is known here.

    Raises:
        ContractError: it is none.
    """
    try:
        return read_task(data)
    except msgspec.MsgspecError as error:
        raise ContractError(f"this is not a task that an orchestrator dispatched: {error}") from error
