"""The body of an HTTP answer as it comes in, bounded and unpacked here: a few kilobytes may unpack to gigabytes, and a sender need never stop."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final

from crewlog.schemas.text import clean, shorten

ACCEPTED: Final = "gzip, deflate"
"""Value of the request header `Accept-Encoding`: what `unpacked` can unpack."""


class BadBody(Exception):
    """A body that is not read to its end; the text says why, and fits behind what was asked for."""


async def unpacked(parts: AsyncIterable[bytes], packing: str, *, bytes_max: int) -> AsyncIterator[bytes]:
    """Yield a body as its sender wrote it.

    Args:
        parts: the body as it was sent.
        packing: the header `Content-Encoding` of the answer; empty when it has none.
        bytes_max: most bytes, as sent and as unpacked. No more than that is ever held.

    Raises:
        BadBody: it is larger, or packed in a way that was not asked for.
        zlib.error: it is not packed as it says.
    """
    packing = packing.strip().lower()
    if packing not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise BadBody(f"is packed as {shorten(clean(packing), 40)!r}, which was not asked for")
    # 32 + 15: zlib finds out itself whether a gzip or a zlib header comes
    unpack = zlib.decompressobj(32 + zlib.MAX_WBITS) if packing not in ("", "identity") else None
    sent = written = 0
    async for part in parts:
        sent += len(part)
        plain = unpack.decompress(part, bytes_max + 1 - written) if unpack else part
        written += len(plain)
        if max(sent, written) > bytes_max:
            raise BadBody(f"is larger than {bytes_max // 2**20} MiB")
        if plain:
            yield plain
