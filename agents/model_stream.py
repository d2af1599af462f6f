"""Server-sent events, from bytes to the data of each event."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Final

from crewlog.agents.model_errors import malformed
from crewlog.schemas.text import shorten

SHOWN_CHARS: Final = 200
"""Of an answer that is no stream of events: enough to see who wrote it."""


async def event_data(chunks: AsyncIterable[bytes], asked: str, *, media_type: str = "") -> AsyncIterator[bytes]:
    """Yield the data of each event, the last one also when no blank line ends it.

    Lines end in CR LF or LF and nothing else: JSON may hold other characters that text tools take for the end of a line.

    Args:
        asked: the model's name, for messages.
        media_type: what the answer calls itself. It is only told, not believed: servers of one's own call their streams anything.

    Raises:
        ModelError: there is no event in it, such as in the page of a proxy.
    """
    data: list[bytes] = []
    other: list[bytes] = []
    is_stream = False
    async for line in _lines(chunks):
        if line.startswith(b"data:"):
            is_stream = True
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []
        elif not is_stream and len(other) < SHOWN_CHARS:
            other.append(line[:SHOWN_CHARS])
    if data:
        yield b"\n".join(data)
    if not is_stream:
        said = shorten(" ".join(b" ".join(other).decode(errors="replace").split()), SHOWN_CHARS)
        raise malformed(asked, f"{media_type or 'something'} instead of a stream of events: {said or 'nothing'}")


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
