"""The report of a chaos run as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from crewlog.orchestrator.chaos import ChaosReport
from crewlog.schemas.usage import format_usd


def report_lines(report: ChaosReport) -> Iterator[str]:
    """Yield what happened, each promise with what was looked at, and how to go on."""
    found, broken = report.audit, report.violations
    kills, stops = sum(report.kills.values()), sum(report.stops.values())
    yield f"chaos, seed {report.seed}: {kills} killed ({_counts(report.kills)}), {stops} stopped ({_counts(report.stops)}) in {report.seconds:.0f} s"
    yield ""
    yield f"  accepted    {report.accepted} runs with {found.tasks} tasks: {_counts(report.ended)}; {found.events} events"
    yield f"  effects     {report.effects} at the receiver; {report.repeated_arrivals} arrived again and were recognised by their key;"
    yield f"              {sum(report.resolved.values())} times a person was asked whether it happened: {_counts(report.resolved)}"
    yield f"  money       {format_usd(found.charged_micro_usd)} charged, in the log and in the ledger"
    yield f"  replays     {found.replays} runs derived again from their events"
    yield f"  views       {found.views_compared} projections compared with a rebuild"
    yield ""
    if not broken:
        yield "every promise was kept: one end for each task, every run completed, no effect twice, the ledger balanced,"
        yield "views as rebuilt, replays identical, queues empty, no process left over"
    else:
        yield f"{len(broken)} violations:"
        yield from (f"  {violation}" for violation in broken)
    if report.home is not None:
        yield f"everything is in {report.home}; look into it with: crewlog up --home {report.home}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.items()) or "none"
