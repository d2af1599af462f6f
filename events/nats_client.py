"""The client library, with one repair: a PING goes out behind what is buffered.

The library writes it past its own buffer. Then a PONG proves nothing: `flush` returns before the messages left, and `drain` forgets a
subscription before the server does, so that a delivery in between is lost for a whole ack wait.
"""

from __future__ import annotations

import asyncio
from typing import Any

from nats.aio.client import Client


class OrderedClient(Client):
    """A NATS client whose `flush` and `drain` mean what they say."""

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        if self._pending and self._transport is not None and self.is_connected:
            buffered, self._pending = self._pending, []
            self._pending_data_size = 0
            self._transport.writelines(buffered)
        await super()._send_ping(future)
