"""JSON text for `jsonb` columns."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from crewlog.projections.rows import Json

_encode: Final = msgspec.json.Encoder().encode


def to_json(value: Any) -> Json:
    """Return a value as JSON text."""
    return Json(_encode(value).decode())
