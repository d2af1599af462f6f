"""Metrics of what agents do, counted from finished spans: histograms since the start of this process, kept in memory.

No run and no task is in an attribute: each set of attributes is a time series of its own for whoever stores them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, NamedTuple

from crewlog.projections import span_names as names
from crewlog.projections.span import Span, Value

SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Bounds the conventions advise for durations of calls."""
TOKENS: Final = tuple(4.0**n for n in range(14))
"""Bounds they advise for numbers of tokens."""
SERIES_MAX: Final = 2_000
"""Sets of attributes kept per metric: names of models and tools come from outside."""

Labels = tuple[tuple[str, Value], ...]


class Instrument(NamedTuple):
    """One metric: what it is called, in which unit it counts, and where its buckets end."""

    name: str
    unit: str
    bounds: tuple[float, ...]


class Series:
    """One histogram."""

    __slots__ = ("buckets", "count", "highest", "lowest", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.buckets = [0] * (len(bounds) + 1)
        self.count, self.total = 0, 0.0
        self.lowest, self.highest = float("inf"), float("-inf")

    def record(self, bounds: tuple[float, ...], value: float) -> None:
        """Count one value; a bucket includes its upper bound."""
        self.buckets[bisect_left(bounds, value)] += 1
        self.count += 1
        self.total += value
        self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)


_CALL: Final = Instrument(names.OPERATION_DURATION, "s", SECONDS)
_TOKENS: Final = Instrument(names.TOKEN_USAGE, "{token}", TOKENS)
_CALL_LABELS: Final = (names.OPERATION, names.PROVIDER, names.REQUEST_MODEL, names.RESPONSE_MODEL, names.ERROR_TYPE)
_DURATIONS: Final = {
    "chat": (_CALL, _CALL_LABELS),
    "generate_content": (_CALL, _CALL_LABELS),
    "execute_tool": (Instrument(names.TOOL_DURATION, "s", SECONDS), (names.OPERATION, names.TOOL, names.AGENT, names.ERROR_TYPE)),
    "invoke_agent": (Instrument(names.AGENT_DURATION, "s", SECONDS), (names.OPERATION, names.AGENT, names.ERROR_TYPE)),
    "invoke_workflow": (Instrument(names.WORKFLOW_DURATION, "s", SECONDS), (names.OPERATION, names.WORKFLOW, names.ERROR_TYPE)),
}

TOKENS_END: Final = 1 << 63
"""What fits no column either is no count of tokens, whatever an agent says."""


class Meters:
    """All histograms of one process."""

    def __init__(self, begin_us: int) -> None:
        self.begin_us = begin_us
        self._series: dict[Instrument, dict[Labels, Series]] = {}

    @property
    def series(self) -> Mapping[Instrument, Mapping[Labels, Series]]:
        """Return what was counted since `begin_us`."""
        return self._series

    def measure(self, span: Span) -> None:
        """Count a finished span."""
        found = _DURATIONS.get(str(span.attributes.get(names.OPERATION)))
        if found is None:
            return
        instrument, keys = found
        attributes = span.attributes
        labels = tuple([(key, attributes[key]) for key in keys if key in attributes])
        self._record(instrument, labels, (span.end_us - span.begin_us) / 1e6)
        for key, kind in ((names.INPUT_TOKENS, "input"), (names.OUTPUT_TOKENS, "output")):
            tokens = attributes.get(key)
            if isinstance(tokens, int) and 0 <= tokens < TOKENS_END:
                self._record(_TOKENS, (*labels, (names.TOKEN_TYPE, kind)), tokens)

    def _record(self, instrument: Instrument, labels: Labels, value: float) -> None:
        known = self._series.setdefault(instrument, {})
        series = known.get(labels)
        if series is None:
            if len(known) >= SERIES_MAX:
                return
            series = known[labels] = Series(instrument.bounds)
        series.record(instrument.bounds, value)
