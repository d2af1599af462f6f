"""Text that Postgres, NATS and people can hold: no NUL, no lone surrogates, bounded."""

from __future__ import annotations

import re
from typing import Final

_BAD: Final = re.compile("[\x00\ud800-\udfff]")
_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
"""One character in two halves, as it arrives when it is cut between two pieces of a stream."""


def find_bad(text: str) -> int | None:
    """Return the index of the first NUL or lone surrogate, or None."""
    found = None if _is_plain(text) else _BAD.search(text)
    return found.start() if found else None


def clean(text: str) -> str:
    """Replace NUL and lone surrogates by U+FFFD and put paired ones together, so that what a tool or model returned can be stored and read everywhere."""
    return text if _is_plain(text) else _BAD.sub("\ufffd", _PAIR.sub(_joined, text))


def _joined(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _is_plain(text: str) -> bool:
    """Say of most texts that they are good without looking at each character: ASCII has no surrogates, and knows that of itself."""
    return text.isascii() and "\0" not in text


def shorten(text: str, limit: int) -> str:
    """Cut to `limit` characters, ending in an ellipsis when something was cut."""
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def counted(number: int, what: str) -> str:
    """Write a number of things: `1 seal`, `2 seals`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
