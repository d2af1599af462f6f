"""The body of an HTTP answer as it comes in, bounded and unpacked here: a few kilobytes may unpack to gigabytes, and a sender need never stop."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from crewlog.schemas.text import clean, shorten

if TYPE_CHECKING:
    import httpx2

ACCEPTED: Final = "gzip, deflate"
"""Value of the request header `Accept-Encoding`: what `unpacked` can unpack."""
_GZIP: Final = b"\x1f"
"""How each part of what gzip has packed begins; what else comes behind the end is padding."""


class BadBody(Exception):
    """A body that is not read to its end; the text says why, and fits behind what was asked for."""


async def unpacked(parts: AsyncIterable[bytes], packing: str, *, bytes_max: int) -> AsyncIterator[bytes]:
    """Yield a body as its sender wrote it.

    Args:
        parts: the body as it was sent.
        packing: the header `Content-Encoding` of the answer; empty when it has none.
        bytes_max: most bytes, as sent and as unpacked. No more than that is ever held.

    Raises:
        BadBody: it is larger, packed in a way that was not asked for, or broken off. Where it is not packed, only the connection knows whether it was.
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
        if unpack and unpack.unused_data.startswith(_GZIP):
            raise BadBody("is packed in several parts, of which only the first would be read")
        if plain:
            yield plain
    if unpack and sent and not unpack.eof:
        raise BadBody("breaks off before its end")


def bound(response: httpx2.Response, *, bytes_max: int, broken: Callable[[str], Exception]) -> None:
    """Let whoever reads the body of an answer get no more than `bytes_max` bytes, unpacked.

    Args:
        broken: makes the error that is raised instead, given what came: `an answer that is larger than 8 MiB`.
    """
    response.stream = _bounded_type()(response, bytes_max, broken)


@cache
def _bounded_type() -> Any:
    """Make the type of a bounded body: its parent takes a while to load, and most workers never need it."""
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        def __init__(self, response: httpx2.Response, bytes_max: int, broken: Callable[[str], Exception]) -> None:
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            self._sent, self._bytes_max, self._broken = response.stream, bytes_max, broken
            self._packing = response.headers.pop("content-encoding", "")

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for part in unpacked(self._sent, self._packing, bytes_max=self._bytes_max):
                    yield part
            except BadBody as error:
                raise self._broken(f"an answer that {error}") from error
            except zlib.error as error:
                raise self._broken("a body that cannot be decompressed") from error

        async def aclose(self) -> None:
            await self._sent.aclose()

    return Bounded
