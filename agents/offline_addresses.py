"""Says whom an order lets be written to, where it lets something be posted, and whether it lets anything leave the house at all.

An address that only occurs in a text is no recipient: it may be forbidden, be the source of what is sent, or stand in the words to be said.
When in doubt nobody is written to: a draft can still be sent, a sent mail cannot be taken back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from crewlog.agents.offline_text import EMAIL, QUOTED, URL

_VERBS: Final = (
    r"(?:send|sent|sending|e-?mail(?:ed|ing)?|mail(?:ed|ing)?|post(?:ed|ing)?|forward(?:ed|ing)?|notify(?:ing)?|contact(?:ed|ing)?|writ(?:e|ing)|"
    r"shar(?:e|ed|ing)|tell(?:ing)?|inform(?:ed|ing)?|copy(?:ing)?|cc(?:ing)?)"
)
_NOT: Final = r"(?:\b(?:not|never|without|cannot|nor|nothing|nobody|avoid|refrain|hold off)|n['’]t)\b"
_FORBIDDEN: Final = re.compile(rf"(?:{_NOT}(?! (?:forget|hesitate|fail)\b)(?:\s+[\w-]+){{0,3}}?\s+{_VERBS}|\b{_VERBS}\s+(?:nothing|no\s+\w+))\b", re.IGNORECASE)
_DRAFT: Final = re.compile(
    r"(?:^|[,;.:]|\band|\bthen|\bplease|\bonly|\bjust)\s*(?:draft|(?:write|prepare|make)\s+(?:me\s+)?(?:an?|the)\s+draft)\b", re.IGNORECASE
)
_SEND_IT: Final = re.compile(r"(?:[,;.]|\band|\bthen)\s*(?:please\s+)?send\b", re.IGNORECASE)
_SENDING: Final = re.compile(
    rf"\b(?:{_VERBS}|draft|inform|announce|share|tell|report|let|remind|invite|thank|warn|ask|reply|respond|answer|copy|deliver|note|message|to|for|cc|bcc|"
    r"address(?:es)?|recipients?)\b",
    re.IGNORECASE,
)
_SAYING: Final = re.compile(
    rf"\b(?:saying|that says|to say|with the (?:text|message|words)|telling (?:them|him|her|everyone))\s+(?:that\s+)?"
    rf"|(?:{EMAIL.pattern}[)>]?|\b(?:team|all|them|him|her|people|customers|users|colleagues|every(?:one|body)|know|note|e-?mail|message|word|reminder))"
    rf",?\s+that\s+|(?:{EMAIL.pattern})[)>]?\s*:\s+(?=\S)",
    re.IGNORECASE,
)
_GLUE: Final = re.compile(r"(?:and|or|nor|cc|bcc|[A-Z][\w'’-]+|[\s,;:&()<>])*")
_SPARED: Final = re.compile(r"[)>]?\s+(?:must|should|may|shall|can|need|is|has|does|do|will)?\s*(?:not|never|nothing)\b|[)>]?\s+\w+n['’]t\b", re.IGNORECASE)
_EXCLUDED: Final = re.compile(
    rf"(?i:{_NOT})(?:\s+(?:also|to|for|by|via|with|bcc|bother|include|reach|involve|anything|it|this|them|[A-Z][\w'’-]+|{_VERBS}))*\s*[(<]?$"
    r"|(?i:\b(?:except|excluding|other than|apart from|instead of|rather than|keep|leave|(?:all|(?:every|any)(?:one|body)) but)\s+(?:for\s+|to\s+)?)[(<]?$"
)
_SOURCE: Final = re.compile(
    r"(?i:\b(?:from|of|by|about|regarding|concerning|behalf of|signed|repl(?:y|ies)(?:[ -]to| to|to)?|belongs to)\s+)(?:[A-Z][\w'’-]+\s+){0,2}[(<]?$"
)
_POSTING: Final = re.compile(r"\b(?:post|push|publish|notify|send|deliver|submit|report|forward|mail|share|ping|call)\b", re.IGNORECASE)
_POSTED_TO: Final = re.compile(
    r"(?<!link)(?<!links)(?<!pointer)(?<!refers)(?<!points)(?<!reference)(?<!according)\s(?:to|via|into)\s+(?:(?:the|our|my|this)\s+)?(?:[\w-]+\s+){0,2}[(<]?$"
    r"|\b(?:post|notify|ping|call|webhook|hook|endpoint)(?:\s+(?:it|this|them))?(?:\s+(?:at|on|is|url))?:?\s*[(<]?$",
    re.IGNORECASE,
)


class Order(NamedTuple):
    """What a text says about sending."""

    recipients: tuple[str, ...]
    urls: tuple[str, ...]
    is_forbidden: bool
    """Nothing may leave the house, whoever it is for."""


def read_order(text: str) -> Order:
    """Read who is to be written to and where something is to be posted."""
    wanted: list[str] = []
    refused: set[str] = set()
    urls: list[str] = []
    is_forbidden = bool(_DRAFT.search(text)) and not _SEND_IT.search(text)
    for part in _orders(text):
        mails = list(_verdicts(part))
        wanted += [address for address, verdict in mails if verdict is True]
        refused |= {address.lower() for address, verdict in mails if verdict is False}
        urls += _posted(part)
        forbidding = _FORBIDDEN.search(part)
        is_forbidden |= forbidding is not None and not any(verdict is False for _, verdict in mails)
    return Order(tuple(dict.fromkeys(a for a in wanted if a.lower() not in refused)), tuple(dict.fromkeys(urls)), is_forbidden)


def said(text: str) -> str:
    """Return what an order wants to be said, as it stands behind "saying …", "tell them that …" or "mail ADDRESS: …"; nothing when it says none."""
    found = _SAYING.search(text)
    if found is None:
        return ""
    words = text[found.end() :]
    if forbidding := re.search(rf"[,;.]?\s*(?:but\s+)?(?:please\s+)?(?:do\s+)?{_FORBIDDEN.pattern}", words, re.IGNORECASE):
        words = words[: forbidding.start()]
    if EMAIL.search(text, 0, found.end()):
        return words.strip()
    return re.sub(rf"\s+to\s+(?:[A-Z]\w+\s+)?[(<]?(?:{EMAIL.pattern})[)>]?\.?$", "", words.strip())


def _orders(text: str) -> Iterator[str]:
    """Yield the sentences of an order without the words that are to be said."""
    spoken = QUOTED.sub(lambda quote: quote.group() if EMAIL.fullmatch(quote.group().strip("\"“”`'")) else " ", text)
    for part in re.split(r"(?<=[.!?;])\s+|;|\n", spoken):
        found = _SAYING.search(part)
        yield part[: found.end()] if found and EMAIL.search(part, 0, found.end()) else part


def _verdicts(part: str) -> Iterator[tuple[str, bool | None]]:
    """Yield each address of a sentence with True for one to write to, False for a forbidden one, None for one that is only mentioned."""
    part = URL.sub(lambda url: " " * len(url.group()), part)
    end, verdict = 0, None
    is_first = True
    for found in EMAIL.finditer(part):
        before = part[end : found.start()]
        if is_first or not _GLUE.fullmatch(before):
            verdict = _verdict(before, part[: found.start()], part[found.end() :])
        yield found.group(), verdict
        end, is_first = found.end(), False


def _verdict(before: str, opening: str, behind: str) -> bool | None:
    if _SPARED.match(behind) or _EXCLUDED.search(before) or any(not _contrasts(before[found.end() :]) for found in _FORBIDDEN.finditer(before)):
        return False
    return None if _SOURCE.search(before) or (opening.strip(" (<") and not _SENDING.search(opening)) else True


def _contrasts(text: str) -> bool:
    """Say whether a prohibition ends before the end of a text: "do not send it to all, but to …"."""
    return bool(re.search(r"\b(?:but|only|instead)\b|[,:]\s*(?:just\s+)?\w+\s+(?:it\s+)?(?:to\s+)?$", text, re.IGNORECASE))


def _posted(part: str) -> Iterator[str]:
    end = 0
    for found in URL.finditer(part):
        before = part[end : found.start()]
        if _POSTING.search(before) and _POSTED_TO.search(before) and not _FORBIDDEN.search(before):
            yield found.group()
        end = found.end()
