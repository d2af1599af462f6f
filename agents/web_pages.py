"""The tool `fetch_url`: a page becomes a document of the task, with numbered lines that can be cited under its URL.

What is kept is the readable text, as an artifact whose first line names the URL: line `n` of a citation is line `n` of that file.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from crewlog.agents.documents import DOCX, HTML, MARKDOWN, PDF, PLAIN, document_type, extract
from crewlog.agents.ingest import ingest
from crewlog.agents.spec import ToolContext, ToolFailed, ToolOutput, ToolSpec
from crewlog.agents.specialist_research import numbered
from crewlog.agents.url_guard import URL_CHARS_MAX, Hosts, LookUp, look_up
from crewlog.agents.web_fetch import FETCH_TIMEOUT_S, Page, fetch
from crewlog.events.artifacts import ArtifactStore
from crewlog.events.clock import Clock
from crewlog.events.store import EventStore
from crewlog.schemas.checks import SafeText
from crewlog.schemas.errors import ConfigError, ContractError
from crewlog.schemas.payload import content_hash
from crewlog.schemas.text import clean, shorten
from crewlog.schemas.values import ArtifactRef

HOSTS_SETTING: Final = "CREWLOG_FETCH_HOSTS"
SHOWN_LINES: Final = 200
FETCHES_MAX: Final = 40
"""Pages one task may fetch."""
_NAME_CHARS_MAX: Final = 120
_SOURCE: Final = "Source: "

_SUFFIX: Final = {HTML: ".html", PDF: ".pdf", DOCX: ".docx", MARKDOWN: ".md", PLAIN: ".txt"}
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9.]+")


class FetchUrl(BaseModel):
    """A page."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[SafeText, Field(min_length=8, max_length=URL_CHARS_MAX, description="Where the page is: https:// or http://, without a user name.")]
    refresh: Annotated[bool, Field(description="Fetch it again although this task has fetched it before.")] = False


class WebPages:
    """Fetches pages into the log.

    Args:
        hosts: what the operator allows; a fetch tells its host what was asked for, so this list is also what keeps data from leaving.
        look_up: resolves names.
    """

    def __init__(self, store: EventStore, clock: Clock, hosts: Hosts, *, look_up: LookUp = look_up) -> None:
        self._store, self._clock, self._hosts, self._look_up = store, clock, hosts, look_up

    def tool(self) -> ToolSpec:
        """Return the tool."""
        return ToolSpec(
            "fetch_url",
            "Fetch a web page or document (HTML, text, Markdown, JSON, PDF, .docx) and show its text with line numbers. Afterwards it is a document of "
            f"this task under its URL: search_documents, read_document and citations know it. Hosts that may be fetched: {self._hosts}.",
            FetchUrl,
            self.fetch_url,
            effect="read",
            timeout_s=FETCH_TIMEOUT_S + 60.0,
            calls_max=FETCHES_MAX,
        )

    async def fetch_url(self, context: ToolContext, args: FetchUrl) -> ToolOutput:
        """Fetch a page, keep its text, and show the beginning."""
        name = page_name(args.url)
        # only what this task fetched itself: a file of another task may have any name, and say what it likes in its first line
        kept = None if args.refresh else next((ref for ref in reversed(context.earlier_artifacts) if ref.name == name), None)
        if kept is not None:
            text = (await context.artifacts.get(kept.hash)).decode()
            return ToolOutput(f"{_shown(text)}\n[kept from an earlier call; refresh=true fetches it again]")
        page = await fetch(args.url, self._hosts, look_up=self._look_up)
        text = await readable(page)
        ref = await self._keep(context.artifacts, page.url, text, tenant=context.task.tenant)
        return ToolOutput(_shown(text), artifacts=(ref,))

    async def _keep(self, artifacts: ArtifactStore, url: str, text: str, *, tenant: str) -> ArtifactRef:
        data = text.encode()
        ref = await artifacts.put(page_name(url), data, MARKDOWN)
        await ingest(self._store, self._clock, tenant=tenant, name=url, data=data, media_type=MARKDOWN, library=False)
        return ref


def page_name(url: str) -> str:
    """Return the file name of a page: readable, and different for each URL.

    >>> page_name("https://docs.example.org/a/b.html?x=1#part")
    'web/docs.example.org/a-b.html-3fd9c897.md'
    """
    bare = url.partition("#")[0]
    parts = urlsplit(bare)
    host = _UNSAFE.sub("-", parts.netloc.lower()).strip("-.") or "host"
    path = _UNSAFE.sub("-", parts.path)[:_NAME_CHARS_MAX].strip("-.") or "index"
    return f"web/{host}/{path}-{content_hash(bare.encode())[:8]}.md"


async def readable(page: Page) -> str:
    """Return a page's text: its URL in the first line, its title as a heading, then what there is to read.

    Raises:
        ToolFailed: it is of a kind that holds no text, or is damaged.
    """
    kind, data = _as_document(page)
    try:
        document = await extract(f"page{_SUFFIX[kind]}", data)
    except (ContractError, ConfigError) as error:
        raise ToolFailed(f"{shorten(page.url, 300)} was fetched, but: {error}") from error
    has_title = document.text.lstrip().startswith("# ") or kind in (PLAIN, MARKDOWN)
    heading = "" if has_title else f"# {document.title}\n\n"
    return f"{_SOURCE}{page.url}\n\n{heading}{document.text}"


def _as_document(page: Page) -> tuple[str, bytes]:
    """Return which kind of document a page is; JSON is laid out in lines, so that they can be cited."""
    media_type = page.media_type
    if media_type.endswith(("/json", "+json")):
        return PLAIN, _laid_out(page)
    if media_type in (HTML, "application/xhtml+xml"):
        return HTML, page.data
    if media_type in ("application/octet-stream", "binary/octet-stream", ""):
        by_name = document_type(PurePosixPath(urlsplit(page.url).path).name)
        guessed = PDF if page.data.startswith(b"%PDF-") else HTML if page.data.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")) else None
        kind = by_name or guessed or (PLAIN if not media_type else None)
    elif media_type.startswith("text/") or media_type.endswith(("/xml", "+xml", "/javascript", "/yaml", "/x-yaml", "/toml")):
        kind = document_type("", media_type) or (MARKDOWN if media_type == "text/x-markdown" else PLAIN)
    else:
        kind = document_type("", media_type)
    if kind is None:
        raise ToolFailed(f"{shorten(page.url, 300)} is {shorten(clean(media_type), 80)}, which holds no text that can be read here")
    return kind, page.data


def _laid_out(page: Page) -> bytes:
    try:
        return json.dumps(json.loads(page.data), indent=2, ensure_ascii=False).encode("utf-8", errors="replace")
    except (ValueError, RecursionError):
        # said to be JSON and is not: as it is, it may still say what is wrong
        return page.data


def _shown(text: str) -> str:
    lines = text.split("\n")
    url = lines[0].removeprefix(_SOURCE)
    shown = numbered(lines[:SHOWN_LINES], 1)
    more = f"\n[line {len(shown)} of {len(lines)}; go on with read_document name={url} start_line={len(shown) + 1}]" if len(shown) < len(lines) else ""
    return f"## {url}:1\n" + "\n".join(shown) + more
