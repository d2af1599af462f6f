"""The long mode of `crewlog chaos`: rounds with a fresh crew and a fresh seed each, until enough processes were killed.

    uv run python benchmarks/chaos.py                       1000 kills; half an hour on two cores
    uv run python benchmarks/chaos.py --kills 5000 --from 7 more, other seeds

Each round is one line; the sums stand at the end, and the exit code is 1 when any promise was broken. A round that breaks one keeps its
home and says where.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter

from measure import machine

from crewlog.events.clock import SystemClock
from crewlog.orchestrator.chaos import ChaosReport, Options, run_chaos

PER_ROUND = 100
SECONDS_MAX = 400.0
"""A round ends after this time even when it has not killed that many."""


async def main(kills: int, seed: int) -> int:
    """Play rounds and print what came of them."""
    print(f"{machine()}\n")
    reports: list[ChaosReport] = []
    struck = 0
    while struck < kills:
        options = Options(seed=seed + len(reports), kills=min(PER_ROUND, kills - struck), seconds=SECONDS_MAX)
        report = await run_chaos(options, SystemClock(), home=None, keep=False, say=lambda _: None)
        reports.append(report)
        struck += sum(report.kills.values())
        print(line(report), flush=True)
        for violation in report.violations:
            print(f"    {violation}")
        if report.home is not None:
            print(f"    kept: {report.home}", flush=True)
    print(summary(reports))
    return 1 if any(report.violations for report in reports) else 0


def line(report: ChaosReport) -> str:
    """Tell one round."""
    killed, stopped, asked = sum(report.kills.values()), sum(report.stops.values()), sum(report.resolved.values())
    return (
        f"seed {report.seed}: {killed} killed, {stopped} stopped in {report.seconds:.0f} s; {report.accepted} runs, {report.audit.tasks} tasks, "
        f"{report.effects} effects, {report.repeated_arrivals} arrived again, {asked} times a person was asked; {len(report.violations)} violations"
    )


def summary(reports: list[ChaosReport]) -> str:
    """Add the rounds up."""
    kills, stops, ends = Counter[str](), Counter[str](), Counter[str]()
    for report in reports:
        kills.update(report.kills)
        stops.update(report.stops)
        ends.update(report.ended)
    by_part = ", ".join(f"{part} {count}" for part, count in kills.most_common())
    return "\n".join(
        (
            "",
            f"{kills.total()} killed ({by_part}) and {stops.total()} stopped in {sum(r.seconds for r in reports) / 60:.1f} min and {len(reports)} rounds",
            f"{sum(r.accepted for r in reports)} runs, {sum(r.audit.tasks for r in reports)} tasks, {sum(r.audit.events for r in reports)} events",
            f"ends: {', '.join(f'{end} {count}' for end, count in ends.most_common())}",
            f"{sum(r.effects for r in reports)} effects; {sum(r.repeated_arrivals for r in reports)} arrived again and were recognised by their key",
            f"{sum(len(r.violations) for r in reports)} violations",
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--from", dest="seed", type=int, default=1)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.kills, given.seed)))
