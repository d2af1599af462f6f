"""The tool `web_search`: one port, as many ways as engines are configured; what an engine says is data that nobody trusts.

An engine that fails gives way to the next, as any implementation of a tool does; the result names who answered and who did not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Final, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from crewlog.agents.spec import Implementation, ToolContext, ToolOutput, ToolSpec
from crewlog.schemas.checks import SafeText
from crewlog.schemas.text import clean, shorten

ENGINE_TIMEOUT_S: Final = 10.0
HITS_MAX: Final = 20
SEARCHES_MAX: Final = 40
"""Searches one task may make: engines bill by the query."""
TITLE_CHARS_MAX: Final = 200
SNIPPET_CHARS_MAX: Final = 600


class Hit(NamedTuple):
    """One result, as plain text."""

    title: str
    url: str
    snippet: str


class SearchEngine(Protocol):
    """The port: one provider of web search."""

    @property
    def name(self) -> str:
        """How results name it."""

    async def search(self, query: str, limit: int) -> Sequence[Hit]:
        """Return the first `limit` results or fewer, best first.

        Raises:
            ToolUnavailable: it has no answer now and may have one soon.
            TerminalError: it will not answer until the operator does something. Both say why in words for a model.
        """


class WebSearch(BaseModel):
    """A search."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[SafeText, Field(min_length=1, max_length=400, description="What to look for, in a few words.")]
    limit: Annotated[int, Field(ge=1, le=HITS_MAX, description="Most results to return.")] = 8


def web_search_tool(engines: Sequence[SearchEngine], *, timeout_s: float = ENGINE_TIMEOUT_S) -> ToolSpec:
    """Make the tool.

    Args:
        engines: at least one, in the order in which they are asked.
        timeout_s: time for each, in seconds.
    """
    first, *others = (Implementation(engine.name, partial(_search, engine)) for engine in engines)
    return ToolSpec(
        "web_search",
        "Search the web; returns title, url and snippet of each result as JSON. A snippet is no evidence: fetch the page to cite it.",
        WebSearch,
        first.run,
        effect="read",
        timeout_s=timeout_s * len(engines),
        calls_max=SEARCHES_MAX,
        implementation=first.name,
        fallbacks=tuple(others),
        retries=1,
    )


async def _search(engine: SearchEngine, _: ToolContext, args: WebSearch) -> ToolOutput:
    hits = await engine.search(args.query, args.limit)
    found = [
        {"title": shorten(clean(hit.title), TITLE_CHARS_MAX), "url": clean(hit.url), "snippet": shorten(clean(hit.snippet), SNIPPET_CHARS_MAX)}
        for hit in hits[: args.limit]
    ]
    return ToolOutput(json.dumps({"query": args.query, "engine": engine.name, "results": found}, indent=1, ensure_ascii=False))
