"""Knowledge in memory, folded from any log on demand: for tests, and for programs without Postgres.

Ranks passages by BM25 (Robertson and Zaragoza 2009, k1 = 1.2, b = 0.75) over stemmed words. It answers the same contract as the Postgres
index; ranks of the two cannot be compared.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from crewlog.agents.knowledge import DOCUMENTS_MAX, DocumentInfo, Passage
from crewlog.events.store import EventStore
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import Hash
from crewlog.schemas.system_events import DocumentErased, DocumentIngested

PASSAGE_CHARS_MIN: Final = 300
PASSAGE_LINES_MAX: Final = 12
_PAGE_EVENTS: Final = 1_000
_K1: Final = 1.2
_B: Final = 0.75
_PHRASE_BONUS: Final = 1.5

_WORD: Final = re.compile(r"\w+")
_PHRASE: Final = re.compile(r'"([^"]+)"')
_STOP_WORDS: Final = (
    "a about after all also an and any are as at be been but by can could did do does for from had has have how i if in into is it its may more most no not "
    "of on or our shall should so some such than that the their them then there these they this to was we were what when where which who why will with "
    "would you your"
)
_STOP: Final = frozenset(_STOP_WORDS.split())
_SUFFIXES: Final = ("ations", "ation", "ingly", "edly", "ings", "ing", "ied", "ies", "ers", "er", "ed", "es", "ly", "s")


class _Chunk(NamedTuple):
    line: int
    text: str
    terms: Counter[str]
    words: str


class MemoryKnowledge:
    """The `Knowledge` port over an `EventStore`. Every call first folds what the log has got since the last one."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._position = 0
        self._infos: dict[tuple[str, Hash], DocumentInfo] = {}
        self._chunks: dict[Hash, tuple[_Chunk, ...]] = {}
        self._folding = asyncio.Lock()

    async def search(self, tenant: str, query: str, documents: Sequence[Hash] | None, limit: int) -> list[Passage]:
        asked = set(terms(query))
        phrases = [" ".join(_words(phrase)) for phrase in _PHRASE.findall(query)]
        infos = await self.documents(tenant, documents)
        pool = [(info, chunk) for info in infos for chunk in self._chunks[info.text]]
        if not asked or not pool:
            return []
        found_in = Counter(term for _, chunk in pool for term in asked & chunk.terms.keys())
        idf = {term: math.log(1 + (len(pool) - n + 0.5) / (n + 0.5)) for term, n in found_in.items()}
        mean = sum(chunk.terms.total() for _, chunk in pool) / len(pool)
        passages = [
            Passage(
                info.document, info.name, chunk.line, chunk.text, _score(chunk, idf, mean) * _PHRASE_BONUS ** sum(phrase in chunk.words for phrase in phrases)
            )
            for info, chunk in pool
            if asked & chunk.terms.keys()
        ]
        return sorted(passages, key=lambda p: (-p.rank, p.document, p.line))[:limit]

    async def documents(self, tenant: str, hashes: Sequence[Hash] | None) -> list[DocumentInfo]:
        await self._catch_up()
        wanted = None if hashes is None else set(hashes)
        infos = [info for (owner, content), info in self._infos.items() if owner == tenant and (info.library if wanted is None else content in wanted)]
        return sorted(infos, key=lambda info: (info.name, info.document))[:DOCUMENTS_MAX]

    async def wait_indexed(self, position: int, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._catch_up()
        if self._position < position:
            raise Unavailable(f"the knowledge index is at position {self._position}, behind {position}: the log it folds does not reach that far")

    async def _catch_up(self) -> None:
        async with self._folding:
            while True:
                page = await self._store.read_all(self._position, _PAGE_EVENTS)
                events = [event for recorded in page.events if isinstance(event := recorded.event(), DocumentIngested | DocumentErased)]
                wanted = [event.text for event in events if isinstance(event, DocumentIngested) and event.text not in self._chunks]
                texts = await self._store.get_blobs(wanted)
                for event in events:
                    known = self._infos.pop((event.tenant, event.content), None)
                    if isinstance(event, DocumentErased):
                        continue
                    if event.text in texts:
                        self._chunks[event.text] = tuple(_chunks(texts[event.text].decode()))
                    if event.text in self._chunks:  # else it was erased since
                        library = event.library or (known is not None and known.library)
                        info = DocumentInfo(event.content, event.name, event.title, event.media_type, event.lines, library, event.text)
                        self._infos[event.tenant, event.content] = info
                if not page.events:
                    return
                self._position = page.events[-1].position


def _score(chunk: _Chunk, idf: dict[str, float], mean: float) -> float:
    length = 1 - _B + _B * chunk.terms.total() / mean
    return sum(weight * chunk.terms[term] * (_K1 + 1) / (chunk.terms[term] + _K1 * length) for term, weight in idf.items())


def _chunks(text: str) -> Iterator[_Chunk]:
    """Cut before headings, at the blank line that ends a stretch of some length, and after `PASSAGE_LINES_MAX` lines."""
    lines = text.split("\n")
    first = 0
    for at, line in enumerate(lines):
        is_long = sum(map(len, lines[first:at])) >= PASSAGE_CHARS_MIN and not line.strip()
        if line.startswith("#") or is_long or at - first == PASSAGE_LINES_MAX:
            yield from _chunk(lines, first, at)
            first = at
    yield from _chunk(lines, first, len(lines))


def _chunk(lines: list[str], first: int, end: int) -> Iterator[_Chunk]:
    filled = [at for at in range(first, end) if lines[at].strip()]
    if filled:
        passage = "\n".join(lines[filled[0] : filled[-1] + 1])
        yield _Chunk(filled[0] + 1, passage, Counter(terms(passage)), " ".join(_words(passage)))


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def terms(text: str) -> list[str]:
    """Return the stems of the words of a text, without those that say nothing."""
    return [stem(word) for word in _words(text) if word not in _STOP]


def stem(word: str) -> str:
    """Cut common English endings, so that forms of a word meet: a crude relative of Porter's algorithm.

    >>> stem("replaying") == stem("replays") == stem("replay") == stem("replayed")
    True
    """
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not (suffix == "s" and word.endswith("ss")):
            base = word[: -len(suffix)] + ("y" if suffix in ("ies", "ied") else "")
            if len(base) > 3 and base[-1] == base[-2] and base[-1] not in "aeouls":
                base = base[:-1]
            return base.removesuffix("e")
    return word.removesuffix("e") if len(word) > 4 else word
