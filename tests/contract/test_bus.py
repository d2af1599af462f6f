"""The bus contract: what the memory bus and the NATS bus both keep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from crewlog.events import slots
from crewlog.events.bus import LAST_SEQUENCE, Bus, Delivery, Message
from crewlog.events.clock import SystemClock
from crewlog.events.jetstream import EVENTS, TASKS, api, ensure_stream
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.events.nats_bus import NatsBus
from crewlog.schemas.errors import LimitExceeded, Unavailable

WITHIN_S = 30.0
"""Nothing takes nearly as long, but on a machine that has much else to do."""
WORK_LANES = {"research-high": 0, "research-normal": 1, "research-low": 2}
Connect = Callable[[], Awaitable[Bus]]


@pytest.fixture(params=["memory", "nats"])
def server(request: pytest.FixtureRequest) -> str | MemoryBroker:
    """Return what the buses of a test connect to."""
    if request.param == "memory":
        return MemoryBroker()
    url: str = request.getfixturevalue("nats_url")
    return url


@pytest_asyncio.fixture
async def connect(server: str | MemoryBroker) -> AsyncIterator[Connect]:
    """Yield what opens one more connection to the same server."""
    opened: list[Bus] = []

    async def connect() -> Bus:
        opened.append(MemoryBus(server) if isinstance(server, MemoryBroker) else await NatsBus.connect(server, name=f"test-{len(opened)}"))
        return opened[-1]

    yield connect
    for bus in opened:
        await bus.close()


@pytest_asyncio.fixture
async def bus(connect: Connect) -> Bus:
    """Return a bus with all streams and the consumers of kind research."""
    bus = await connect()
    await bus.ensure_kind("research")
    return bus


class Seen:
    """Collects what handlers got, and lets a test wait for it."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self._changed = asyncio.Condition()

    async def add(self, item: str) -> None:
        async with self._changed:
            self.items.append(item)
            self._changed.notify_all()

    async def until(self, count: int) -> list[str]:
        async with asyncio.timeout(WITHIN_S), self._changed:
            await self._changed.wait_for(lambda: len(self.items) >= count)
        return self.items


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something no signal tells about."""
    async with asyncio.timeout(WITHIN_S):
        while not await condition():  # noqa: ASYNC110 — the server sends no signal for it
            await asyncio.sleep(0.01)


# ── core messages ──


async def test_wildcards_reach_every_subscriber(bus: Bus, connect: Connect) -> None:
    other, seen = await connect(), Seen()

    async def note(message: Message) -> None:
        await seen.add(f"{message.subject}={message.data.decode()} {message.headers.get('Who', '')}")

    await bus.subscribe("wake.*", note)
    await bus.subscribe("wake.>", note)
    await bus.subscribe("poke.log", note)
    await other.publish("wake.run-1", b"now", headers={"Who": "it's me"})
    assert await seen.until(2) == ["wake.run-1=now it's me"] * 2


async def test_messages_published_together_arrive_in_order_each_with_the_one_it_must_follow(bus: Bus, connect: Connect) -> None:
    other, seen = await connect(), Seen()

    async def note(message: Message) -> None:
        await seen.add(f"{message.subject}={message.data.decode()} {message.headers.get(LAST_SEQUENCE, '')}")

    await bus.subscribe("wake.*", note)
    await other.publish_behind(7, [(f"wake.{n}", f"ä{n}".encode()) for n in range(100)])
    await other.publish("wake.end")
    assert await seen.until(101) == [f"wake.{n}=ä{n} {7 + n}" for n in range(100)] + ["wake.end= "]


async def test_together_or_not_at_all(bus: Bus, connect: Connect) -> None:
    other, seen = await connect(), Seen()

    async def note(message: Message) -> None:
        await seen.add(message.subject)

    await bus.subscribe("wake.*", note)
    with pytest.raises(LimitExceeded):
        await other.publish_behind(0, [("wake.a", b""), ("wake.b", b"x" * 2_000_000)])
    await other.publish("wake.end")
    assert await seen.until(1) == ["wake.end"]


async def test_a_queue_group_shares_messages(bus: Bus, connect: Connect) -> None:
    other, seen = await connect(), Seen()

    async def note(message: Message) -> None:
        await seen.add(message.data.decode())

    for member in (bus, other):
        await member.subscribe("api.*.tasks.submit", note, queue="orchestrator")
    for n in range(20):
        await bus.publish("api.default.tasks.submit", str(n).encode())
    await seen.until(20)
    await bus.flush()
    assert sorted(seen.items, key=int) == [str(n) for n in range(20)]


async def test_request_gets_one_answer(bus: Bus, connect: Connect) -> None:
    server = await connect()

    async def answer(message: Message) -> None:
        await server.publish(message.reply, message.data.upper(), headers={"Seen": "yes"})

    await server.subscribe("api.default.echo", answer)
    replies = await asyncio.gather(*(bus.request("api.default.echo", f"n{n}".encode(), timeout_s=WITHIN_S) for n in range(50)))
    assert [reply.data for reply in replies] == [f"N{n}".encode() for n in range(50)]
    assert replies[0].headers["Seen"] == "yes"


async def test_a_slow_handler_does_not_hold_up_the_next_message(bus: Bus) -> None:
    gate = asyncio.Event()

    async def answer(message: Message) -> None:
        if message.data == b"slow":
            await gate.wait()
        await bus.publish(message.reply, message.data)

    await bus.subscribe("api.default.echo", answer)
    slow = asyncio.ensure_future(bus.request("api.default.echo", b"slow", timeout_s=WITHIN_S))
    assert (await bus.request("api.default.echo", b"quick", timeout_s=WITHIN_S)).data == b"quick"
    gate.set()
    assert (await slow).data == b"slow"


async def test_request_without_listener_says_so_at_once(bus: Bus) -> None:
    with pytest.raises(Unavailable, match=r"nobody listens on api\.default.tasks.submit"):
        async with asyncio.timeout(WITHIN_S):
            await bus.request("api.default.tasks.submit", b"{}", timeout_s=2 * WITHIN_S)


async def test_request_without_answer_times_out_and_tells_nothing_about_the_failure(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(message: Message) -> None:
        raise RuntimeError("internal detail")

    await bus.subscribe("api.default.broken", broken)
    with pytest.raises(Unavailable, match=r"no answer on api.default.broken: none within 0.2 s"):
        await bus.request("api.default.broken", b"", timeout_s=0.2)
    assert "could not be handled: RuntimeError" in caplog.text


async def test_a_stopped_subscription_gets_nothing_more(bus: Bus) -> None:
    seen = Seen()

    async def note(message: Message) -> None:
        await seen.add(message.subject)

    stopped = await bus.subscribe("wake.>", note)
    await bus.subscribe("poke.log", note)
    await stopped.stop()
    await stopped.stop()
    await bus.publish("wake.run-1")
    await bus.publish("poke.log")
    assert await seen.until(1) == ["poke.log"]


async def test_a_message_over_the_limit_is_refused(bus: Bus) -> None:
    with pytest.raises(LimitExceeded):
        await bus.publish("wake.run-1", b"x" * (1024 * 1024 + 1))
    with pytest.raises(LimitExceeded):
        await bus.enqueue("tasks.default.data", b"x" * (600 * 1024), message_id="large")


async def test_a_subject_of_the_tasks_takes_so_many_and_no_limit_deletes_what_is_there(nats_url: str) -> None:
    bus = await NatsBus.connect(nats_url, name="limits")
    small = TASKS._replace(subject_messages_max=3)

    async def config() -> Any:
        return (await api(bus, "STREAM.INFO.TASKS"))["config"]

    try:
        await ensure_stream(bus, TASKS._replace(subject_messages_max=None))
        for n in range(5):
            await bus.enqueue("tasks.noisy.data", b"", message_id=str(n))
        await ensure_stream(bus, small)
        assert (await bus.queued("TASKS")).subjects == {"tasks.noisy.data": 5}
        assert (await config())["max_msgs_per_subject"] == -1
        for sequence in (1, 2):
            await bus.remove("TASKS", sequence)
        await ensure_stream(bus, small)
        with pytest.raises(LimitExceeded, match=r"TASKS\.subject_messages_max"):
            await bus.enqueue("tasks.noisy.data", b"", message_id="one more")
        assert await bus.enqueue("tasks.quiet.data", b"", message_id="of another") == 6
    finally:
        await bus.close()


async def test_the_copy_of_the_log_is_written_late_unless_it_was_made_otherwise(nats_url: str) -> None:
    bus = await NatsBus.connect(nats_url, name="late")

    async def persist_mode() -> str | None:
        mode: str | None = (await api(bus, "STREAM.INFO.EVENTS"))["config"].get("persist_mode")
        return mode

    try:
        await ensure_stream(bus, EVENTS)
        await ensure_stream(bus, EVENTS._replace(age_max_s=3600))
        assert await persist_mode() == "async"
        await api(bus, "STREAM.DELETE.EVENTS")
        await ensure_stream(bus, EVENTS._replace(is_copy=False))
        await ensure_stream(bus, EVENTS)
        assert await persist_mode() is None
    finally:
        await bus.close()


# ── queues ──


async def test_every_message_is_handled_once(bus: Bus, connect: Connect) -> None:
    seen, handled_by = Seen(), set()
    workers = [bus, await connect(), await connect()]

    def handler(worker: int) -> Callable[[Delivery], Awaitable[None]]:
        async def handle(delivery: Delivery) -> None:
            handled_by.add(worker)
            await delivery.ack()
            await seen.add(delivery.data.decode())

        return handle

    running = [await worker.consume("WORK", WORK_LANES, handler(n), slots=4) for n, worker in enumerate(workers)]
    for n in range(120):
        await bus.enqueue("work.research.normal", str(n).encode(), message_id=f"m{n}", headers={"Task-Id": str(n)})
    await seen.until(120)

    async def empty() -> bool:
        return await bus.backlog("WORK", "research-normal") == 0

    await eventually(empty)
    assert sorted(seen.items, key=int) == [str(n) for n in range(120)]
    assert handled_by == {0, 1, 2}
    for consuming in running:
        await consuming.stop(grace_s=1)


async def test_the_same_id_is_the_same_message(bus: Bus) -> None:
    first = await bus.enqueue("work.research.low", b"a", message_id="same")
    again = await bus.enqueue("work.research.low", b"a", message_id="same")
    assert again == first
    assert await bus.backlog("WORK", "research-low") == 1


async def test_slots_bound_what_is_handed_out_and_backlog_counts_all(bus: Bus) -> None:
    gate, seen = asyncio.Event(), Seen()

    async def handle(delivery: Delivery) -> None:
        await seen.add(delivery.data.decode())
        await gate.wait()
        await delivery.ack()

    for n in range(8):
        await bus.enqueue("work.research.normal", str(n).encode(), message_id=str(n))
    await bus.consume("WORK", WORK_LANES, handle, slots=3)
    await seen.until(3)
    assert await bus.backlog("WORK", "research-normal") == 8
    assert seen.items == ["0", "1", "2"]
    gate.set()
    assert await seen.until(8) == [str(n) for n in range(8)]


async def test_a_full_worker_leaves_messages_to_others(bus: Bus, connect: Connect) -> None:
    other, gate, first, second = await connect(), asyncio.Event(), Seen(), Seen()

    async def hold(delivery: Delivery) -> None:
        await first.add(delivery.data.decode())
        await gate.wait()
        await delivery.ack()

    async def take(delivery: Delivery) -> None:
        await delivery.ack()
        await second.add(delivery.data.decode())

    await bus.consume("WORK", WORK_LANES, hold, slots=1)
    await bus.enqueue("work.research.normal", b"held", message_id="held")
    await first.until(1)
    await other.consume("WORK", WORK_LANES, take, slots=1)
    for lane in ("high", "normal", "low"):
        await bus.enqueue(f"work.research.{lane}", lane.encode(), message_id=lane)
    assert sorted(await second.until(3)) == ["high", "low", "normal"]
    assert first.items == ["held"]
    gate.set()


async def test_urgent_lanes_are_served_first_and_the_others_in_their_turn(bus: Bus) -> None:
    seen = Seen()
    for lane in ("low", "normal", "high"):
        for n in range(9):
            await bus.enqueue(f"work.research.{lane}", f"{lane}{n}".encode(), message_id=f"{lane}{n}")

    async def handle(delivery: Delivery) -> None:
        await seen.add(delivery.data.decode())
        await delivery.ack()

    await bus.consume("WORK", WORK_LANES, handle, slots=1)
    served = [name.rstrip("0123456789") for name in (await seen.until(27))[:12]]
    assert served[:2] == ["high", "high"]
    assert {lane: served.count(lane) for lane in ("high", "normal", "low")} == {"high": 8, "normal": 3, "low": 1}
    assert [name for name in seen.items if name.startswith("low")] == [f"low{n}" for n in range(9)]


async def test_nak_comes_back_after_its_delay_with_a_higher_count(bus: Bus) -> None:
    seen, times = Seen(), list[float]()

    async def handle(delivery: Delivery) -> None:
        name = delivery.data.decode()
        if name == "later":
            times.append(asyncio.get_running_loop().time())
        match (name, delivery.deliveries):
            case "later", 1:
                await delivery.nak(delay_s=0.3)
            case "at once", 1 | 2:
                await delivery.nak()
            case _:
                await delivery.ack()
        await seen.add(f"{name} {delivery.deliveries}")

    for name in ("later", "at once"):
        await bus.enqueue("work.research.normal", name.encode(), message_id=name)
    await bus.consume("WORK", WORK_LANES, handle, slots=1)
    assert await seen.until(5) == ["later 1", "at once 1", "at once 2", "at once 3", "later 2"]
    assert times[1] - times[0] >= 0.25


async def test_a_terminated_message_is_gone(bus: Bus) -> None:
    seen = Seen()

    async def handle(delivery: Delivery) -> None:
        await delivery.term("malformed:\nnot JSON")
        await seen.add(delivery.subject)

    await bus.consume("TASKS", {"intake": 0}, handle, slots=2)
    await bus.enqueue("tasks.default.data", b"{", message_id="bad")
    await seen.until(1)

    async def empty() -> bool:
        return await bus.backlog("TASKS", "intake") == 0

    await eventually(empty)
    assert seen.items == ["tasks.default.data"]


async def test_a_task_published_by_a_plain_client_is_taken_in(bus: Bus, connect: Connect) -> None:
    client, seen = await connect(), Seen()

    async def handle(delivery: Delivery) -> None:
        await delivery.ack()
        await seen.add(delivery.data.decode())

    await bus.consume("TASKS", {"intake": 0}, handle, slots=2)
    await client.publish("tasks.default.data", b"fire and forget")
    await client.request("tasks.default.data", b"with confirmation", timeout_s=WITHIN_S)
    assert sorted(await seen.until(2)) == ["fire and forget", "with confirmation"]


async def test_a_failing_handler_gets_the_message_again_until_it_is_a_dead_letter(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "NAK_DELAY_MAX_S", 0.02)
    counts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        counts.append(delivery.deliveries)
        raise ValueError("cannot digest this")

    dead = asyncio.get_running_loop().create_future()

    async def buried(message: Message) -> None:
        dead.set_result(message)

    await bus.subscribe("dlq.>", buried)
    await bus.consume("WORK", WORK_LANES, handle, slots=2)
    await bus.enqueue("work.research.normal", b"poison", message_id="poison", headers={"Task-Id": "t1"})
    async with asyncio.timeout(WITHIN_S):
        message = await dead

    async def empty() -> bool:
        return await bus.backlog("WORK", "research-normal") == 0

    await eventually(empty)
    assert counts == [1, 2, 3, 4, 5]
    assert (message.subject, message.data, message.headers["Task-Id"]) == ("dlq.research", b"poison", "t1")
    assert message.headers["Dead-Reason"] == "ValueError: cannot digest this"
    assert (message.headers["Dead-Deliveries"], message.headers["Dead-Cause"]) == ("5", "failed")


async def test_a_message_that_is_given_back_too_often_is_kept_as_one_that_did_nothing_wrong(bus: Bus) -> None:
    async def handle(delivery: Delivery) -> None:
        await delivery.nak()

    await bus.consume("WORK", WORK_LANES, handle, slots=2)
    await bus.enqueue("work.research.normal", b"innocent", message_id="innocent")

    async def kept() -> bool:
        return await bus.first_kept("DLQ", 1) is not None

    await eventually(kept)
    letter = await bus.first_kept("DLQ", 1)
    assert letter is not None
    assert (letter.data, letter.headers["Dead-Cause"], letter.headers["Dead-Deliveries"]) == (b"innocent", "handed_back", "5")

    async def empty() -> bool:
        return await bus.backlog("WORK", "research-normal") == 0

    await eventually(empty)


async def test_what_kills_whoever_gets_it_is_dead_after_twice_as_many_hand_outs(bus: Bus, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()

    async def handle(delivery: Delivery) -> None:
        await seen.add(str(delivery.deliveries))
        raise AssertionError("a message that is dead was handed out")

    # hand-outs without a word take an ack wait each: what counts them is told that none may be
    monkeypatch.setattr(slots, "UNANSWERED_FACTOR", 0)
    await bus.consume("WORK", WORK_LANES, handle, slots=2)
    await bus.enqueue("work.research.normal", b"killer", message_id="killer")

    async def kept() -> bool:
        return await bus.first_kept("DLQ", 1) is not None

    await eventually(kept)
    letter = await bus.first_kept("DLQ", 1)
    assert letter is not None
    assert letter.headers["Dead-Cause"] == "unanswered"
    assert seen.items == []


async def test_a_stream_is_read_by_sequence_and_loses_single_messages(bus: Bus) -> None:
    assert await bus.first_kept("DLQ", 1) is None
    for n in range(1, 4):
        await bus.enqueue("dlq.research", f"ä{n}".encode(), message_id=f"m{n}", headers={"Dead-Reason": f"why: {n}", "Empty": ""})
    first, third = await bus.first_kept("DLQ", 0), await bus.first_kept("DLQ", 3)
    assert first is not None
    assert third is not None
    assert (first.sequence, first.subject, first.data, first.headers["Dead-Reason"], first.headers["Empty"]) == (1, "dlq.research", "ä1".encode(), "why: 1", "")
    assert (third.sequence, third.headers["Nats-Msg-Id"]) == (3, "m3")
    assert abs(third.kept_us - SystemClock().now_us()) < 60_000_000
    assert first.kept_us <= third.kept_us
    assert await bus.remove("DLQ", 2)
    assert not await bus.remove("DLQ", 2)
    after = await bus.first_kept("DLQ", 2)
    assert after is not None
    assert after.sequence == 3
    assert await bus.first_kept("DLQ", 4) is None
    assert [await bus.remove("DLQ", n) for n in (1, 3, 3, 9)] == [True, True, False, False]
    assert await bus.first_kept("DLQ", 1) is None


async def test_a_stream_is_read_by_subject(bus: Bus) -> None:
    for n, tenant in enumerate(("a", "a", "b", "a", "b")):
        await bus.enqueue(f"tasks.{tenant}.data", str(n).encode(), message_id=str(n))
    third, fifth = await bus.first_kept("TASKS", 1, subject="tasks.b.*"), await bus.first_kept("TASKS", 4, subject="tasks.b.*")
    assert third is not None
    assert fifth is not None
    assert (third.sequence, third.data, fifth.sequence, fifth.data) == (3, b"2", 5, b"4")
    assert await bus.first_kept("TASKS", 6, subject="tasks.b.*") is None
    assert await bus.first_kept("TASKS", 1, subject="tasks.c.*") is None


async def test_a_delivery_says_when_its_message_was_kept_and_how_many_wait_behind_it(bus: Bus) -> None:
    seen = Seen()

    async def handle(delivery: Delivery) -> None:
        await delivery.ack()
        await seen.add(f"{delivery.sequence} {delivery.kept_us} {delivery.waiting}")

    kept: list[int] = []
    for n in range(1, 4):
        await bus.enqueue("tasks.a.data", b"", message_id=str(n))
        found = await bus.first_kept("TASKS", n)
        assert found is not None
        kept.append(found.kept_us)
    await bus.consume("TASKS", {"intake": 0}, handle, slots=1)
    assert await seen.until(3) == [f"1 {kept[0]} 2", f"2 {kept[1]} 1", f"3 {kept[2]} 0"]


async def test_letters_that_were_taken_note_of_stay_and_come_to_nobody_else(bus: Bus, connect: Connect) -> None:
    seen = Seen()

    async def note(delivery: Delivery) -> None:
        await delivery.ack()
        await seen.add(delivery.data.decode())

    for each in (bus, await connect()):
        await each.consume("DLQ", {"letters": 0}, note, slots=2)
    for n in range(4):
        await bus.enqueue("dlq.research", str(n).encode(), message_id=f"m{n}")
    await seen.until(4)

    async def noted() -> bool:
        return await bus.backlog("DLQ", "letters") == 0

    await eventually(noted)
    assert sorted(seen.items) == ["0", "1", "2", "3"]
    kept = await bus.first_kept("DLQ", 1)
    assert kept is not None
    assert kept.data == b"0"


async def test_a_handler_that_forgets_to_end_its_delivery_gets_it_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "NAK_DELAY_MAX_S", 0.02)
    seen = Seen()

    async def handle(delivery: Delivery) -> None:
        if delivery.deliveries == 2:
            await delivery.ack()
        await seen.add(str(delivery.deliveries))

    await bus.consume("WORK", WORK_LANES, handle, slots=2)
    await bus.enqueue("work.research.normal", b"", message_id="forgotten")
    assert await seen.until(2) == ["1", "2"]


async def test_stop_lets_running_work_finish_and_hands_back_the_rest(bus: Bus, connect: Connect) -> None:
    other, gate, started, second = await connect(), asyncio.Event(), Seen(), Seen()

    async def handle(delivery: Delivery) -> None:
        await started.add(delivery.data.decode())
        if delivery.data == b"finishes":
            await gate.wait()
        else:
            await asyncio.Event().wait()
        await delivery.ack()

    async def take(delivery: Delivery) -> None:
        await delivery.ack()
        await second.add(f"{delivery.data.decode()} {delivery.deliveries}")

    consuming = await bus.consume("WORK", WORK_LANES, handle, slots=2)
    for name in ("finishes", "hangs"):
        await bus.enqueue("work.research.normal", name.encode(), message_id=name)
    await started.until(2)
    await bus.enqueue("work.research.normal", b"untouched", message_id="untouched")
    stopping = asyncio.ensure_future(consuming.stop(grace_s=0.3))
    gate.set()
    await stopping
    await consuming.stop(grace_s=0)
    await other.consume("WORK", WORK_LANES, take, slots=2)
    assert sorted(await second.until(2)) == ["hangs 2", "untouched 1"]
    assert sorted(started.items) == ["finishes", "hangs"]


async def test_a_paused_loop_fetches_nothing_and_goes_on_when_it_is_resumed(bus: Bus) -> None:
    seen, gate = Seen(), asyncio.Event()
    await bus.ensure_kind("data")

    async def handle(delivery: Delivery) -> None:
        await seen.add(delivery.data.decode())
        await gate.wait()
        await delivery.ack()

    consuming = await bus.consume("WORK", {"data-normal": 0}, handle, slots=4)
    await bus.enqueue("work.data.normal", b"first", message_id="1")
    await seen.until(1)
    consuming.pause()
    consuming.pause()
    gate.set()  # what is under way ends
    await eventually(lambda: _is(bus, 0))
    await bus.enqueue("work.data.normal", b"second", message_id="2")
    await bus.flush()
    assert [await bus.backlog("WORK", "data-normal"), seen.items] == [1, ["first"]]
    consuming.resume()
    assert await seen.until(2) == ["first", "second"]
    await eventually(lambda: _is(bus, 0))
    await consuming.stop(grace_s=1)


async def _is(bus: Bus, count: int) -> bool:
    return await bus.backlog("WORK", "data-normal") == count


async def test_a_worker_that_starts_before_its_consumers_exist_gets_going_when_they_do(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crewlog.events.puller.REFUSED_RETRY_S", 0.1)
    seen = Seen()

    async def handle(delivery: Delivery) -> None:
        await delivery.ack()
        await seen.add(delivery.subject)

    await bus.consume("WORK", {"shouter-high": 0, "shouter-normal": 1, "shouter-low": 2}, handle, slots=2)
    await bus.enqueue("work.shouter.normal", b"", message_id="early")
    await bus.ensure_kind("shouter")
    await bus.ensure_kind("shouter")
    assert await seen.until(1) == ["work.shouter.normal"]


async def test_a_stream_is_counted_by_subject_handed_out_or_not(bus: Bus) -> None:
    first, gate = Seen(), asyncio.Event()

    async def hold(delivery: Delivery) -> None:
        await first.add(delivery.data.decode())
        await gate.wait()
        await delivery.ack()

    assert await bus.queued("WORK") == (0, {})
    for n in range(3):
        sequence = await bus.enqueue("work.research.normal", str(n).encode(), message_id=str(n))
    await bus.enqueue("work.research.low", b"low", message_id="low")
    await bus.consume("WORK", WORK_LANES, hold, slots=1)
    await first.until(1)
    assert await bus.queued("WORK") == (sequence + 1, {"work.research.normal": 3, "work.research.low": 1})
    gate.set()
    await first.until(4)

    async def empty() -> bool:
        return not (await bus.queued("WORK")).subjects

    await eventually(empty)


async def test_backlog_of_a_consumer_nobody_made_is_zero(bus: Bus) -> None:
    assert await bus.backlog("WORK", "nobody-normal") == 0


async def test_enqueue_to_a_subject_without_stream_is_refused(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crewlog.events.nats_bus.ENQUEUE_TIMEOUT_S", 0.5)
    with pytest.raises(Unavailable, match=r"no stream takes this subject"):
        await bus.enqueue("nowhere.at.all", b"", message_id="1")
