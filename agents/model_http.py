"""The HTTP client of all adapters: answers are bounded in bytes, and no request is passed on to another address.

An address that redirects is refused with its target named: the SDKs would follow it, and send a conversation to whoever it names.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from crewlog.agents.http_body import ACCEPTED, bound
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

    async def hook(response: httpx2.Response) -> None:
        bound(response, bytes_max=ANSWER_BYTES_MAX, broken=partial(malformed, asked))

    return {"follow_redirects": False, "headers": {"Accept-Encoding": ACCEPTED}, "event_hooks": {"response": [hook]}}
