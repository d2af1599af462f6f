"""What an exported run says around the data of its events, column by column: values that repeat or count on cost next to nothing when packed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Final
from uuid import UUID

import msgspec

from crewlog.events.store import Recorded
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId, Stream, TaskId

_ID_CHARS: Final = 32


class Named(msgspec.Struct, frozen=True, array_like=True):
    """A column of few values: each value once, and for each event which one."""

    values: list[str | None]
    which: list[int]

    def all(self) -> list[str | None]:
        """Return the value of each event.

        Raises:
            ContractError: one names a value that is not there.
        """
        if self.which and not 0 <= min(self.which) <= max(self.which) < len(self.values):
            raise ContractError("a column names a value that it does not have")
        return [self.values[n] for n in self.which]


class Columns(msgspec.Struct, frozen=True):
    """All columns; each has one entry for each event, in the order of the log."""

    event_id: str
    """32 digits each."""
    position: list[int]
    """What each adds to the one before; so do the times."""
    occurred_us: list[int]
    version: list[int]
    """How much more than the one behind its predecessor in the stream: 0 but for streams with gaps."""
    cause: list[int | str]
    """How many events before it its cause is, 0: none is known; or the id of an event that is not here."""
    stream: Named
    type: Named
    schema_version: Named
    run_id: Named
    task_id: Named
    trace_id: Named
    actor: Named
    writer: Named
    lines: list[int] = []
    """Lines that the data of each event takes; empty: one each."""
    erased_us: list[int] | msgspec.UnsetType = msgspec.UNSET
    """When what was personal in each event was erased, 0: it was not; left out when that is so of all."""


_NAMED: Final = ("stream", "type", "schema_version", "run_id", "task_id", "trace_id", "actor", "writer")


def columns_of(events: Sequence[Recorded]) -> Columns:
    """Take the envelopes of events apart."""
    lines = [event.data.count(b"\n") + 1 for event in events]
    places = {event.event_id: n for n, event in enumerate(events)}
    seen: Counter[str] = Counter()
    versions = []
    for event in events:
        versions.append(event.version - seen[event.stream] - 1)
        seen[event.stream] = event.version
    return Columns(
        event_id="".join(event.event_id.hex for event in events),
        position=_steps([event.position for event in events]),
        occurred_us=_steps([event.occurred_us for event in events]),
        version=versions,
        cause=[_cause(n, event.causation_id, places) for n, event in enumerate(events)],
        **{name: _named([getattr(event, name) for event in events]) for name in _NAMED},
        lines=[] if set(lines) <= {1} else lines,
        erased_us=[event.erased_us for event in events] if any(event.erased_us for event in events) else msgspec.UNSET,
    )


def events_of(columns: Columns, data: Sequence[bytes]) -> list[Recorded]:
    """Put events together again.

    Raises:
        ContractError: columns are not as long as the others, or name what is not there.
    """
    rows = len(data)
    named = {name: getattr(columns, name).all() for name in _NAMED}
    erased_us = columns.erased_us or [0] * rows
    counted = (columns.position, columns.occurred_us, columns.version, columns.cause, erased_us, *named.values())
    lengths = {len(column) for column in counted} | {len(columns.event_id) // _ID_CHARS}
    if lengths != {rows}:
        raise ContractError(f"{rows} events were written, and columns of {', '.join(map(str, sorted(lengths - {rows})))}")
    ids = [UUID(columns.event_id[n * _ID_CHARS : (n + 1) * _ID_CHARS]) for n in range(rows)]
    seen: Counter[str] = Counter()
    events = []
    for n, (position, occurred_us) in enumerate(zip(accumulate(columns.position), accumulate(columns.occurred_us), strict=True)):
        own = {name: values[n] for name, values in named.items()}
        stream = Stream(str(own["stream"]))
        seen[stream] += columns.version[n] + 1
        events.append(
            Recorded(
                *(position, stream, seen[stream], ids[n], str(own["type"]), int(own["schema_version"] or 1), data[n], occurred_us),
                *(_run(own["run_id"]), _task(own["task_id"]), _caused(n, columns.cause[n], ids), _uuid(own["trace_id"])),
                *(own["actor"] or "", own["writer"] or "", erased_us[n]),
            )
        )
    return events


def _steps(values: Sequence[int]) -> list[int]:
    return [*values[:1], *(after - before for before, after in pairwise(values))]


def _named(values: Sequence[Any]) -> Named:
    texts = [None if value is None else str(value) for value in values]
    which = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    return Named(list(which), [which[text] for text in texts])


def _cause(n: int, cause: UUID | None, places: dict[UUID, int]) -> int | str:
    if cause is None:
        return 0
    place = places.get(cause, n)
    return n - place if place != n else str(cause)


def _caused(n: int, cause: int | str, ids: Sequence[UUID]) -> UUID | None:
    if isinstance(cause, str):
        return UUID(cause)
    if cause and not 0 <= n - cause < len(ids):
        raise ContractError("an event names a cause that is not there")
    return ids[n - cause] if cause else None


def _uuid(text: str | None) -> UUID | None:
    return None if text is None else UUID(text)


def _run(text: str | None) -> RunId | None:
    return None if text is None else RunId(UUID(text))


def _task(text: str | None) -> TaskId | None:
    return None if text is None else TaskId(UUID(text))
