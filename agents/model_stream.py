"""Server-sent events, from bytes to the data of each event."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator


async def event_data(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of each event, the last one also when no blank line ends it.

    Lines end in CR LF or LF and nothing else: JSON may hold other characters that text tools take for the end of a line.
    """
    data: list[bytes] = []
    async for line in _lines(chunks):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []
    if data:
        yield b"\n".join(data)


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    pieces: list[bytes] = []
    async for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        pieces.append(first)
        for piece in rest:
            yield b"".join(pieces).removesuffix(b"\r")
            pieces = [piece]
    if last := b"".join(pieces).removesuffix(b"\r"):
        yield last
