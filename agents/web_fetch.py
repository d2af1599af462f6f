"""Fetch one page of the web: bounded in hosts, redirects, time and bytes, also of what is unpacked.

Every redirect is a new request and is checked like the first one. What comes back is bytes and a media type; nothing in it is run.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import zlib
from typing import Final, NamedTuple

import httpx2

from crewlog.agents.http_body import ACCEPTED, BadBody, unpacked
from crewlog.agents.spec import ToolFailed
from crewlog.agents.url_guard import Hosts, LookUp, Refused, guarded_client, look_up, resolve, send
from crewlog.schemas.text import clean, shorten

PAGE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Bytes of one page, as sent and as unpacked."""
FETCH_TIMEOUT_S: Final = 30.0
"""Time for one page with all its redirects: a server that drips gains nothing."""
REDIRECTS_MAX: Final = 5

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_BUSY: Final = frozenset({429, 502, 503, 504})
_META_CHARSET: Final = re.compile(rb"<meta[^>]{0,200}?charset=[\"']?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
# the encodings pages are written in; Python knows further codecs, some of which are slow on hostile input
_CHARSET: Final = re.compile(
    r"(?:utf-(?:8|16)(?:-[bl]e)?|ascii|iso(?:8859-\d+|2022_(?:jp|kr)\w*)|cp\d{3,4}|koi8-[rtu]|shift_jis\w*|euc_(?:jp|kr)|gb2312|gbk|gb18030|big5\w*|mac-\w+)"
)
_ACCEPT: Final = "text/html, text/markdown, text/plain, application/json, application/pdf;q=0.9, */*;q=0.1"


class Page(NamedTuple):
    """What was fetched. `url` is where it came from in the end, without a fragment; text is in UTF-8, whatever it was sent in."""

    url: str
    media_type: str
    data: bytes


async def fetch(url: str, hosts: Hosts, *, look_up: LookUp = look_up, timeout_s: float = FETCH_TIMEOUT_S) -> Page:
    """Fetch a page from an allowed host.

    Raises:
        ToolFailed: it may not be fetched, or could not be; says why in words a model can act on.
    """
    hop, seen = url, [url]
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                answer = await _fetch_one(hop, hosts, look_up, timeout_s)
                if isinstance(answer, Page):
                    return answer
                if len(seen) > REDIRECTS_MAX:
                    raise ToolFailed(f"{url} leads through more than {REDIRECTS_MAX} redirects; the last one was to {shorten(answer, 200)}")
                hop = answer
                seen.append(hop)
    except Refused as error:
        raise ToolFailed(f"{'redirected to ' + shorten(hop, 200) + ': ' if len(seen) > 1 else ''}{error}") from error
    except TimeoutError as error:
        raise ToolFailed(f"{shorten(hop, 200)} did not arrive within {timeout_s:g} s") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, zlib.error) as error:
        raise ToolFailed(f"{shorten(hop, 200)} gave no complete answer: {type(error).__name__}: {shorten(clean(str(error)), 200)}") from error


async def _fetch_one(url: str, hosts: Hosts, look_up: LookUp, timeout_s: float) -> Page | str:
    """Fetch one hop: the page, or the URL it redirects to."""
    target = await resolve(url, hosts, look_up=look_up)
    async with guarded_client(timeout_s) as client:
        response = await send(client, "GET", target, {"Accept": _ACCEPT, "Accept-Encoding": ACCEPTED})
        try:
            if response.status_code in _REDIRECTS:
                return _redirect(target.url, response)
            _check_status(target.url, response)
            media_type, charset = _content_type(response)
            data = await _body(target.url, response)
        finally:
            await response.aclose()
    return Page(str(target.url), media_type, _as_utf8(data, media_type, charset))


def _redirect(url: httpx2.URL, response: httpx2.Response) -> str:
    location = response.headers.get("location", "")
    if not location:
        raise ToolFailed(f"{url} redirects, but does not say where to")
    joined = url.join(location)
    if url.scheme == "https" and joined.scheme == "http":
        raise ToolFailed(f"{url} redirects to {shorten(str(joined), 200)}, which is not encrypted; that is not followed")
    return str(joined)


def _check_status(url: httpx2.URL, response: httpx2.Response) -> None:
    status = response.status_code
    if status in _BUSY:
        wait = response.headers.get("retry-after", "")
        raise ToolFailed(f"{url.host} is busy or limits how often it is asked{f'; it asks to wait {wait} s' if wait.isdigit() else ''}. Use another source")
    if not 200 <= status < 300 or status == 204:
        raise ToolFailed(f"{url.host} answered {status} {response.reason_phrase} for {shorten(str(url), 300)}".rstrip())


def _content_type(response: httpx2.Response) -> tuple[str, str]:
    essence, _, parameters = response.headers.get("content-type", "").partition(";")
    charset = next((p.partition("=")[2] for p in parameters.split(";") if p.strip().lower().startswith("charset=")), "")
    return essence.strip().lower(), charset.strip(" \"'")


async def _body(url: httpx2.URL, response: httpx2.Response) -> bytes:
    """Read at most `PAGE_BYTES_MAX` bytes, unpacking as they come: what is unpacked never grows past the limit either."""
    try:
        parts = unpacked(response.aiter_raw(), response.headers.get("content-encoding", ""), bytes_max=PAGE_BYTES_MAX)
        return b"".join([part async for part in parts])
    except BadBody as error:
        raise ToolFailed(f"{shorten(str(url), 300)} {error}; that is not read") from error


def _as_utf8(data: bytes, media_type: str, charset: str) -> bytes:
    """Return text in UTF-8: by the header's charset, or by the one an HTML page names near its beginning."""
    is_html = "html" in media_type
    if not is_html and not media_type.startswith("text/"):
        return data
    found = None if charset or not is_html else _META_CHARSET.search(data[:2048])
    name = charset or (found[1].decode("ascii") if found else "")
    try:
        known = codecs.lookup(name).name if name else "utf-8"
    except LookupError:
        return data
    if known == "utf-8" or not _CHARSET.fullmatch(known):
        return data
    return data.decode(known, errors="replace").encode("utf-8", errors="replace")
