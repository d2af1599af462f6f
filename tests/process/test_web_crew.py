"""A crew that may read one web site answers from it, with the URL and line of what it says; the same crew may read no other."""

from __future__ import annotations

import asyncio
from typing import Any

from support.live_crew import a_crew
from support.website import page, serving

ARTICLE = """<html><head><title>Library rules</title></head><body><article><h1>Library rules</h1>
<p>A borrowed book must be returned within 28 days, or the reader pays one euro for each further week.</p>
<p>Reading rooms are open on every day of the week from nine in the morning until ten in the evening.</p></article></body></html>"""


async def test_a_goal_that_names_a_page_is_answered_from_it() -> None:
    async with serving({"/rules": page(ARTICLE)}) as site, serving({"/rules": page(ARTICLE)}) as other:
        with a_crew("--agents", "planner=1,research=1,code=0,data=0,communicate=0", CREWLOG_FETCH_HOSTS=site.host) as crew:

            async def ask(url: str) -> dict[str, Any]:
                words = f"Within how many days must a borrowed book be returned, according to {url}?"
                done: dict[str, Any] = await asyncio.to_thread(crew.json, "submit", words, "--type", "research", "--wait", "--timeout", "60")
                return done

            answered = await ask(site.url("/rules"))
            assert "28 days" in answered["answer"]
            (citation,) = answered["citations"][:1]
            assert (citation["source"], "28 days" in citation["quote"]) == (site.url("/rules"), True)
            assert [artifact["media_type"] for artifact in answered["artifacts"]] == ["text/markdown"]
            await asyncio.to_thread(crew.run, "replay", answered["run_id"], "--verify")

            refused = await ask(other.url("/rules"))
            assert "is not among the hosts that may be reached" in refused["answer"]
            assert len(site.asked) == 1
            assert not other.asked
