"""The HTTP client of all adapters: answers are bounded in bytes, and no request is passed on to another address.

An address that redirects is refused with its target named: the SDKs would follow it, and send a conversation to whoever it names.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from crewlog.agents.http_body import ACCEPTED, BadBody, unpacked
from crewlog.agents.model_errors import malformed

if TYPE_CHECKING:
    import httpx2

ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of one answer, as sent and as unpacked. The longest answers have some 128 000 tokens, and a stream spends up to 300 bytes on each."""


def client_options(asked: str) -> dict[str, Any]:
    """Return the arguments of an `httpx2.AsyncClient` that talks to a provider.

    Args:
        asked: the model's name, for messages.
    """

    async def bound(response: httpx2.Response) -> None:
        response.stream = _bounded_type()(response, asked)

    return {"follow_redirects": False, "headers": {"Accept-Encoding": ACCEPTED}, "event_hooks": {"response": [bound]}}


@cache
def _bounded_type() -> Callable[[httpx2.Response, str], httpx2.AsyncByteStream]:
    """Make the type of a bounded body: its parent is loaded with the first model that is asked."""
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        def __init__(self, response: httpx2.Response, asked: str) -> None:
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            self._sent, self._asked = response.stream, asked
            self._packing = response.headers.pop("content-encoding", "")

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for part in unpacked(self._sent, self._packing, bytes_max=ANSWER_BYTES_MAX):
                    yield part
            except BadBody as error:
                raise malformed(self._asked, f"an answer that {error}") from error
            except zlib.error as error:
                raise malformed(self._asked, "a body that cannot be decompressed") from error

        async def aclose(self) -> None:
            await self._sent.aclose()

    return Bounded
