"""Hand a task on to a worker of another version, for one that was given it and has not the tools it began with, see `agents.versions`.

Nothing is recorded: who is there now is in no log, and the task is dispatched as it was. Its message goes to the lane of that version; should it get
lost there, the sweep sends it to everybody again.
"""

from __future__ import annotations

import logging
from typing import Annotated, Final
from uuid import UUID

import msgspec

from crewlog.events.bus import Bus
from crewlog.events.clock import Clock
from crewlog.orchestrator.dispatch import Dispatch
from crewlog.orchestrator.dispatcher import Dispatcher
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.fair_queue import Waiting
from crewlog.orchestrator.run import current_task
from crewlog.schemas.errors import ContractError, Unavailable
from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.subjects import control_worker, version_lane, worker_group
from crewlog.schemas.task import VERSION_CHARS_MAX

ANSWER_TIMEOUT_S: Final = 1.0

log = logging.getLogger(__name__)


class HandOnRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Have a worker of this version carry a dispatched task on."""

    run_id: UUID
    task_id: UUID
    version: Annotated[str, msgspec.Meta(max_length=VERSION_CHARS_MAX)]


async def is_there(bus: Bus, worker: str) -> bool:
    """Say whether a worker answers; nobody does to what can be no name."""
    try:
        await bus.request(control_worker(worker), b"{}", timeout_s=ANSWER_TIMEOUT_S)
    except (Unavailable, ContractError):
        return False
    return True


async def hand_on(kind: str, request: HandOnRequest, bus: Bus, clock: Clock, driver: Driver, dispatcher: Dispatcher) -> bool:
    """Send a task of a kind to its workers of a version; False when none of them is there, or nobody waits for the task.

    Raises:
        Unavailable: the log or the bus cannot be reached.
    """
    run_id, lane = RunId(request.run_id), version_lane(request.version)
    state = (await driver.folds.states([run_id])).get(run_id)
    task = None if state is None else current_task(state, TaskId(request.task_id))
    if state is None or task is None or task.kind != kind or task.phase != "dispatched":
        return False
    for worker in dispatcher.workers(worker_group(task.kind, lane)):
        if await is_there(bus, worker):
            dispatch = Dispatch(task.task_id, task.kind, lane, task.attempt, task.dispatches, None)
            await dispatcher.offer([Waiting(state.brief.tenant, run_id, dispatch, clock.random_id().hex[:8])])
            log.info("task %s goes on with %s agents of version %r", task.task_id, task.kind, request.version)
            return True
    return False
