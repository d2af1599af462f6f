"""Where a replay found that the log does not follow from itself."""

from __future__ import annotations

from typing import Any

import msgspec

from crewlog.schemas.ids import Stream


class Divergence(msgspec.Struct, frozen=True):
    """The first event that the machines would not have written: what they expected in `field`, and what stands there."""

    stream: Stream
    version: int
    field: str
    expected: Any
    got: Any

    def __str__(self) -> str:
        return f"{self.stream} version {self.version}: {self.field}: expected {self.expected!r}, got {self.got!r}"
