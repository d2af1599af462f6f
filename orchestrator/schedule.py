"""A goal that recurs: the pure fold of one schedule's stream, and what follows from a command or from the time.

Due times are those of cron in a time zone, as Debian's cron has them where clocks are put forward or back: a time that is skipped is
due right behind the gap, one that comes twice is due once; what recurs within the hour (`*/10 * * * *`) follows real time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, Literal, assert_never
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError
from msgspec.structs import replace

from crewlog.orchestrator.commands import TooLate
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import TOKEN, RunId, scheduled_run_id
from crewlog.schemas.sparse import sparse_json
from crewlog.schemas.system_events import CatchUp, ScheduleAdded, ScheduleFired, SchedulePaused, ScheduleRemoved, ScheduleResumed
from crewlog.schemas.task import AgentTask, parse_task

ON_TIME_US: Final = 60_000_000
"""A due time that is this late was missed, in microseconds: longer than another orchestrator needs to take over."""
CATCH_UP_MAX: Final = 24
"""Most due times that are made up for at once: a day's worth of an hourly goal."""
MISSED_MAX: Final = 100
"""Due times that are looked back for."""
CRON_FIELDS: Final = 5
_CHANGE_OF_CLOCKS: Final = timedelta(days=1)
"""More than any change of clocks moves a due time."""

ScheduleEvent = ScheduleAdded | SchedulePaused | ScheduleResumed | ScheduleRemoved | ScheduleFired


class Schedule(msgspec.Struct, frozen=True):
    """Everything known about one schedule."""

    tenant: str = ""
    name: str = ""
    status: Literal["none", "active", "paused", "removed"] = "none"
    cron: str = ""
    zone: str = "UTC"
    catch_up: CatchUp = "one"
    task: msgspec.Raw = msgspec.Raw(b"{}")
    generation: int = 0
    """How often a schedule of this name has been added."""
    after_us: int = 0
    """Due times up to here are dealt with, in microseconds since 1970."""
    last: ScheduleFired | None = None

    @property
    def is_there(self) -> bool:
        """True from its adding to its removal."""
        return self.status in ("active", "paused")


class AddSchedule(msgspec.Struct, frozen=True):
    """Let a goal recur."""

    tenant: str
    name: str
    cron: str
    zone: str
    catch_up: CatchUp
    task: AgentTask
    actor: str


class ChangeSchedule(msgspec.Struct, frozen=True):
    """Pause, resume or remove a schedule."""

    verb: Literal["pause", "resume", "remove"]
    actor: str
    reason: str = ""


def evolve(state: Schedule, event: ScheduleEvent) -> Schedule:
    """Apply one fact."""
    match event:
        case ScheduleAdded():
            return Schedule(
                *(event.tenant, event.name, "active", event.cron, event.zone, event.catch_up, event.task), state.generation + 1, event.since_us, state.last
            )
        case SchedulePaused():
            return replace(state, status="paused")
        case ScheduleResumed():
            return replace(state, status="active", after_us=event.since_us)
        case ScheduleRemoved():
            return replace(state, status="removed")
        case ScheduleFired():
            return replace(state, last=event, after_us=state.after_us if event.actor else max(state.after_us, event.due_us))
        case _:
            assert_never(event)


def decide(command: AddSchedule | ChangeSchedule, state: Schedule, now_us: int, *, name: str = "") -> Sequence[ScheduleEvent]:
    """Decide what follows from a command; a change that has been made already is no news.

    Args:
        name: of the schedule a change is about, for the error when there is none.

    Raises:
        ContractError: what shall recur, or when, cannot be understood.
        TooLate: there is another schedule of this name.
        NotFound: there is no such schedule.
    """
    if isinstance(command, AddSchedule):
        return _add(command, state, now_us)
    if not state.is_there:
        raise NotFound("schedule", name)
    match command.verb:
        case "pause":
            return () if state.status == "paused" else (SchedulePaused(command.actor, command.reason),)
        case "resume":
            return () if state.status == "active" else (ScheduleResumed(now_us, command.actor, command.reason),)
        case "remove":
            return (ScheduleRemoved(command.actor, command.reason),)
        case _:
            assert_never(command.verb)


def _add(command: AddSchedule, state: Schedule, now_us: int) -> Sequence[ScheduleEvent]:
    if not TOKEN.fullmatch(command.name):
        raise ContractError(f"schedule name {command.name!r} must match [A-Za-z0-9_-]{{1,64}}", problems=(("/name", "is no name"),))
    if command.task.parent_task_id is not None or command.task.run_id != command.task.task_id:
        raise ContractError("a goal that recurs begins runs of its own", problems=(("/task", "leave run_id and parent_task_id out"),))
    recorded = msgspec.Raw(sparse_json(command.task, without={"run_id"}))
    event = ScheduleAdded(command.tenant, command.name, command.cron, command.zone, command.catch_up, recorded, now_us, command.actor)
    if next_due_us(evolve(Schedule(), event), now_us) is None:
        raise ContractError(f"cron {command.cron!r} is never due", problems=(("/cron", "names no day that there is"),))
    if not state.is_there:
        return (event,)
    if _terms(state) == _terms(evolve(Schedule(), event)):
        return ()
    raise TooLate(f"there is another schedule {command.name} already; remove it first, or choose another name")


def _terms(state: Schedule) -> tuple[object, ...]:
    """Return what makes two schedules of one name the same; the task's id is drawn anew whenever somebody asks."""
    return state.cron, state.zone, state.catch_up, {**msgspec.json.decode(bytes(state.task)), "task_id": None}


def due(state: Schedule, now_us: int) -> Sequence[ScheduleFired]:
    """Return what is due by now and not fired yet, the oldest first, as the schedule's catch-up policy wants it."""
    first_us = next_due_us(state, now_us)
    if first_us is None or first_us > now_us:  # told at once; what is asked of every schedule every few seconds must not look back
        return []
    passed = _passed(state, now_us)
    match state.catch_up:
        case "none":
            chosen = [due_us for due_us in passed[-1:] if due_us > now_us - ON_TIME_US]
        case "one":
            chosen = passed[-1:]
        case "all":
            chosen = passed[-CATCH_UP_MAX:]
        case _:
            assert_never(state.catch_up)
    missed = len(passed) - len(chosen)
    return [ScheduleFired(due_us, run_of(state, due_us), missed if number == 0 else 0) for number, due_us in enumerate(chosen)]


def next_due_us(state: Schedule, now_us: int) -> int | None:
    """Return when it must be fired next, in microseconds since 1970: by now if something is due; None when never."""
    if state.status != "active":
        return None
    after_us = max(state.after_us, now_us - ON_TIME_US) if state.catch_up == "none" else state.after_us
    return next(_times(state, after_us), None)


def run_of(state: Schedule, due_us: int, number: int = 1) -> RunId:
    """Return the id of the run of one due time, or the one with this number where the ids before it are somebody else's."""
    return scheduled_run_id(state.tenant, state.name, generation=state.generation, due_us=due_us, number=number)


def task_for(state: Schedule, run_id: RunId) -> AgentTask:
    """Make the task of one run.

    Raises:
        ContractError: what was recorded is no task for this program.
    """
    return parse_task({**msgspec.json.decode(bytes(state.task)), "task_id": str(run_id)})


def _passed(state: Schedule, now_us: int) -> list[int]:
    """Return due times behind `after_us` and up to now: of those that are many the newest."""
    after_us = state.after_us
    back = deque(islice(CronSim(state.cron, _at(now_us, state.zone), reverse=True), MISSED_MAX), maxlen=1)
    if back:  # a long way back is not walked; reading forwards alone decides what is due where clocks were changed
        after_us = max(after_us, _us(back[0] - _CHANGE_OF_CLOCKS))
    found: deque[int] = deque(maxlen=MISSED_MAX)
    for due_us in _times(state, after_us):
        if due_us > now_us:
            break
        found.append(due_us)
    return list(found)


def _times(state: Schedule, after_us: int) -> Iterator[int]:
    """Yield due times behind a time.

    Raises:
        ContractError: cron or zone cannot be understood.
    """
    try:
        if len(state.cron.split()) != CRON_FIELDS:
            raise ContractError(
                f"cron {state.cron!r} must have five fields: minute, hour, day of the month, month, day of the week",
                problems=(("/cron", "for example 0 7 * * mon-fri"),),
            )
        last_us = after_us
        for moment in CronSim(state.cron, _at(after_us, state.zone)):
            if (due_us := _us(moment)) > last_us:
                last_us = due_us
                yield due_us
    except (CronSimError, ValueError) as error:  # a number may have more digits than Python reads
        raise ContractError(f"cron {state.cron!r} cannot be understood: {error}", problems=(("/cron", "for example 0 7 * * mon-fri"),)) from None


def _at(at_us: int, zone: str) -> datetime:
    try:
        return datetime.fromtimestamp(at_us // 1_000_000, UTC if zone == "UTC" else ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ContractError(f"there is no time zone {zone!r}", problems=(("/zone", "an IANA name such as Europe/Berlin"),)) from None


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000
