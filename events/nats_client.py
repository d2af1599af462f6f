"""The client library, with two repairs to its PINGs, on which `flush` and `drain` rely.

It writes a PING past its own buffer. Then a PONG proves nothing: `flush` returns before the messages left, and `drain` forgets a
subscription before the server does, so that a delivery in between is lost for a whole ack wait. And a PING whose connection breaks is
waited for until its timeout.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeoutError


class OrderedClient(Client):
    """A NATS client whose `flush` and `drain` mean what they say."""

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        if self._pending and self._transport is not None and self.is_connected:
            buffered, self._pending = self._pending, []
            self._pending_data_size = 0
            self._transport.writelines(buffered)
        await super()._send_ping(future)

    def fail_pings(self) -> None:
        """Let nobody wait for an answer that the broken connection cannot bring."""
        for pong in self._pongs:
            if not pong.done():
                pong.set_exception(NatsTimeoutError())
                pong.exception()  # the periodic PINGs' futures are looked at by nobody
