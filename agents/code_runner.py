"""Runs inside the sandbox: pytest on a project, and candidate edits against its tests. Standard library and pytest only.

Reads one JSON object from stdin, writes one to stdout. Each test run is a fork of this process, which has pytest imported already:
a candidate costs its tests and little else, and an edit that never ends is stopped by its own clock.

    in:  {root, arguments, trace, seconds, candidates: [{path, text}]}
    out: {baseline: report, tried: [{status, passing, broken}], kept: index or null}
    report: {tests: [{id, outcome, at, message, detail}], suspicious: [{path, line, score, text}], output}
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Generator
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

OUTPUT_CHARS_MAX: Final = 4_000
DETAIL_LINES_MAX: Final = 12
SUSPICIOUS_MAX: Final = 15
COLLECTION: Final = "collection"
"""Stands for what fails before there is any test file."""
Report = dict[str, Any]


class Recorder:
    """A pytest plugin that notes how each test ended, where it failed, and on demand which lines of the project it ran."""

    def __init__(self, root: str, *, trace: bool) -> None:
        self._root, self._trace = root + os.sep, trace
        self._tests: dict[str, dict[str, Any]] = {}
        self._lines: dict[str, set[tuple[str, int]]] = {}
        self._test_files: set[str] = set()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._note(report.nodeid or COLLECTION, "error", report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._note(report.nodeid, "failed" if report.when == "call" else "error", report)
        elif report.when == "call" or report.skipped:
            self._tests.setdefault(report.nodeid, {"id": report.nodeid, "outcome": report.outcome})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        self._test_files.add(str(item.path))
        if not self._trace:
            return (yield)
        lines = self._lines.setdefault(item.nodeid, set())

        def tracer(frame: FrameType, _event: str, _arg: object) -> Any:
            name = frame.f_code.co_filename
            if not name.startswith(self._root):
                return None
            lines.add((name, frame.f_lineno))
            return tracer

        sys.settrace(tracer)
        try:
            return (yield)
        finally:
            sys.settrace(None)

    def _note(self, node: str, outcome: str, report: pytest.CollectReport | pytest.TestReport) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = report.longreprtext.splitlines()
        marked = [line for line in text if line.startswith((">", "E "))] or text[-DETAIL_LINES_MAX:]
        self._tests[node] = {
            "id": node,
            "outcome": outcome,
            "at": f"{self._local(crash.path)}:{crash.lineno}" if crash else "",
            "message": (crash.message if crash else text[-1] if text else "").split("\n")[0][:500],
            "detail": [line.replace(self._root, "")[:300] for line in marked[:DETAIL_LINES_MAX]],
        }

    def _local(self, path: str) -> str:
        return str(path).removeprefix(self._root)

    def report(self) -> Report:
        return {"tests": list(self._tests.values()), "suspicious": self._suspicious()}

    def _suspicious(self) -> list[dict[str, Any]]:
        """Rank lines by how much failing tests run them and passing ones do not (Ochiai)."""
        failed = [lines for node, lines in self._lines.items() if self._tests.get(node, {}).get("outcome") == "failed"]
        passed = [lines for node, lines in self._lines.items() if self._tests.get(node, {}).get("outcome") == "passed"]
        scores = []
        for path, line in {place for lines in failed for place in lines if place[0] not in self._test_files}:
            by_failed, by_passed = sum((path, line) in lines for lines in failed), sum((path, line) in lines for lines in passed)
            scores.append((by_failed / (len(failed) * (by_failed + by_passed)) ** 0.5, path, line))
        best = sorted(scores, key=lambda entry: (-entry[0], entry[1:]))[:SUSPICIOUS_MAX]
        return [{"path": self._local(path), "line": line, "score": round(score, 3), "text": source_line(path, line)} for score, path, line in best]


def source_line(path: str, line: int) -> str:
    lines = Path(path).read_text(errors="replace").splitlines()
    return lines[line - 1].strip()[:200] if line <= len(lines) else ""


def run(root: Path, arguments: list[str], *, trace: bool, seconds: float, keep_open: int) -> Report | None:
    """Run pytest in a fork; None when it did not end in time."""
    tmp = Path(os.environ["TMPDIR"])
    answer, log = tmp / "report.json", tmp / "output.txt"
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            run_pytest(root, arguments, answer, log, trace=trace, keep_open=keep_open)
        finally:
            os._exit(0)
    watched = os.pidfd_open(pid)
    ended = bool(select.select([watched], [], [], seconds)[0])
    os.close(watched)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    output = log.read_text(errors="replace")[-OUTPUT_CHARS_MAX:].replace(f"{root}/", "") if log.exists() else ""
    if not ended:
        return None
    report = json.loads(answer.read_text()) if answer.exists() else {"tests": [], "suspicious": [], "exit": -1}
    return {**report, "output": output}


def run_pytest(root: Path, arguments: list[str], answer: Path, log: Path, *, trace: bool, keep_open: int) -> None:
    os.close(keep_open)  # what the tests print must not get into the answer
    os.setpgid(0, 0)
    os.chdir(root)
    sink = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(sink, fd)
    recorder = Recorder(str(root), trace=trace)
    code = pytest.main(["-q", "-p", "no:cacheprovider", *wanted_plugins(root), f"--rootdir={root}", *arguments], plugins=[recorder])
    answer.write_text(json.dumps({**recorder.report(), "exit": int(code)}))


def wanted_plugins(root: Path) -> list[str]:
    """Name the installed plugins that tests or settings of the project mention. Loading all would take longer than most test runs."""
    files = [path for pattern in ("test*.py", "*_test.py", "conftest.py", "*.toml", "*.ini", "*.cfg") for path in root.rglob(pattern)]
    text = "\n".join(path.read_text(errors="replace") for path in files)
    found = []
    for plugin in entry_points(group="pytest11"):
        names = {plugin.name, plugin.dist.name if plugin.dist else plugin.name}
        if any(name.replace("pytest", "").strip("-_ ") in text for name in names):
            found += ["-p", plugin.name]
    return found


def outcomes(report: Report, *wanted: str) -> list[str]:
    return [test["id"] for test in report["tests"] if test["outcome"] in wanted]


def mended(bad: list[str], report: Report) -> int:
    """Count what failed before and does not now: a test that passes, a file that could not be loaded and has tests that pass."""
    good, still = outcomes(report, "passed"), set(outcomes(report, "failed", "error"))
    loaded = {node.split("::", 1)[0] for node in good}
    return sum(node in good if "::" in node else node not in still and (node in loaded or node == COLLECTION) for node in bad)


def try_candidate(root: Path, candidate: dict[str, str], baseline: Report, *, seconds: float, keep_open: int) -> dict[str, Any]:
    """Write one candidate and run the failing tests, then all; leaves the file as the candidate wants it."""
    path = Path(candidate["path"])
    if path.suffix == ".py":
        try:
            compile(candidate["text"], path.name, "exec")
        except (SyntaxError, ValueError) as error:
            return {"status": "syntax", "message": str(error)[:200]}
    path.write_text(candidate["text"])
    bad = outcomes(baseline, "failed", "error")
    first = run(root, [node for node in bad if "::" in node] if all("::" in node for node in bad) else [], trace=False, seconds=seconds, keep_open=keep_open)
    if first is None:
        return {"status": "timeout"}
    passing = mended(bad, first)
    if not passing:
        return {"status": "no_change"}
    full = run(root, [], trace=False, seconds=seconds, keep_open=keep_open)
    if full is None:
        return {"status": "timeout"}
    broken = sorted(set(outcomes(baseline, "passed")) - set(outcomes(full, "passed")))
    is_clean = full["exit"] == 0 and passing == len(bad) and not broken and not outcomes(full, "failed", "error")
    return {"status": "fixes_all" if is_clean else "improves", "passing": passing, "broken": len(broken)}


def main(job: dict[str, Any], answer_to: int) -> dict[str, Any]:
    root = Path(job["root"])
    began = time.monotonic()
    end = began + job["seconds"]
    baseline = run(root, job["arguments"], trace=job["trace"], seconds=job["seconds"], keep_open=answer_to)
    if baseline is None:
        return {"baseline": None, "tried": [], "kept": None}
    seconds = max(3.0, 5 * (time.monotonic() - began))
    tried: list[dict[str, Any]] = []
    for index, candidate in enumerate(job["candidates"]):
        left = end - time.monotonic()
        if left <= 0:
            break
        path = Path(candidate["path"])  # it need not be a file of the project itself
        before = path.read_bytes()
        tried.append(try_candidate(root, candidate, baseline, seconds=min(seconds, left), keep_open=answer_to))
        if tried[-1]["status"] == "fixes_all":
            return {"baseline": baseline, "tried": tried, "kept": index}
        path.write_bytes(before)
    return {"baseline": baseline, "tried": tried, "kept": None}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path[0:1] = [given["root"], str(Path(given["root"], "src"))]
    result = main(given, out)
    with os.fdopen(out, "w") as stream:
        json.dump(result, stream)
