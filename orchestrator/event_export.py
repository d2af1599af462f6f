"""The events of the log for other programs: chosen by tenant and time, as plain JSON or as CloudEvents 1.0.

Whoever reads a part of the log must know whose events these are: those of a run are of the run's tenant, documents, memories and schedules
name theirs in the stream, and everything else (agents, budgets, providers) belongs to nobody and is left out when a tenant is asked for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Any, Final, NamedTuple

from crewlog.events.store import EventStore, Recorded
from crewlog.schemas.ids import RunId, Stream, category, run_stream
from crewlog.schemas.run_events import RunForked, RunSubmitted

PAGE_EVENTS: Final = 2_000
TENANTS_MAX: Final = 100_000
"""Runs whose tenant is remembered; when there are more, they are looked up again."""
_FIRST: Final = frozenset({RunSubmitted.__name__, RunForked.__name__})
_NAMED: Final = frozenset({"doc", "memory", "schedule"})
SPEC_VERSION: Final = "1.0"


class Selection(NamedTuple):
    """Which events: of a tenant, from a time on, before a time, in microseconds since 1970; None for all."""

    tenant: str | None = None
    since_us: int | None = None
    until_us: int | None = None

    def covers(self, recorded: Recorded, tenant: str) -> bool:
        """Say whether an event is meant."""
        return (
            (self.tenant is None or tenant == self.tenant)
            and (self.since_us is None or recorded.occurred_us >= self.since_us)
            and (self.until_us is None or recorded.occurred_us < self.until_us)
        )


class Owned(NamedTuple):
    """An event and the tenant it belongs to; empty for nobody."""

    recorded: Recorded
    tenant: str


async def selected(store: EventStore, chosen: Selection) -> AsyncGenerator[Sequence[Owned], None]:
    """Yield the events that are meant, in the order of the log, in pages; what is written meanwhile is not waited for."""
    tenants: dict[RunId, str] = {}
    after = 0
    while (page := await store.read_all(after, PAGE_EVENTS)).events:
        if len(tenants) > TENANTS_MAX:
            tenants.clear()
        await _learn(store, tenants, page.events)
        owned = (Owned(recorded, _tenant(recorded, tenants)) for recorded in page.events)
        yield [one for one in owned if chosen.covers(*one)]
        after = page.events[-1].position


async def owned_by_run(store: EventStore, events: Sequence[Recorded]) -> list[Owned]:
    """Say whose the events of runs are."""
    tenants: dict[RunId, str] = {}
    await _learn(store, tenants, events)
    return [Owned(recorded, _tenant(recorded, tenants)) for recorded in events]


def cloud_event(event: dict[str, Any], tenant: str) -> dict[str, Any]:
    """Return an event as a CloudEvent in JSON format.

    `id` is the event's id and `source` the crew's name for the tenant, together unique; `subject` is the stream. `sequence` is the position in
    the log, padded so that it sorts as text. Names of extensions have letters and digits alone, as the specification wants it.

    Args:
        event: as it is relayed to `events.>`.
    """
    extensions = {
        "sequence": f"{event['position']:019d}",
        "streamversion": str(event["version"]),
        "schemaversion": event["schema_version"],
        "runid": event["run_id"],
        "taskid": event["task_id"],
        "causationid": event["causation_id"],
        "actor": event["actor"] or None,
    }
    return {
        "specversion": SPEC_VERSION,
        "id": event["event_id"],
        "source": f"/crewlog/{tenant}" if tenant else "/crewlog",
        "type": f"crewlog.{event['type']}",
        "subject": event["stream"],
        "time": event["occurred_at"],
        "datacontenttype": "application/json",
        **{name: value for name, value in extensions.items() if value is not None},
        "data": event["data"],
    }


def _tenant(recorded: Recorded, tenants: dict[RunId, str]) -> str:
    if recorded.run_id is not None:
        return tenants.get(recorded.run_id, "")
    return recorded.stream.split("/")[1] if category(recorded.stream) in _NAMED else ""


async def _learn(store: EventStore, tenants: dict[RunId, str], events: Collection[Recorded]) -> None:
    """Look up the tenants of runs that are not known yet: the first event of a run names it."""
    unknown: dict[Stream, int] = {run_stream(event.run_id): 0 for event in events if event.run_id is not None and event.run_id not in tenants}
    for first in await store.read_streams(unknown, types=_FIRST):
        event = first.event()
        if isinstance(event, RunSubmitted | RunForked):
            tenants[event.run_id] = event.tenant
