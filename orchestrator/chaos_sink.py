"""The receiving side of a chaos run: it takes effects and bills over a socket in the home, and keeps a book of all that arrived.

No process of the crew can change the book, so what it says about effects is independent of what the log says. It answers late on
purpose: the window between an effect and its outcome in the log is where a kill hurts most.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

ANSWERS_AFTER_S: Final = (0.05, 0.4)
"""Shortest and longest wait before an effect is answered, in seconds."""

SinkEffect = Literal["idempotent", "irreversible"]


class Effect(msgspec.Struct, frozen=True):
    """One effect that reaches the outside world. `what` names the call in the script of its task; it is the same whatever key it comes under."""

    key: str
    what: str
    effect: SinkEffect


class Bill(msgspec.Struct, frozen=True, tag="bill"):
    """What a model charges for one answer, whether or not anybody gets to read it."""

    micro_usd: int


class Sink:
    """The outside world of one chaos run."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        self.arrivals: Counter[str] = Counter()
        """Idempotency key -> how often it arrived. What can be repeated is carried out at its first arrival only."""
        self.effects: dict[str, Effect] = {}
        """Idempotency key -> what came with it first."""
        self.mixed: list[str] = []
        """Keys that came with two different effects."""
        self.billed_micro_usd = 0
        self._rng = rng
        self._arrived = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def repeated(self) -> int:
        """How many arrivals were not the first of their key: how often a kill hit the window."""
        return sum(self.arrivals.values()) - len(self.arrivals)

    async def next_arrival(self) -> None:
        """Wait until something arrives."""
        self._arrived.clear()
        await self._arrived.wait()

    async def start(self) -> None:
        """Listen on the socket."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line:
                await self._take(json.loads(line))
                writer.write(b"ok\n")
                await writer.drain()
        except ConnectionError:
            pass  # whoever called was killed meanwhile: that is what we are here for
        finally:
            writer.close()

    async def _take(self, told: dict[str, Any]) -> None:
        if "micro_usd" in told:
            self.billed_micro_usd += int(told["micro_usd"])
            return
        self._arrived.set()
        effect = msgspec.convert(told, Effect)
        self.arrivals[effect.key] += 1
        if self.effects.setdefault(effect.key, effect) != effect:
            self.mixed.append(effect.key)
        await asyncio.sleep(self._rng.uniform(*ANSWERS_AFTER_S))


async def tell(path: str, told: Effect | Bill) -> None:
    """Tell the sink something and wait for its answer.

    Raises:
        ConnectionError: it went away before it answered.
    """
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(msgspec.json.encode(told) + b"\n")
        if not await reader.readline():
            raise ConnectionError("the sink has gone")
    finally:
        writer.close()
