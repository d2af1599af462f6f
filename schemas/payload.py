"""A piece of text inside an event: inline while it is small, a reference to a content-addressed blob when it is not.

Events stay small enough to be read with SQL, history grows linearly, and a replay gets the exact bytes back.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

from crewlog.schemas.ids import Hash
from crewlog.schemas.text import clean

INLINE_BYTES_MAX: Final = 4096
_HASH: Final = re.compile("[0-9a-f]{64}")


class Payload(msgspec.Struct, frozen=True, omit_defaults=True):
    """Text of `size` UTF-8 bytes: exactly one of `inline` and `ref` is set."""

    size: int
    inline: str | None = None
    ref: Hash | None = None


EMPTY: Final = Payload(0, inline="")
_BEGUN: Final = hashlib.sha256()
"""A copy of it is made faster than a new one, which asks OpenSSL for the algorithm by its name."""


def content_hash(data: bytes) -> Hash:
    """Return the sha-256 of `data` as lower-case hex."""
    hashing = _BEGUN.copy()
    hashing.update(data)
    return Hash(hashing.hexdigest())


def is_hash(text: str) -> bool:
    """Say whether a text can be the hash of anything: what an event refers to is what its writer has put there."""
    return _HASH.fullmatch(text) is not None


def pack(text: str, *, inline_max: int = INLINE_BYTES_MAX) -> tuple[Payload, bytes | None]:
    """Turn text into a payload, and the blob that must be stored before the event when it is too large to be inline.

    Args:
        inline_max: most UTF-8 bytes to keep inline.
    """
    text = clean(text)
    data = text.encode()
    if len(data) <= inline_max:
        return Payload(len(data), inline=text), None
    return Payload(len(data), ref=content_hash(data)), data
