"""What becomes of tasks whose message nobody could handle.

A dead letter is taken note of once, by one of the orchestrators. The task fails with what is known about its message, instead of
waiting for its deadline; nothing is tried again, since whatever a worker met it would meet again. A message that only used up its count
while a server was away is published anew. Anything else about a letter is for people: `crewlog dlq`.

An agent writes the letters of its own kind, and could write what it likes: nothing of a letter is published, only named by it. What is
published is the recorded task, and only while that waits for an agent.
"""

from __future__ import annotations

import logging
from typing import Final, Literal, NamedTuple

from crewlog.events.bus import Bus, Consuming, Delivery
from crewlog.events.clock import Clock
from crewlog.events.jetstream import DLQ, LETTERS
from crewlog.events.letters import REASON_CHARS_MAX, Letter, read_letter
from crewlog.orchestrator.commands import BuryTask
from crewlog.orchestrator.dispatch import Dispatch
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.publisher import Publisher, serial_of
from crewlog.orchestrator.run import RunState, TaskState, current_task
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.text import clean, shorten

SLOTS: Final = 16

log = logging.getLogger(__name__)


class Redriven(NamedTuple):
    """What became of a letter that somebody wants to have published again; `detail` says why when it was not."""

    status: Literal["published", "ended", "waits", "unknown"]
    detail: str = ""


class DeadLetters:
    """Consumes the stream DLQ, and publishes letters again."""

    def __init__(self, bus: Bus, clock: Clock, driver: Driver, publisher: Publisher) -> None:
        self._bus, self._clock, self._driver, self._publisher = bus, clock, driver, publisher
        self._consuming: Consuming | None = None

    async def start(self) -> None:
        """Begin to take note."""
        self._consuming = await self._bus.consume(LETTERS.stream, {LETTERS.name: 0}, self.handle, slots=SLOTS)

    async def stop(self, *, grace_s: float) -> None:
        """Take nothing new and let running handlers finish. Safe to call twice."""
        if self._consuming is not None:
            consuming, self._consuming = self._consuming, None
            await consuming.stop(grace_s=grace_s)

    async def handle(self, delivery: Delivery) -> None:
        """Take note of one letter.

        Raises:
            Unavailable: nothing was decided; the letter comes again after a delay.
        """
        letter = read_letter(delivery.sequence, delivery.subject, delivery.headers)
        try:
            if letter.cause == "handed_back":
                if (state := await self._state(letter)) is not None:
                    await self._publish(letter, state)
                await self._bus.remove(DLQ.name, letter.sequence)
            elif letter.run_id is not None and (command := bury_command(letter)) is not None:
                await self._driver.execute(letter.run_id, command)
        except ContractError as error:
            log.warning("dead letter %d of kind %s is only kept: %s", letter.sequence, letter.kind, error)
        await delivery.ack()

    async def redrive(self, tenant: str, sequence: int) -> Redriven:
        """Publish the task of a letter again and delete the letter; do neither when no agent is wanted for it.

        Raises:
            NotFound: there is no such letter.
            Unavailable: the log or the bus cannot be reached.
        """
        kept = await self._bus.first_kept(DLQ.name, sequence)
        if kept is None or kept.sequence != sequence:
            raise NotFound("dead letter", str(sequence))
        letter = read_letter(sequence, kept.subject, kept.headers)
        state = await self._state(letter)
        if state is None or state.brief.tenant != tenant:
            return Redriven("unknown", "it names no run of this tenant")
        redriven = await self._publish(letter, state)
        if redriven.status == "published":
            await self._bus.remove(DLQ.name, sequence)
        return redriven

    async def _state(self, letter: Letter) -> RunState | None:
        return None if letter.run_id is None else (await self._driver.folds.states([letter.run_id])).get(letter.run_id)

    async def _publish(self, letter: Letter, state: RunState) -> Redriven:
        task = None if letter.task_id is None else current_task(state, letter.task_id)
        if task is None or task.kind != letter.kind:
            return Redriven("ended", _how_it_ended(letter, state))
        if task.phase != "dispatched":
            return Redriven("waits", f"task {task.task_id} ({task.key}) is {task.phase}: no agent is wanted for it now")
        again = Dispatch(task.task_id, task.kind, state.brief.lane_of(task.kind), task.attempt, task.dispatches, None)
        await self._publisher.publish_again(state.run_id, again, nonce=self._clock.random_id().hex[:8])
        log.info("task %s of run %s was published again: %s", task.task_id, state.run_id, letter.reason)
        return Redriven("published")


def bury_command(letter: Letter) -> BuryTask | None:
    """Say what a letter means for its task; None when it names no dispatch of a task."""
    serial = serial_of(letter.message_id)
    if letter.task_id is None or serial is None:
        return None
    reason = shorten(clean(letter.reason), REASON_CHARS_MAX)  # its writer may be an agent of another make
    handed_out = f"was handed out {letter.deliveries} times" if letter.cause == "failed" else "killed or silenced whoever got it"
    return BuryTask(letter.task_id, letter.kind, letter.attempt, serial, f"its message {handed_out}; the last of it: {reason}")


def _how_it_ended(letter: Letter, state: RunState) -> str:
    task: TaskState | None = state.tasks.get(state.keys.get(letter.task_id, "")) if letter.task_id is not None else None
    if task is None or task.task_id != letter.task_id or task.is_active:
        return f"task {letter.task_id} of run {state.run_id} has ended; the run is {state.status}"
    why = f" ({task.error.code})" if task.error is not None else ""
    once_more = f"; it can be tried in a new run: crewlog fork {state.run_id} --at EVENT, one before it failed" if task.error is not None else ""
    return f"task {task.task_id} ({task.key}) of run {state.run_id} has ended: {task.phase}{why}; the run is {state.status}{once_more}"
