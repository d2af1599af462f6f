"""Both stores against a model that is obviously right: appends of every kind of rightness, sent again and mixed up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support.logs import CLOCK, cancelled, dispatched, new_run, new_task
from support.postgres import Database

from crewlog.events.memory_store import MemoryStore
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import ANY, Appended, AppendRequest, EventStore, Write
from crewlog.schemas.codec import Event
from crewlog.schemas.errors import ConflictError, ContractError
from crewlog.schemas.ids import RunId, Stream, run_stream

pytestmark = pytest.mark.hand_written("tries the log")

T = TypeVar("T")
Answer = tuple[tuple[int, ...], bool] | str


class Model:
    """The rules of the log, written for clarity."""

    def __init__(self) -> None:
        self.streams: dict[Stream, list[UUID]] = {}
        self.types: dict[UUID, type[Event]] = {}
        self.closed: set[Stream] = set()

    def append(self, request: AppendRequest) -> Answer:
        placed = list(zip((w.stream for w in request.writes for _ in w.events), request.event_ids, strict=True))
        known = [event_id in ids for ids in self.streams.values() for _, event_id in placed if event_id in ids]
        types = dict(zip(request.event_ids, (type(event) for write in request.writes for event in write.events), strict=True))
        fitting = [event_id in self.streams.get(stream, []) and self.types[event_id] is types[event_id] for stream, event_id in placed]
        if all(fitting):
            return tuple(self.streams[stream].index(event_id) + 1 for stream, event_id in placed), True
        if known:
            return "partly known"
        for write in request.writes:
            if write.stream in self.closed or write.expected not in (ANY, len(self.streams.get(write.stream, []))):
                return "conflict"
        versions = []
        self.types.update(types)
        for stream, event_id in placed:
            self.streams.setdefault(stream, []).append(event_id)
            versions.append(len(self.streams[stream]))
        self.closed.update(w.stream for w in request.writes if type(w.events[-1]).__name__ == "RunCancelled")
        return tuple(versions), False


class StoreMachine(RuleBasedStateMachine):
    """Sends requests to a store and to the model. `store` and `run` are set by the test."""

    store: ClassVar[EventStore]
    loop: ClassVar[asyncio.AbstractEventLoop]

    requests: Bundle[AppendRequest] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.runs = [new_run() for _ in range(3)]  # fresh streams: examples may share a log

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def send(self, requests: list[AppendRequest]) -> None:
        async def together() -> list[Appended | BaseException]:
            return await asyncio.gather(*map(self.store.append, requests), return_exceptions=True)

        for request, answer in zip(requests, self.wait(together()), strict=True):
            expected = self.model.append(request)
            match answer:
                case Appended():
                    assert (tuple(answer.versions), answer.duplicate) == expected
                case ConflictError():
                    assert expected == "conflict"
                case ContractError():
                    assert expected == "partly known"
                case _:
                    raise AssertionError(f"{answer!r}, expected {expected}")

    def make(self, writes: list[tuple[int, int, int, bool]]) -> AppendRequest:
        """Make a request from (stream, events, distance from the right version, 3 for any version, whether it ends the stream)."""
        made = []
        for run, count, distance, ends in {w[0]: w for w in writes}.values():
            stream = run_stream(self.runs[run])
            events: list[Event] = [dispatched(new_task()) for _ in range(count)]
            version = len(self.model.streams.get(stream, []))
            made.append(Write(stream, [*events[1:], cancelled()] if ends else events, ANY if distance > 2 else max(version + distance, 0)))
        return AppendRequest(made, [CLOCK.new_id() for w in made for _ in w.events], 1, self.runs[0])

    distances = st.sampled_from([0, 0, 0, 3, 3, -1, 1, 2])
    ends = st.sampled_from([False] * 9 + [True])
    writes = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), distances, ends), min_size=1, max_size=3)

    @rule(target=requests, writes=writes)
    def append(self, writes: list[tuple[int, int, int, bool]]) -> AppendRequest:
        request = self.make(writes)
        self.send([request])
        return request

    @rule(target=requests, several=st.lists(writes, min_size=2, max_size=4))
    def append_together(self, several: list[list[tuple[int, int, int, bool]]]) -> AppendRequest:
        requests = [self.make(writes) for writes in several]
        self.send(requests)
        return requests[0]

    @rule(request=requests)
    def send_again(self, request: AppendRequest) -> None:
        self.send([request])

    @rule(request=requests, other=requests)
    def send_several_again(self, request: AppendRequest, other: AppendRequest) -> None:
        self.send([request, other, request])

    @rule(request=requests, writes=writes)
    def reuse_an_id(self, request: AppendRequest, writes: list[tuple[int, int, int, bool]]) -> None:
        made = self.make(writes)
        self.send([made._replace(event_ids=[request.event_ids[0], *made.event_ids[1:]])])

    @invariant()
    def the_log_holds_what_the_model_holds(self) -> None:
        streams = [run_stream(run_id) for run_id in self.runs]
        found = self.wait(self.store.read_streams(dict.fromkeys(streams, 0)))
        for stream in streams:
            of_stream = [event for event in found if event.stream == stream]
            assert [event.event_id for event in of_stream] == self.model.streams.get(stream, [])
            assert [event.version for event in of_stream] == list(range(1, len(of_stream) + 1))
        assert [event.position for event in found] == sorted(event.position for event in found)


def run_machine(store: EventStore, loop: asyncio.AbstractEventLoop, examples: int, *, shrink: bool = True) -> None:
    machine = type("Machine", (StoreMachine,), {"store": store, "loop": loop})
    profile = settings(
        max_examples=examples,
        stateful_step_count=25,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(machine, settings=profile)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_memory_store(loop: asyncio.AbstractEventLoop) -> None:
    run_machine(MemoryStore(), loop, 200)


def test_postgres_store(database: Database, loop: asyncio.AbstractEventLoop) -> None:
    store = loop.run_until_complete(PostgresStore.open(database.admin_url, actor="machine", clock=CLOCK, lanes=1))
    run_machine(store, loop, 40)
    loop.run_until_complete(store.close())


class ChecksVersionsFirst(MemoryStore):
    """Planted: a retry whose first try was written gets a conflict."""

    def _known(self, request: AppendRequest) -> Appended | None:
        for write in request.writes:
            self._check(write, request.run_id)
        return super()._known(request)


class AcceptsHalfKnown(MemoryStore):
    """Planted: an id that is known does not stop the others."""

    def _known(self, request: AppendRequest) -> Appended | None:
        with suppress(ContractError):
            return super()._known(request)
        return None


class ForgetsToClose(MemoryStore):
    """Planted: two ends of one stream."""

    def _check(self, write: Write, run_id: RunId | None) -> None:
        with suppress(ConflictError):
            super()._check(write, run_id)


@pytest.mark.parametrize("broken", [ChecksVersionsFirst, AcceptsHalfKnown, ForgetsToClose])
def test_the_machine_finds_planted_bugs(broken: type[MemoryStore], loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(AssertionError):
        run_machine(broken(), loop, 50, shrink=False)
