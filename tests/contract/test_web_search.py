"""`web_search` against servers on loopback that speak the wire formats of Brave, Tavily and SearXNG."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.toolbox import bench
from support.website import Answer, Website, page, serving

from crewlog.agents.kinds import BUILT_IN, Services
from crewlog.agents.knowledge_memory import MemoryKnowledge
from crewlog.agents.tool_runner import Ran, run_tool
from crewlog.agents.tool_ways import ToolHealth
from crewlog.agents.web_engines import Brave, SearXng, Tavily, engines
from crewlog.agents.web_search import SearchEngine, web_search_tool
from crewlog.events.clock import SystemClock
from crewlog.events.config import Config
from crewlog.events.memory_store import MemoryStore

BRAVE = {"web": {"results": [{"title": "A <strong>title</strong>", "url": "https://a.example/", "description": "Fish &amp; <strong>chips</strong>"}]}}
TAVILY = {"results": [{"title": "T", "url": "https://t.example/", "content": "From tavily", "score": 0.9}]}
SEARXNG = {"results": [{"title": f"S{n}", "url": f"https://s.example/{n}", "content": "From searxng"} for n in range(30)]}

PATHS = {"brave": "/res/v1/web/search", "tavily": "/search", "searxng": "/search"}
ANSWERS: dict[str, Any] = {"brave": BRAVE, "tavily": TAVILY, "searxng": SEARXNG}
MAKE: dict[str, Callable[[str], SearchEngine]] = {"brave": lambda url: Brave("secret", url), "tavily": lambda url: Tavily("secret", url), "searxng": SearXng}


def api(engine: str, answer: Answer | None = None) -> dict[str, Answer]:
    return {PATHS[engine]: page(json.dumps(ANSWERS[engine]), "application/json") if answer is None else answer}


async def run(*asked: SearchEngine, query: str = "fish", limit: int = 5, timeout_s: float = 5.0) -> Ran:
    arguments = json.dumps({"query": query, "limit": limit})
    return await run_tool(web_search_tool(asked, timeout_s=timeout_s), (await bench()).context(), arguments, SystemClock(), ToolHealth())


async def search(*asked: SearchEngine, query: str = "fish", limit: int = 5, timeout_s: float = 5.0) -> dict[str, Any]:
    """Return the results, and under `degraded` what the note behind them says."""
    ran = await run(*asked, query=query, limit=limit, timeout_s=timeout_s)
    assert ran.is_ok, ran.output.content
    found, end = json.JSONDecoder().raw_decode(ran.output.content)
    note = ran.output.content[end:].strip()
    assert isinstance(found, dict)
    return {**found, **({"degraded": json.loads(note)["degraded"]} if note else {})}


async def asked_of(engine: str) -> tuple[dict[str, Any], Website]:
    async with serving(api(engine)) as site:
        return await search(MAKE[engine](site.url("")), query="fish & chips?"), site


async def test_brave_is_asked_with_its_token_and_markup_is_taken_out() -> None:
    found, site = await asked_of("brave")
    assert found == {
        "query": "fish & chips?",
        "engine": "brave",
        "results": [{"title": "A title", "url": "https://a.example/", "snippet": "Fish & chips"}],
    }
    assert (site.asked[0].path, site.asked[0].headers["x-subscription-token"]) == ("/res/v1/web/search?q=fish+%26+chips%3F&count=5", "secret")


async def test_tavily_is_asked_with_its_key() -> None:
    found, site = await asked_of("tavily")
    assert (found["engine"], found["results"]) == ("tavily", [{"title": "T", "url": "https://t.example/", "snippet": "From tavily"}])
    assert site.asked[0].headers["authorization"] == "Bearer secret"
    assert json.loads(site.asked[0].body) == {"query": "fish & chips?", "max_results": 5}


async def test_searxng_gives_no_more_than_was_asked_for() -> None:
    found, site = await asked_of("searxng")
    assert [hit["title"] for hit in found["results"]] == ["S0", "S1", "S2", "S3", "S4"]
    assert site.asked[0].path == "/search?q=fish+%26+chips%3F&format=json"


BROKEN: list[tuple[bytes, str]] = [
    (page("{}", status="429 Too Many Requests", Retry_After="60"), "is at its rate limit"),
    (page("{}", status="503 Service Unavailable", Retry_After="60"), "is at its rate limit"),
    (page("{}", status="401 Unauthorized"), "refused the key"),
    (page("{}", status="402 Payment Required"), "has no credit left"),
    (page("{}", status="403 Forbidden"), "refused access"),
    (page("oops", status="500 Internal Server Error"), "is out of order"),
    (page("", status="302 Found", Location="http://127.0.0.1:1/"), "is out of order"),
    (page("<html>login</html>"), "did not answer with JSON"),
    (page("[1]", "application/json"), "did not answer with a JSON object"),
    (page("[" * 100_000, "application/json"), "did not answer with JSON"),
    (page('{"web": 7, "results": 7}', "application/json"), "answered in an unknown form"),
    (page(b" " * (5 * 1024 * 1024), "application/json"), "sent more than 4 MiB"),
    (b"", "cannot be reached"),
]


@pytest.mark.parametrize("engine", sorted(PATHS))
@pytest.mark.parametrize(("answer", "reason"), BROKEN)
async def test_a_failing_engine_gives_way_to_the_next_and_the_result_says_so(engine: str, answer: bytes, reason: str) -> None:
    async with serving(api(engine, answer)) as broken, serving(api("tavily")) as good:
        found = await search(MAKE[engine](broken.url("")), Tavily("k", good.url("")))
    assert found["engine"] == "tavily"
    assert len(found["degraded"]) == 1
    assert found["degraded"][0].startswith(f"{engine}: {reason}")
    assert not any(mark in found["degraded"][0] for mark in ("429", "503", "secret"))


async def test_when_all_fail_the_model_is_told_each_reason() -> None:
    async with serving(api("brave", page("{}", status="401 Unauthorized"))) as brave:
        ran = await run(Brave("k", brave.url("")), SearXng("http://127.0.0.1:1"))
    assert not ran.is_ok
    told = json.loads(ran.output.content)
    assert told["error"].startswith("web_search is not available now; go on without it")
    assert told["degraded"] == ["brave: refused the key; the operator must check it", "searxng: cannot be reached (ConnectError)"]


async def test_an_engine_that_hangs_costs_its_time_and_no_more() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serving(api("searxng", silent)) as site, serving(api("tavily")) as good:
        found = await search(SearXng(site.url("")), Tavily("k", good.url("")), timeout_s=2.0)
    assert (found["engine"], found["degraded"]) == ("tavily", ["searxng: did not answer in time"])


async def test_an_engine_that_only_wants_a_moment_is_asked_once_more() -> None:
    answers = [page("{}", status="429 Too Many Requests", Retry_After="0"), page(json.dumps(TAVILY), "application/json")]
    async with serving(api("tavily", lambda _: answers.pop(0))) as site:
        assert (await search(Tavily("k", site.url(""))))["engine"] == "tavily"
    assert answers == []


async def test_a_refused_key_is_not_tried_again() -> None:
    async with serving(api("brave", page("{}", status="401 Unauthorized"))) as brave:
        ran = await run(Brave("k", brave.url("")))
    assert (ran.is_ok, ran.output.content, len(brave.asked)) == (False, "refused the key; the operator must check it", 1)


async def test_results_without_a_usable_url_are_left_out() -> None:
    odd = {
        "results": [
            7,
            {"title": "no url"},
            {"url": "javascript:alert(1)"},
            {"url": "https://x.example/" + "a" * 3000},
            {"url": "https://ok.example/", "title": 3},
        ]
    }
    async with serving(api("searxng", page(json.dumps(odd), "application/json"))) as site:
        found = await search(SearXng(site.url("")))
    assert found["results"] == [{"title": "", "url": "https://ok.example/", "snippet": ""}]


def test_which_tools_the_research_agent_has_follows_from_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BRAVE_API_KEY", "TAVILY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    store = MemoryStore()

    def tools(config: Config) -> set[str]:
        agent = BUILT_IN["research"](Services(config, store, MemoryKnowledge(store)))
        assert isinstance(agent.tools, tuple)
        return {tool.name for tool in agent.tools} & {"web_search", "fetch_url"}

    assert tools(Config()) == set()
    assert tools(Config(fetch_hosts=("*",))) == {"fetch_url"}
    assert tools(Config(searxng_url="http://127.0.0.1:1")) == {"web_search"}
    monkeypatch.setenv("BRAVE_API_KEY", "b")
    monkeypatch.setenv("TAVILY_API_KEY", "t")
    assert [engine.name for engine in engines(Config(searxng_url="http://127.0.0.1:1"))] == ["brave", "tavily", "searxng"]
    assert tools(Config(fetch_hosts=("*",))) == {"fetch_url", "web_search"}
