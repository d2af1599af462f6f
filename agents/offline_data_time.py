"""Spans of time in the words of a question: days, months, quarters and years, "between", "since", "before". Pure functions, English only."""

from __future__ import annotations

import re
from datetime import date, timedelta
from itertools import pairwise
from typing import Final, NamedTuple

MONTHS: Final = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december")
_MONTH: Final = "|".join(f"{month}|{month[:3]}" if month != "september" else "september|sept|sep" for month in MONTHS if month != "may") + "|May"
_YEAR: Final = r"(?:19|20)\d\d"
_NTH: Final = {name: number for number, names in enumerate(("first 1st", "second 2nd", "third 3rd", "fourth 4th")) for name in names.split()}
_POINT: Final = re.compile(
    rf"(?P<iso>{_YEAR}-\d\d-\d\d)|(?P<isomonth>{_YEAR}-\d\d)(?![-\d])|"
    rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<daymonth>(?i:{_MONTH}))\.? (?P<dayyear>{_YEAR})|"
    rf"(?P<usmonth>(?i:{_MONTH}))\.? (?P<usday>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<usyear>{_YEAR})|(?:(?P<month>(?i:{_MONTH}))\.?(?: of)? (?P<monthyear>{_YEAR}))|"
    rf"(?i:q(?P<quarter>[1-4]))(?: of)? (?P<quarteryear>{_YEAR})|"
    rf"(?P<nth>(?i:first|second|third|fourth|1st|2nd|3rd|4th)) (?P<part>(?i:quarter|half))(?: of)? (?P<partyear>{_YEAR})|"
    rf"(?P<decade>\b(?:19|20)\d0)s\b|(?P<year>\b{_YEAR})(?![-\d.,]\d|\d)|(?P<only>\b(?i:{_MONTH})\b)"
)
_LISTED: Final = re.compile(r"^\s*(?:,|(?:,\s*)?(?:and|or|to|until|till|through|(?P<versus>vs\.?|versus))|[-–])\s*(?:in\s+|the\s+)*$", re.IGNORECASE)
"""What stands between two points in time that belong together."""
_LEAD: Final = re.compile(
    r"\b(between|from|since|after|starting(?: in| on)?|before|until|till|up to|through|by|in|on|during|for|of|and|or|to|vs\.?|versus)\s+(?:the\s+)?$",
    re.IGNORECASE,
)


class Span(NamedTuple):
    """A span of time: from `start`, before `end`, both as ISO days and either one empty when open; or one month of every year."""

    text: str
    start: str = ""
    end: str = ""
    month: int = 0
    is_years: bool = False
    """It was said in whole years."""


def spans(question: str) -> list[Span]:
    """Return the spans of time a question names, in its order. A year alone needs a word such as "in" or "since" before it."""
    points = [(match, *bounds) for match in _POINT.finditer(question) if (bounds := _bounds(match))]
    between = [_LISTED.match(question[one[0].end() : other[0].start()]) for one, other in pairwise(points)]
    for at in reversed(range(len(between))):
        # "January, February and March 2024": the year stands once, for all of them
        match, _, _, month = points[at]
        if between[at] and month and not points[at + 1][3]:
            points[at] = (match, *_months(points[at + 1][1].year, month, 1), 0)
    found: list[Span] = []
    at = 0
    while at < len(points):
        match, start, end, month = points[at]
        lead = _LEAD.search(question, max(0, match.start() - 30), match.start())
        word = lead.group(1).lower() if lead else "in" if at and between[at - 1] and found else ""
        last = match
        while at < len(between) and (link := between[at]) and not (month or points[at + 1][3] or link["versus"]):
            follower, other, until, _ = points[at + 1]
            if not (until == start or other == end or (word in ("between", "from") and last is match)):
                break
            start, end, last, at = min(start, other), max(end, until), follower, at + 1
        at += 1
        first = lead.start() if lead else match.start()
        if last is not match:
            found.append(Span(question[first : last.end()], start.isoformat(), end.isoformat(), 0, bool(match["year"] and last["year"])))
        elif word or not (match["year"] or match["only"]):
            found.append(_single(question[first : match.end()], word, start, end, month, is_years=bool(match["year"] or match["decade"])))
    return found


def _single(text: str, word: str, start: date, end: date, month: int, *, is_years: bool) -> Span:
    if month:
        return Span(text, month=month)
    if word in ("since", "from") or word.startswith("starting"):
        return Span(text, start.isoformat(), "", 0, is_years)
    if word == "after":
        return Span(text, end.isoformat(), "", 0, is_years)
    if word == "before":
        return Span(text, "", start.isoformat(), 0, is_years)
    if word in ("until", "till", "up to", "through", "by", "to"):
        return Span(text, "", end.isoformat(), 0, is_years)
    return Span(text, start.isoformat(), end.isoformat(), 0, is_years)


def _bounds(match: re.Match[str]) -> tuple[date, date, int] | None:
    """Return the first day and the day after the last of a point in time, and the month when it has no year; None for a day that does not exist."""
    try:
        if text := match["iso"]:
            day = date.fromisoformat(text)
            return day, day + timedelta(days=1), 0
        if match["day"] or match["usday"]:
            number, name, year = (match[a] or match[b] for a, b in (("day", "usday"), ("daymonth", "usmonth"), ("dayyear", "usyear")))
            day = date(int(year), _number(name), int(number))
            return day, day + timedelta(days=1), 0
        if match["only"]:
            return date.min, date.min, _number(match["only"])
        if match["nth"]:
            count = 3 if match["part"].lower() == "quarter" else 6
            return *_months(int(match["partyear"]), 1 + count * _NTH[match["nth"].lower()], count), 0
        if match["decade"]:
            return date(int(match["decade"]), 1, 1), date(int(match["decade"]) + 10, 1, 1), 0
        if match["year"]:
            return date(int(match["year"]), 1, 1), date(int(match["year"]) + 1, 1, 1), 0
        if match["quarter"]:
            return *_months(int(match["quarteryear"]), 3 * int(match["quarter"]) - 2, 3), 0
        if match["isomonth"]:
            return *_months(int(match["isomonth"][:4]), int(match["isomonth"][5:]), 1), 0
        return *_months(int(match["monthyear"]), _number(match["month"]), 1), 0
    except ValueError:
        return None


def _months(year: int, month: int, count: int) -> tuple[date, date]:
    last = month + count
    return date(year, month, 1), date(year + (last > 12), last - 12 * (last > 12), 1)


def _number(name: str) -> int:
    return next(number for number, month in enumerate(MONTHS, 1) if month.startswith(name.lower()[:3]))
