"""Goals that recur: given events, when a command or a time, then events; changes of clocks and downtimes included."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from crewlog.orchestrator.commands import TooLate
from crewlog.orchestrator.schedule import (
    CATCH_UP_MAX,
    MISSED_MAX,
    AddSchedule,
    ChangeSchedule,
    Schedule,
    ScheduleEvent,
    decide,
    due,
    evolve,
    next_due_us,
    task_for,
)
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.system_events import CatchUp, ScheduleAdded, SchedulePaused, ScheduleRemoved, ScheduleResumed
from crewlog.schemas.task import parse_task

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> int:
    """A time such as `2026-03-29 01:30` in a zone; `fold=1` is the second of two that look the same."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()) * 1_000_000


def shown(*times_us: int) -> list[str]:
    return [datetime.fromtimestamp(us / 1e6, BERLIN).strftime("%Y-%m-%d %H:%M %Z") for us in times_us]


def adding(cron: str = "0 7 * * *", zone: str = "Europe/Berlin", catch_up: CatchUp = "one", *, name: str = "report", **fields: Any) -> AddSchedule:
    task = parse_task({"task_id": str(UUID(int=4)), "type": "run", "objective": "Write the report", **fields})
    return AddSchedule("default", name, cron, zone, catch_up, task, "ann")


class Spec:
    """One schedule taken through commands and time."""

    def __init__(self, now: str = "2026-11-02 12:00") -> None:
        self.state, self.now_us, self.last = Schedule(), at(now), Sequence[ScheduleEvent]
        self.said: list[ScheduleEvent] = []

    def when(self, command: AddSchedule | ChangeSchedule, now: str = "") -> Self:
        self.now_us = at(now) if now else self.now_us + 1_000_000
        return self._take(decide(command, self.state, self.now_us, name="report"))

    def time(self, now: str, fold: int = 0) -> Self:
        """Fire what is due at a time, twice: the second look finds nothing."""
        self.now_us = at(now, fold=fold)
        self._take(due(self.state, self.now_us))
        assert due(self.state, self.now_us) == []
        return self

    def _take(self, events: Sequence[ScheduleEvent]) -> Self:
        self.said = list(events)
        for event in events:
            self.state = evolve(self.state, event)
        return self

    @property
    def next(self) -> str | None:
        due_us = next_due_us(self.state, self.now_us)
        return None if due_us is None else shown(due_us)[0]

    @property
    def fired(self) -> list[str]:
        return shown(*(event.due_us for event in self.said))  # type: ignore[union-attr]


def change(verb: Any, reason: str = "") -> ChangeSchedule:
    return ChangeSchedule(verb, "ann", reason)


def test_a_schedule_is_due_at_its_times_and_not_before() -> None:
    spec = Spec("2026-11-02 07:00").when(adding("0 7 * * mon-fri"))

    [added] = spec.said
    assert isinstance(added, ScheduleAdded)
    assert b"run_id" not in bytes(added.task)
    assert spec.next == "2026-11-03 07:00 CET"
    assert spec.time("2026-11-03 06:59").fired == []
    assert spec.time("2026-11-03 07:00").fired == ["2026-11-03 07:00 CET"]
    assert spec.time("2026-11-03 07:01").fired == []
    spec.time("2026-11-06 07:00")
    assert spec.next == "2026-11-09 07:00 CET", "the weekend is left out"


def test_a_due_time_has_one_run_whoever_derives_it() -> None:
    one, other = Spec().when(adding()), Spec().when(adding())

    assert one.time("2026-11-03 07:00").said == other.time("2026-11-03 07:00:30").said
    first = one.said[0].run_id  # type: ignore[union-attr]
    task = task_for(one.state, first)
    assert (task.task_id, task.run_id, task.objective) == (first, first, "Write the report")
    again = other.when(change("remove")).when(adding(), "2026-11-03 06:59").time("2026-11-03 07:00")
    assert again.said[0].run_id != first, "another schedule of the same name has runs of its own"  # type: ignore[union-attr]


# ── clocks that are put forward and back ──


def test_a_time_that_the_clocks_skip_is_due_right_behind_the_gap_once() -> None:
    spec = Spec("2026-03-28 12:00").when(adding("30 2 * * *"))

    assert spec.next == "2026-03-29 03:00 CEST"
    assert spec.time("2026-03-29 01:59").fired == []
    assert spec.time("2026-03-29 03:00").fired == ["2026-03-29 03:00 CEST"]
    assert spec.next == "2026-03-30 02:30 CEST"


def test_a_time_that_comes_twice_is_due_once() -> None:
    spec = Spec("2026-10-24 12:00").when(adding("30 2 * * *"))

    assert spec.time("2026-10-25 02:30", fold=0).fired == ["2026-10-25 02:30 CEST"]
    assert spec.time("2026-10-25 02:30", fold=1).fired == []
    assert spec.next == "2026-10-26 02:30 CET"


def test_what_recurs_within_the_hour_follows_real_time() -> None:
    back = Spec("2026-10-25 01:45").when(adding("*/30 * * * *", catch_up="all"))
    assert back.time("2026-10-25 03:00").fired == [
        *("2026-10-25 02:00 CEST", "2026-10-25 02:30 CEST", "2026-10-25 02:00 CET", "2026-10-25 02:30 CET", "2026-10-25 03:00 CET"),
    ]
    forward = Spec("2026-03-29 01:15").when(adding("*/30 * * * *", catch_up="all"))
    assert forward.time("2026-03-29 03:30").fired == ["2026-03-29 01:30 CET", "2026-03-29 03:00 CEST", "2026-03-29 03:30 CEST"]


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
@pytest.mark.parametrize("cron", ["30 2 * * *", "0 3 * * *", "59 1 * * *", "15 */2 * * *", "*/7 2 * * *", "0 2,3 * * *", "5 * * * *"])
def test_looking_often_and_looking_once_find_the_same(day: str, cron: str) -> None:
    often, once = Spec(f"{day} 00:00").when(adding(cron, catch_up="all")), Spec(f"{day} 00:00").when(adding(cron, catch_up="all"))
    found: list[str] = []
    start, end = at(f"{day} 00:00"), at(f"{day} 08:00")
    for minute in range((end - start) // 60_000_000 + 1):
        now_us = start + minute * 60_000_000
        events = due(often.state, now_us)
        found += shown(*(event.due_us for event in events))
        often._take(events)

    assert once.time(f"{day} 08:00").fired == found[-CATCH_UP_MAX:]
    assert len(set(found)) == len(found)


# ── downtimes ──


def test_after_a_downtime_the_last_missed_time_is_made_up_for_and_the_others_are_counted() -> None:
    spec = Spec().when(adding(catch_up="one"))

    assert spec.time("2026-11-10 09:00").fired == ["2026-11-10 07:00 CET"]
    assert spec.said[0].missed == 7  # type: ignore[union-attr]
    assert spec.next == "2026-11-11 07:00 CET"


def test_nothing_is_made_up_for_when_that_is_what_was_asked() -> None:
    spec = Spec().when(adding(catch_up="none"))

    assert spec.time("2026-11-10 09:00").fired == []
    assert spec.next == "2026-11-11 07:00 CET"
    assert spec.time("2026-11-11 07:00:59").fired == ["2026-11-11 07:00 CET"], "a moment late is no downtime"
    assert spec.said[0].missed == 8  # type: ignore[union-attr]


def test_all_missed_times_are_made_up_for_within_bounds() -> None:
    spec = Spec().when(adding(catch_up="all"))
    assert spec.time("2026-11-05 09:00").fired == ["2026-11-03 07:00 CET", "2026-11-04 07:00 CET", "2026-11-05 07:00 CET"]

    busy = Spec("2026-01-01 00:00").when(adding("* * * * *", catch_up="all")).time("2026-11-05 09:00")
    assert (len(busy.said), busy.fired[0], busy.fired[-1]) == (CATCH_UP_MAX, "2026-11-05 08:37 CET", "2026-11-05 09:00 CET")
    assert [event.missed for event in busy.said] == [MISSED_MAX - CATCH_UP_MAX] + [0] * (CATCH_UP_MAX - 1)  # type: ignore[union-attr]


# ── people ──


def test_what_is_due_while_it_is_paused_is_not_made_up_for() -> None:
    spec = Spec().when(adding(catch_up="all")).when(change("pause", "holidays"))

    assert spec.said == [SchedulePaused("ann", "holidays")]
    assert spec.next is None
    assert spec.time("2026-11-05 09:00").fired == []
    spec.when(change("resume"), "2026-11-05 10:00")
    assert spec.said == [ScheduleResumed(spec.now_us, "ann")]
    assert spec.time("2026-11-06 07:00").fired == ["2026-11-06 07:00 CET"]


def test_a_change_that_has_been_made_is_no_news() -> None:
    spec = Spec().when(adding())

    assert spec.when(change("resume")).said == []
    assert spec.when(change("pause")).when(change("pause")).said == []
    assert spec.when(adding()).said == [], "the same again"


def test_a_name_is_given_once_until_it_is_removed() -> None:
    spec = Spec().when(adding())

    with pytest.raises(TooLate, match="another schedule report"):
        spec.when(adding("0 8 * * *"))
    with pytest.raises(TooLate):
        spec.when(adding(objective="Something else"))
    assert spec.when(change("remove")).said == [ScheduleRemoved("ann")]
    assert spec.next is None
    assert len(spec.when(adding("0 8 * * *")).said) == 1


@pytest.mark.parametrize("verb", ["pause", "resume", "remove"])
def test_what_is_not_there_cannot_be_changed(verb: str) -> None:
    with pytest.raises(NotFound, match="report"):
        Spec().when(change(verb))
    with pytest.raises(NotFound):
        Spec().when(adding()).when(change("remove")).when(change(verb))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"cron": "0 7 * *"}, "five fields"),
        ({"cron": "0 0 7 * * *"}, "five fields"),
        ({"cron": ""}, "five fields"),
        ({"cron": "0 25 * * *"}, "cannot be understood: Bad hour"),
        ({"cron": "0 7 30 2 *"}, "cannot be understood"),
        ({"cron": f"{'9' * 5000} 7 * * *"}, "cannot be understood"),
        ({"cron": "@daily"}, "five fields"),
        ({"zone": "Europe/Atlantis"}, "no time zone 'Europe/Atlantis'"),
        ({"zone": "../../etc/passwd"}, "no time zone"),
        ({"zone": "Europe"}, "no time zone"),
        ({"zone": ""}, "no time zone"),
        ({"name": "a/b"}, "must match"),
        ({"parent_task_id": str(UUID(int=9))}, "runs of its own"),
        ({"run_id": str(UUID(int=9))}, "runs of its own"),
    ],
)
def test_what_cannot_recur_is_refused_at_once(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ContractError, match=text):
        Spec().when(adding(**fields))


def test_a_schedule_that_is_not_due_is_told_without_looking_back() -> None:
    rare = Spec().when(adding("0 0 29 2 *"))
    began = time.process_time()
    for _ in range(500):
        assert due(rare.state, rare.now_us) == []
    assert time.process_time() - began < 2  # a hundred leap days back, each time, take longer
