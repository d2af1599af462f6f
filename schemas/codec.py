"""Encode and decode stored events.

A stored event is `(type, schema_version, json)`. The type column picks the class; an older schema version passes through its
upcasters first, each a function from one version's fields to the next one's. A type nobody knows is kept as `Unknown`, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from crewlog.schemas.errors import ContractError
from crewlog.schemas.run_events import RUN_EVENTS, RunEvent
from crewlog.schemas.system_events import SYSTEM_EVENTS, SystemEvent
from crewlog.schemas.task_events import TASK_EVENTS, TaskEvent

Event = RunEvent | TaskEvent | SystemEvent
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

_ALL: Final[tuple[type[Event], ...]] = (*RUN_EVENTS, *TASK_EVENTS, *SYSTEM_EVENTS)
EVENT_TYPES: Final[Mapping[str, type[Event]]] = {cls.__name__: cls for cls in _ALL}

UPCASTERS: Final[dict[tuple[str, int], Upcaster]] = {}
"""`(type, from_version)` -> function. Chains must be complete: `check_upcasters` is run by a test."""


class Unknown(msgspec.Struct, frozen=True):
    """An event of a type or version this program does not know: shown, counted, never folded."""

    type: str
    schema_version: int
    data: bytes


_encoder: Final = msgspec.json.Encoder()
_current: Final[dict[str, tuple[int, Callable[[bytes | str], Event]]]] = {
    name: (cls.schema_version, msgspec.json.Decoder(cls).decode) for name, cls in EVENT_TYPES.items()
}
"""Schema version that is written now, and what decodes it."""


def encode(event: Event) -> bytes:
    """Return the JSON stored in the log's `data` column."""
    return _encoder.encode(event)


def type_name(event: Event) -> str:
    """Return what the log's `type` column holds for this event."""
    return type(event).__name__


def decode(type_: str, schema_version: int, data: bytes | str, *, upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS) -> Event | Unknown:
    """Decode one stored event.

    Raises:
        ContractError: the JSON does not fit the type it is stored under.
    """
    known = _current.get(type_)
    if known is None or schema_version > known[0]:
        return Unknown(type_, schema_version, data.encode() if isinstance(data, str) else data)
    current, decode_current = known
    try:
        if schema_version == current:
            return decode_current(data)
        fields = msgspec.json.decode(data)
        for version in range(schema_version, current):
            if (lift := upcasters.get((type_, version))) is None:
                raise ContractError(f"stored event {type_} v{schema_version} does not decode: nothing lifts version {version} to {version + 1}")
            fields = lift(fields)
        return msgspec.convert(fields, EVENT_TYPES[type_])
    except (msgspec.MsgspecError, KeyError, RecursionError) as error:  # RecursionError: nested deeper than Python follows
        raise ContractError(f"stored event {type_} v{schema_version} does not decode: {error}") from error


def check_upcasters(upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS) -> None:
    """Check that every older version of every type can be lifted to the current one.

    Raises:
        ContractError: naming the missing or surplus step.
    """
    wanted = {(name, version) for name, cls in EVENT_TYPES.items() for version in range(1, cls.schema_version)}
    if wanted != set(upcasters):
        raise ContractError(f"upcasters do not fit the event types: missing {sorted(wanted - set(upcasters))}, surplus {sorted(set(upcasters) - wanted)}")
