"""JSON text for `jsonb` columns."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from crewlog.projections.rows import Json

_encode: Final = msgspec.json.Encoder().encode
_EMPTY: Final = Json("[]")


def to_json(value: Any) -> Json:
    """Return a value as JSON text."""
    if value == ():  # most lists are empty: no files, no complaints, nothing to wait for
        return _EMPTY
    return Json(_encode(value).decode())
