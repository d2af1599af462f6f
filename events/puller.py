"""Pull deliveries from several durable consumers, more urgent ones first but others in their turn, never more than there are free slots.

Own pull loop over `CONSUMER.MSG.NEXT`, because the client library's `fetch` loses its request when the server restarts. How it works:

- While slots are free and nothing waits, a *long pull* stands on every lane: credit for some messages, kept alive by idle heartbeats.
  A message that arrives runs at once; the credit is topped up when half of it is used. An idle process sends a handful of messages a minute.
- When something waits, a *sweep* asks lane after lane, in the order of `lanes`, for what the free slots can hold, without waiting.
- With no slot free, or while paused, all credit is withdrawn, so that other workers get the messages. One that was on its way is handed back.
- After a reconnect, when another server of a cluster begins to lead a consumer, or when heartbeats stop, everything begins again with new
  inboxes: the server has forgotten the old pulls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from crewlog.events.jetstream import consumer_elected
from crewlog.events.lanes import in_turn
from crewlog.events.slots import OpenDelivery, Slots
from crewlog.schemas.subjects import LANES

PULL_EXPIRES_S: Final = 60.0
IDLE_HEARTBEAT_S: Final = 5.0
SILENCE_MAX_S: Final = 2.5 * IDLE_HEARTBEAT_S
"""A long pull without any word from the server for this long is taken for lost."""
SIGNS_PER_ACK_WAIT: Final = 3
"""How often the server hears within its ack wait that a delivery is being worked on: one such message may be lost."""
SWEEP_TIMEOUT_S: Final = 5.0
REFUSED_RETRY_S: Final = 0.5
"""Wait after a refused pull, in seconds: mostly its consumer does not exist yet, as behind a restart of the server."""

_LONG_PULL: Final = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}'
_SWEEP_PULL: Final = b'{"batch":%d,"no_wait":true}'
_HEARTBEAT, _NONE_WAITING, _EXPIRED, _MISSING = "100", "404", "408", "503"

_log = logging.getLogger(__name__)


class NatsDelivery:
    """One delivery of a JetStream message. Its counters stand in the subject that acknowledgements go to."""

    __slots__ = ("_nc", "_reply", "consumer", "data", "deliveries", "ended", "headers", "kept_us", "sequence", "subject", "waiting")

    def __init__(self, nc: Client, msg: Msg) -> None:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>; newer servers may put
        # <domain>.<account> before the stream and a token behind the end
        tokens = msg.reply.split(".")
        first = 2 if len(tokens) == 9 else 4
        self._nc = nc
        self._reply: str = msg.reply
        self.subject: str = msg.subject
        self.data: bytes = msg.data
        self.headers: Mapping[str, str] = msg.headers or {}
        self.consumer = tokens[first + 1]
        self.deliveries = int(tokens[first + 2])
        self.sequence = int(tokens[first + 3])
        self.kept_us = int(tokens[first + 5]) // 1000
        self.waiting = int(tokens[first + 6])
        self.ended = False

    async def ack(self) -> None:
        await self._end(b"+ACK")

    async def nak(self, delay_s: float = 0.0) -> None:
        await self._end(b'-NAK {"delay":%d}' % int(delay_s * 1e9) if delay_s > 0 else b"-NAK")

    async def term(self, reason: str) -> None:
        await self._end(b"+TERM " + " ".join(reason.split())[:512].encode())

    async def in_progress(self) -> None:
        await self._say(b"+WPI")

    async def _end(self, verdict: bytes) -> None:
        if not self.ended:  # a second verdict would be ignored by the server, or hit a later delivery
            self.ended = True
            await self._say(verdict)

    async def _say(self, word: bytes) -> None:
        try:
            await self._nc.publish(self._reply, word)
        except nats.errors.Error as error:
            # not told is not lost: the message is handed out again after the ack wait
            _log.debug("%r for %s #%d was not sent: %s", word, self.subject, self.sequence, error)


class _Lane:
    """One consumer: the credit that stands with the server, and the sweep under way."""

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer
        self.credit = 0
        self.heard = 0.0
        self.sweep: asyncio.Future[bool] | None = None
        self.sweep_left = 0

    def swept(self, *, drained: bool) -> None:
        if self.sweep is not None and not self.sweep.done():
            self.sweep.set_result(drained)


class Puller:
    """A running pull loop; the `Consuming` of the NATS bus."""

    def __init__(self, nc: Client, stream: str, consumers: Mapping[str, int], slots: Callable[[Callable[[], None]], Slots], *, ack_wait_s: float) -> None:
        """Prepare; `start` begins to pull.

        Args:
            consumers: consumer -> priority, smaller first.
            slots: makes the slots, given what to call when one becomes free.
            ack_wait_s: the consumers' ack wait, in seconds.
        """
        self._nc = nc
        self._sign_every_s = ack_wait_s / SIGNS_PER_ACK_WAIT
        self._stream = stream
        self._lanes: Sequence[_Lane] = [_Lane(name) for name in sorted(consumers, key=lambda name: consumers[name])]
        self._by_name = {lane.consumer: lane for lane in self._lanes}
        self._slots = slots(self._nudge)
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._backlog = True
        """Something may be waiting that no long pull stands for."""
        self._stale = True
        """The server does not know our inboxes (any more)."""
        self._refused_until = 0.0
        self._turn = -1
        self._long: Subscription | None = None
        self._short: Subscription | None = None
        self._told_by: Client | None = None
        """The connection on which we hear of elections."""
        self._loops: list[asyncio.Task[None]] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._paused = False

    def start(self) -> None:
        """Begin to pull."""
        for work in (self._pull(), self._keep_alive()):
            task = self._loop.create_task(work)
            task.add_done_callback(self._ended)
            self._loops.append(task)

    def reconnected(self, nc: Client) -> None:
        """Begin anew: the server has forgotten all pulls."""
        if nc is not self._nc:
            self._nc, self._long, self._short = nc, None, None
        self._stale = True
        for lane in self._lanes:
            lane.swept(drained=False)
        self._wake()

    def pause(self) -> None:
        """Fetch nothing more until `resume`; what is on its way is handed back."""
        self._paused = True
        self._wake()

    def resume(self) -> None:
        """Fetch again."""
        self._paused = False
        self._wake()

    async def stop(self, *, grace_s: float) -> None:
        """Stop fetching, let running handlers finish within `grace_s`, hand the rest back, and return."""
        if self._stopping:
            return
        self._stopping = True
        pull, keep_alive = self._loops
        pull.cancel()
        await self._retire(self._long, self._short)
        await self._slots.stop(grace_s=grace_s)
        keep_alive.cancel()
        await asyncio.gather(pull, keep_alive, *self._retiring, return_exceptions=True)
        try:
            if self._nc.is_connected:
                await self._nc.flush()
        except (nats.errors.Error, OSError) as error:
            _log.debug("what was handed back may not have been told: %s", error)

    # ── the loop ──

    async def _pull(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self._step()
            except nats.errors.ConnectionClosedError as error:
                self._stale = True  # the client gave up for good in the middle of it: `reconnected` brings another one
                _log.info("pulling from %s waits for a new client: %s", self._stream, error)

    async def _step(self) -> None:
        if not self._nc.is_connected:
            await self._changed.wait()  # `reconnected` wakes us
        elif self._stale:
            await self._renew()
        elif self._is_full():
            await self._withdraw()
            await self._changed.wait()
        elif (wait_s := self._refused_until - self._loop.time()) > 0:
            self._loop.call_later(wait_s, self._wake)
            await self._changed.wait()
        elif self._backlog:
            await self._sweep()
        else:
            await self._top_up()
            await self._changed.wait()

    async def _renew(self) -> None:
        self._stale = False
        old, self._long, self._short = (self._long, self._short), None, None
        await self._retire(*old)
        for lane in self._lanes:
            lane.credit = 0
        await self._hear_elections()
        self._short = await self._listen(self._short_message)
        self._backlog = True

    async def _withdraw(self) -> None:
        """Take all credit back by no longer listening; what is on its way still arrives while the subscription drains."""
        self._backlog = True  # from here on nobody tells us what waits
        if self._long is not None:
            old, self._long = self._long, None
            for lane in self._lanes:
                lane.credit = 0
            retiring = self._loop.create_task(self._retire(old))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def _sweep(self) -> None:
        self._turn += 1
        for lane in in_turn(self._lanes, self._turn):
            free = self._slots.free
            if self._is_full() or self._stale:
                return
            if not await self._take(lane, free):
                return  # there may be more, and a more urgent lane may have filled meanwhile: begin again
        self._backlog = False

    async def _take(self, lane: _Lane, batch: int) -> bool:
        """Ask a lane for what waits now; returns whether that was all."""
        assert self._short is not None
        lane.sweep, lane.sweep_left = self._loop.create_future(), batch
        timer = self._loop.call_later(SWEEP_TIMEOUT_S, self._sweep_lost, lane)
        try:
            await self._ask(lane, self._short, _SWEEP_PULL % batch)
            return await lane.sweep
        finally:
            timer.cancel()
            lane.sweep = None

    def _sweep_lost(self, lane: _Lane) -> None:
        self._stale = True
        lane.swept(drained=False)

    async def _top_up(self) -> None:
        if self._long is None:
            self._long = await self._listen(self._long_message)
        share = self._share()
        for lane in self._lanes:
            if lane.credit * 2 <= share:
                if lane.credit == 0:
                    lane.heard = self._loop.time()
                batch = share - lane.credit
                lane.credit = share
                await self._ask(lane, self._long, _LONG_PULL % (batch, int(PULL_EXPIRES_S * 1e9), int(IDLE_HEARTBEAT_S * 1e9)))

    def _share(self) -> int:
        # the lane of a worker's version is hardly ever used: what is too much then is handed back
        return max(1, self._slots.free // min(len(self._lanes), len(LANES)))

    # ── what the server sends ──

    async def _long_message(self, msg: Msg) -> None:
        if msg.reply:
            delivery = NatsDelivery(self._nc, msg)
            lane = self._by_name[delivery.consumer]
            lane.heard = self._loop.time()
            lane.credit = max(0, lane.credit - 1)
            await self._deliver(delivery)
            if delivery.waiting and lane.credit == 0:
                self._backlog = True
            self._nudge()
            return
        lane, status, unused = self._status(msg)
        lane.heard = self._loop.time()
        if status != _HEARTBEAT:
            lane.credit = max(0, lane.credit - unused)
            if status not in {_NONE_WAITING, _EXPIRED}:
                self._refused(lane, msg)
            self._wake()

    async def _short_message(self, msg: Msg) -> None:
        if msg.reply:
            delivery = NatsDelivery(self._nc, msg)
            lane = self._by_name[delivery.consumer]
            await self._deliver(delivery)
            lane.sweep_left -= 1
            if lane.sweep_left == 0:
                lane.swept(drained=False)
            return
        lane, status, _ = self._status(msg)
        if status == _MISSING:
            self._refused(lane, msg)
        if status != _HEARTBEAT:  # also when the consumer's in-flight limit is reached: a long pull waits for that
            lane.swept(drained=True)

    def _status(self, msg: Msg) -> tuple[_Lane, str, int]:
        """Read a status message: its lane, its code, and how much credit of its pull was left unused."""
        headers = msg.headers or {}
        lane = self._lanes[int(msg.subject.rpartition(".")[2])]
        # without the header the pull itself was refused: nothing of it is left
        return lane, headers.get("Status", ""), int(headers.get("Nats-Pending-Messages", lane.credit))

    def _refused(self, lane: _Lane, msg: Msg) -> None:
        now = self._loop.time()
        if self._refused_until <= now:
            headers = msg.headers or {}
            why = "it does not exist yet" if headers.get("Status") == _MISSING else headers.get("Description")
            _log.info("consumer %s of %s gives nothing: %s; asking again in %g s", lane.consumer, self._stream, why, REFUSED_RETRY_S)
        self._refused_until = now + REFUSED_RETRY_S
        self._backlog = True

    async def _deliver(self, delivery: OpenDelivery) -> None:
        if self._stopping or self._is_full():
            await self._slots.hand_back(delivery)
        else:
            self._slots.take(delivery)

    # ── plumbing ──

    def _is_full(self) -> bool:
        return self._paused or self._slots.free <= 0

    def _nudge(self) -> None:
        """Wake the loop if it has something to do; most messages need nothing but their slot."""
        share = self._share()
        if self._backlog or self._is_full() or any(lane.credit * 2 <= share for lane in self._lanes):
            self._wake()

    def _wake(self) -> None:
        self._changed.set()

    async def _keep_alive(self) -> None:
        """Tell the server what is still being worked on, and notice pulls that have died in silence."""
        while True:
            await asyncio.sleep(self._sign_every_s)
            for delivery in self._slots.running():
                await delivery.in_progress()
            if any(lane.credit and self._loop.time() - lane.heard > SILENCE_MAX_S for lane in self._lanes):
                _log.warning("no word from %s for %g s: pulling anew", self._stream, SILENCE_MAX_S)
                self.reconnected(self._nc)

    async def _hear_elections(self) -> None:
        """Be told when a consumer has a new leader: pulls that stood with the old one are lost, and our own connection may be to a third server.

        A user without the right to hear it notices by the silence.
        """
        if self._told_by is not self._nc:
            self._told_by = self._nc
            for lane in self._lanes:
                await self._nc.subscribe(consumer_elected(self._stream, lane.consumer), cb=self._elected)

    async def _elected(self, msg: Msg) -> None:
        _log.info("%s: pulling anew", msg.subject)
        self.reconnected(self._nc)

    async def _listen(self, callback: Callable[[Msg], Coroutine[Any, Any, None]]) -> Subscription:
        return await self._nc.subscribe(f"{self._nc.new_inbox()}.*", cb=callback)

    async def _ask(self, lane: _Lane, inbox: Subscription, pull: bytes) -> None:
        reply = inbox.subject[:-1] + str(self._lanes.index(lane))
        try:
            await self._nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{lane.consumer}", pull, reply=reply)
        except nats.errors.OutboundBufferLimitError:
            self._stale = True  # disconnected: everything begins anew after the reconnect

    async def _retire(self, *inboxes: Subscription | None) -> None:
        for inbox in inboxes:
            if inbox is None or not self._nc.is_connected:
                continue
            try:
                await inbox.drain()  # type: ignore[no-untyped-call]
            except (nats.errors.Error, OSError) as error:
                _log.debug("closing an inbox: %s", error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("pulling from %s ended: %s: %s", self._stream, type(error).__name__, error, exc_info=error)
