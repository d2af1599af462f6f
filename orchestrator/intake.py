"""Take tasks from the public queue `tasks.<tenant>.<type>`: start a run, or refuse with a reason. Nothing is lost on the way.

A good message is acknowledged after the commit. A bad one is kept on `rejected.<tenant>.<type>` with the reason before it is
terminated, and so is one whose tenant may have no more now (`admission`). When the log or the bus is away, the message goes back to the queue
and comes again. While many wait, tenants overtake each other (`overtaking`).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Final

from crewlog.events import faults
from crewlog.events.bus import Bus, Consuming, Delivery
from crewlog.events.clock import Clock
from crewlog.orchestrator.driver import Driver, Submitted
from crewlog.orchestrator.overtaking import Overtaking
from crewlog.orchestrator.replies import accepted, refused
from crewlog.orchestrator.submission import queued_task_id, read_submission
from crewlog.schemas.errors import ContractError, TenantFull
from crewlog.schemas.payload import content_hash
from crewlog.schemas.subjects import TaskSubject, parse_tasks, rejected
from crewlog.schemas.text import shorten
from crewlog.schemas.trace_context import TRACEPARENT

SLOTS: Final = 6
"""Messages that are dealt with at once. More of them fill larger commits, but then whatever else this process decides waits behind all of them."""
REASON_CHARS_MAX: Final = 1_000

_SUBJECT: Final = re.compile(r"[A-Za-z0-9_$-]+(?:\.[A-Za-z0-9_$-]+)+")

log = logging.getLogger(__name__)


class Intake:
    """Consumes the stream TASKS."""

    def __init__(self, bus: Bus, clock: Clock, driver: Driver, waiting_of: Callable[[str], int]) -> None:
        """Prepare. `waiting_of`: how many tasks of a tenant wait for their turn with an agent."""
        self._bus, self._driver = bus, driver
        self._overtaking = Overtaking(bus, clock, self.handle, waiting_of)
        self._consuming: Consuming | None = None

    async def start(self) -> asyncio.Task[None]:
        """Begin to fetch; the returned task ends only with `stop` or a defect."""
        overtaking = self._overtaking.start()
        self._consuming = await self._bus.consume("TASKS", {"intake": 0}, self._overtaking.take, slots=SLOTS)
        return overtaking

    async def stop(self, *, grace_s: float) -> None:
        """Stop fetching and let running handlers finish. Safe to call twice."""
        if self._consuming is not None:
            consuming, self._consuming = self._consuming, None
            await asyncio.gather(consuming.stop(grace_s=grace_s), self._overtaking.stop(grace_s=grace_s))

    async def handle(self, delivery: Delivery) -> None:
        """Deal with one message.

        Raises:
            Unavailable: nothing was decided; whoever calls hands the message back with a delay.
        """
        try:
            subject = parse_tasks(delivery.subject)
            submitted = await self._submit(delivery, subject)
        except (ContractError, TenantFull) as error:
            await self._reject(delivery, error)
        else:
            await self._answer(delivery, subject.tenant, accepted(run_id=submitted.run_id, task_id=submitted.task_id, status=submitted.status))
            if faults.hook is not None:
                faults.hook("before_intake_ack")
            await delivery.ack()
            if faults.hook is not None:
                faults.hook("after_intake_ack")

    async def _submit(self, delivery: Delivery, subject: TaskSubject) -> Submitted:
        derived = queued_task_id(delivery.data, delivery.sequence, delivery.kept_us)
        task = read_submission(delivery.data, tenant=subject.tenant, type_=subject.type, task_id=derived)
        return await self._driver.submit(task, "subject", caller=delivery.headers.get(TRACEPARENT, ""))

    async def _reject(self, delivery: Delivery, error: ContractError | TenantFull) -> None:
        tokens = delivery.subject.split(".")
        tenant, type_ = tokens[1] if len(tokens) > 1 else "", tokens[2] if len(tokens) > 2 else ""
        reason = shorten(" ".join(str(error).split()), REASON_CHARS_MAX)
        headers = {
            "X-Reject-Code": error.code,
            "X-Reject-Reason": reason,
            "X-Orig-Subject": delivery.subject,
            "X-Orig-Stream-Seq": str(delivery.sequence),
        }
        message_id = f"rej-TASKS-{delivery.sequence}-{content_hash(delivery.data)[:16]}"
        await self._bus.enqueue(rejected(tenant, type_), delivery.data, message_id=message_id, headers=headers)
        log.info("rejected message %d on %s: %s", delivery.sequence, delivery.subject, reason)
        await self._answer(delivery, tenant, refused(error))
        await delivery.term(f"{error.code}: {reason}")

    async def _answer(self, delivery: Delivery, tenant: str, verdict: bytes) -> None:
        reply_to = delivery.headers.get("Reply-To")
        if reply_to and is_reply_subject(reply_to, tenant):
            await self._bus.publish(reply_to, verdict)


def is_reply_subject(subject: str, tenant: str) -> bool:
    """Say whether a sender may have its verdict there: its own inbox or its tenant's replies, never a subject that others obey."""
    prefixes = ("_INBOX.", "_INBOX_", f"replies.{tenant}.")
    return subject.startswith(prefixes) and _SUBJECT.fullmatch(subject) is not None
