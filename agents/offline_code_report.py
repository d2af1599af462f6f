"""Reads what the tools of the code specialist tell: files with their numbered lines, test runs, tried edits."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from crewlog.agents.offline_conversation import Conversation

_COUNTS: Final = re.compile(r"\b(\d+) (passed|failed|errors?)\b")
_BAD: Final = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - (?:(.+?\.py):(\d+): )?(.*))?$", re.MULTILINE)
_SUSPICIOUS: Final = re.compile(r"^\s+(\d\.\d+)\s+(.+?):(\d+):", re.MULTILINE)
_NUMBERED: Final = re.compile(r"^\s*(\d+)(?:  |\t|: ?| \| )(.*)$|^\s*(\d+)$")
_LISTED: Final = re.compile(r"^[-*\s]*`?(.+?)`?(?:\s+\((\d+) bytes.*)?$", re.MULTILINE)
_TRIED: Final = re.compile(r"^(\d+)\. .*: fixes (\d+) of (\d+) failing tests, breaks (\d+)\s*$", re.MULTILINE)

_SHOWN: Final = re.compile(r"lines \d+-\d+ of (\d+):$")
_KEPT: Final = re.compile(r"Kept candidate (\d+): all (\d+) ")
_TEST: Final = re.compile(r"(?:^|/)(?:tests?/|test_[^/]*\.py$|[^/]*_test\.py$|tests?\.py$|conftest\.py$)")


class Failing(NamedTuple):
    """One test that does not pass, and where it stopped."""

    test: str
    path: str
    line: int
    message: str


class TestRun(NamedTuple):
    """One run of the tests."""

    passed: int
    failed: int
    failing: tuple[Failing, ...]
    suspicious: Mapping[tuple[str, int], float]
    """(path, line) -> how suspicious."""
    text: str


def read_run(text: str) -> TestRun:
    """Read a rendered test run."""
    counts = {word.removesuffix("s"): int(number) for number, word in reversed(_COUNTS.findall(text.split("\n", 1)[0] or text))}
    failing = tuple(Failing(test, path, int(line or 0), message.strip()) for test, path, line, message in _BAD.findall(text))
    suspicious = {(path, int(line)): float(score) for score, path, line in _SUSPICIOUS.findall(text)}
    return TestRun(counts.get("passed", 0), max(counts.get("failed", 0) + counts.get("error", 0), len(failing)), failing, suspicious, text)


def listed_files(talk: Conversation) -> list[str]:
    """Return the paths in the workspace."""
    return [path for call in talk.made("list_files")[-1:] for path, _ in _LISTED.findall(call.result or "") if "." in path or "/" in path]


def read_files(talk: Conversation) -> dict[str, str]:
    """Return the text of each file that was read as a whole, with the edits made since: what the workspace holds now."""
    rows: dict[str, dict[int, str]] = {}
    lengths: dict[str, int] = {}
    for call in talk.made("read_file"):
        path, result = str(call.arguments.get("path", "")), call.result or ""
        found = (_NUMBERED.match(row) for row in result.split("\n"))
        rows.setdefault(path, {}).update((int(row.group(1) or row.group(3)), row.group(2) or "") for row in found if row)
        lengths[path] = lines_of(result) or len(rows[path])
    files = {path: "\n".join(read[number] for number in sorted(read)) for path, read in rows.items() if set(read) == set(range(1, lengths[path] + 1))}
    for call in talk.made("replace_in_file"):
        path = str(call.arguments.get("path", ""))
        if path in files:
            files[path] = files[path].replace(str(call.arguments.get("old")), str(call.arguments.get("new")), 1)
    return files


def lines_of(text: str) -> int:
    """Return how many lines the file has of which some were read."""
    found = _SHOWN.search(text.split("\n", 1)[0])
    return int(found.group(1)) if found else 0


def kept_candidate(text: str) -> tuple[int, int] | None:
    """Return (index of the candidate that was kept, tests that pass with it)."""
    found = _KEPT.match(text)
    return (int(found.group(1)) - 1, int(found.group(2))) if found else None


def best_improvement(text: str) -> tuple[int, int] | None:
    """Return (index of the candidate, tests it fixes) of the tried edit that fixes most and breaks nothing."""
    found = [(int(fixed), -int(number)) for number, fixed, _, broken in _TRIED.findall(text) if broken == "0"]
    return (-max(found)[1] - 1, max(found)[0]) if found else None


def same_file(path: str, other: str) -> bool:
    """Say whether two paths may mean one file: reports name files from the project's root, tools from the workspace's."""
    return path == other or path.endswith("/" + other) or other.endswith("/" + path)


def paths_of_tests(paths: Collection[str]) -> frozenset[str]:
    """Return the paths that hold tests, or what only tests use. The one folder that a project came in may be called anything, "tests" too."""
    is_one_folder = len({path.split("/", 1)[0] for path in paths}) == 1 and all("/" in path for path in paths)
    return frozenset(path for path in paths if _TEST.search(path.split("/", 1)[1] if is_one_folder else path))
