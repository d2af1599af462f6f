from __future__ import annotations

from collections.abc import Sequence

import pytest
from pydantic import ValidationError
from support.papers import make_pdf
from support.toolbox import MemoryArtifacts, bench, earlier

from crewlog.agents.ingest import ingest
from crewlog.agents.knowledge import DocumentInfo
from crewlog.agents.knowledge_memory import MemoryKnowledge
from crewlog.agents.spec import AgentSpec, ToolFailed
from crewlog.agents.specialist_research import LINE_CHARS_MAX, RESULT_CHARS_MAX, research_agent
from crewlog.events.clock import SystemClock
from crewlog.events.memory_store import MemoryStore
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import Hash
from crewlog.schemas.plan import Constraints
from crewlog.schemas.system_events import DocumentIngested
from crewlog.schemas.values import Citation

RULES = b"# Refunds\n\nA refund is paid within 14 days\nof the request.\n\n# Seats\n\nA team has five seats.\n"
PRICES = b"# Prices\n\nThe basic plan costs 12 euros.\n"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def agent(store: MemoryStore) -> AgentSpec:
    return research_agent(store, MemoryKnowledge(store))


async def shelve(store: MemoryStore, name: str, data: bytes, *, tenant: str = "default") -> None:
    await ingest(store, SystemClock(), tenant=tenant, name=name, data=data, library=True)


async def ingested(store: MemoryStore) -> list[DocumentIngested]:
    return [event for recorded in (await store.read_all(0, 100)).events if isinstance(event := recorded.event(), DocumentIngested)]


async def test_documents_are_attachments_earlier_files_and_the_library(store: MemoryStore, agent: AgentSpec) -> None:
    await shelve(store, "prices.md", PRICES)
    await shelve(store, "other.md", b"Theirs.", tenant="acme")
    made = MemoryArtifacts()
    report = await made.put("report.md", b"# Report\n\nAll is well.\n")
    desk = await bench(attachments={"rules.md": RULES, "data.csv": b"a,b\n1,2\n"}, context=[earlier("check", artifacts=[report])])
    desk.artifacts.files.update(made.files)
    listed = (await desk.call(agent, "list_documents", {})).content
    assert listed.split("\n") == ["3 documents:", "- rules.md: Refunds (8 lines)", "- report.md: Report (3 lines)", "- prices.md: Prices (3 lines) [library]"]
    assert (await (await bench(tenant="nobody")).call(agent, "list_documents", {})).content.startswith("There are no documents")


async def test_attachments_are_ingested_once_and_stay_out_of_the_library(store: MemoryStore, agent: AgentSpec) -> None:
    desk = await bench(attachments={"rules.md": RULES})
    for _ in range(3):
        await desk.call(agent, "search_documents", {"query": "refund"})
    assert [(event.name, event.library) for event in await ingested(store)] == [("rules.md", False)]
    assert "Nothing found for 'refund' in 0 documents" in (await (await bench()).call(agent, "search_documents", {"query": "refund"})).content


async def test_search_shows_numbered_lines_under_the_name_the_task_knows(store: MemoryStore, agent: AgentSpec) -> None:
    await shelve(store, "prices.md", PRICES)
    await (await bench(attachments={"first-name.md": RULES})).call(agent, "list_documents", {})
    desk = await bench(attachments={"rules/renamed.md": RULES})
    found = (await desk.call(agent, "search_documents", {"query": "refunds days"})).content
    assert found.startswith(
        "1 passages for 'refunds days', best first.\n\n## rules/renamed.md:1\n1\t# Refunds\n2\t\n3\tA refund is paid within 14 days\n4\tof the request."
    )
    assert "## prices.md:1\n" in (await desk.call(agent, "search_documents", {"query": "costs"})).content


async def test_reading_goes_on_where_it_stopped(agent: AgentSpec) -> None:
    desk = await bench(attachments={"long.txt": b"\n".join(b"line %d" % n for n in range(1, 101))})
    first = (await desk.call(agent, "read_document", {"name": "long.txt", "lines": 3})).content
    assert first == "## long.txt:1\n1\tline 1\n2\tline 2\n3\tline 3\n[line 3 of 100; go on with start_line=4]"
    last = (await desk.call(agent, "read_document", {"name": "long.txt", "start_line": 99})).content
    assert last == "## long.txt:99\n99\tline 99\n100\tline 100"
    with pytest.raises(ToolFailed, match="has 100 lines; it cannot be read from line 101"):
        await desk.call(agent, "read_document", {"name": "long.txt", "start_line": 101})
    with pytest.raises(ToolFailed, match=r"no document 'lang.txt'; did you mean long.txt\?"):
        await desk.call(agent, "read_document", {"name": "lang.txt"})


async def test_long_lines_never_make_a_result_the_model_cannot_see(agent: AgentSpec) -> None:
    desk = await bench(attachments={"wide.txt": b"\n".join([b"word " * 2_000] * 30)})
    for output in (await desk.call(agent, "read_document", {"name": "wide.txt"}), await desk.call(agent, "search_documents", {"query": "word"})):
        assert LINE_CHARS_MAX < len(output.content) < RESULT_CHARS_MAX + LINE_CHARS_MAX


async def test_findings_end_the_task_with_their_citations(agent: AgentSpec) -> None:
    desk = await bench(attachments={"rules.md": RULES})
    cited = [{"source": "rules.md", "line": 3, "quote": "within 14 days of the request"}, {"source": "rules.md", "line": 8, "quote": "five seats"}]
    output = await desk.call(agent, "submit_findings", {"answer": "Refunds take 14 days [1]; teams have five seats [2].", "citations": cited})
    assert output.outcome is not None
    assert output.outcome.citations == (Citation("rules.md", 3, "within 14 days of the request"), Citation("rules.md", 8, "five seats"))
    assert output.outcome.summary == "Refunds take 14 days [1]; teams have five seats [2]."
    assert output.outcome.output == {"answer": output.outcome.summary, "not_found": False, "sources": ["rules.md"], "documents": 1}
    assert (output.outcome.trust, output.outcome.flags) == ("untrusted", ())


async def test_not_found_is_an_answer(agent: AgentSpec) -> None:
    desk = await bench(attachments={"rules.md": RULES}, constraints=Constraints(citations_min=2))
    output = await desk.call(agent, "submit_findings", {"answer": "The rules say nothing about pets.", "citations": [], "not_found": True})
    assert output.outcome is not None
    assert output.outcome.flags == ("not_found",)
    assert output.outcome.output["not_found"] is True


@pytest.mark.parametrize(
    ("answer", "citations", "problems"),
    [
        ("14 days [1].", [("rules.md", 1, "A refund is paid")], ["citation 1: the quote stands at line 3 of rules.md, not at line 1"]),
        (
            "15 days [1].",
            [("rules.md", 3, "A refund is paid within 15 days")],
            ["citation 1: the quote does not stand in rules.md; its line 3 reads: A refund is paid within 14 days"],
        ),
        ("14 days [1].", [("rule.md", 3, "A refund")], ["citation 1: there is no document 'rule.md'; did you mean rules.md?"]),
        ("14 days.", [("rules.md", 3, "A refund")], ["the answer never uses [1]"]),
        ("14 days [1][2].", [("rules.md", 3, "A refund")], ["the answer uses [2], but there are 1 citations"]),
        ("14 days.", [], ["an answer needs at least one citation", "the task asks for at least 1 citations, got 0"]),
        ("a [1] b [2]", [("rules.md", 99, "x"), ("rules.md", 2, "Seats")], ["citation 1: rules.md has lines 1 to 8", "citation 2: the quote stands at line 6"]),
    ],
)
async def test_wrong_findings_come_back_with_every_problem(
    agent: AgentSpec, answer: str, citations: Sequence[tuple[str, int, str]], problems: list[str]
) -> None:
    desk = await bench(attachments={"rules.md": RULES}, constraints=Constraints(citations_min=1))
    with pytest.raises(ToolFailed) as failed:
        await desk.call(agent, "submit_findings", {"answer": answer, "citations": [{"source": s, "line": n, "quote": q} for s, n, q in citations]})
    assert str(failed.value).startswith("the findings were not accepted; correct this and submit again:\n- ")
    assert [problem for problem in problems if f"- {problem}" not in str(failed.value)] == []


async def test_files_that_cannot_be_read_are_listed_with_the_reason(agent: AgentSpec) -> None:
    desk = await bench(attachments={"rules.md": RULES, "secret.pdf": make_pdf([["x"]], password="y"), "lost.txt": b"gone"})
    del desk.artifacts.files[desk.task.attachments[2].hash]
    listed = (await desk.call(agent, "list_documents", {})).content
    assert "- secret.pdf: cannot be read: PDF 'secret.pdf' is encrypted" in listed
    assert "- lost.txt: cannot be read: file 'lost.txt' cannot be fetched" in listed
    with pytest.raises(ToolFailed, match=r"it is attached, but PDF 'secret.pdf' is encrypted"):
        await desk.call(agent, "read_document", {"name": "secret.pdf"})


async def test_documents_of_one_name_get_their_hash_behind_it(store: MemoryStore, agent: AgentSpec) -> None:
    await shelve(store, "rules.md", PRICES)
    desk = await bench(attachments={"rules.md": RULES})
    second = next(event.content for event in await ingested(store) if event.library)
    name = f"rules.md@{second[:8]}"
    assert name in (await desk.call(agent, "list_documents", {})).content
    assert "12 euros" in (await desk.call(agent, "read_document", {"name": name})).content
    assert "14 days" in (await desk.call(agent, "read_document", {"name": "rules.md"})).content


class Lagging(MemoryKnowledge):
    """An index whose projector stands still."""

    async def documents(self, tenant: str, hashes: Sequence[Hash] | None) -> list[DocumentInfo]:
        return []

    async def wait_indexed(self, position: int, timeout_s: float) -> None:
        raise Unavailable(f"the knowledge index is at position 0 and has not reached {position} within {timeout_s:g} s; the projector lags")


async def test_a_lagging_index_is_named(store: MemoryStore) -> None:
    desk = await bench(attachments={"rules.md": RULES})
    with pytest.raises(ToolFailed, match=r"in the log but cannot be searched yet: .*position 0 .*the projector lags.* in a moment"):
        await desk.call(research_agent(store, Lagging(store)), "search_documents", {"query": "x"})


async def test_arguments_are_closed_and_described(agent: AgentSpec) -> None:
    desk = await bench()
    with pytest.raises(ValidationError):
        await desk.call(agent, "search_documents", {"query": "x", "tenant": "acme"})
    with pytest.raises(ValidationError):
        await desk.call(agent, "search_documents", {"query": "a\0b"})
    for tool in agent.tools_for(desk.task):
        schema = tool.definition().parameters
        assert schema["additionalProperties"] is False
        assert all("description" in field for field in schema["properties"].values())
        assert (tool.effect, tool.trust, tool.ends_task) == ("read", "untrusted", tool.name == "submit_findings")
