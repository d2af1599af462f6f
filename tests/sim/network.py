"""Between actors and servers: a network that delays, loses and repeats, and the ports of the log and the bus behind it.

The servers' side is the memory log and broker of the product; it belongs to actor 0 and goes on when an actor dies. A request that was
sent before its sender died still arrives: committed, and nobody knows.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from sim.loop import ACTOR, Killed, SimLoop
from sim.plan import Mix

from crewlog.events.bus import LAST_SEQUENCE, Delivery, DeliveryHandler, Handler, Kept, Message, Queued
from crewlog.events.memory_bus import MemoryBroker, MemoryBus, MemoryConsuming, MemoryDelivery, MemorySubscription
from crewlog.events.memory_store import MemoryStore
from crewlog.events.slots import OpenDelivery, Worn
from crewlog.events.store import AppendRequest, EventStore
from crewlog.schemas.errors import OrchestrationError, Unavailable

CALL_TIMEOUT_S: Final = 3.0
"""How long a caller waits for one answer before it asks again."""
WAIT_S: Final = 20.0
"""How long a caller of the log asks again before it gives up."""
ACK_WAIT_S: Final = 10.0
PROGRESS_S: Final = ACK_WAIT_S / 3
"""How often a consumer says that it still works on a message, as often as that of the product does."""
VERDICT_S: Final = ACK_WAIT_S / 20
"""How soon to look for a verdict that is on its way, longer than the slowest message takes."""
MOMENT_S: Final = 0.001
"""A wait that rounding makes shorter would never end."""

T = TypeVar("T")


class SimClock:
    """Virtual time and ids from the seed."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self._loop, self._rng = loop, rng

    def now_us(self) -> int:
        return 1_700_000_000_000_000 + int(self._loop.time() * 1e6)

    def monotonic(self) -> float:
        return self._loop.time()

    def new_id(self) -> UUID:
        return UUID(int=self._rng.getrandbits(128), version=4)

    def random_id(self) -> UUID:
        return UUID(int=self._rng.getrandbits(128), version=4)

    def fraction(self) -> float:
        return self._rng.random()


class _Request(NamedTuple):
    """One call on its way."""

    actor: int
    number: int
    until_s: float
    """When its caller runs out of patience."""
    serve: Callable[[], Any]
    answer: asyncio.Future[Any]
    to_log: bool


class Network:
    """All messages go through here."""

    def __init__(self, loop: SimLoop, rng: random.Random, mix: Mix) -> None:
        self.loop, self.rng, self.mix = loop, rng, mix
        self.calls: Counter[int] = Counter()
        self.happened: Counter[str] = Counter()
        """What the explorer counts, to show that it explores."""
        self.cut: set[int] = set()
        """Actors that hear and are heard by nobody."""
        self.log_is_away = False
        self.disturbed_s = 0.0
        """When a call was left unanswered last, or somebody died, went on or could be reached again."""
        self.on_call: Callable[[int, int], bool] = lambda _actor, _number: False
        """Asked after call `number` of `actor` was carried out; True means that the actor dies before it hears of it."""
        self._world = contextvars.copy_context()
        self._world.run(ACTOR.set, 0)

    def alive(self) -> int:
        """Return the calling actor.

        Raises:
            Killed: it is dead; what its `finally` blocks do does not count.
        """
        actor = ACTOR.get()
        if actor in self.loop.dead:
            raise Killed
        return actor

    async def call(self, serve: Callable[[], T], *, to_log: bool = False) -> T:
        """Ask a server once: `serve` runs on its side, at once and whole.

        Raises:
            TimeoutError: no answer; it may have been carried out all the same.
        """
        actor = self.alive()
        answer: asyncio.Future[T] = self.loop.create_future()
        number = self.calls[actor] = self.calls[actor] + 1
        request = _Request(actor, number, self.loop.time() + CALL_TIMEOUT_S, serve, answer, to_log)
        self.loop.call_later(self._delay(), self._arrive, request, context=self._world)
        return await answer

    def _arrive(self, request: _Request) -> None:
        """Have a request carried out, and send the answer back."""
        actor, answer = request.actor, request.answer
        if self._lost(actor) or (request.to_log and self.log_is_away):
            self._leave_unanswered(request)
            return
        try:
            result = request.serve()
        except OrchestrationError as error:
            reply: tuple[Any, ...] = (_fail, answer, error)
        else:
            reply = (_resolve, answer, result)
        if self.on_call(actor, request.number) or self._lost(actor):
            self._leave_unanswered(request)
        else:
            self.loop.call_later(self._delay(), *reply, context=self._world)

    def _leave_unanswered(self, request: _Request) -> None:
        self.happened["unanswered"] += 1
        self.disturbed()
        # only who gets no answer ever runs out of patience: both ways together take less
        self.loop.expire_at(request.until_s, request.actor, _fail, request.answer, TimeoutError())

    def disturbed(self) -> None:
        """Take note that somebody may have to find out now what became of its last call."""
        self.disturbed_s = self.loop.time()

    def cast(self, serve: Callable[[], object], *, repeatable: bool = True) -> None:
        """Send something nobody answers; it may vanish, or arrive twice."""
        actor = self.alive()
        copies = 2 if repeatable and self.rng.random() < self.mix.duplication else 1
        self.happened["repeated"] += copies - 1
        for _ in range(copies):
            self.loop.call_later(self._delay(), self._land, actor, serve, context=self._world)

    def _land(self, actor: int, serve: Callable[[], object]) -> None:
        if not self._lost(actor):
            serve()

    def hand_over(self, context: contextvars.Context, work: Coroutine[Any, Any, Any]) -> None:
        """Start a coroutine that belongs to the actor of this context."""
        self.loop.create_task(work, context=context)

    def in_the_world(self, serve: Callable[[], T]) -> T:
        """Do something on the servers' side; tasks made there belong to nobody who can die."""
        context = contextvars.copy_context()
        context.run(ACTOR.set, 0)
        return context.run(serve)

    def reaches(self, actor: int) -> bool:
        """Say whether a message to this actor arrives."""
        return actor not in self.loop.dead and not self._lost(actor)

    def _lost(self, actor: int) -> bool:
        return actor in self.cut or self.rng.random() < self.mix.loss

    def _delay(self) -> float:
        return self.rng.random() * self.mix.latency_s


def _resolve(answer: asyncio.Future[T], result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits; the memory log's methods are such."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError(f"{coroutine} waits")


def _carried_out(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return at_once(make())


class SimStore:
    """The log as one actor sees it: every call crosses the network, and is asked again with the same ids until it is answered."""

    def __init__(self, network: Network, store: MemoryStore) -> None:
        self._network, self._store = network, store
        self._in_order: defaultdict[object, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def append(self, request: AppendRequest) -> Any:
        deadline = self._network.loop.time() + WAIT_S
        async with self._in_order[request.run_id]:  # what the port promises: appends of a run reach the log in the order in which they were made
            return await self._ask(partial(self._store.append, request), deadline)

    async def close(self) -> None:
        """Nothing is queued."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)

        def asked(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            return self._ask(partial(method, *args, **kwargs))

        setattr(self, name, asked)
        return asked

    async def _ask(self, make: Callable[[], Coroutine[Any, Any, T]], deadline: float | None = None) -> T:
        serve = partial(_carried_out, make)
        deadline = self._network.loop.time() + WAIT_S if deadline is None else deadline
        while True:
            try:
                return await self._network.call(serve, to_log=True)
            except TimeoutError:
                if self._network.loop.time() >= deadline:
                    raise Unavailable(f"no answer from the log for {WAIT_S:g} s") from None


def store_of(network: Network, store: MemoryStore) -> EventStore:
    """Put the network in front of a store."""
    sim: Any = SimStore(network, store)
    port: EventStore = sim
    return port


class _Subscription(MemorySubscription):
    """A core subscription: what comes is handled by its actor, if it arrives there."""

    def __init__(self, network: Network, broker: MemoryBroker, subject: str, handler: Handler, queue: str) -> None:
        super().__init__(broker, subject, handler, queue)
        self._network, self._actor, self._context = network, ACTOR.get(), contextvars.copy_context()

    def receive(self, message: Message) -> None:
        if self._network.reaches(self._actor):
            self._network.hand_over(self._context, self._handle(message))


class SimDelivery:
    """A delivery at its actor: verdicts travel back over the network and may be lost."""

    def __init__(self, network: Network, inner: OpenDelivery) -> None:
        self._network, self.inner = network, inner
        self.subject, self.data, self.headers = inner.subject, inner.data, inner.headers
        self.deliveries, self.sequence, self.kept_us, self.waiting = inner.deliveries, inner.sequence, inner.kept_us, inner.waiting

    async def ack(self) -> None:
        self._network.cast(lambda: at_once(self.inner.ack()))

    async def nak(self, delay_s: float = 0.0) -> None:
        # a task of its own: one that was handed out often is written down before it goes
        self._network.cast(lambda: self._network.loop.create_task(self.inner.nak(delay_s)))

    async def term(self, reason: str) -> None:
        self._network.cast(lambda: at_once(self.inner.term(reason)))

    async def in_progress(self) -> None:
        """The server's side watches its actor, see `SimBus.consume`."""


class SimBus:
    """The bus as one actor sees it."""

    def __init__(self, network: Network, broker: MemoryBroker) -> None:
        self._network, self._server, self._actor = network, MemoryBus(broker), ACTOR.get()
        self._context = contextvars.copy_context()
        self._subscriptions: list[MemorySubscription] = []
        self._consuming: list[MemoryConsuming] = []

    def vanish(self) -> None:
        """Let the server forget a connection whose actor has died."""
        for subscription in self._subscriptions:
            self._server.broker.unsubscribe(subscription)
        for consuming in self._consuming:
            self._server.broker.stop_pull(consuming)

    async def publish(self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None) -> None:
        self._network.cast(lambda: self._server.broker.publish(Message(subject, data, dict(headers or {}))))

    async def publish_behind(self, sequence: int, messages: Sequence[tuple[str, bytes]]) -> None:
        for last, (subject, data) in enumerate(messages, sequence):
            await self.publish(subject, data, headers={LAST_SEQUENCE: str(last)})

    async def flush(self) -> None:
        self._network.alive()

    async def enqueue(self, subject: str, data: bytes, *, message_id: str, headers: Mapping[str, str] | None = None) -> int:
        message = Message(subject, data, {**(headers or {}), "Nats-Msg-Id": message_id})
        try:
            return await self._network.call(lambda: self._server.broker.enqueue(message, message_id))
        except TimeoutError:
            raise Unavailable(f"enqueue to {subject}: no confirmation") from None

    async def request(self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Message:
        answer: asyncio.Future[Message] = self._network.loop.create_future()

        async def answered(message: Message) -> None:
            if not answer.done():
                answer.set_result(message)

        inbox = await self.subscribe(self._server.broker.inbox(), answered)
        try:
            self._network.cast(lambda: self._server.broker.publish(Message(subject, data, dict(headers or {}), inbox.subject)))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise Unavailable(f"no answer on {subject} within {timeout_s:g} s") from None
        finally:
            self._server.broker.unsubscribe(inbox)
            self._subscriptions.remove(inbox)

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> MemorySubscription:
        self._network.alive()

        subscription = _Subscription(self._network, self._server.broker, subject, handler, queue)
        self._server.broker.subscribe(subscription)
        self._subscriptions.append(subscription)
        return subscription

    async def consume(self, stream: str, consumers: Mapping[str, int], handler: DeliveryHandler, *, slots: int) -> Any:
        self._network.alive()

        async def forward(delivery: Delivery) -> None:
            """Runs on the server's side until the message has its end, or its actor has given no sign of life for the ack wait."""
            assert isinstance(delivery, MemoryDelivery | Worn)
            handled = self._network.loop.create_future()

            async def handle() -> None:
                try:
                    await handler(SimDelivery(self._network, delivery))
                except Exception as error:  # noqa: BLE001  (it travels to whoever ends the delivery)
                    if not handled.done():
                        handled.set_exception(error)
                else:
                    if not handled.done():
                        handled.set_result(None)

            if self._network.reaches(self._actor):
                self._network.hand_over(self._context, handle())
                await self._watch(delivery, handled)
            else:
                await asyncio.sleep(ACK_WAIT_S)
                await _unanswered(delivery)

        consuming = self._network.in_the_world(lambda: at_once(self._server.consume(stream, consumers, forward, slots=slots)))
        self._consuming.append(consuming)
        return _Consuming(self._network, consuming)

    async def _watch(self, delivery: OpenDelivery, handled: asyncio.Future[None]) -> None:
        loop = self._network.loop
        heard_s = loop.time()
        while not delivery.ended:
            now_s = loop.time()
            if handled.done():
                if error := handled.exception():
                    raise error
            elif self._actor not in loop.dead and self._actor not in loop.frozen and self._actor not in self._network.cut:
                heard_s = now_s  # a consumer keeps what it works on by itself
            if now_s - heard_s >= ACK_WAIT_S:
                await _unanswered(delivery)
                return
            left_s = max(heard_s + ACK_WAIT_S - now_s, MOMENT_S)
            if handled.done():
                await asyncio.sleep(min(left_s, VERDICT_S))
            else:
                await asyncio.wait([handled], timeout=min(left_s, PROGRESS_S))

    async def backlog(self, stream: str, consumer: str) -> int:
        try:
            return await self._network.call(lambda: self._server.broker.backlog(stream, consumer))
        except TimeoutError:
            raise Unavailable("no answer about a backlog") from None

    async def queued(self, stream: str) -> Queued:
        try:
            return await self._network.call(lambda: self._server.broker.queued(stream))
        except TimeoutError:
            raise Unavailable("no answer about a queue") from None

    async def watch(self, stream: str, on_gap: Callable[[], None]) -> None:
        """Say nothing: what is lost must be found without a hint."""

    async def first_kept(self, stream: str, sequence: int, *, subject: str = "") -> Kept | None:
        try:
            return await self._network.call(lambda: self._server.broker.first_kept(stream, sequence, subject))
        except TimeoutError:
            raise Unavailable("no answer about a stream") from None

    async def remove(self, stream: str, sequence: int) -> bool:
        try:
            return await self._network.call(lambda: self._server.broker.remove(stream, sequence))
        except TimeoutError:
            raise Unavailable("no answer about a stream") from None

    async def ensure_kind(self, kind: str, *, lanes: Collection[str] = ()) -> None:
        await self.ensure_kinds({kind: lanes})

    async def ensure_kinds(self, kinds: Mapping[str, Collection[str]]) -> None:
        wanted = dict(kinds)
        try:
            await self._network.call(lambda: [self._server.broker.add_consumers(*one) for one in wanted.items()])
        except TimeoutError:
            raise Unavailable("the bus does not answer") from None

    async def close(self) -> None:
        self.vanish()


async def _unanswered(delivery: OpenDelivery) -> None:
    """Hand a message out again as a server does whose ack wait is over: nobody gave it back."""
    await (delivery.inner if isinstance(delivery, Worn) else delivery).nak()


class _Consuming:
    def __init__(self, network: Network, inner: MemoryConsuming) -> None:
        self._network, self._inner = network, inner

    def pause(self) -> None:
        self._network.alive()
        self._inner.pause()

    def resume(self) -> None:
        self._network.alive()
        self._network.in_the_world(self._inner.resume)

    async def stop(self, *, grace_s: float) -> None:
        self._network.alive()
        # on the servers' side: what is given back there is handed to others, and must not die with whoever gave it
        await self._network.in_the_world(lambda: self._network.loop.create_task(self._inner.stop(grace_s=grace_s)))
