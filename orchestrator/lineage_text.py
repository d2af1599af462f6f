"""How the lineage of a text reads in a terminal: its sources, the surest first, and what is behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from crewlog.orchestrator.cli_output import printable
from crewlog.orchestrator.lineage import Lineage, Source
from crewlog.schemas.text import shorten

SHOWN_MAX: Final = 6
"""Sources without a tie to the text that are listed; JSON has all of them."""


def lineage_lines(found: Lineage) -> Iterator[str]:
    """Yield everything about where one text comes from."""
    yield printable(f"{found.what}: {shorten(found.text, 200)}")
    yield printable(f"written by {found.writer} in task {found.key}, event {found.index}")
    yield from _source_lines(found.sources, "  ")
    if not found.sources:
        yield "  nothing was in front of the model: it wrote this by itself"
    elif all(source.certainty == "in context" for source in found.sources):
        yield "  nothing ties the text to any of these: the model had them in front of it, no more can be said"


def _source_lines(sources: Sequence[Source], indent: str) -> Iterator[str]:
    loose = [source for source in sources if source.certainty == "in context"]
    for source in (*(s for s in sources if s.certainty != "in context"), *loose[:SHOWN_MAX]):
        shared = f"  “{source.shared}”" if source.shared else ""
        part = f" {source.share:.0%} of it" if source.certainty == "contained" and source.share else ""
        trust = "" if source.trust == "trusted" else f" ({source.trust})"
        yield printable(f"{indent}{source.certainty:<10} {source.what} {source.name}{trust}, task {source.key}, event {source.index}{part}{shared}")
        yield from _source_lines(source.behind, f"{indent}    ")
    if len(loose) > SHOWN_MAX:
        yield f"{indent}and {len(loose) - SHOWN_MAX} more in context"


def brief_lines(found: Lineage) -> Iterator[str]:
    """Yield one text and the source that is tied to it closest."""
    best = _closest(found.sources)
    told = "no source" if best is None else f"{best.certainty}: {best.what} {best.name}, event {best.index}"
    yield printable(shorten(found.text, 120))
    yield printable(f"    {told}")


def _closest(sources: Sequence[Source]) -> Source | None:
    """Return the source that is tied closest; an outcome only stands for what is behind it."""
    if not sources:
        return None
    first = sources[0]
    if first.what == "outcome":
        tied = [source for source in first.behind if source.certainty != "in context"]
        told = [source for source in tied if source.what != "task"]  # an answer repeats words of its question, which are no source of what it says
        return _closest(told) or first
    return first
