"""A mail server for demos and tests: keeps every message it gets as an .eml file and delivers none."""

from __future__ import annotations

import asyncio
from collections import Counter
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from crewlog.schemas.errors import ConfigError

MESSAGE_BYTES_MAX: Final = 32 * 1024 * 1024


class SmtpSink:
    """Receives on loopback and writes `mail-0001.eml` … into a folder. Nothing is deduplicated: two copies are two files.

    Attributes:
        received: the files, in order of arrival.
        message_ids: how often each Message-ID arrived; a count above 1 is a mail sent twice.
        port: where it listens once it was started; 0 before.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.folder = folder
        self.host = host
        self.port = port
        self.received: list[Path] = []
        self.message_ids: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._sessions: WeakSet[Any] = WeakSet()
        self._arrived = asyncio.Condition()

    async def start(self) -> int:
        """Begin to listen and return the port.

        Raises:
            ConfigError: aiosmtpd is not installed, or the port is taken.
        """
        try:
            from aiosmtpd.smtp import SMTP
        except ImportError as error:
            raise ConfigError("the mail sink needs aiosmtpd", hint="pip install 'crewlog[demo]'") from error
        self.folder.mkdir(parents=True, exist_ok=True)
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: SMTP(self, data_size_limit=MESSAGE_BYTES_MAX, loop=loop, hostname="localhost"), self.host, self.port
            )
        except OSError as error:
            raise ConfigError(f"the mail sink cannot listen on {self.host}:{self.port}: {error}") from error
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    async def stop(self) -> None:
        """Stop listening and hang up. Safe to call twice."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for session in self._sessions:
                if session.transport is not None:
                    session.transport.close()
            await server.wait_closed()

    async def wait(self, count: int, timeout_s: float) -> None:
        """Wait until `count` messages have arrived in all.

        Raises:
            TimeoutError: fewer arrived within `timeout_s` seconds.
        """
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.received) >= count)

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802  (aiosmtpd calls it by this name)
        """Keep one message; aiosmtpd calls this."""
        content: bytes = envelope.content
        number = len(list(self.folder.glob("mail-*.eml"))) + 1
        path = self.folder / f"mail-{number:04}.eml"
        path.write_bytes(content)
        self.message_ids[str(message_from_bytes(content, policy=default)["Message-ID"])] += 1
        self.received.append(path)
        async with self._arrived:
            self._arrived.notify_all()
        return f"250 kept as {path.name}"
