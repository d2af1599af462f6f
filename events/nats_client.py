"""The client library, with three repairs, and a way to publish many messages at once.

Two are to its PINGs, on which `flush` and `drain` rely.

It writes a PING past its own buffer. Then a PONG proves nothing: `flush` returns before the messages left, and `drain` forgets a
subscription before the server does, so that a delivery in between is lost for a whole ack wait. And a PING whose connection breaks is
waited for until its timeout.

The third: a connection that a server takes and ends before it has said who it is was forgotten without being closed. A cluster that elects
or a server that starts does that many times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from nats.aio.client import Client, Srv
from nats.aio.transport import TcpTransport
from nats.errors import BadSubjectError, ConnectionClosedError, ConnectionDrainingError, MaxPayloadError, OutboundBufferLimitError
from nats.errors import TimeoutError as NatsTimeoutError

from crewlog.events.bus import LAST_SEQUENCE

_LAST_SEQUENCE: Final = LAST_SEQUENCE.encode()


class OrderedClient(Client):
    """A NATS client whose `flush` and `drain` mean what they say."""

    async def publish_behind(self, sequence: int, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish messages of which each must follow the one before, in one piece: a tenth of what `publish` costs for each.

        Args:
            sequence: number of the message of their stream that the first one must follow.
            messages: subject and data of each.

        Raises:
            nats.errors.Error: as `publish`; then none of them was sent.
        """
        if self.is_closed:
            raise ConnectionClosedError
        if self.is_draining_pubs:
            raise ConnectionDrainingError
        data = _wire(sequence, messages, self._max_payload)
        if not self.is_connected and (self._max_pending_size <= 0 or len(data) + self._pending_data_size > self._max_pending_size):
            raise OutboundBufferLimitError
        self.stats["out_msgs"] += len(messages)
        self.stats["out_bytes"] += len(data)
        await self._send_command(data)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        if self._pending and self._transport is not None and self.is_connected:
            buffered, self._pending = self._pending, []
            self._pending_data_size = 0
            self._transport.writelines(buffered)
        await super()._send_ping(future)

    async def _connect_to_server(self, s: Srv) -> None:
        if isinstance(self._transport, TcpTransport):
            self._transport.close()  # type: ignore[no-untyped-call]  # of the try before, if that came to nothing
        await super()._connect_to_server(s)

    def fail_pings(self) -> None:
        """Let nobody wait for an answer that the broken connection cannot bring."""
        for pong in self._pongs:
            if not pong.done():
                pong.set_exception(NatsTimeoutError())
                pong.exception()  # the periodic PINGs' futures are looked at by nobody


def _wire(sequence: int, messages: Sequence[tuple[str, bytes]], bytes_max: int) -> bytes:
    pieces = []
    for last, (subject, data) in enumerate(messages, sequence):
        if not subject or " " in subject or not subject.isprintable():
            raise BadSubjectError
        head = b"NATS/1.0\r\n%b: %d\r\n\r\n" % (_LAST_SEQUENCE, last)
        size = len(head) + len(data)
        if size > bytes_max:
            raise MaxPayloadError
        pieces.append(b"HPUB %b %d %d\r\n%b%b\r\n" % (subject.encode(), len(head), size, head, data))
    return b"".join(pieces)
