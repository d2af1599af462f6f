"""Put dispatched tasks on their queues, after the commit. A message that gets lost is published again by the sweep."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from crewlog.agents.task_fork import forked_task
from crewlog.events import faults
from crewlog.events.bus import Bus
from crewlog.events.prefix import read_whole
from crewlog.events.store import EventStore
from crewlog.orchestrator.dispatch import Dispatch
from crewlog.schemas.codec import encode, type_name
from crewlog.schemas.errors import OrchestrationError
from crewlog.schemas.ids import RunId, TaskId, id_text, task_stream
from crewlog.schemas.run_events import RunEvent
from crewlog.schemas.sparse import sparse_json
from crewlog.schemas.subjects import control_kind, outcome, work
from crewlog.schemas.task import read_task
from crewlog.schemas.task_events import TaskForked, TaskOpened
from crewlog.schemas.trace_context import TRACEPARENT, is_traced, span_id, traceparent

_OPENING: Final = frozenset({TaskOpened.__name__, TaskForked.__name__})

log = logging.getLogger(__name__)


class Publisher:
    """Sends `AgentTask`s to `work.<kind>.<lane>`, and word of a run's end to `outcomes.<tenant>.<run>`."""

    def __init__(self, store: EventStore, bus: Bus, *, trace_share: float | None = None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            trace_share: which part of the runs is traced; None: messages name no trace.
        """
        self._store, self._bus, self._trace_share = store, bus, trace_share

    async def publish(self, run_id: RunId, dispatch: Dispatch, *, nonce: str = "") -> None:
        """Publish a task without waiting for a confirmation: nothing depends on it, since the log holds it.

        Args:
            nonce: makes it another message than those sent for this dispatch before.
        """
        try:
            await self._send(run_id, dispatch, f"{dispatch.serial}-{nonce}" if nonce else str(dispatch.serial))
        except OrchestrationError as error:
            log.warning("task %s was not published, the sweep will: %s", dispatch.task_id, error)

    async def announce(self, tenant: str, run_id: RunId, end: RunEvent) -> None:
        """Tell those who wait that a run has ended. A hint: the same fact follows on `events.>`, from the log."""
        body = b'{"run_id":"%s","type":"%s","data":%s}' % (str(run_id).encode(), type_name(end).encode(), encode(end))
        try:
            if faults.hook is not None:
                faults.hook("before_end_announced")
            await self._bus.publish(outcome(tenant, run_id), body)
            if faults.hook is not None:
                faults.hook("after_end_announced")
        except OrchestrationError as error:
            log.warning("the end of run %s was not announced: %s", run_id, error)

    async def call_off(self, kinds: Collection[str]) -> None:
        """Have workers of these kinds look whether what they work on was ended. A hint: those that do not hear it look within a second."""
        for kind in kinds:
            try:
                await self._bus.publish(control_kind(kind))
            except OrchestrationError as error:
                log.warning("agents of kind %s were not told to look: %s", kind, error)

    async def publish_again(self, run_id: RunId, dispatch: Dispatch, *, nonce: str) -> None:
        """Publish a task whose message was lost, under a message id that no stream has seen.

        Raises:
            Unavailable: the log cannot be reached.
        """
        await self._send(run_id, dispatch, f"{dispatch.serial}-{nonce}")

    async def _send(self, run_id: RunId, dispatch: Dispatch, serial: str) -> None:
        message = dispatch.message or await self._recorded(dispatch.task_id)
        if message is None:
            return
        task_id = id_text(dispatch.task_id)
        headers = {
            "Run-Id": id_text(run_id),
            "Task-Id": task_id,
            "Attempt": str(dispatch.attempt),
            # a fresh task can be folded from this message alone; 0: read the stream
            "Task-Version": "1" if dispatch.message is not None else "0",
            "Nats-Msg-Id": f"{task_id}:{dispatch.attempt}:{serial}",
        }
        if self._trace_share is not None:
            sent = span_id(dispatch.task_id, f"send/{dispatch.serial}")
            headers[TRACEPARENT] = traceparent(run_id, sent, is_sampled=is_traced(run_id, self._trace_share))
        if faults.hook is not None:
            faults.hook("before_work_published")
        await self._bus.publish(work(dispatch.kind, dispatch.lane), message, headers=headers)
        if faults.hook is not None:
            faults.hook("after_work_published")

    async def _recorded(self, task_id: TaskId) -> bytes | None:
        """Return the task as it was opened: every attempt gets the same message."""
        task: bytes | None = None
        for recorded in await read_whole(self._store, task_stream(task_id), types=_OPENING):
            event = recorded.event()
            if isinstance(event, TaskOpened):
                task = bytes(event.task)
            elif isinstance(event, TaskForked) and task is not None:
                task = sparse_json(forked_task(read_task(task), event))
        if task is None:
            log.error("task %s has no TaskOpened, nothing can be published", task_id)
        return task


def serial_of(message_id: str) -> int | None:
    """Return which dispatch of its task a message of `Publisher` was, from its id; None when that is not ours."""
    parts = message_id.split(":")
    serial = parts[-1].partition("-")[0]
    return int(serial) if len(parts) == 3 and serial.isascii() and serial.isdigit() and len(serial) < 10 else None
