"""The bus over a real NATS server.

One connection per process, which mends itself for ever: the client library reconnects, and where it gives up for good (its user was
removed or refused for a while) a new client takes over all subscriptions and pull loops.

Each user has its own inbox prefix, `_INBOX_<user>`: with the shared default one process could read another's answers.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from crewlog.events import jetstream
from crewlog.events.bus import DeliveryHandler, Handler, Kept, Message, Queued
from crewlog.events.jetstream import AS_USUAL, Provision
from crewlog.events.letters import dead_letters
from crewlog.events.nats_client import OrderedClient
from crewlog.events.nats_requests import NoResponders, Requests
from crewlog.events.puller import Puller
from crewlog.events.slots import Slots
from crewlog.schemas.errors import ConfigError, LimitExceeded, NotAuthorised, Unavailable
from crewlog.schemas.subjects import REPLAY, is_answerable

CONNECT_TIMEOUT_S: Final = 10.0
CANCEL_AGAIN_S: Final = 0.1
"""How long the client library may take to stop connecting before it is told once more, in seconds."""
RECONNECT_WAIT_S: Final = 0.5
PING_INTERVAL_S: Final = 20
"""A silent cut is noticed after two of these without an answer, in seconds."""
ENQUEUE_TIMEOUT_S: Final = 20.0
"""How long `enqueue` tries: longer than a cluster needs to elect a stream leader (4-9 s measured)."""
ENQUEUE_TRY_S: Final = 4.0
HANDLERS_MAX: Final = 256
"""Most messages of one core subscription handled at once; more wait in the client's buffer."""
HANDLERS_GRACE_S: Final = 5.0
"""How long a stopped subscription lets its running handlers finish, in seconds."""
FLUSH_AT_END_S: Final = 2
"""How long closing waits for a server that does not take what is still buffered, in seconds."""
LOG_INTERVAL_S: Final = 30.0
"""The same connection error is logged once in this time, in seconds."""

_REFUSED_SUBSCRIPTION: Final = re.compile(r'permissions violation for subscription to "([^"]+)"')
_REFUSED_PUBLICATION: Final = re.compile(r'permissions violation for publish to "([^"]+)"')
_STREAM_FULL: Final = 10077
_MESSAGE_TOO_LARGE: Final = 10054

_log = logging.getLogger(__name__)


class NatsBus:
    """The `Bus` over NATS. Made by `connect`."""

    def __init__(self, url: str, *, name: str, provision: Provision) -> None:
        self._provision = provision
        self._servers, self._user = _parse(url)
        self._where = ", ".join(_public(server) for server in self._servers)
        self._name = name
        self._nc = OrderedClient()
        self._requests = Requests(self._nc, principal=self._principal())
        self._pullers: list[Puller] = []
        self._subscriptions: set[CoreSubscription] = set()
        self._on_gap: list[Callable[[], None]] = []
        self._logged: dict[str, float] = {}
        self._refused = asyncio.Event()
        self._refused_subjects: set[str] = set()
        self._refused_publications: set[str] = set()
        self._rebuilding: asyncio.Task[None] | None = None
        self._closing = False

    @classmethod
    async def connect(cls, url: str, *, name: str, provision: Provision = AS_USUAL, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> NatsBus:
        """Connect; from then on the connection mends itself.

        Args:
            url: `nats://user:password@host:port`, several separated by commas.
            name: shown in the server's list of connections.
            provision: how streams and consumers are made, and how often the server hears what is being worked on.
            connect_timeout_s: how long the first connection may take, in seconds.

        Raises:
            Unavailable: no server answered in time.
            NotAuthorised: the server refused user and password.
            ConfigError: the url is malformed.
        """
        bus = cls(url, name=name, provision=provision)
        try:
            await bus._open(connect_timeout_s)
        except BaseException:
            bus._closing = True
            await bus._disconnect()
            raise
        return bus

    async def publish(self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None) -> None:
        try:
            await self._nc.publish(subject, data, headers=dict(headers) if headers else None)
        except nats.errors.MaxPayloadError:
            raise self._too_large(data) from None
        except (nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            self._log_once(f"a message was dropped while disconnected: {error}")

    async def publish_behind(self, sequence: int, messages: Sequence[tuple[str, bytes]]) -> None:
        try:
            await self._nc.publish_behind(sequence, messages)
        except nats.errors.MaxPayloadError:
            raise self._too_large(max((data for _, data in messages), key=len)) from None
        except (nats.errors.OutboundBufferLimitError, nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            self._log_once(f"{len(messages)} messages were dropped while disconnected: {error}")

    async def flush(self) -> None:
        try:
            await self._nc.flush()
        except (nats.errors.Error, OSError) as error:
            raise Unavailable(f"flush: no connection to NATS at {self._where}: {error}") from None

    async def confirm(self, subject: str) -> None:
        """Wait until the server has taken what was published, and check that it may be published there.

        Raises:
            NotAuthorised: this login may not publish to `subject`.
            Unavailable: the connection is lost.
        """
        await self.flush()
        if subject.lower() in self._refused_publications:
            reason = f"the NATS server's permissions forbid it; the server of a crew allows {REPLAY}.>"
            raise NotAuthorised(self._principal(), f"publish to {subject}", reason=reason)

    async def enqueue(self, subject: str, data: bytes, *, message_id: str, headers: Mapping[str, str] | None = None) -> int:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ENQUEUE_TIMEOUT_S
        tagged = {**(headers or {}), "Nats-Msg-Id": message_id}
        pause_s, why = 0.05, ""
        while (left_s := deadline - loop.time()) > 0:
            try:
                reply = await self._requests.ask(subject, data, timeout_s=min(ENQUEUE_TRY_S, left_s), headers=tagged)
                return int(jetstream.decode_reply(subject, reply.data)["seq"])
            except NoResponders:
                why = "no stream takes this subject: has the orchestrator been started once, and is JetStream on?"
            except TimeoutError:
                pass  # asking again is harmless: the id makes it the same message; what the server has said stays the reason
            except nats.errors.MaxPayloadError:
                raise self._too_large(data) from None
            except nats.errors.Error as error:
                why = str(error)
            except jetstream.ApiError as error:
                _raise_limit(subject, data, error)
                why = error.description
            await asyncio.sleep(max(min(pause_s, deadline - loop.time()), 0))
            pause_s = min(pause_s * 2, 1.0)
        raise Unavailable(f"enqueue {message_id} to {subject}: {why or 'no confirmation'}; tried for {ENQUEUE_TIMEOUT_S:g} s, send it again with the same id")

    async def request(self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Message:
        try:
            return _message(await self._requests.ask(subject, data, timeout_s=timeout_s, headers=headers))
        except NoResponders:
            raise Unavailable(f"nobody listens on {subject}: the process that answers it is not running\nsee `crewlog status`") from None
        except TimeoutError as error:
            raise Unavailable(f"no answer on {subject}: {error}\nsee `crewlog status`") from None
        except nats.errors.MaxPayloadError:
            raise self._too_large(data) from None
        except nats.errors.Error as error:
            raise Unavailable(f"request to {subject} was not sent to NATS at {self._where}: {error}") from None

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> CoreSubscription:
        subscription = CoreSubscription(subject, handler, queue, self._subscriptions.discard)
        self._refused_subjects.discard(subject.lower())
        self._subscriptions.add(subscription)  # from here on a new client takes it over
        if self._is_rebuilding:
            return subscription
        try:
            await subscription.start(self._nc)
            await self.flush()  # otherwise what another process publishes right now could be missed
        except (Unavailable, nats.errors.ConnectionClosedError) as error:
            _log.info("subscribed to %s for when NATS is back: %s", subject, error)
        except asyncio.CancelledError:
            await subscription.drop()  # nobody has it who could stop it
            raise
        if subject.lower() in self._refused_subjects:
            await subscription.stop()
            raise NotAuthorised(self._principal(), f"subscribe to {subject}", reason="the NATS server's permissions forbid it")
        return subscription

    async def consume(self, stream: str, consumers: Mapping[str, int], handler: DeliveryHandler, *, slots: int) -> Puller:
        deliver_max = jetstream.STREAMS[stream].deliver_max
        keep = dead_letters(self, stream)
        puller = Puller(
            self._nc,
            stream,
            consumers,
            lambda freed: Slots(handler, slots, deliver_max=deliver_max, bury=keep, freed=freed),
            ack_wait_s=self._provision.ack_wait_s,
        )
        self._pullers.append(puller)
        puller.start()
        return puller

    async def watch(self, stream: str, on_gap: Callable[[], None]) -> None:
        async def elected(_: Message) -> None:
            on_gap()

        self._on_gap.append(on_gap)
        if not stream:
            return
        try:
            await self.subscribe(jetstream.stream_elected(stream), elected)
        except NotAuthorised as error:
            _log.warning("what a cluster loses of %s when its leader dies is noticed late: %s", stream, error)

    async def backlog(self, stream: str, consumer: str) -> int:
        return await jetstream.backlog(self, stream, consumer)

    async def queued(self, stream: str) -> Queued:
        return await jetstream.queued(self, stream)

    async def first_kept(self, stream: str, sequence: int, *, subject: str = "") -> Kept | None:
        return await jetstream.first_kept(self, stream, sequence, subject=subject)

    async def remove(self, stream: str, sequence: int) -> bool:
        return await jetstream.remove(self, stream, sequence)

    async def ensure_kind(self, kind: str, *, lanes: Collection[str] = ()) -> None:
        await jetstream.ensure_topology(self, {kind: lanes}, provision=self._provision)

    async def ensure_kinds(self, kinds: Mapping[str, Collection[str]]) -> None:
        kinds = dict(kinds)  # one more may register while we ask
        if missing := await jetstream.missing(self, kinds):
            _log.warning("NATS at %s was without %s: created", self._where, ", ".join(missing))
            await jetstream.ensure_topology(self, kinds, provision=self._provision)

    async def close(self) -> None:
        """Stop what still runs without grace, send what is buffered, and disconnect. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        if self._rebuilding is not None:
            self._rebuilding.cancel()
        for puller in self._pullers:
            await puller.stop(grace_s=0)
        for subscription in tuple(self._subscriptions):
            await subscription.stop()
        await self._disconnect()

    # ── the connection ──

    async def _open(self, timeout_s: float) -> None:
        nc = self._nc
        self._refused.clear()
        connecting = asyncio.ensure_future(
            nc.connect(
                self._servers,
                name=f"crewlog-{self._name}",
                inbox_prefix=f"_INBOX_{self._user}" if self._user else "_INBOX",
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # a fraction works
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=2,
            )
        )
        refused = asyncio.ensure_future(self._refused.wait())
        try:
            await asyncio.wait({connecting, refused}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            refused.cancel()
            failure = await _ended(connecting)
        if self._refused.is_set():
            raise NotAuthorised(self._principal(), f"connect to NATS at {self._where}", reason="user or password was refused; check CREWLOG_NATS_URL")
        if failure is not None:
            why = nc.last_error or (failure if isinstance(failure, Exception) else "no answer")
            raise Unavailable(f"no NATS server at {self._where} within {timeout_s:g} s: {why}")
        self._requests = Requests(nc, principal=self._principal())
        await self._requests.start()

    async def _disconnect(self) -> None:
        try:
            if self._nc.is_connected:
                await self._nc.flush(FLUSH_AT_END_S)
        except (nats.errors.Error, OSError) as error:
            _log.debug("what is buffered could not be sent: %s", error)
        try:
            await self._nc.close()  # also behind a flush that failed: it ends the tasks of the client
        except (nats.errors.Error, OSError) as error:
            _log.debug("closing the connection to NATS: %s", error)

    @property
    def _is_rebuilding(self) -> bool:
        return self._rebuilding is not None and not self._rebuilding.done()

    async def _rebuild(self) -> None:
        while True:
            self._nc = OrderedClient()
            try:
                await self._open(CONNECT_TIMEOUT_S)
                while missing := [one for one in self._subscriptions if not one.is_on(self._nc)]:  # others come and go meanwhile
                    await missing[0].start(self._nc)
                self._go_on()
            except (Unavailable, NotAuthorised, nats.errors.Error, OSError) as error:
                self._log_once(str(error))
                await self._disconnect()
                await asyncio.sleep(RECONNECT_WAIT_S)
            else:
                _log.warning("connected to NATS at %s with a new client", self._where)
                return

    async def _on_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if "permissions violation" in text.lower():
            self._requests.denied(text)
            self._refused_subjects.update(_REFUSED_SUBSCRIPTION.findall(text.lower()))
            self._refused_publications.update(_REFUSED_PUBLICATION.findall(text.lower()))
        elif "authorization violation" in text.lower():
            self._refused.set()
        self._log_once(f"NATS at {self._where}: {text}")

    async def _on_disconnected(self) -> None:
        self._nc.fail_pings()
        self._requests.lost()

    async def _on_reconnected(self) -> None:
        _log.info("connected to NATS at %s again", self._where)
        self._go_on()

    def _go_on(self) -> None:
        for puller in self._pullers:
            puller.reconnected(self._nc)
        for call in self._on_gap:
            call()

    async def _on_closed(self) -> None:
        if not self._closing and not self._is_rebuilding:
            _log.error("the connection to NATS at %s was closed for good: %s; a new client takes over", self._where, self._nc.last_error)
            self._rebuilding = asyncio.get_running_loop().create_task(self._rebuild())

    def _log_once(self, text: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._logged.get(text, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            if len(self._logged) > 100:
                self._logged.clear()
            self._logged[text] = now
            _log.warning("%s", text)

    def _principal(self) -> str:
        return f"NATS user {self._user}" if self._user else "an anonymous NATS client"

    def _too_large(self, data: bytes) -> LimitExceeded:
        return LimitExceeded("message_bytes", used=len(data), limit_max=self._nc.max_payload)


class CoreSubscription:
    """A core subscription whose messages are handled in tasks of their own."""

    def __init__(self, subject: str, handler: Handler, queue: str, stopped: Callable[[CoreSubscription], None]) -> None:
        """Prepare; `start` subscribes.

        Args:
            stopped: told when this one has been stopped.
        """
        self._subject = subject
        self._handler = handler
        self._queue = queue
        self._stopped = stopped
        self._room = asyncio.Semaphore(HANDLERS_MAX)
        self._running: set[asyncio.Task[None]] = set()
        self._nc: Client | None = None
        self._subscription: NatsSubscription | None = None

    def is_on(self, nc: Client) -> bool:
        """Say whether it was started on this connection."""
        return self._nc is nc

    async def start(self, nc: Client) -> None:
        """Subscribe on this connection."""
        self._nc = nc
        self._subscription = await nc.subscribe(self._subject, queue=self._queue, cb=self._received)

    async def stop(self) -> None:
        """Stop listening, and let running handlers finish within a few seconds."""
        self._stopped(self)
        subscription, self._subscription = self._subscription, None
        if subscription is not None and self._nc is not None:
            try:
                # draining asks the server, which takes its time while it is away
                await (subscription.drain() if self._nc.is_connected else subscription.unsubscribe())  # type: ignore[no-untyped-call]
            except (nats.errors.Error, OSError) as error:
                _log.debug("closing the subscription to %s: %s", self._subject, error)
        if self._running:
            await asyncio.wait(self._running, timeout=HANDLERS_GRACE_S)
        left = tuple(self._running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def drop(self) -> None:
        """Stop listening without asking the server whether something is on its way."""
        self._stopped(self)
        if self._subscription is not None:
            try:
                await self._subscription.unsubscribe()
            except nats.errors.Error as error:
                _log.debug("dropping the subscription to %s: %s", self._subject, error)

    async def _received(self, msg: Msg) -> None:
        await self._room.acquire()
        task = asyncio.get_running_loop().create_task(self._handle(_message(msg)))
        self._running.add(task)
        task.add_done_callback(self._handled)

    async def _handle(self, message: Message) -> None:
        await self._handler(message)

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._room.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            # kept here: the sender must not learn what broke inside
            _log.error("a message on %s could not be handled: %s", self._subject, type(error).__name__, exc_info=error)


async def _ended(connecting: asyncio.Future[None]) -> BaseException | None:
    """End what connects if it has not ended yet, and return why it did not succeed."""
    while not connecting.done():  # a connection that comes at that moment makes the library pass over a cancellation
        connecting.cancel()
        await asyncio.wait({connecting}, timeout=CANCEL_AGAIN_S)
    return asyncio.CancelledError() if connecting.cancelled() else connecting.exception()


def _raise_limit(subject: str, data: bytes, error: jetstream.ApiError) -> None:
    spec = next((spec for spec in jetstream.STREAMS.values() if spec.subjects.partition(".")[0] == subject.partition(".")[0]), None)
    if spec is None:
        return
    if error.err_code == _MESSAGE_TOO_LARGE:
        raise LimitExceeded(f"{spec.name}.message_bytes_max", used=len(data), limit_max=spec.message_bytes_max) from None
    if error.err_code == _STREAM_FULL:
        limit, limit_max = ("bytes_max", spec.bytes_max) if "bytes" in error.description else ("messages_max", spec.messages_max)
        if "per subject" in error.description and spec.subject_messages_max is not None:
            limit, limit_max = "subject_messages_max", spec.subject_messages_max
        raise LimitExceeded(f"{spec.name}.{limit}", used=limit_max, limit_max=limit_max) from None


def _message(msg: Msg) -> Message:
    return Message(msg.subject, msg.data, msg.headers or {}, msg.reply if is_answerable(msg.reply) else "")


def _parse(url: str) -> tuple[list[str], str]:
    servers = [part.strip() for part in url.split(",") if part.strip()]
    users = set()
    for server in servers:
        try:
            parts = urlsplit(server)
            valid = parts.scheme in {"nats", "tls", "ws", "wss"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError("the NATS url is malformed", hint="expected nats://user:password@host:port, several separated by commas, in CREWLOG_NATS_URL")
        users.add(unquote(parts.username or "") if parts.password is not None else "")
    if len(users) != 1:
        raise ConfigError("the NATS url names no server, or several users", hint="all servers of one cluster take the same user and password")
    return servers, users.pop()


def _public(server: str) -> str:
    parts = urlsplit(server)
    return f"{parts.hostname}:{parts.port or 4222}"
