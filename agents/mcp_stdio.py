"""Speak to an MCP server over the standard input and output of a child of ours. Messages have a limit, and the child never outlives us.

The library's own transport reads lines of any length into memory and starts children that survive a killed worker; this one does neither.
A message over the limit ends the connection: nobody can tell any more which answer it would have been.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from shutil import which
from typing import Any, Final

import anyio
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

from crewlog.events.child_launch import launch_command, spawn
from crewlog.schemas.text import clean, shorten

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024
SAID_LINES_MAX: Final = 50
"""Lines of a server's standard error that are told while it lives: enough to see why it does not start, and no flood."""
SAID_CHARS_MAX: Final = 200
"""Of each line."""
_SECRET_CHARS_MIN: Final = 6
"""Shorter values of its environment, such as `1`, are no secrets and stand in any text."""
GRACE_S: Final = 2.0
"""How long a server may take to end after its input was closed, and once more after SIGTERM."""
_INHERITED: Final = ("HOME", "LANG", "PATH", "TMPDIR")


class ServerBroke(Exception):
    """The server ended, or said something that ends the connection."""


@asynccontextmanager
async def child_transport(name: str, command: str, args: Sequence[str], env: Mapping[str, str]) -> AsyncIterator[tuple[Any, Any]]:
    """Start a server and yield the two streams that the library's client speaks over. What it writes to its standard error goes to our log.

    Args:
        name: what the server is called in our log.
        env: its environment besides what every child gets; its values are not repeated in any log.

    Raises:
        FileNotFoundError: there is no such command.
        ServerBroke: in the body's place, when the server ends or breaks the protocol.
    """
    environment = {name: value for name in _INHERITED if (value := os.environ.get(name))} | dict(env)
    path = which(command, path=environment.get("PATH"))
    if path is None:
        raise FileNotFoundError(f"there is no command {command!r}")
    process = await spawn(
        *launch_command((path, *args), signal_number=signal.SIGKILL),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        limit=MESSAGE_BYTES_MAX,
    )
    said = _Said(name, tuple(value for value in env.values() if len(value) >= _SECRET_CHARS_MIN))
    assert process.stderr is not None
    listening = asyncio.create_task(said.listen(process.stderr))
    try:
        to_client, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        to_server, from_client = anyio.create_memory_object_stream[SessionMessage](0)
        async with to_client, from_server, to_server, from_client, anyio.create_task_group() as pumps:
            pumps.start_soon(_read, process, to_client, said)
            pumps.start_soon(_write, process, from_client)
            try:
                yield from_server, to_server
            finally:
                pumps.cancel_scope.cancel()
    finally:
        ending = asyncio.create_task(_end(process))
        try:
            await asyncio.shield(ending)
        finally:
            await asyncio.wait({ending})  # it is bounded; whoever is told to stop meanwhile leaves no process behind
            listening.cancel()


class _Said:
    """What a server writes to its standard error: told in our log, line by line, and remembered for why it ended."""

    def __init__(self, name: str, secrets: tuple[str, ...]) -> None:
        self._name, self._secrets = name, secrets
        self.last = ""
        self.is_over = asyncio.Event()

    async def listen(self, stderr: asyncio.StreamReader) -> None:
        """Read to the end."""
        told = 0
        held = b""
        while part := await stderr.read(65_536):
            *lines, held = (held + part).split(b"\n")
            held = held[-65_536:]
            for line in lines:
                told += self._tell(line, told)
        self._tell(held, told)
        self.is_over.set()

    def _tell(self, line: bytes, told: int) -> int:
        text = clean(line.decode(errors="replace"))
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        text = shorten("".join(c if c.isprintable() else " " for c in text).strip(), SAID_CHARS_MAX)
        if not text:
            return 0
        self.last = text
        if told < SAID_LINES_MAX:
            log.info("MCP server %s says: %s", self._name, text)
        elif told == SAID_LINES_MAX:
            log.info("MCP server %s says more, which is not told", self._name)
        return 1


async def _read(process: asyncio.subprocess.Process, to_client: Any, said: _Said) -> None:
    assert process.stdout is not None
    while True:
        try:
            line = await process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    await process.wait()
                    await said.is_over.wait()
            ended = "closed its output" if process.returncode is None else f"ended with {process.returncode}"
            raise ServerBroke(f"the server {ended}{f'; it said: {said.last}' if said.last else ''}") from None
        except asyncio.LimitOverrunError:
            raise ServerBroke(f"the server sent a message of more than {MESSAGE_BYTES_MAX // 2**20} MiB") from None
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            text = shorten(clean(line.decode(errors="replace")).strip(), 120)
            raise ServerBroke(f"the server wrote something that is no message of the protocol: {text!r}") from None
        await to_client.send(SessionMessage(message))


async def _write(process: asyncio.subprocess.Process, from_client: Any) -> None:
    assert process.stdin is not None
    async for sent in from_client:
        process.stdin.write(sent.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        with suppress(ConnectionError):  # the reader finds out that the server has ended, and why
            await process.stdin.drain()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close its input, then ask, then kill: the server and everything in its group."""
    assert process.stdin is not None
    process.stdin.close()
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            _signal(process, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await _gone(process)
            break
    _signal(process, signal.SIGKILL)


async def _gone(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    while await process.stdout.read(65_536):  # output that nobody reads would keep its end from being noticed
        pass
    await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
