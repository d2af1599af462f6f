"""Splits a goal into clauses and says what kind of work each one asks for, by verbs, objects, named files and the kinds that exist."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from crewlog.agents.offline_addresses import read_order
from crewlog.agents.offline_text import EMAIL, URL, name_tokens, stem, stems, terms, words

_COMMUNICATE_VERBS = "mail email e-mail send notify post forward inform announce message distribute"
_CODE_VERBS = "fix repair debug refactor implement patch test"
_DATA_VERBS = "compute calculate count average sum plot chart graph aggregate tabulate rank correlate measure visualise visualize draw total"
_RESEARCH_VERBS = "cite quote search look research read explain find identify answer learn tell"
_WEAK_VERBS = (
    "summarise summarize check analyse analyze review compare describe report say list examine inspect investigate show evaluate "
    "assess verify study understand give determine make create extract collect use work"
)
_FRAME_VERBS = "prepare write draft produce publish compile build put start begin finish help"

_ALL_VERBS: Final = (
    f"{_COMMUNICATE_VERBS} {_CODE_VERBS} {_DATA_VERBS} {_RESEARCH_VERBS} {_WEAK_VERBS} {_FRAME_VERBS} run convert translate get apply add remove change"
)
OPENING: Final = frozenset({"read", "study", "open", "use", "consult", "examine", "look"})
"""Verbs that only introduce the question that follows: "read the handbook and tell me …"."""
VERBS: Final = frozenset(_ALL_VERBS.split())
_LEADING: Final = (
    "also|please|finally|lastly|afterwards|then|next|first|second|third|now|and|so|to|can you|could you|would you|i want you to|i "
    "need you to|we need to|let us|let's"
)

_FILLERS: Final = re.compile(rf"^\s*(?:(?:{_LEADING})\b[,:]?\s*)+", re.IGNORECASE)

_STRONG: Final[Mapping[str, frozenset[str]]] = {
    "communicate": stems(_COMMUNICATE_VERBS),
    "code": stems(_CODE_VERBS),
    "data": stems(_DATA_VERBS),
    "research": stems(_RESEARCH_VERBS),
}
_WEAK: Final = stems(_WEAK_VERBS)
_VAGUE: Final = re.compile(
    r"^(?:(?:tell|show) me )?(?:what (?:matters|is (?:important|interesting|in|there|this|these)|'?s (?:in|this|these))|(?:some|any|every)thing|"
    r"about (?:this|these|it|them))\b",
    re.IGNORECASE,
)
_OBJECTS: Final[Mapping[str, frozenset[str]]] = {
    "communicate": stems("recipient inbox newsletter slack webhook"),
    "code": stems(
        "test tests bug bugs code function project module loader package script failing traceback exception class library pytest "
        "parser program codebase repo repository"
    ),
    "data": stems(
        """
    mean median average total maximum minimum chart plot graph histogram table csv column columns row rows statistics trend correlation
    distribution sales revenue dataset data measurements figures numbers percentage share highest lowest largest smallest most per monthly
    yearly daily sum count outliers parquet spreadsheet missing records deviation
    """
    ),
    "research": stems(
        """
    document documents policy policies rule rules guide guidelines playbook paper papers clause section requirements docs manual faq handbook
    notes article contract terms standard regulation citation citations source sources evidence passage chapter report pdf licence license
    """
    ),
}
_QUESTION: Final = re.compile(
    r"^(?:(?:what|which|who|whom|whose|why|when|where|how|is|are|does|do|can|must|may|should|say (?:what|which|who|why|when|where|how|whether)|tell me)\b|"
    r"(?:at|in|on|for|by|from|to|with|under|within|after|until|since) (?:what|which|whom|how|when|where)\b)",
    re.IGNORECASE,
)
_NUMBERS_ASKED: Final = re.compile(
    r"(?<!\bat )(?<!\bin )(?<!\bfor )(?<!\bwithin )(?<!\bafter )\bhow (?:many|much)\b|\bper (?:month|year|day|week)\b|\btop \d+\b|"
    r"\b(?:by|per) (?:each )?(?!(?:what|which|when|whom|where)\b)[a-z_]+\b",
    re.IGNORECASE,
)
_BREAK: Final = re.compile(
    r"(?<=[.!?;])\s+|\s*;\s*|\n+|(?:,\s*)?\b(?:and\s+)?(then|afterwards|after that)\b[,:]?\s+|,\s*(?:and\s+)?(?:also\s+)?(?=\w)|\s+and\s+(?:also\s+)?(?=\w)",
    re.IGNORECASE,
)
_REQUIREMENT: Final = re.compile(
    r"^(?:(?:it|they|this|the (?:summary|answer|report|text|mail|message)) (?:must|should|may not|has to|have to|needs to)|"
    r"do not|don't|never|keep (?:it|them))\b",
    re.IGNORECASE,
)
"""A sentence about how the work before it is to be done."""
AHEAD_CHARS: Final = 400
"""How far behind a comma or an "and" is looked for work: a goal may be very long."""
_LEAD_IN: Final = re.compile(r"\s*(?:based on|building on|using|with|from|given|after|once|if|when|while|for|in|as)\b", re.IGNORECASE)
_TELL_SOMEBODY: Final = re.compile(
    r"^(?:tell|let)\s+(?!me\b|us\b|what|which|who|why|when|where|how|whether|if\b|apart)(?:the |our |my |all )?[\w.@-]+", re.IGNORECASE
)
_REFERS_BACK: Final = re.compile(
    (
        r"\b(?:based on|from) (?:the|that|this|these|those|its|their|what)\b.*\b(?:result|finding|answer|analysis|outcome|above|found|"
        r"output)|\b(?:the|these|those) (?:results?|findings?|answers?)\b|\busing (?:that|this|the (?:result|answer|finding))"
    ),
    re.IGNORECASE,
)
_PRONOUN: Final = re.compile(r"\b(?:it|them|this|these|that|those|result|results|findings)\b", re.IGNORECASE)


_OUT: Final = rf"(?:{EMAIL.pattern}|{URL.pattern})"
_REPORTED: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^(?:send|mail|e-?mail|post|forward)\s+(?:(?:me|us|them|him|her)\s+)?(?!{_OUT})(.+?)\s+(?:to|at)\s+(?:\S+\s+){{0,3}}?{_OUT}",
        rf"^(?:send|mail|e-?mail)\s+{_OUT}(?:,?\s+(?:and|or|(?:but\s+)?not)\s+{_OUT})*,?\s+((?:the|our|what|which|who|when|where|how|whether)\s.+)$",
        rf"^(?:tell|inform|notify|ask|let)\s+{_OUT}\s+(?:know\s+)?((?:what|which|who|when|where|how|whether)\s.+)$",
    )
)

_READ_ONLY: Final = re.compile(
    r"(?:\b(?:do not|never|without)|n['’]t)\s+(?:\w+\s+){0,2}?(?:chang|edit|modif|touch|alter|repair|fix|patch)\w*\s*"
    r"(?:(?:it|them|anything|(?:(?:the|any|its|my|our)\s+)?(?:code|files?|projects?|sources?))\b(?!\s+\S*test)|[.,;!?]|and\b|but\b|yet\b|$)"
    r"|\b(?:fix|change|edit|repair) nothing\b",
    re.IGNORECASE,
)


class Clause(NamedTuple):
    """One piece of work in the user's words."""

    text: str
    after: bool = False
    """It was said to come after the one before it."""

    @property
    def first(self) -> str:
        """The first word that is not a filler."""
        return next(iter(words(strip_fillers(self.text))), "")

    @property
    def refers_back(self) -> bool:
        """It works on what an earlier clause brings."""
        return bool(_REFERS_BACK.search(self.text))

    @property
    def has_pronoun(self) -> bool:
        """It speaks of something named before."""
        return bool(_PRONOUN.search(self.text))


def reported(clause: Clause) -> str:
    """Return what a message is to say when it is named right in the order to send it, as in "send the sales by store to a@b.org"; else nothing."""
    found = next(filter(None, (pattern.match(strip_fillers(clause.text)) for pattern in _REPORTED)), None)
    return "" if found is None or len(terms(found.group(1))) < 2 else found.group(1)


def strip_fillers(text: str) -> str:
    """Remove polite and ordering words from the start of a clause."""
    return _FILLERS.sub("", text).strip()


def split_goal(goal: str) -> tuple[str, list[Clause]]:
    """Split a goal into its headline (what stands before a colon and a list of work) and its clauses.

    A comma or an "and" only separates where the next part begins like work of its own: with a verb in the imperative, or a question word.
    """
    headline, body = _headline(re.sub(r"[^\S\n]+", " ", goal))
    body = re.sub(r"(?m)^\s*(?:\d{1,2}[.)]|[-*•])\s+", "", body)
    protected = {
        at for found in (*EMAIL.finditer(body), *URL.finditer(body), *re.finditer(r"[\"“`][^\"”`\n]+[\"”`]", body)) for at in range(found.start(), found.end())
    }
    clauses: list[Clause] = []
    start, after = 0, False
    for cut in _BREAK.finditer(body):
        if cut.start() in protected or (cut.end() > cut.start() and cut.end() - 1 in protected):
            continue
        is_soft = cut.group(1) is None and (cut.group().lstrip().startswith(",") or re.match(r"\s+and\b", cut.group(), re.IGNORECASE))
        if is_soft and (_LEAD_IN.match(body, start) or not _begins_work(body[cut.end() : cut.end() + AHEAD_CHARS])):
            continue
        _add(clauses, body[start : cut.start()], after=after)
        start, after = cut.end(), cut.group(1) is not None
    _add(clauses, body[start:], after=after)
    return headline, clauses


def _add(clauses: list[Clause], text: str, *, after: bool) -> None:
    opened_with_then = re.match(r"^\s*(?:and\s+)?(?:then|afterwards|after that|finally)\b", text, re.IGNORECASE)
    text = strip_fillers(text).strip(" ,;")
    if clauses and _REQUIREMENT.match(text):
        clauses[-1] = Clause(f"{clauses[-1].text.rstrip('.')}, {text}", clauses[-1].after)
    elif clauses and len(clauses) == 1 and _REQUIREMENT.match(clauses[0].text) and words(text):
        # what is forbidden first holds for the work that follows
        clauses[0] = Clause(f"{text.rstrip('.')}, {clauses[0].text}")
    elif words(text):
        clauses.append(Clause(text, after or bool(opened_with_then)))


def _headline(goal: str) -> tuple[str, str]:
    found = re.match(r"^([^:\n]{8,300}):\s+(.+)$", goal.strip(), re.DOTALL)
    if found and "://" not in found.group(1) and not _SENTENCE_IN.search(found.group(1)):
        body = found.group(2)
        if _begins_work(body) or body.lstrip().startswith(("-", "*", "1")):
            return found.group(1).strip(), body
    return "", goal.strip()


_SENTENCE_IN: Final = re.compile(r"[.?!]\s")


def _begins_work(text: str) -> bool:
    text = strip_fillers(text)
    found = re.match(r"([A-Za-z][A-Za-z-]*)(?:\s+([A-Za-z]+))?", text)
    if not found:
        return False
    first, second = found.group(1).lower(), (found.group(2) or "").lower()
    if first in ("average", "total", "sum"):
        # "total units and average price": a noun, unless it has an article behind it
        return second in ("the", "all", "up", "our", "each")
    if first in VERBS:
        # "totals and counts", "sales and report totals": a verb form only counts where an object or an adverb follows it
        return (
            second not in ("of", "is", "are", "was", "were", "and", "or", "has", "have", "")
            or bool(EMAIL.search(text))
            or (second == "" and first in ("summarise", "summarize", "notify", "test"))
        )
    # "which have the lowest" leans on the clause before it; a question of its own has content of its own
    return bool(_QUESTION.match(text)) and first not in _NO_NEW_QUESTION and len(terms(re.split(r"[,.;?]", text, maxsplit=1)[0])) >= 2


_NO_NEW_QUESTION: Final = frozenset({"is", "are", "can", "may", "must", "do", "does", "should"})


class KindInfo(NamedTuple):
    """A kind that tasks can be sent to."""

    kind: str
    description: str


BUILT_IN: Final = ("research", "data", "code", "communicate")


def score(clause: Clause, kinds: Sequence[KindInfo], files: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Score each kind for a clause; a kind that has nothing to do with it is missing.

    Args:
        files: built-in kind -> names of the attachments it works on.
    """
    used = _stems(clause.text)
    first = stem(clause.first)
    content = set(terms(clause.text))
    scores: dict[str, float] = {}
    for kind in (info.kind for info in kinds if info.kind in BUILT_IN):
        points = 3.0 * (first in _STRONG[kind]) + sum(0.75 for word in set(used[1:]) if word in _STRONG[kind] and kind != "communicate")
        points += sum(1.0 for word in set(used) if word in _OBJECTS[kind])
        if points or first in _WEAK or _QUESTION.match(clause.text) or kind == "code":
            points += 2.0 * _mentions(content, files.get(kind, ()))
        scores[kind] = points
    if "communicate" in scores and (
        read_order(clause.text).recipients or _TELL_SOMEBODY.match(strip_fillers(clause.text)) or (URL.search(clause.text) and first in _STRONG["communicate"])
    ):
        scores["communicate"] += 4.0
    if "research" in scores and _QUESTION.match(strip_fillers(clause.text)):
        scores["research"] += 1.5 if files.get("research") or not files.get("data") else 0.25
    if "data" in scores and _NUMBERS_ASKED.search(clause.text) and files.get("data"):
        scores["data"] += 2.0
    if "data" in scores and first in _WEAK and files.get("data") and not files.get("research"):
        scores["data"] += 1.0
    if "code" in scores and first in ("check", "review", "verify") and _mentions(content, files.get("code", ())):
        scores["code"] += 1.0
    for kind in ("data", "code"):
        # a word like "table" or "test" alone is no work for a kind that has no file to work on
        if kind in scores and not files.get(kind):
            scores[kind] = scores[kind] - 2.0 if files.get("research") else scores[kind] - 0.5
    if "research" in scores and not files.get("research") and (files.get("data") or files.get("code")):
        scores["research"] -= 1.5
    for info in kinds:
        if info.kind not in BUILT_IN:
            scores[info.kind] = _own_kind(content, first, info)
    return {kind: points for kind, points in scores.items() if points > 0.9}


def _stems(text: str) -> list[str]:
    """Return the stems of the words; "not" is none of the forms of "notes"."""
    return [stem(word) for word in words(text) if word != "not"]


def _mentions(content: set[str], names: Sequence[str]) -> float:
    """Count 1 for a file or folder that a clause names with a word of its name."""
    tokens = {token for name in names for token in name_tokens(re.sub(r"\.\w+$", "", name)) if len(token) >= 3 and not token.isdigit()}
    return 1.0 if tokens & content else 0.0


def _own_kind(content: set[str], first: str, info: KindInfo) -> float:
    named = set(name_tokens(info.kind))
    overlap = content & (set(terms(info.description)) | named)
    by_name = any(word == token or (len(token) > 4 and word[:5] == token[:5]) for token in named for word in content)
    described_verb = bool(first) and first in {stem(word) for word in words(info.description)}
    return 4.0 * by_name + 1.5 * len(overlap - named) + 2.0 * described_verb - 1.4


def is_weak(clause: Clause) -> bool:
    """Say whether the verb fits any kind of file, as in "summarise these files"."""
    return stem(clause.first) in _WEAK


def is_question(clause: Clause) -> bool:
    """Say whether the clause asks something."""
    return clause.text.rstrip().endswith("?") or bool(_QUESTION.match(strip_fillers(clause.text)))


def is_about_files(clause: Clause) -> bool:
    """Say whether the clause can be about any attached file: it names no kind of document that would have to be searched for."""
    return not set(_stems(clause.text)) & (_OBJECTS["research"] - {stem("report"), stem("figures")})


def is_vague(clause: Clause) -> bool:
    """Say whether the clause asks what matters in whatever is there, as in "tell me what matters"."""
    return bool(_VAGUE.match(strip_fillers(clause.text)))


def is_frame(clause: Clause) -> bool:
    """Say whether the clause only names the product of the whole goal, as in "prepare the release note"."""
    return clause.first in _FRAME_VERBS.split()


def forbids_changes(text: str) -> bool:
    """Say whether no file may be changed, as in "tell me what is wrong but do not fix anything"; sparing the tests alone is no such thing."""
    return bool(_READ_ONLY.search(text))
