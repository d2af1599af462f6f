"""Rules of the research specialist: search, read around what was found, and answer with sentences that stand in the documents."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from crewlog.agents.offline_clauses import strip_fillers
from crewlog.agents.offline_conversation import Conversation, Turn, Want
from crewlog.agents.offline_passages import Unit, centrality, choose, completed, cut_units, differ, headings, read_lines, score_units, wanted
from crewlog.agents.offline_text import EMAIL, STOP_WORDS, join_words, name_tokens, quoted, stem, stems, terms, words
from crewlog.schemas.text import shorten

READ_LINES: Final = 60
READS_MAX: Final = 6
FETCHES_MAX: Final = 4
SMALL_LINES: Final = 240
"""Documents that together have no more lines are read as a whole: no search can miss a synonym then."""
SMALL_DOCUMENTS: Final = 20
COVERED_MIN: Final = 0.3
"""Share of what is looked for that a sentence must hold to count as an answer."""

_META: Final = stems(
    """
    rule rules play plays guideline guidelines apply applies relevant document documents section sections mention answer question find list name
    cite quote search look explain information detail details point points regarding concerning text file files summarise summarize summary
    describe read report check review following given attached attachment attachments source sources citation citations passage passages
    evidence page pages say says tell respectively key main important about please show result results overview everything anything something
    compare comparison two three both difference differences differ matter matters interesting relevant essential gist happen happens look
    words sentences
    """
)
_AMBIGUOUS: Final = stems("search find name list quote look check review report")
"""Words that ask when they begin an objective, and may be what is asked about elsewhere: "the port of the search service"."""
_FRAME: Final = stems("prepare write draft produce publish compile build note report make create new short our")
_HOW: Final = re.compile(r"\bhow (?:long|often|far|old|big|high|large|fast|soon|late|early)\b", re.IGNORECASE)
_SUMMARY: Final = re.compile(
    r"\b(?:summari[sz]e|summary|overview|gist|key points|main points|(?:what|is) (?:matters|(?:is )?(?:important|interesting))|"
    r"what (?:is|are) (?:this|these|it|they) about|describe)\b",
    re.IGNORECASE,
)
_LENGTH: Final = re.compile(
    r"\b(?:in|within|using|with|under|to)?\s*(?:(?:at most|no more than|fewer than|less than)\s+)?\d+ (?:words|sentences|lines|points|bullets?)\b",
    re.IGNORECASE,
)
"""How long the answer is to be: nothing to look for."""
_FORBIDDING: Final = re.compile(r"(?:^|[,;.]|\band\b|\bbut\b)\s*(?:please\s+)?(?:do not|don['’]t|never)\b[^.;!?]*(?=[.;!]|$)", re.IGNORECASE)
"""What is not to be done is nothing to look for."""
_BEYOND: Final = re.compile(
    r"(?:translate|rewrite|rephrase|paraphrase|proofread|shorten|simplify|correct|edit|delete|rename|book|schedule|order|buy|call|phone|cancel)\b",
    re.IGNORECASE,
)
_URL: Final = re.compile(r"https?://[^\s<>\"`“”]+")
_LISTED: Final = re.compile(r"^\s*[-*]\s+(.+?): (.*) \((\d+) lines?\)(\s+\[library\])?", re.MULTILINE)
_UNREADABLE: Final = re.compile(r"^- (.+?): cannot be read: (.+)$", re.MULTILINE)


class Shelf(NamedTuple):
    """A document that can be read."""

    name: str
    title: str
    lines: int


def research(talk: Conversation) -> Turn:
    """Go one step on: fetch what the goal names, list, search, read, submit."""
    if urls := _named_pages(talk):
        return Turn("I fetch what the goal names.", tuple(Want("fetch_url", {"url": url}) for url in urls))
    if talk.is_due("list_documents"):
        return Turn("I look which documents there are.", (Want("list_documents", {}),))
    shelf = _shelf(talk)
    if not shelf and talk.tried("list_documents"):
        advice = "Attach the files the question is about (.md .txt .html .pdf .docx), or add documents to the library."
        reason = (
            "None of the documents could be read."
            if _unreadable(talk)
            else "There are no documents: none that can be read is attached, and the library is empty."
        )
        return _submit_nothing(talk, reason if _unreadable(talk) else f"{reason} {advice}", shelf)
    core, setting = look_for(talk, shelf)
    if beyond := _BEYOND.match(strip_fillers(talk.question)):
        return _submit_nothing(talk, f"The offline rules only find and quote passages; they cannot {beyond.group().lower()} anything. A model can.", shelf)
    if wants := _search(talk, core, setting):
        return Turn("", wants)
    if wants := _read(talk, shelf, core):
        return Turn("", wants)
    return _conclude(talk, shelf, core, setting)


def _named_pages(talk: Conversation) -> list[str]:
    """Return the URLs that the objective or its goal names and nobody has tried to fetch, when fetching is offered."""
    if not talk.offers("fetch_url") or talk.tried("fetch_url"):
        return []
    return list(dict.fromkeys(url.rstrip(".,;:!?)'”’") for url in _URL.findall(talk.objective)))[:FETCHES_MAX]


def look_for(talk: Conversation, shelf: Sequence[Shelf]) -> tuple[list[str], list[str]]:
    """Split what is looked for into stems the answer must hold, and stems of the goal that only set the scene."""
    names = [set(name_tokens(document.name)) for document in shelf]
    on_all = set.intersection(*names) if len(names) > 1 else set()
    goal = [term for term in terms(_URL.sub(" ", talk.goal)) if term not in _META and term not in _FRAME and term not in on_all]
    asked = _FORBIDDING.sub(" ", EMAIL.sub(" ", _URL.sub(" ", talk.question)))
    question = [term for term in terms(_LENGTH.sub(" ", _HOW.sub("how", asked))) if term not in _META]
    core = [term for term in question if term not in on_all and not (len(names) == 1 and term in names[0] and len(question) > 1)]
    if not core and not _SUMMARY.search(talk.question):
        # "which playbook rules apply": the subject is in the goal the question is part of
        return goal, []
    asked_about = [term for term in terms(asked)[1:] if term in _AMBIGUOUS]
    return core, [*(term for term in goal if term not in core), *asked_about]


def _covered_min(talk: Conversation, core: Sequence[str]) -> float:
    """Return the share of what is looked for that an answer must hold: the more words are asked for, the fewer meet in one sentence."""
    from_goal = not set(core) & set(terms(talk.question))
    return COVERED_MIN * (0.4 if from_goal else 1.0) * min(1.0, 4 / max(1, len(core)))


def _shelf(talk: Conversation) -> list[Shelf]:
    listed = [Shelf(name, title, int(lines)) for call in talk.made("list_documents") for name, title, lines, _ in _LISTED.findall(call.result or "")]
    if listed or talk.made("list_documents"):
        return listed
    return [Shelf(attachment.name, attachment.name, 0) for attachment in talk.attachments]


def _is_summary(talk: Conversation, core: Sequence[str]) -> bool:
    return not core or (bool(_SUMMARY.search(talk.question)) and len(core) <= 1)


def _search(talk: Conversation, core: Sequence[str], setting: Sequence[str]) -> tuple[Want, ...]:
    if not talk.offers("search_documents") or _is_summary(talk, core):
        return ()
    asked = [call.arguments.get("query") for call in talk.calls if call.tool == "search_documents"]
    spoken = [word for word in words(talk.objective) if word not in STOP_WORDS and not word.endswith(("'", "’"))]
    phrase = " ".join(dict.fromkeys(word for word in spoken if stem(word) in core))[:400]
    queries = [phrase, *(f'"{text}"' for text in quoted(talk.question)[:3])]
    if setting:
        queries.append(" ".join(dict.fromkeys(word for word in spoken if stem(word) in core or stem(word) in setting))[:400])
    first = tuple(Want("search_documents", {"query": query, "limit": 10}) for query in dict.fromkeys(queries) if query and query not in asked)
    if not asked:
        return first
    if not read_lines(talk) and len(asked) == len([query for query in dict.fromkeys(queries) if query]):
        single = [word for word in dict.fromkeys(spoken) if stem(word) in core and word not in asked]
        return tuple(Want("search_documents", {"query": word, "limit": 5}) for word in single[:4])
    return ()


def _read(talk: Conversation, shelf: Sequence[Shelf], core: Sequence[str]) -> tuple[Want, ...]:
    if not talk.offers("read_document") or talk.tried("read_document"):
        return ()
    if sum(document.lines or READ_LINES for document in shelf) <= SMALL_LINES or _is_summary(talk, core):
        return tuple(Want("read_document", {"name": document.name, "start_line": 1, "lines": SMALL_LINES}) for document in shelf[:SMALL_DOCUMENTS])
    places: dict[str, int] = {}
    for call in talk.made("search_documents"):
        for name, line in re.findall(r"(?m)^#{1,4}\s+(.+):(\d+)\s*$", call.result or ""):
            places.setdefault(name, int(line))
    return tuple(
        Want("read_document", {"name": name, "start_line": max(1, line - READ_LINES // 4), "lines": READ_LINES})
        for name, line in list(places.items())[:READS_MAX]
    )


def _conclude(talk: Conversation, shelf: Sequence[Shelf], core: Sequence[str], setting: Sequence[str]) -> Turn:
    refused = talk.failed("submit_findings")
    if len(refused) > 2:
        return Turn(f"I could not hand in the findings. The last reply was: {shorten(refused[-1].result or '', 500)}")
    lines = read_lines(talk)
    units = [unit for unit in cut_units(lines) if not unit.is_columns and not _is_refused(unit, talk)]
    if not units:
        return _submit_nothing(talk, f"Nothing was found in {_documents(shelf)}.", shelf)
    least = talk.constraints.citations_min
    if _is_summary(talk, core):
        per_source = max(2, -(-least // max(1, len(lines))))
        best = choose(centrality(units), most=max(least, min(12, 3 * len(lines))), per_source=max(per_source, 3 if len(lines) <= 2 else 2), floor=0.2)
        chosen = sorted(best, key=lambda unit: unit.order)
    else:
        want = wanted(talk.question, core, setting)
        scored = score_units(units, want)
        if not scored or max(coverage for _, coverage, _ in scored[:20]) < _covered_min(talk, core):
            return _submit_nothing(talk, _not_found(talk, shelf, core), shelf, near=[unit for _, coverage, unit in scored[:6] if coverage > 0])
        many = want.wants_list
        best = choose(scored, most=max(least, 6 if many else 4), per_source=max(least, 2 if many and len(lines) > 2 else 4), floor=0.45 if many else 0.6)
        chosen = completed(best, scored, core)
    return _submit(talk, chosen, shelf, core)


def _is_refused(unit: Unit, talk: Conversation) -> bool:
    for call in talk.failed("submit_findings"):
        given = call.arguments.get("citations") or []
        for number in re.findall(r"citation (\d+)", call.result or ""):
            at = int(number) - 1
            if 0 <= at < len(given) and given[at].get("quote") == unit.text and given[at].get("source") == unit.source:
                return True
    return False


def _submit(talk: Conversation, chosen: Sequence[Unit], shelf: Sequence[Shelf], core: Sequence[str]) -> Turn:
    banned = [phrase.lower() for phrase in talk.constraints.banned_phrases]
    kept = [unit for unit in chosen if not any(phrase in unit.text.lower() for phrase in banned)]
    sources = list(dict.fromkeys(unit.source for unit in kept))
    kept.sort(key=lambda unit: sources.index(unit.source))
    answer = ""
    while kept:
        answer = _wording(talk, kept, shelf, core)
        if not talk.constraints.words_max or len(answer.split()) <= talk.constraints.words_max or len(kept) <= max(1, talk.constraints.citations_min):
            break
        # the last of whichever document is quoted most, so that each keeps its say
        counts = Counter(unit.source for unit in kept)
        longest = max(counts.values())
        kept.pop(max(at for at, unit in enumerate(kept) if counts[unit.source] == longest))
    if not kept:
        return _submit_nothing(talk, _not_found(talk, shelf, core), shelf)
    citations = [{"source": unit.source, "line": unit.line, "quote": unit.text} for unit in kept]
    return Turn("", (Want("submit_findings", {"answer": answer, "citations": citations, "not_found": False}),))


def _wording(talk: Conversation, chosen: Sequence[Unit], shelf: Sequence[Shelf], core: Sequence[str]) -> str:
    """Write the answer: the passages under the headings they stand under, each with its number."""
    sources = list(dict.fromkeys(unit.source for unit in chosen))
    tight = talk.constraints.words_max is not None and talk.constraints.words_max < 80
    text = "" if tight else f"Of {len(shelf)} documents, {len(sources)} hold this:\n\n" if len(shelf) > 1 else f"{sources[0]} says:\n\n"
    numbered = {unit: number for number, unit in enumerate(chosen, 1)}
    titles = {document.name: document.title for document in shelf}
    for source in sources if len(sources) > 1 else []:
        title = titles.get(source) or source
        text += f"- **{title}**: " + " ".join(f"“{_plain(unit.text)}” [{numbered[unit]}]" for unit in chosen if unit.source == source) + "\n"
    if len(sources) == 1:
        text += "\n".join(f"- “{_plain(unit.text)}” [{numbered[unit]}]{_columns(unit)}" for unit in chosen) + "\n"
    for one, other in itertools.combinations(chosen, 2):
        if one.source != other.source and differ(one, other) and not tight:
            text += f"\n[{numbered[one]}] and [{numbered[other]}] do not say the same.\n"
    said = {token for unit in chosen for token in (*unit.tokens, *(stem(word) for word in words(f"{unit.heading} {unit.columns}")))}
    absent = [word for word in dict.fromkeys(words(talk.question)) if stem(word) in core and stem(word) not in said]
    if absent and not tight and len(absent) < len(core):
        text += f"\nNot in these passages: {join_words(absent[:6])}.\n"
    for missing in (*_unreadable(talk), *_unfetched(talk)):
        text += f"\n{missing}\n"
    for phrase in talk.constraints.must_mention:
        if phrase.lower() not in text.lower():
            text += f"\nNothing was found on “{phrase}”.\n"
    return text.strip()


def _documents(shelf: Sequence[Shelf]) -> str:
    return f"{len(shelf)} {'document' if len(shelf) == 1 else 'documents'}"


def _unreadable(talk: Conversation) -> list[str]:
    """Say which documents are there and could not be read, and why."""
    listed = "\n".join(call.result or "" for call in talk.made("list_documents"))
    reasons = ((name, shorten(_plain(reason), 200).rstrip(".")) for name, reason in dict.fromkeys(_UNREADABLE.findall(listed)))
    return [f"{reason}." if name in reason else f"{name} could not be read: {reason}." for name, reason in reasons]


def _unfetched(talk: Conversation) -> list[str]:
    """Say which pages the goal names and nobody could read, and why."""
    return [f"{call.arguments.get('url')} was not read: {shorten(_plain(call.result or ''), 300)}." for call in talk.failed("fetch_url")]


def _columns(unit: Unit) -> str:
    """Say what the cells of a table's row mean."""
    return f" (columns: {join_words(cell.strip() for cell in unit.columns.strip('| ').split('|'))})" if unit.columns else ""


def _plain(text: str) -> str:
    """Keep numbers in brackets inside a quote from being read as markers of our own citations."""
    return re.sub(r"\[(\d[\d,\s]*)\]", r"(\1)", text)


def _not_found(talk: Conversation, shelf: Sequence[Shelf], core: Sequence[str]) -> str:
    looked = [word for word in dict.fromkeys(words(talk.objective)) if stem(word) in core]
    read = {stem(word) for lines in read_lines(talk).values() for text in lines.values() for word in words(text)}
    absent = [word for word in looked if stem(word) not in read]
    what = join_words(absent[:8]) or (f"{join_words(looked[:8])} together" if looked else "this")
    return f"Not found in {_documents(shelf)}: no passage speaks of {what}."


def _submit_nothing(talk: Conversation, reason: str, shelf: Sequence[Shelf], *, near: Sequence[Unit] = ()) -> Turn:
    refused = talk.failed("submit_findings")
    if len(refused) > 2:
        return Turn(f"{reason} The last reply was: {shorten(refused[-1].result or '', 500)}")
    if near:
        places = list(dict.fromkeys(f"“{unit.heading}” ({unit.source})" for unit in near))[:3]
        text = f"{reason} What comes nearest stands under {join_words(places)}."
    elif topics := list(dict.fromkeys(f"“{heading}”" for _, heading in headings(read_lines(talk))))[:6] or [document.title for document in shelf[:6]]:
        text = f"{reason} The documents speak of {join_words(topics)}."
    else:
        text = reason
    text = " ".join([text, *_unreadable(talk), *_unfetched(talk)])
    for phrase in talk.constraints.must_mention:
        if phrase.lower() not in text.lower():
            text += f" Nothing was found on “{phrase}”."
    return Turn("", (Want("submit_findings", {"answer": _plain(text), "citations": [], "not_found": True}),))
