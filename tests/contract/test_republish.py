"""A recorded run is published again: every event once, in order, with its timing, and never where a crew listens."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
import pytest
from msgspec.structs import replace
from support.played import histories, quiet_log

from crewlog.events.bus import Message
from crewlog.events.clock import SystemClock
from crewlog.events.jetstream import STREAMS
from crewlog.events.nats_bus import NatsBus
from crewlog.orchestrator.republish import republish, schedule
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas import subjects
from crewlog.schemas.errors import ContractError
from crewlog.schemas.payload import pack
from crewlog.schemas.subjects import parse_foreign
from crewlog.schemas.task_events import ModelCallFinished


class StandingClock(SystemClock):
    """Time that passes only where somebody sleeps."""

    passed_s = 0.0

    def monotonic(self) -> float:
        return self.passed_s

    async def sleep(self, seconds: float) -> None:
        self.passed_s += seconds


@pytest.fixture(scope="module")
def thoughtful_run() -> RunHistory:
    """A run with a model that thinks, and an event of a type that nobody knows yet."""
    (history,) = [run for run in histories(quiet_log()) if len(run.task_streams) == 3]
    events = list(history.events)
    at = next(n for n, r in enumerate(events) if r.type == "ModelCallFinished")
    said = events[at].event()
    assert isinstance(said, ModelCallFinished)
    events[at] = replace(events[at], data=msgspec.json.encode(replace(said, thinking=pack("a secret thought")[0])))
    events[at + 1] = replace(events[at + 1], type="FromTheFuture", data=b'{"what":1}')
    return RunHistory(history.run_id, tuple(events), history.texts)


async def test_every_event_is_published_once_in_order_and_with_its_timing(thoughtful_run: RunHistory, nats_bus: NatsBus) -> None:
    history, clock, heard, told = thoughtful_run, StandingClock(), list[Message](), list[int]()

    async def hear(message: Message) -> None:
        heard.append(message)

    subscription = await nats_bus.subscribe("replay.mine", hear)
    sent = await republish(history, "replay.mine", nats_bus, clock, speed=10.0, told=lambda index, _: told.append(index), sleep=clock.sleep)
    await nats_bus.flush()
    await subscription.stop()

    assert sent == len(heard) == len(history.events)
    assert told == list(range(1, sent + 1))
    bodies = [msgspec.json.decode(message.data) for message in heard]
    assert [body["event_id"] for body in bodies] == [str(recorded.event_id) for recorded in history.events]
    assert {message.headers["Replay-Of"] for message in heard} == {str(history.run_id)}
    assert "FromTheFuture" in {message.headers["Event-Type"] for message in heard}
    assert b"secret thought" not in b"".join(message.data for message in heard)
    took_s = (history.events[-1].occurred_us - history.events[0].occurred_us) / 1e6
    assert clock.passed_s == pytest.approx(took_s / 10)


def test_time_never_goes_back(thoughtful_run: RunHistory) -> None:
    (first, second, third) = thoughtful_run.events[:3]
    events = [replace(first, occurred_us=5_000_000), replace(second, occurred_us=4_000_000), replace(third, occurred_us=6_000_000)]
    assert list(schedule(events, 2.0)) == [0.0, 0.0, 0.5]
    assert list(schedule([], 1.0)) == []


def own_subjects() -> Iterator[str]:
    """What the page of subjects documents, and what streams keep."""
    yield from re.findall(r"^([a-z]+)\.", subjects.__doc__ or "", re.MULTILINE)
    for stream in STREAMS.values():
        yield stream.subjects.split(".")[0]


def test_subjects_of_the_crew_are_refused() -> None:
    for name in set(own_subjects()) - {"replay"}:
        with pytest.raises(ContractError, match="crews work with"):
            parse_foreign(f"{name}.default.x")
    for other in ("$JS.API.INFO", "_INBOX.x", "_INBOX_operator.x"):
        with pytest.raises(ContractError, match="crews work with"):
            parse_foreign(other)


@pytest.mark.parametrize("subject", ["", ".", "a..b", "a b", "a.", "a.*", "a.>", "ü.a", "a." + "b" * 300])
def test_what_is_no_subject_is_refused(subject: str) -> None:
    with pytest.raises(ContractError):
        parse_foreign(subject)


@pytest.mark.parametrize("subject", ["replay.mine", "dashboards.team-a.runs"])
def test_other_subjects_are_taken(subject: str) -> None:
    assert parse_foreign(subject) == subject
