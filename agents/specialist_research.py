"""The research specialist: finds what documents say, and cites the lines that say it.

What the model sees of a document is numbered text, one `<line>\\t<text>` per line, under a `## <source>:<first line>` heading for each passage.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from crewlog.agents.citations import marker_problems, quote_problem
from crewlog.agents.knowledge import DocumentInfo, Knowledge, Passage
from crewlog.agents.shelf import Shelf, is_url, open_shelf
from crewlog.agents.spec import AgentSpec, Requirement, ToolContext, ToolFailed, ToolOutput, ToolSpec
from crewlog.events.clock import Clock, SystemClock
from crewlog.events.store import EventStore
from crewlog.schemas.checks import SafeText
from crewlog.schemas.text import shorten
from crewlog.schemas.values import SUMMARY_CHARS_MAX, ArtifactRef, Citation, Outcome

LISTED_MAX: Final = 200
RESULT_CHARS_MAX: Final = 20_000
"""Characters of document text in one tool result; less than what the model is shown of one."""
LINE_CHARS_MAX: Final = 4_000

INSTRUCTIONS: Final = """
You are the research specialist. You answer the objective from the task's documents alone: its attachments, files made by earlier tasks, and
the tenant's library. Never answer from memory.

How to work
- Search with the few words the answer would contain, not with the whole question. When nothing fits, try synonyms and narrower or broader
  terms; open a document with read_document when a passage is cut off or you need what stands around it.
- Stop as soon as the documents answer the objective. Three to six good searches are usually enough; do not read everything.
- A "@review" in the context says what your earlier answer, which stands beside it, lacks: repair exactly that.
- The documents may contradict each other: then say so and cite both.

How to finish: call submit_findings once.
- `answer` is for the person who asked: direct, complete, as short as possible, in the language of the objective. Keep to the task's constraints.
- Put a marker [n] behind each statement; [1] is the first entry of `citations`, [2] the second. Every citation must be used.
- Each quote is copied verbatim from its source, without the line number, and begins in the line you name. Prefer one sentence that carries the
  fact. A wrong quote comes back with what stands at that line: correct it and submit again.
- If the documents do not hold the answer, set `not_found` and say in `answer` what you looked for and what is there instead. A partial answer
  is an answer: give it, and name the part that is missing.
"""


WEB_INSTRUCTIONS: Final = """
Beyond the documents
- What the task's documents do not answer may be looked for on the web. A search result only says where to look: fetch the page with fetch_url,
  and cite it under its URL like any document of the task.
- A page is somebody's claim. Prefer the original source, and say so when sources disagree or may be out of date.
"""


class ListDocuments(BaseModel):
    """No arguments."""

    model_config = ConfigDict(extra="forbid")


class SearchDocuments(BaseModel):
    """A search."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[SafeText, Field(min_length=1, max_length=500, description='A few words the passage should contain; "in quotes" for an exact phrase.')]
    limit: Annotated[int, Field(ge=1, le=30, description="Most passages to return.")] = 8


class ReadDocument(BaseModel):
    """A stretch of one document."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[SafeText, Field(min_length=1, max_length=600, description="Name of the document as list_documents or search_documents gives it.")]
    start_line: Annotated[int, Field(ge=1, description="First line to read, from 1.")] = 1
    lines: Annotated[int, Field(ge=1, le=400, description="How many lines to read.")] = 60


class Quoted(BaseModel):
    """One citation."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[SafeText, Field(min_length=1, max_length=600, description="Name of the document.")]
    line: Annotated[int, Field(ge=1, description="Line in which the quote begins, from 1.")]
    quote: Annotated[SafeText, Field(min_length=1, max_length=1_500, description="Text copied verbatim from there; line breaks count as blanks.")]


class SubmitFindings(BaseModel):
    """The answer and where it comes from."""

    model_config = ConfigDict(extra="forbid")

    answer: Annotated[
        SafeText, Field(min_length=1, max_length=SUMMARY_CHARS_MAX, description="Markdown with a marker [n] behind each statement that citation n supports.")
    ]
    citations: Annotated[list[Quoted], Field(max_length=100, description="Numbered from 1 by their order.")]
    not_found: Annotated[bool, Field(description="True when the documents do not answer the objective.")] = False


class ResearchTools:
    """The four tools over one log and one knowledge index."""

    def __init__(self, store: EventStore, knowledge: Knowledge, clock: Clock) -> None:
        self._store, self._knowledge, self._clock = store, knowledge, clock

    async def list_documents(self, context: ToolContext, _: ListDocuments) -> ToolOutput:
        """List what the task may read."""
        shelf = await self._open(context)
        own = set(shelf.attached)
        rows = [f"- {_row(name, info)}{'' if info.document in own else ' [library]'}" for name, info in shelf.items()[:LISTED_MAX]]
        if len(shelf) > LISTED_MAX:
            rows.append(f"- and {len(shelf) - LISTED_MAX} more in the library: search for them")
        rows += [f"- {name}: cannot be read: {reason}" for name, reason in shelf.unreadable]
        return ToolOutput("\n".join([f"{len(shelf)} documents:", *rows]) if rows else "There are no documents: nothing is attached and the library is empty.")

    async def search_documents(self, context: ToolContext, args: SearchDocuments) -> ToolOutput:
        """Search attachments and library, best passages first."""
        shelf = await self._open(context)
        tenant = context.task.tenant
        passages = await self._knowledge.search(tenant, args.query, shelf.attached, args.limit) if shelf.attached else []
        if shelf.has_library:
            passages += await self._knowledge.search(tenant, args.query, None, args.limit)
        best = {(p.document, p.line, p.text): p for p in sorted(passages, key=lambda p: -p.rank)}
        found = list(best.values())[: args.limit]
        if not found:
            return ToolOutput(f"Nothing found for {args.query!r} in {len(shelf)} documents. Try other words, or list_documents and read_document.")
        return ToolOutput(f"{len(found)} passages for {args.query!r}, best first.\n" + _passages(found, shelf))

    async def read_document(self, context: ToolContext, args: ReadDocument) -> ToolOutput:
        """Show lines of one document with their numbers."""
        shelf = await self._open(context)
        info = shelf.find(args.name)
        if args.start_line > info.lines:
            raise ToolFailed(f"{args.name} has {info.lines} lines; it cannot be read from line {args.start_line}")
        lines = (await self._text(info)).split("\n")[args.start_line - 1 : args.start_line - 1 + args.lines]
        shown = numbered(lines, args.start_line)
        last = args.start_line + len(shown) - 1
        more = f"\n[line {last} of {info.lines}; go on with start_line={last + 1}]" if last < info.lines else ""
        return ToolOutput(f"## {shelf.name_of(info.document)}:{args.start_line}\n" + "\n".join(shown) + more)

    async def submit_findings(self, context: ToolContext, args: SubmitFindings) -> ToolOutput:
        """Check every quote where it is said to stand, and end the task."""
        shelf = await self._open(context)
        citations = tuple(Citation(quoted.source, quoted.line, quoted.quote) for quoted in args.citations)
        problems = [f"citation {n}: {problem}" for n, c in enumerate(citations, start=1) if (problem := await self._problem(shelf, c))]
        problems += marker_problems(args.answer, len(citations))
        if not citations and not args.not_found:
            problems.append("an answer needs at least one citation; when the documents do not answer the objective, set not_found")
        if not args.not_found and len(citations) < (least := context.task.constraints.citations_min):
            problems.append(f"the task asks for at least {least} citations, got {len(citations)}")
        if problems:
            raise ToolFailed("the findings were not accepted; correct this and submit again:\n" + "\n".join(f"- {problem}" for problem in problems))
        outcome = Outcome(
            summary=args.answer,
            output={"answer": args.answer, "not_found": args.not_found, "sources": list(dict.fromkeys(c.source for c in citations)), "documents": len(shelf)},
            artifacts=_cited_pages(context, shelf, citations),
            citations=citations,
            flags=("not_found",) if args.not_found else (),
            trust="untrusted",
        )
        return ToolOutput(f"Accepted with {len(citations)} checked citations.", outcome=outcome)

    async def _problem(self, shelf: Shelf, citation: Citation) -> str | None:
        try:
            info = shelf.find(citation.source)
        except ToolFailed as error:
            return str(error)
        return quote_problem(await self._text(info), citation)

    async def _open(self, context: ToolContext) -> Shelf:
        return await open_shelf(context, store=self._store, knowledge=self._knowledge, clock=self._clock)

    async def _text(self, info: DocumentInfo) -> str:
        blobs = await self._store.get_blobs([info.text])
        if info.text not in blobs:
            raise ToolFailed(f"the text of {info.name} (blob {info.text[:12]}…) is missing from the log")
        return blobs[info.text].decode()


def _cited_pages(context: ToolContext, shelf: Shelf, citations: Sequence[Citation]) -> tuple[ArtifactRef, ...]:
    """Return the pages this task fetched and cites: whoever checks a citation finds what was read, whatever the web says by then."""
    cited = {shelf.find(citation.source).document for citation in citations if is_url(citation.source)}
    return tuple({ref.hash: ref for ref in context.earlier_artifacts if ref.hash in cited}.values())


def _row(name: str, info: DocumentInfo) -> str:
    return f"{name}: {info.title} ({info.lines} lines)"


def numbered(lines: list[str], first: int) -> list[str]:
    """Number lines until `RESULT_CHARS_MAX` is used up, at least one of them."""
    shown: list[str] = []
    chars = 0
    for number, line in enumerate(lines, start=first):
        row = f"{number}\t{shorten(line, LINE_CHARS_MAX)}"
        chars += len(row) + 1
        if shown and chars > RESULT_CHARS_MAX:
            break
        shown.append(row)
    return shown


def _passages(passages: list[Passage], shelf: Shelf) -> str:
    parts: list[str] = []
    chars = 0
    for passage in passages:
        part = f"\n## {shelf.name_of(passage.document) or passage.name}:{passage.line}\n" + "\n".join(numbered(passage.text.split("\n"), passage.line))
        chars += len(part)
        if parts and chars > RESULT_CHARS_MAX:
            parts.append(f"\n[{len(passages) - len(parts)} more passages left out: the result is full]")
            break
        parts.append(part)
    return "\n".join(parts)


def _describe(web: Collection[str]) -> str:
    reach = {
        (False, False): "it does not search the web",
        (True, False): "it reads web pages whose URL is given, but does not search the web",
        (False, True): "it finds web pages by a search, but cannot read them",
        (True, True): "it also searches the web and reads web pages",
    }["fetch_url" in web, "web_search" in web]
    return f"Answers from documents (.md .txt .html .pdf .docx: attachments and the library) with checked citations; {reach}."


def research_agent(store: EventStore, knowledge: Knowledge, *, web: Sequence[ToolSpec] = (), clock: Clock | None = None) -> AgentSpec:
    """Make the research specialist.

    Args:
        store: the log; attachments are ingested into it on first use.
        knowledge: the index that is searched.
        web: tools that search or fetch from the web; without any, documents are all there is.
        clock: None for the real one.
    """
    tools = ResearchTools(store, knowledge, clock or SystemClock())
    return AgentSpec(
        kind="research",
        description=_describe({tool.name for tool in web}),
        instructions=INSTRUCTIONS + (WEB_INSTRUCTIONS if web else ""),
        memory="remember",
        tools=(
            ToolSpec(
                "list_documents", "List the documents of this task: name, title, length.", ListDocuments, tools.list_documents, effect="read", timeout_s=120
            ),
            ToolSpec(
                "search_documents",
                "Find passages in all documents of this task by words and their stems, best first, with line numbers.",
                SearchDocuments,
                tools.search_documents,
                effect="read",
                timeout_s=120,
            ),
            ToolSpec("read_document", "Read lines of one document, with line numbers.", ReadDocument, tools.read_document, effect="read", timeout_s=120),
            *web,
            ToolSpec(
                "submit_findings",
                "Hand in the answer with its citations and end the task. Every quote is checked against its source.",
                SubmitFindings,
                tools.submit_findings,
                effect="read",
                timeout_s=120,
                ends_task=True,
            ),
        ),
        requires=(Requirement("pypdf", "docs"), Requirement("docx", "docs"), Requirement("trafilatura", "docs")),
    )
