"""What golden tasks showed: for people as lines, for CI as JUnit XML. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

import msgspec

from crewlog.orchestrator.golden_observe import Difference, Observed
from crewlog.schemas.text import clean
from crewlog.schemas.usage import format_usd


class Verdict(msgspec.Struct, frozen=True):
    """What one golden task showed."""

    name: str
    path: str
    passed: bool
    differences: tuple[Difference, ...]
    error: str
    """Why it could not be played; empty when it was."""
    seen: Observed | None
    seconds: float
    """How long the playing took."""
    drift: tuple[str, ...] = ()
    """Model calls that were asked otherwise than recorded."""
    calls: int = 0


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """Describe one verdict, one line for each thing that is wrong."""
    seen = verdict.seen
    told = "" if seen is None else f"{len(seen.tasks)} tasks, {seen.steps} steps, {format_usd(seen.cost_micro_usd)}, "
    yield f"{'ok  ' if verdict.passed else 'FAIL'} {verdict.name}  {told}{verdict.seconds:.2f} s"
    for line in (*verdict.error.splitlines(), *map(str, verdict.differences), *_drift(verdict)):
        yield f"     {line}"


def _drift(verdict: Verdict) -> Iterator[str]:
    if verdict.drift:
        yield f"{len(verdict.drift)} of {verdict.calls} model calls were asked otherwise than recorded, the first is {verdict.drift[0]}"


def junit(verdicts: Sequence[Verdict]) -> str:
    """Return a JUnit report: one test case for each golden task."""
    failed = sum(not v.passed and not v.error for v in verdicts)
    errors = sum(bool(v.error) for v in verdicts)
    counts = {"tests": str(len(verdicts)), "failures": str(failed), "errors": str(errors), "time": f"{sum(v.seconds for v in verdicts):.3f}"}
    suite = ET.Element("testsuite", {"name": "crewlog golden", **counts})
    for verdict in verdicts:
        case = ET.SubElement(suite, "testcase", {"classname": "golden", "name": verdict.name, "file": verdict.path, "time": f"{verdict.seconds:.3f}"})
        wrong = [*map(str, verdict.differences), *_drift(verdict)]
        if verdict.error:
            ET.SubElement(case, "error", {"message": _xml(verdict.error)})
        elif not verdict.passed:
            ET.SubElement(case, "failure", {"message": _xml(wrong[0])}).text = _xml("\n".join(wrong))
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Leave out what XML 1.0 cannot hold."""
    return "".join(c for c in clean(text) if c in "\t\n" or c >= " ")
