"""The three engines behind `web_search`: Brave, Tavily and SearXNG, each translated to the same hits and the same failures.

Their addresses come from the operator, so they may be anywhere; they are never followed elsewhere.

Wire formats: https://api-dashboard.search.brave.com/app/documentation/web-search, https://docs.tavily.com/documentation/api-reference/endpoint/search,
https://docs.searxng.org/dev/search_api.html
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import httpx2

from crewlog.agents.spec import ToolUnavailable
from crewlog.agents.url_guard import URL_CHARS_MAX, guarded_client
from crewlog.agents.web_search import ENGINE_TIMEOUT_S, Hit, SearchEngine
from crewlog.events.config import Config
from crewlog.schemas.errors import TerminalError

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
BRAVE_URL: Final = "https://api.search.brave.com"
TAVILY_URL: Final = "https://api.tavily.com"

T = TypeVar("T")

_TAG: Final = re.compile(r"</?[a-zA-Z][^<>]{0,100}>")
_REFUSED: Final = {
    400: "refused the query",
    401: "refused the key; the operator must check it",
    402: "has no credit left",
    403: "refused access; the operator must check the key and, for SearXNG, that its settings allow the format json",
    432: "has no credit left",
    433: "has no credit left",
}


class Brave:
    """api.search.brave.com, or a proxy of it."""

    name = "brave"

    def __init__(self, key: str, url: str = BRAVE_URL) -> None:
        self._key, self._url = key, url.rstrip("/")

    async def search(self, query: str, limit: int) -> Sequence[Hit]:
        answer = await _ask("GET", f"{self._url}/res/v1/web/search", headers={"X-Subscription-Token": self._key}, params={"q": query, "count": limit})
        return _hits(_member(answer, "web", {}), "description")


class Tavily:
    """api.tavily.com, or a proxy of it."""

    name = "tavily"

    def __init__(self, key: str, url: str = TAVILY_URL) -> None:
        self._key, self._url = key, url.rstrip("/")

    async def search(self, query: str, limit: int) -> Sequence[Hit]:
        headers = {"Authorization": f"Bearer {self._key}"}
        return _hits(await _ask("POST", f"{self._url}/search", headers=headers, json={"query": query, "max_results": limit}), "content")


class SearXng:
    """A SearXNG instance whose settings allow the format `json`."""

    name = "searxng"

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    async def search(self, query: str, limit: int) -> Sequence[Hit]:
        return _hits(await _ask("GET", f"{self._url}/search", params={"q": query, "format": "json"}), "content")[:limit]


def engines(config: Config) -> tuple[SearchEngine, ...]:
    """Return the engines that have a key or an address, in the order in which they are asked."""
    brave, tavily = config.brave_api_key, config.tavily_api_key
    chosen: list[SearchEngine] = []
    if brave is not None and brave.get_secret_value():
        chosen.append(Brave(brave.get_secret_value()))
    if tavily is not None and tavily.get_secret_value():
        chosen.append(Tavily(tavily.get_secret_value()))
    if config.searxng_url:
        chosen.append(SearXng(config.searxng_url))
    return tuple(chosen)


async def _ask(method: str, url: str, **given: Any) -> Mapping[str, Any]:
    """Send one request and return the JSON object that comes back."""
    try:
        async with guarded_client(ENGINE_TIMEOUT_S) as client, client.stream(method, url, **given) as response:
            _check(response)
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise TerminalError(f"sent more than {ANSWER_BYTES_MAX // 2**20} MiB")
            answer = httpx2.Response(200, content=bytes(body)).json()
    except httpx2.TimeoutException:
        raise ToolUnavailable("did not answer in time") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ToolUnavailable(f"cannot be reached ({type(error).__name__})") from error
    except (ValueError, RecursionError):
        raise TerminalError("did not answer with JSON") from None
    if not isinstance(answer, dict):
        raise TerminalError("did not answer with a JSON object")
    return answer


def _check(response: httpx2.Response) -> None:
    status = response.status_code
    if status in (httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE):
        wait = response.headers.get("retry-after", "")
        raise ToolUnavailable("is at its rate limit", retry_after_s=float(wait) if wait.isascii() and wait.isdigit() else None)
    if status in _REFUSED:
        raise TerminalError(_REFUSED[status])
    if not 200 <= status < 300:
        raise ToolUnavailable("is out of order")


def _hits(answer: Mapping[str, Any], snippet: str) -> list[Hit]:
    """Read the results; those without a usable URL are left out, whatever else they have."""
    results: list[Any] = _member(answer, "results", [])
    hits = []
    for result in results:
        url = result.get("url") if isinstance(result, dict) else None
        if isinstance(url, str) and url.startswith(("https://", "http://")) and len(url) <= URL_CHARS_MAX:
            hits.append(Hit(_text(result.get("title")), url, _text(result.get(snippet))))
    return hits


def _member(answer: Mapping[str, Any], name: str, empty: T) -> T:
    found = answer.get(name, empty)
    if not isinstance(found, type(empty)):
        raise TerminalError(f"answered in an unknown form: {name!r} is a {type(found).__name__}")
    return found


def _text(value: object) -> str:
    """Return text without the markup that engines put around the words that were found."""
    return " ".join(html.unescape(_TAG.sub("", value)).split()) if isinstance(value, str) else ""
