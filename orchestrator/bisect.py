"""Find the first of several candidates, in their order, with which a run goes wrong: a binary search that tries the ends first. Pure.

The candidates are versions of one thing, such as models, prompts or versions of an agent; what is tried with one of them is `good`, `bad`,
or cannot be told (`skip`). The search takes for granted that the candidates turn bad once; what it tried is all that it claims. Whatever its end
rests on is asked again, since a check that answers now so, now so would find a place that is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Verdict = Literal["good", "bad", "skip"]


class Found(msgspec.Struct, frozen=True):
    """What a search found, as places among the candidates.

    `first_bad` is set when it is known; else `suspects` are those among which it is, because nothing could be told of some of them. With an
    unsteady check they are those of which it said otherwise when it was asked again.
    """

    outcome: Literal["first bad", "among several", "all bad", "none bad", "unknown", "unsteady check"]
    last_good: int | None = None
    first_bad: int | None = None
    suspects: tuple[int, ...] = ()


def next_probe(count: int, verdicts: Mapping[int, Verdict]) -> int | None:
    """Return the candidate to try next, None when the search is over."""
    ends = (0, count - 1)
    for end in ends:
        if end not in verdicts:
            return end
        if verdicts[end] != ("good" if end == 0 and count > 1 else "bad"):
            return None
    low, high = _bounds(verdicts)
    middle = (low + high) / 2
    left = [n for n in range(low + 1, high) if n not in verdicts]
    return min(left, key=lambda n: (abs(n - middle), n), default=None)


def conclude(count: int, verdicts: Mapping[int, Verdict]) -> Found:
    """Say what the tries show, once there is nothing left to try."""
    first, last = verdicts[0], verdicts.get(count - 1)
    if "skip" in (first, last):
        return Found("unknown")
    if first == "bad":
        return Found("all bad", first_bad=0)
    if last == "good":
        return Found("none bad", last_good=count - 1)
    low, high = _bounds(verdicts)
    if high - low == 1:
        return Found("first bad", last_good=low, first_bad=high)
    return Found("among several", last_good=low, suspects=tuple(range(low + 1, high + 1)))


def rests_on(found: Found) -> tuple[int, ...]:
    """Return the candidates without whose verdicts something else would have been found, in order."""
    return tuple(sorted({n for n in (found.last_good, found.first_bad, *found.suspects[-1:]) if n is not None}))


def confirmed(found: Found, verdicts: Mapping[int, Verdict], again: Mapping[int, Verdict]) -> Found:
    """Hold what was found against what was said of the same candidates when it was asked again."""
    differ = tuple(n for n, verdict in again.items() if verdict != verdicts[n])
    return Found("unsteady check", suspects=differ) if differ else found


def _bounds(verdicts: Mapping[int, Verdict]) -> tuple[int, int]:
    high = min(n for n, verdict in verdicts.items() if verdict == "bad")
    return max((n for n, verdict in verdicts.items() if verdict == "good" and n < high), default=0), high
