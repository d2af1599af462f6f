"""Post JSON to hosts the operator listed. Where a post may go is decided by `url_guard`; an effect that may have happened is never called a failure.

A receiver that keeps the idempotency keys of what it took can be asked later whether it has one. Its operator says where: there is no standard for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from crewlog.agents.url_guard import Target, guarded_client, send
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.text import clean

if TYPE_CHECKING:
    import httpx2

REQUEST_BYTES_MAX: Final = 256 * 1024
RESPONSE_BYTES_MAX: Final = 64 * 1024
POST_TIMEOUT_S: Final = 30.0
AMBIGUOUS: Final = frozenset({500, 502, 504})
"""Statuses that do not say whether the post had its effect: an error in the middle, or a gateway that heard nothing in time (RFC 9110, 15.6)."""
HOSTS_SETTING: Final = "CREWLOG_WEBHOOK_HOSTS"
STATUS_SETTING: Final = "CREWLOG_WEBHOOK_STATUS"
KEY: Final = "{key}"
"""Stands for the idempotency key in the address of a status."""


class OutcomeUnknown(Exception):
    """The request went out and no complete answer came back."""


class Answer(NamedTuple):
    """What came back; `text` is cut at `RESPONSE_BYTES_MAX` bytes."""

    status: int
    text: str


async def post(target: Target, body: bytes, *, key: str) -> Answer:
    """Post JSON to a checked target. Redirects are not followed, proxies of the environment not used.

    Args:
        key: sent as `Idempotency-Key`, so that the receiver can recognise a second try.

    Raises:
        Refused: the connection failed before anything was sent.
        OutcomeUnknown: the answer did not arrive in time or broke off.
    """

    headers = {"Content-Type": "application/json", "Idempotency-Key": key, "Accept-Encoding": "identity"}
    return await _exchange("POST", target, headers, body)


async def status(target: Target) -> Answer:
    """Ask a checked target about a post.

    Raises:
        Refused: the connection failed.
        OutcomeUnknown: there was no complete answer.
    """
    return await _exchange("GET", target, {"Accept-Encoding": "identity"}, b"")


def parse_status(text: str) -> Mapping[str, str]:
    """Read where receivers say what they took: `HOST=URL`, several separated by blanks; the URL holds `{key}`.

    Raises:
        ConfigError: naming the entry that cannot be understood.
    """
    found: dict[str, str] = {}
    for entry in text.split():
        host, _, url = entry.partition("=")
        if not (host and url.startswith(("https://", "http://")) and KEY in url):
            example = f"hook.example.org=https://hook.example.org/took/{KEY}"
            raise ConfigError(f"{STATUS_SETTING}: {entry!r} is not HOST=URL with {KEY} in the URL", hint=f"write {example}")
        found[host.lower()] = url
    return found


async def _exchange(method: str, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
    import httpx2

    try:
        async with asyncio.timeout(POST_TIMEOUT_S), guarded_client(POST_TIMEOUT_S) as client:
            response = await send(client, method, target, headers, body)
            try:
                return Answer(response.status_code, await _beginning(response))
            finally:
                await response.aclose()
    except (httpx2.HTTPError, TimeoutError) as error:
        raise OutcomeUnknown(f"{target.url.netloc.decode()} gave no complete answer: {type(error).__name__}: {error}") from error


async def _beginning(response: httpx2.Response) -> str:
    received = b""
    async for part in response.aiter_raw():
        received += part
        if len(received) >= RESPONSE_BYTES_MAX:
            break
    return clean(received[:RESPONSE_BYTES_MAX].decode(errors="replace"))
