"""Reads numbered lines out of search and read results, cuts them into sentences with their place, and scores these against a question."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from crewlog.agents.offline_conversation import Conversation
from crewlog.agents.offline_text import name_tokens, sentences, stem, terms, words

_BLOCK: Final = re.compile(r"^#{1,4}\s+(.+):(\d+)\s*$")
_LINE: Final = re.compile(r"^\s*(\d+)(?:\t|: | \| |\| )(.*)$")
_HEADING: Final = re.compile(r"^\s*(#{1,6})\s+(.+?)\s*#*\s*$")
_UNDERLINE: Final = re.compile(r"^\s*(?:={3,}|-{3,})\s*$")
_ITEM: Final = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)]|>)\s+(?:\[[ xX]\]\s+)?")
_NUMBERED_HEADING: Final = re.compile(r"^\s*(?:\d+(?:\.\d+)*\.?|[IVX]+\.|§\s*\d+)\s+[A-Z][^.!?]{2,80}$")

_TITLE: Final = re.compile(r"^\s*[A-Z][A-Z0-9 ,:&/'’()-]{3,80}$")
"""A line in capitals alone."""
_NEGATED: Final = re.compile(r"\b(?:not|never|no|none|neither|nor|cannot|without)\b|n['’]t\b", re.IGNORECASE)
REPEATED: Final = 0.75
ALIKE: Final = 0.6
"""Share of words that two passages have in common: from there on one repeats the other, or they may contradict each other."""
KIN_SHARE: Final = 0.7
"""What a longer form of a word counts for one that occurs nowhere, such as "approval" for "approves"."""
SENTENCE_CHARS_MAX: Final = 700
"""Longer sentences are no use as quotes."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A sentence or list item, and where it stands."""

    source: str
    line: int
    text: str
    heading: str
    order: int
    """Its place in its document."""
    is_list_item: bool = False
    columns: str = ""
    """The first row of the table it is a row of."""

    @property
    def is_columns(self) -> bool:
        """It is the first row of a table, which names and states nothing."""
        return self.columns == self.text

    @property
    def tokens(self) -> frozenset[str]:
        """Stems of its words."""
        return frozenset(stem(word) for word in words(self.text))


def read_lines(talk: Conversation) -> dict[str, dict[int, str]]:
    """Collect every line of a document that a search or a read has shown: source -> line number -> text."""
    found: dict[str, dict[int, str]] = {}
    for call in talk.calls:
        if call.tool in ("search_documents", "read_document", "fetch_url") and call.result and not call.is_error:
            source = str(call.arguments.get("name", ""))
            for row in call.result.splitlines():
                if block := _BLOCK.match(row):
                    source = block.group(1)
                elif (line := _LINE.match(row)) and source and not line.group(2).startswith(f"Source: {source}"):
                    found.setdefault(source, {})[int(line.group(1))] = line.group(2)
    return found


def cut_units(lines: Mapping[str, Mapping[int, str]]) -> list[Unit]:
    """Cut documents into sentences; each begins in the line it names and stands there word for word, line breaks aside."""
    units: list[Unit] = []
    for source, numbered in lines.items():
        heading, in_code = PurePosixPath(source).stem, False
        paragraph: list[tuple[int, str]] = []
        last, columns = 0, ""
        for number in sorted(numbered):
            text = numbered[number]
            if text.strip().startswith(("```", "~~~")):
                in_code = not in_code
            found = _HEADING.match(text) if not in_code else None
            breaks = found or not text.strip() or _ITEM.match(text) or number != last + 1 or _UNDERLINE.match(text) or text.lstrip().startswith("|")
            is_title = bool(_NUMBERED_HEADING.match(text) and not _ITEM.match(text)) or bool(_TITLE.match(text) and not numbered.get(number + 1, "").strip())
            if breaks or is_title or _NUMBERED_HEADING.match(text):
                _flush(units, source, heading, paragraph, columns)
                paragraph = []
            is_row = text.lstrip().startswith("|") and not in_code
            columns = (columns or text.strip()) if is_row else ""
            if found or (is_title and not in_code):
                heading = found.group(2) if found else text.strip()
            elif text.strip() and not _UNDERLINE.match(text) and not in_code:
                paragraph.append((number, text))
            last = number
        _flush(units, source, heading, paragraph, columns)
    return units


def headings(lines: Mapping[str, Mapping[int, str]]) -> list[tuple[str, str]]:
    """Return (source, heading) of what was read, in order."""
    return [(source, found.group(2)) for source, numbered in lines.items() for number in sorted(numbered) if (found := _HEADING.match(numbered[number]))]


def _flush(units: list[Unit], source: str, heading: str, paragraph: Sequence[tuple[int, str]], columns: str) -> None:
    if not paragraph:
        return
    is_item = bool(_ITEM.match(paragraph[0][1]))
    starts: list[tuple[int, int]] = []
    text = ""
    for at, (number, line) in enumerate(paragraph):
        text += " " if text else ""
        starts.append((len(text), number))
        text += (_ITEM.sub("", line) if at == 0 else line).strip()
    offset = 0
    for sentence in sentences(text):
        offset = text.index(sentence, offset)
        begins = next(number for start, number in reversed(starts) if start <= offset)
        offset += len(sentence)
        if len(sentence.split()) >= 3 and len(sentence) <= SENTENCE_CHARS_MAX:
            units.append(Unit(source, begins, sentence, heading, len(units), is_item, columns))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a question looks for. `weights`: stem -> how much it counts."""

    weights: Mapping[str, float]
    core: frozenset[str]
    """Stems of the question itself, without what only names its setting."""
    wants_number: bool = False
    defines: str = ""
    wants_list: bool = False
    wants_exception: bool = False


_WANTS_NUMBER: Final = re.compile(
    (
        r"\bhow (?:many|much|long|often|old|far|fast|large|big|high)\b|\bwhen\b|\bwhat (?:is the )?(?:number|percentage|date|deadline|"
        r"price|cost|limit|maximum|minimum)\b|\bwhich (?:year|default|date)\b"
    ),
    re.IGNORECASE,
)
_DEFINES: Final = re.compile(r"\bwhat (?:is|are|does|do) (?:an? |the )?([\w-]+)(?: mean)?\s*\??$|\bdefine ([\w-]+)|\bmeaning of ([\w-]+)", re.IGNORECASE)
_WANTS_LIST: Final = re.compile(
    r"\b(?:which|list|what are|find all|all the|every|rules?|requirements?|steps|obligations|principles|summari[sz]e|overview|key points)\b", re.IGNORECASE
)


def wanted(question: str, core: Sequence[str], setting: Sequence[str]) -> Wanted:
    """Say what to look for.

    Args:
        core: stems the answer should hold.
        setting: stems of the goal, which count less.
    """
    defines = _DEFINES.search(question)
    return Wanted(
        {**dict.fromkeys(setting, 0.3), **dict.fromkeys(core, 1.0)},
        frozenset(core),
        bool(_WANTS_NUMBER.search(question)),
        stem(next((g for g in defines.groups() if g), "").lower()) if defines else "",
        bool(_WANTS_LIST.search(question)),
        bool(_NEGATED.search(question)),
    )


def score_units(units: Sequence[Unit], want: Wanted) -> list[tuple[float, float, Unit]]:
    """Return (score, coverage, unit), best first.

    Coverage is the share of the question's own weight, rare words weighing more; what only names the setting ranks, but proves nothing.
    """
    frequency = Counter(token for unit in units for token in unit.tokens | _heading_tokens(unit))
    weights = {term: weight * math.log(1 + (len(units) + 1) / (frequency[term] + 0.5)) for term, weight in want.weights.items()}
    kin = {term: _kin(term, frequency) for term in weights if not frequency[term]}
    total = sum(weights.values()) or 1.0
    asked = {term: weight for term, weight in weights.items() if term in want.core} or weights
    asked_total = sum(asked.values()) or 1.0
    scored = []
    for unit in units:
        tokens, columns, around = unit.tokens, frozenset(map(stem, words(unit.columns))), _heading_tokens(unit)
        has = {term: 1.0 for term in weights if term in tokens} | {term: KIN_SHARE for term, forms in kin.items() if forms & tokens}
        # what a cell means says the first row of its table
        named = {term for term in weights if term in columns and term not in has} if has else set()
        near = {term for term in weights if term in around and term not in has and term not in named}
        own = sum(weights[term] * share for term, share in has.items()) + sum(weights[term] for term in named)
        held = sum(weight * (has.get(term) or (1.0 if term in named else 0.6 if term in near else 0.0)) for term, weight in asked.items())
        score = (own + 0.45 * sum(weights[term] for term in near)) / total + _shape_bonus(unit, want, has_hit=own > 0)
        scored.append((score, held / asked_total, unit))
    return sorted(scored, key=lambda entry: (-round(entry[0], 9), entry[2].source, entry[2].order))


def _kin(term: str, vocabulary: Collection[str]) -> frozenset[str]:
    """Return the words that only add an ending to one."""
    return frozenset(word for word in vocabulary if len(term) >= 5 and word.startswith(term) and len(word) <= len(term) + 3)


def choose(scored: Sequence[tuple[float, float, Unit]], *, most: int, per_source: int, floor: float) -> list[Unit]:
    """Pick the best that do not repeat each other (maximal marginal relevance), at most `per_source` of one document."""
    chosen: list[Unit] = []
    if not scored:
        return chosen
    pool = [(score, unit) for score, _, unit in scored if score >= max(scored[0][0] * floor, 0.05)][:80]

    def repeated(unit: Unit) -> float:
        return max((_overlap(unit, other) for other in chosen if not differ(unit, other)), default=0.0)

    while pool and len(chosen) < most:
        best = max(pool, key=lambda entry: round(entry[0] - 0.4 * repeated(entry[1]), 9))
        pool.remove(best)
        same = sum(other.source == best[1].source for other in chosen)
        if same < per_source and repeated(best[1]) < REPEATED:
            chosen.append(best[1])
    return chosen


def differ(one: Unit, other: Unit) -> bool:
    """Say whether two passages say almost the same, but with other figures or the other way round."""
    if _overlap(one, other) < ALIKE:
        return False
    return _figures(one) != _figures(other) or bool(_NEGATED.search(one.text)) != bool(_NEGATED.search(other.text))


def _figures(unit: Unit) -> frozenset[str]:
    return frozenset(token for token in unit.tokens if token[0].isdigit())


def completed(chosen: Sequence[Unit], scored: Sequence[tuple[float, float, Unit]], core: Sequence[str]) -> list[Unit]:
    """Add the best sentence for each word of the question that no chosen one holds, such as for its second half; at most two.

    A word that half of the sentences hold tells nothing.
    """
    made = list(chosen)
    for term in core:
        if any(term in unit.tokens | _heading_tokens(unit) for unit in made):
            continue
        holding = [unit for _, _, unit in scored if term in unit.tokens]
        if holding and 2 * len(holding) <= len(scored) and len(made) < len(chosen) + 2:
            made.append(holding[0])
    return made


def centrality(units: Sequence[Unit]) -> list[tuple[float, float, Unit]]:
    """Score sentences for a summary: those that hold what the document speaks of most, early ones first."""
    spoken = Counter(token for unit in units for token in terms(unit.text))
    first: dict[str, int] = {}
    for unit in units:
        first.setdefault(unit.source, unit.order)
    scored = []
    for unit in units:
        own = terms(unit.text)
        density = sum(math.log(1 + spoken[token]) for token in own) / (len(own) + 4) if own else 0.0
        early = 1.2 if unit.order == first[unit.source] else 1.0 / (2 + unit.order - first[unit.source])
        scored.append((density + early - 0.5 * unit.text.rstrip().endswith("?"), 1.0, unit))
    return sorted(scored, key=lambda entry: (-round(entry[0], 9), entry[2].source, entry[2].order))


def _heading_tokens(unit: Unit) -> frozenset[str]:
    return frozenset([*(stem(word) for word in words(f"{unit.heading} {unit.columns}")), *name_tokens(PurePosixPath(unit.source).name)])


def _shape_bonus(unit: Unit, want: Wanted, *, has_hit: bool) -> float:
    if not has_hit:
        return 0.0
    bonus = 0.0
    if want.wants_number and re.search(
        r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|sixty|ninety|hundred)\b", unit.text, re.IGNORECASE
    ):
        bonus += 0.2
    if want.defines and re.search(rf"\b{re.escape(want.defines)}\w*\b[^.]{{0,40}}\b(?:is|are|means?|refers? to|defaults? to)\b", unit.text, re.IGNORECASE):
        bonus += 0.25
    if want.wants_exception and _NEGATED.search(unit.text):
        bonus += 0.2
    if want.wants_list and unit.is_list_item:
        bonus += 0.15
    length = len(unit.text.split())
    return bonus - 0.15 * unit.text.rstrip().endswith("?") - (0.1 if length < 5 or length > 60 else 0.0)


def _overlap(one: Unit, other: Unit) -> float:
    both = one.tokens | other.tokens
    return len(one.tokens & other.tokens) / len(both) if both else 0.0
