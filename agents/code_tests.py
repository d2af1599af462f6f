"""Run a project's tests in the sandbox, and say what came of it: to the model as text, to later calls as a report artifact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from crewlog.agents.child import ChildLimits, ChildResult
from crewlog.agents.sandbox import Sandbox
from crewlog.agents.scratch import scratch
from crewlog.agents.spec import ToolContext, ToolFailed
from crewlog.agents.workspace import Workspace
from crewlog.schemas.text import clean, shorten
from crewlog.schemas.values import ArtifactRef

RUNNER: Final = Path(__file__).with_name("code_runner.py")
REPORT_NAME: Final = "test-report.json"
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
DETAILS_MAX: Final = 10
"""Failing tests shown with their lines; the others by name."""
ERRORS_SHOWN_CHARS: Final = 1_500
STOPPED: Final = {
    "timeout": "it did not end in {wall_s:g} s",
    "memory": "it used more memory than allowed",
    "output": "it wrote more output than allowed",
    "disk": "it stored more than allowed ({used})",
}


class TestReport(msgspec.Struct, frozen=True):
    """What is kept of a run of all tests. `tree` names the files it was about."""

    __test__ = False

    tree: str
    passed: int
    failed: int
    is_complete: bool
    """All tests ran, not a selection."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One edit to try: the whole new text of one file."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Tried:
    """What the runner answered. `kept` is the index of the candidate that makes all tests pass."""

    level: str
    baseline: dict[str, Any]
    tried: Sequence[dict[str, Any]]
    kept: int | None

    def count(self, *outcomes: str) -> int:
        """Count the tests that ended so."""
        return sum(test["outcome"] in outcomes for test in self.baseline["tests"])


async def run_tests(
    context: ToolContext,
    workspace: Workspace,
    sandbox: Sandbox,
    *,
    wall_s: float,
    arguments: Sequence[str] = (),
    trace: bool = False,
    candidates: Sequence[Candidate] = (),
) -> Tried:
    """Run the tests on a fresh copy of the workspace, then each candidate alone until one makes all pass.

    Raises:
        ToolFailed: the tests could not be run to their end; the text says why.
    """
    root = workspace.root()
    inside = f"{root}/" if root else ""
    limits = ChildLimits(wall_s=wall_s + 5, cpu_s=int(wall_s) + 5, output_bytes_max=ANSWER_BYTES_MAX)
    with scratch(context.workspace) as folder:
        project = folder / "project"
        await workspace.checkout(project)
        (folder / RUNNER.name).write_bytes(RUNNER.read_bytes())
        job = {
            "root": str(project / root),
            "arguments": [argument.removeprefix(inside) for argument in arguments],
            "trace": trace,
            "seconds": wall_s,
            "candidates": [{"path": str(project / candidate.path), "text": candidate.text} for candidate in candidates],
        }
        result = await sandbox.run_python([RUNNER.name], folder=folder, limits=limits, stdin=json.dumps(job).encode())
        answer = _answer(result, limits)
    if answer["baseline"] is None:
        raise ToolFailed(f"the tests did not end in {wall_s:g} s and were stopped")
    _name_from_workspace(answer["baseline"], inside)
    return Tried((await sandbox.ready()).level, answer["baseline"], answer["tried"], answer["kept"])


def _name_from_workspace(report: dict[str, Any], inside: str) -> None:
    """Put the project's folder before its paths, so that every path can be given to the other tools as it is."""
    for test in report["tests"]:
        test["id"] = inside + test["id"]
        if test.get("at") and not test["at"].startswith("/"):
            test["at"] = inside + test["at"]
    for entry in report["suspicious"]:
        entry["path"] = inside + entry["path"]


def _answer(result: ChildResult, limits: ChildLimits) -> dict[str, Any]:
    if result.killed_reason is not None:
        raise ToolFailed(f"the tests were stopped: {STOPPED[result.killed_reason].format(wall_s=limits.wall_s, used=result.used)}")
    try:
        answer: dict[str, Any] = json.loads(result.stdout)
    except ValueError:
        said = clean(result.stderr.decode(errors="replace"))[-ERRORS_SHOWN_CHARS:].strip()
        raise ToolFailed(f"the tests could not be run (status {result.returncode}): {said or 'the runner said nothing'}") from None
    return answer


def render(tried: Tried) -> str:
    """Write a test run for a model: a line with the counts, then each test that did not pass, then the names of those that did.

    `FAILED <test>` and `ERROR <test>` are followed by ` - <file>:<line>: <message>`, `PASSED` and `SKIPPED` stand alone.
    """
    tests = tried.baseline["tests"]
    words = {"passed": "passed", "failed": "failed", "error": "errors", "skipped": "skipped"}
    counts = [f"{tried.count(outcome)} {word}" for outcome, word in words.items()]
    lines = [f"{', '.join(counts)} (sandbox: {tried.level})"]
    bad = [test for test in tests if test["outcome"] in ("failed", "error")]
    for index, test in enumerate(bad):
        lines.append(f"{test['outcome'].upper()} {test['id']} - {test['at'] + ': ' if test['at'] else ''}{test['message']}")
        if index < DETAILS_MAX:
            lines += [f"    {line}" for line in test["detail"]]
    lines += [f"{test['outcome'].upper()} {test['id']}" for test in tests if test["outcome"] in ("passed", "skipped")]
    if tried.baseline["suspicious"]:
        lines.append("suspicious lines, run by failing tests more than by passing ones (1 = only by failing ones, and by all of them):")
        lines += [f"  {entry['score']:.3f} {entry['path']}:{entry['line']}: {entry['text']}" for entry in tried.baseline["suspicious"]]
    if not tests:
        lines.append(f"no tests ran; pytest said: {shorten(tried.baseline['output'].strip(), ERRORS_SHOWN_CHARS)}")
    return clean("\n".join(lines))


async def keep_report(context: ToolContext, workspace: Workspace, tried: Tried, *, is_complete: bool) -> ArtifactRef:
    """Store what `submit_patch` needs to know of a run."""
    report = TestReport(workspace.tree_hash(), tried.count("passed"), tried.count("failed", "error"), is_complete)
    return await context.artifacts.put(REPORT_NAME, msgspec.json.encode(report), "application/json")


async def latest_report(context: ToolContext, workspace: Workspace) -> TestReport | None:
    """Return the newest report of a complete run on exactly the files there are now."""
    for ref in reversed(context.earlier_artifacts):
        if ref.name == REPORT_NAME:
            report = msgspec.json.decode(await context.artifacts.get(ref.hash), type=TestReport)
            if report.is_complete and report.tree == workspace.tree_hash():
                return report
    return None
