"""The names under which a run is known to tracing tools: derived from ids, so every process says the same without having been told.

The trace of a run has the run's id. A span's id is derived from what it stands for, so it can be named before, after and without being
recorded, and sending it twice is sending it once. `traceparent` is the header of W3C Trace Context, level 2.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final, NamedTuple
from uuid import UUID

TRACEPARENT: Final = "traceparent"
"""Name of the header, in messages as over HTTP."""
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


class SpanRef(NamedTuple):
    """A span of a trace, wherever it is: 16 and 8 bytes."""

    trace_id: bytes
    span_id: bytes


def span_id(owner: UUID, what: str) -> bytes:
    """Derive the 8 bytes that name one span.

    Args:
        owner: the run or the task it belongs to.
        what: which one: `workflow` of a run; of a task `send/<n>` for dispatch n, `process/<n>` and `agent/<n>` for the nth time a worker
            took it, `tool/<version>` and `chat/<version>` for what the event of that version in the
            task's stream began, `settled/<version>` for what is in the stream of its spending.
    """
    return blake2b(what.encode(), digest_size=8, key=owner.bytes).digest()


def traceparent(run_id: UUID, span: bytes, *, is_sampled: bool = True) -> str:
    """Write the header that names a span of a run as the parent of what follows."""
    return f"00-{run_id.hex}-{span.hex()}-{'01' if is_sampled else '00'}"


def parse_traceparent(header: str) -> SpanRef | None:
    """Read the header; None when it is none, or names nothing."""
    found = _TRACEPARENT.fullmatch(header.strip())
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return None
    return SpanRef(bytes.fromhex(found[1]), bytes.fromhex(found[2]))


def is_traced(run_id: UUID, share: float) -> bool:
    """Say whether a run belongs to the share of runs, from 0 to 1, that are traced: the same in every process."""
    return int.from_bytes(blake2b(run_id.bytes, digest_size=4).digest()) < share * 2**32
