"""What a worker sees of its providers, told to the log: one event when a breaker opens, tries, or closes. It never holds up a call."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from crewlog.agents.breaker import Change
from crewlog.agents.model import Model
from crewlog.events.clock import Clock
from crewlog.events.store import AppendRequest, EventStore, Write
from crewlog.schemas.errors import OrchestrationError
from crewlog.schemas.ids import provider_stream
from crewlog.schemas.system_events import ProviderStateChanged

log = logging.getLogger(__name__)

STOP_WITHIN_S: Final = 2.0


class ProviderWatch:
    """Writes changes one after the other, behind whatever the calls do."""

    def __init__(self, store: EventStore, clock: Clock, worker: str) -> None:
        self._store, self._clock, self._worker = store, clock, worker
        self._changes: asyncio.Queue[ProviderStateChanged] = asyncio.Queue()
        self._writing: asyncio.Task[None] | None = None

    def changed(self, model: Model, change: Change) -> None:
        """Take note of a change; called by a breaker."""
        until_us = self._clock.now_us() + round(change.for_s * 1e6) if change.for_s else 0
        event = ProviderStateChanged(self._worker, model.wire, model.provider, model.name, change.state, until_us, change.reason)
        level = logging.INFO if change.state == "closed" else logging.WARNING
        log.log(level, "%s/%s is %s%s", model.provider, model.name, change.state, f" for {change.for_s:.0f} s: {change.reason}" if change.for_s else "")
        self._changes.put_nowait(event)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def stop(self) -> None:
        """Write what is left, as far as the log can be reached."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=STOP_WITHIN_S)
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _write(self) -> None:
        while not self._changes.empty():
            event = self._changes.get_nowait()
            write = Write(provider_stream(event.provider), (event,))
            try:
                await self._store.append(AppendRequest((write,), (self._clock.new_id(),), self._clock.now_us()))
            except OrchestrationError as error:
                # the heartbeats say the same, and nothing depends on it
                log.warning("the state of %s/%s could not be written to the log: %s", event.provider, event.model, error)
