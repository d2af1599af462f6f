"""The tool `web_search`: one port, tried engine by engine; what an engine says is data that nobody trusts.

A failing engine costs nothing but its time: the next one is asked, and the result names who answered and who did not. What a provider's
limits are called on its wire never reaches the model.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Annotated, Final, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from crewlog.agents.spec import ToolContext, ToolFailed, ToolOutput, ToolSpec
from crewlog.schemas.checks import SafeText
from crewlog.schemas.text import clean, shorten

log = logging.getLogger(__name__)

ENGINE_TIMEOUT_S: Final = 10.0
HITS_MAX: Final = 20
SEARCHES_MAX: Final = 40
"""Searches one task may make: engines bill by the query."""
RETRY_AFTER_MAX_S: Final = 3.0
"""An engine that asks to wait no longer than this is asked once more, when no other one is left."""
TITLE_CHARS_MAX: Final = 200
SNIPPET_CHARS_MAX: Final = 600


class Hit(NamedTuple):
    """One result, as plain text."""

    title: str
    url: str
    snippet: str


class EngineFailed(Exception):
    """An engine gave no results; the text says why in words for a model. `retry_after_s` is set when it only asks to wait."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class SearchEngine(Protocol):
    """The port: one provider of web search."""

    @property
    def name(self) -> str:
        """How results name it."""

    async def search(self, query: str, limit: int) -> Sequence[Hit]:
        """Return the first `limit` results or fewer, best first.

        Raises:
            EngineFailed: there is no usable answer.
        """


class WebSearch(BaseModel):
    """A search."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[SafeText, Field(min_length=1, max_length=400, description="What to look for, in a few words.")]
    limit: Annotated[int, Field(ge=1, le=HITS_MAX, description="Most results to return.")] = 8


class WebSearchTool:
    """Asks the configured engines in their order.

    Args:
        engines: at least one.
    """

    def __init__(self, engines: Sequence[SearchEngine], *, timeout_s: float = ENGINE_TIMEOUT_S) -> None:
        self._engines, self._timeout_s = tuple(engines), timeout_s

    def tool(self) -> ToolSpec:
        """Return the tool."""
        return ToolSpec(
            "web_search",
            "Search the web; returns title, url and snippet of each result as JSON. A snippet is no evidence: fetch the page to cite it.",
            WebSearch,
            self.web_search,
            effect="read",
            timeout_s=self._timeout_s * (len(self._engines) + 1) + RETRY_AFTER_MAX_S,
            calls_max=SEARCHES_MAX,
        )

    async def web_search(self, _: ToolContext, args: WebSearch) -> ToolOutput:
        """Return the results of the first engine that has an answer."""
        unanswered: list[str] = []
        for engine in self._engines:
            try:
                hits = await self._ask(engine, args, is_last=engine is self._engines[-1])
            except EngineFailed as error:
                log.warning("web search: %s %s", engine.name, error)
                unanswered.append(f"{engine.name} {error}")
            else:
                return ToolOutput(_as_data(args.query, engine.name, hits, unanswered))
        raise ToolFailed(f"the web cannot be searched now: {'; '.join(unanswered)}. Go on without it, or fetch a page whose URL is known")

    async def _ask(self, engine: SearchEngine, args: WebSearch, *, is_last: bool) -> Sequence[Hit]:
        try:
            return await self._ask_once(engine, args)
        except EngineFailed as error:
            if not is_last or error.retry_after_s is None or error.retry_after_s > RETRY_AFTER_MAX_S:
                raise
            await asyncio.sleep(error.retry_after_s)
        return await self._ask_once(engine, args)

    async def _ask_once(self, engine: SearchEngine, args: WebSearch) -> Sequence[Hit]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return (await engine.search(args.query, args.limit))[: args.limit]
        except TimeoutError:
            raise EngineFailed(f"did not answer within {self._timeout_s:g} s") from None


def _as_data(query: str, engine: str, hits: Sequence[Hit], unanswered: Sequence[str]) -> str:
    found = [
        {"title": shorten(clean(hit.title), TITLE_CHARS_MAX), "url": clean(hit.url), "snippet": shorten(clean(hit.snippet), SNIPPET_CHARS_MAX)} for hit in hits
    ]
    result = {"query": query, "engine": engine, "results": found, **({"degraded": list(unanswered)} if unanswered else {})}
    return json.dumps(result, indent=1, ensure_ascii=False)
