"""`fetch_url` against real servers on loopback: what is read, what is refused, and that a page can be cited like a document."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import zlib
from pathlib import Path

import pytest
from support.certificates import certificate
from support.papers import make_pdf
from support.solo import Solo, carry_out
from support.toolbox import Bench, bench
from support.website import Asked, page, redirect, serving

from crewlog.agents.knowledge_memory import MemoryKnowledge
from crewlog.agents.offline import OfflineModel
from crewlog.agents.spec import AgentSpec, ToolFailed
from crewlog.agents.specialist_research import research_agent
from crewlog.agents.url_guard import Hosts
from crewlog.agents.web_fetch import PAGE_BYTES_MAX, fetch
from crewlog.agents.web_pages import HOSTS_SETTING, WebPages
from crewlog.events.clock import SystemClock
from crewlog.events.memory_store import MemoryStore
from crewlog.schemas.plan import Constraints

ARTICLE = """<!doctype html><html><head><title>Refund policy</title><script>ignore()</script></head><body>
<nav><a href="/">Home</a></nav>
<article><h1>Refund policy</h1>
<p>A refund is paid within 14 days of the request, to the card that was charged, and nobody has to give a reason for it.</p>
<p>Seats that were used in the month are not refunded, because the service was already given and cannot be taken back again.</p></article>
</body></html>"""


def hosts(*entries: str) -> Hosts:
    return Hosts(entries, HOSTS_SETTING)


def agent_for(*entries: str) -> AgentSpec:
    store = MemoryStore()
    pages = WebPages(store, SystemClock(), hosts(*entries))
    return research_agent(store, MemoryKnowledge(store), web=(pages.tool(),))


async def test_a_page_becomes_a_document_that_is_cited_under_its_url() -> None:
    async with serving({"/refunds": page(ARTICLE)}) as site:
        agent, desk = agent_for(site.host), await bench()
        url = site.url("/refunds")
        shown = (await desk.call(agent, "fetch_url", {"url": f"{url}#top"})).content
        assert shown.startswith(f"## {url}:1\n1\tSource: {url}\n2\t\n3\t# Refund policy\n")
        assert "ignore()" not in shown
        line = next(int(row.split("\t")[0]) for row in shown.splitlines() if "14 days" in row)
        assert f"- {url}: Refund policy" in (await desk.call(agent, "list_documents", {})).content
        assert f"## {url}:" in (await desk.call(agent, "search_documents", {"query": "seats refunded"})).content
        wrong = {"answer": "Within 14 days [1].", "citations": [{"source": url, "line": line, "quote": "A refund is paid within 30 days"}]}
        with pytest.raises(ToolFailed, match="the quote does not stand in"):
            await desk.call(agent, "submit_findings", wrong)
        right = {"answer": "Within 14 days [1].", "citations": [{"source": url, "line": line, "quote": "A refund is paid within 14 days"}]}
        outcome = (await desk.call(agent, "submit_findings", right)).outcome
    assert outcome is not None
    assert [(c.source, c.line) for c in outcome.citations] == [(url, line)]
    assert outcome.trust == "untrusted"
    (kept,) = outcome.artifacts
    assert (await desk.artifacts.get(kept.hash)).decode().split("\n")[line - 1].startswith("A refund is paid within 14 days")


async def test_a_page_is_fetched_once_per_task_unless_asked_anew() -> None:
    async with serving({"/": page("Hello there.", "text/plain")}) as site:
        agent, desk = agent_for(site.host), await bench()
        for refresh, times in ((False, 1), (False, 1), (True, 2)):
            shown = (await desk.call(agent, "fetch_url", {"url": site.url(), "refresh": refresh})).content
            assert ("Hello there." in shown, len(site.asked)) == (True, times)


@pytest.mark.parametrize(
    ("media_type", "body", "text"),
    [
        ("text/plain; charset=iso-8859-1", "Größe".encode("latin-1"), "Größe"),
        ("text/html", '<html><head><meta charset="windows-1251"></head><body><p>Привет</p></body></html>'.encode("cp1251"), "Привет"),
        ("text/plain; charset=rot13", b"plain", "plain"),
        ("text/plain; charset=nonsense", b"plain", "plain"),
        ("text/markdown", b"# Title\n\nText\n", "3\t# Title"),
        ("application/json", b'{"price":12}', '4\t  "price": 12'),
        ("application/problem+json", b"not json at all", "not json at all"),
        ("application/xml", b"<a>1</a>", "<a>1</a>"),
        ("application/pdf", make_pdf([["Refunds take 14 days."]]), "Refunds take 14 days."),
        ("", b"<html><body><p>Untyped page.</p></body></html>", "Untyped page."),
        ("application/octet-stream", make_pdf([["Refunds take 14 days."]]), "Refunds take 14 days."),
    ],
)
async def test_what_can_be_read(media_type: str, body: bytes, text: str) -> None:
    async with serving({"/doc": page(body, media_type)}) as site:
        assert text in (await (await bench()).call(agent_for(site.host), "fetch_url", {"url": site.url("/doc")})).content


async def refusal(desk: Bench, url: str, *entries: str) -> str:
    with pytest.raises(ToolFailed) as caught:
        await desk.call(agent_for(*entries), "fetch_url", {"url": url})
    return str(caught.value)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (page("no", status="404 Not Found"), "127.0.0.1 answered 404 Not Found for"),
        (page("no", status="401 Unauthorized"), "answered 401"),
        (page("", status="204 No Content"), "answered 204"),
        (page("slow down", status="429 Too Many Requests", Retry_After="30"), "limits how often it is asked; it asks to wait 30 s. Use another source"),
        (page("", status="503 Service Unavailable"), "is busy"),
        (page(b"\x89PNG\r\n", "image/png"), "is image/png, which holds no text"),
        (page(b"\0\1\2", "application/octet-stream"), "is application/octet-stream, which holds no text"),
        (page(b"\0\1\2", "text/plain"), "holds binary data, not text"),
        (page(b"%PDF-1.7 broken", "application/pdf"), "seems to be damaged"),
        (page("   ", "text/plain"), "holds no text"),
        (page(b"x", "text/plain", Content_Encoding="br"), "packed as 'br'"),
        (page(b"not gzip", "text/plain", Content_Encoding="gzip"), "gave no complete answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbroken off", "gave no complete answer"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "gave no complete answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", "gave no complete answer"),
        (b"", "gave no complete answer"),
        (page(b"", "", "302 Found"), "redirects, but does not say where to"),
        (redirect("http://169.254.169.254/latest/"), "redirected to http://169.254.169.254/latest/: 169.254.169.254:80 is not among the hosts"),
        (redirect("file:///etc/passwd"), "must begin with https:// or http://"),
        (redirect("http://user:pw@example.org/"), "user name or password"),
        (redirect("/"), "more than 5 redirects"),
        (redirect("//[bad/"), "%5bbad:80 is not among the hosts"),
    ],
)
async def test_what_comes_back_as_an_error_the_model_can_act_on(answer: bytes, problem: str) -> None:
    async with serving({"/": answer}) as site:
        assert problem in await refusal(await bench(), site.url(), site.host)


async def test_a_redirect_to_an_inner_server_is_refused_even_when_every_public_host_is_allowed() -> None:
    async with serving({"/": page("secret")}) as inner, serving({"/": redirect(inner.url())}) as site:
        problem = await refusal(await bench(), site.url(), site.host, "*")
        assert "is not among the hosts" in problem
        assert not inner.asked
        site.pages["/"] = redirect("http://localhost/")
        assert "which is not a public address" in await refusal(await bench(), site.url(), site.host, "*")


async def test_a_page_behind_redirects_is_known_by_where_it_was_found() -> None:
    async with serving({"/old": redirect("/new?x=1", "301 Moved Permanently"), "/new": page("Found it.", "text/plain")}) as site:
        shown = (await (await bench()).call(agent_for(site.host), "fetch_url", {"url": site.url("/old")})).content
        assert shown.startswith(f"## {site.url('/new?x=1')}:1\n")


async def test_a_name_that_turns_private_between_two_hops_is_caught_at_the_second() -> None:
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    async def turning(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async with serving({"/": redirect("http://turning.example/next")}) as site:
        with pytest.raises(ToolFailed, match=r"turning\.example resolves to 10\.0\.0\.1, which is not a public address"):
            await fetch(f"http://turning.example:{site.port}/", hosts(f"turning.example:{site.port}", "turning.example"), look_up=turning)


async def test_what_is_unpacked_is_bounded_too() -> None:
    bomb = gzip.compress(b"a" * (4 * PAGE_BYTES_MAX), 9)
    assert len(bomb) < PAGE_BYTES_MAX
    small = zlib.compress(b"Deflated well.")
    async with serving({"/bomb": page(bomb, "text/plain", Content_Encoding="gzip"), "/z": page(small, "text/plain", Content_Encoding="deflate")}) as site:
        assert "is larger than 8 MiB" in await refusal(await bench(), site.url("/bomb"), site.host)
        assert (await fetch(site.url("/z"), hosts(site.host))).data == b"Deflated well."


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
async def test_a_packed_page_that_breaks_off_is_no_whole_page(packing: str) -> None:
    text = " ".join(f"Line {number} of a price list." for number in range(2_000)).encode()
    packed = gzip.compress(text) if packing == "gzip" else zlib.compress(text)
    broken = {"/half": packed[: len(packed) // 2], "/sum": packed[:-1], "/two": packed + gzip.compress(b"more")}
    whole = {"/whole": packed, "/padded": packed + bytes(100), "/nothing": b""}
    pages = {path: page(data, "text/plain", Content_Encoding=packing) for path, data in (broken | whole).items()}
    async with serving(pages) as site:
        for path in ("/half", "/sum"):
            assert "breaks off before its end; that is not read" in await refusal(await bench(), site.url(path), site.host)
        assert "is packed in several parts" in await refusal(await bench(), site.url("/two"), site.host)
        for path, read in (("/whole", text), ("/padded", text), ("/nothing", b"")):
            assert (await fetch(site.url(path), hosts(site.host))).data == read


async def test_an_endless_answer_ends_at_the_limit() -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with serving({"/": endless}) as site:
        assert "is larger than 8 MiB" in await refusal(await bench(), site.url(), site.host)


async def test_a_server_that_never_answers_costs_no_more_than_its_time() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serving({"/": silent}) as site:
        with pytest.raises(ToolFailed, match=r"did not arrive within 0\.3 s"):
            await fetch(site.url(), hosts(site.host), timeout_s=0.3)


async def test_the_certificate_is_checked_against_the_name_although_the_connection_goes_to_an_address(tmp_path: Path) -> None:
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path, "docs.example"))
    context.sni_callback = lambda _, name, __: names.append(name)

    async def loopback(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async with serving({"/": page("secret")}, tls=context) as site:
        entry = f"docs.example:{site.port}"
        with pytest.raises(ToolFailed, match=r"docs\.example:\d+ cannot be reached at 127\.0\.0\.1.*certificate"):
            await fetch(f"https://{entry}/", hosts(entry), look_up=loopback)
    assert (names, site.asked) == (["docs.example"], [])


async def test_nothing_of_ours_travels_with_a_fetch() -> None:
    async with serving({"/": lambda asked: page(repr(sorted(asked.headers)), "text/plain")}) as site:
        text = (await fetch(site.url("/?q=1"), hosts(site.host))).data.decode()
    (asked,) = site.asked
    assert isinstance(asked, Asked)
    assert text == "['accept', 'accept-encoding', 'connection', 'host', 'user-agent']"
    assert asked.headers["user-agent"] == "crewlog"


async def offline(objective: str, *entries: str) -> Solo:
    at = await bench(objective, attachments={"notes.md": b"# Notes\n\nLunch is at noon.\n"}, constraints=Constraints(citations_min=1))
    return await carry_out(agent_for(*entries), OfflineModel(), at)


async def test_the_offline_rules_read_the_page_a_goal_names_and_cite_it() -> None:
    async with serving({"/refunds": page(ARTICLE)}) as site:
        url = site.url("/refunds")
        solo = await offline(f"Within how many days is a refund paid? See {url}.", site.host)
    assert solo.used("fetch_url") == [f'{{"url": "{url}"}}']
    assert "14 days" in solo.result.summary
    assert solo.result.citations[0].source == url
    assert [a.media_type for a in solo.result.artifacts] == ["text/markdown"]


async def test_the_offline_rules_fetch_nothing_by_themselves_and_say_what_they_could_not_read() -> None:
    async with serving({"/": page("x", status="404 Not Found")}) as site:
        assert (await offline("When is lunch?", site.host)).used("fetch_url") == []
        solo = await offline(f"When is lunch, according to {site.url()}?", site.host)
    assert "Lunch is at noon." in solo.result.summary
    assert f"{site.url()} was not read: 127.0.0.1 answered 404 Not Found" in solo.result.summary
