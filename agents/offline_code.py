"""Rules of the code specialist: run the tests, try small repairs until they pass, and hand over a patch, or say which lines are suspicious."""

from __future__ import annotations

import re
from typing import Final

from crewlog.agents.offline_clauses import forbids_changes, strip_fillers
from crewlog.agents.offline_code_repair import candidates, suspicious_lines
from crewlog.agents.offline_code_report import (
    TestRun,
    best_improvement,
    kept_candidate,
    lines_of,
    listed_files,
    paths_of_tests,
    read_files,
    read_run,
    same_file,
)
from crewlog.agents.offline_conversation import Conversation, Turn, Want
from crewlog.agents.workspace import PREFIX
from crewlog.schemas.text import shorten

BATCH: Final = 60
BATCHES_MAX: Final = 3
"""Batches of candidates for one defect."""
REPAIRS_MAX: Final = 4
"""Defects that are repaired one after the other."""
FILES_MAX: Final = 14
LINES_MAX: Final = 2_000
PART_LINES: Final = 200
PARTS_MAX: Final = 25
"""A file whose text is cut when it is read as a whole is read in so many parts of so many lines."""
SECONDS_MAX: Final = 120
BEYOND: Final = "The offline rules only repair what failing tests show; they write no new code. A test that fails, or a model, would get further."
_WISH: Final = re.compile(
    r"(?:add|implement|write|create|refactor|rename|document|port|convert|translate|optimi[sz]e|extend|build|make|rewrite|support)\b", re.IGNORECASE
)
CAVEAT: Final = "That the tests pass is all that is known: the edit was found by trying small changes, so read it before you merge it."


def repair(talk: Conversation) -> Turn:
    """Go one step on: look and run, read, try, check, submit."""
    if talk.is_due("list_files") or talk.is_due("run_tests"):
        return Turn("I look at the project and run its tests first.", _first_look(talk))
    run = _latest_run(talk)
    if run is None:
        return _without_run(talk)
    if _kept(talk) or not run.failed:
        return _finish(talk, run)
    if unread := _unread(talk, run):
        return Turn("", unread)
    if forbids_changes(talk.question):
        return _finish(talk, run)
    return _try(talk, run)


def _first_look(talk: Conversation) -> tuple[Want, ...]:
    wants = (Want("list_files", {}), Want("run_tests", _trace(talk)))
    return tuple(want for want in wants if talk.is_due(want.tool))


def _trace(talk: Conversation) -> dict[str, object]:
    knows_trace = "trace" in (talk.tools["run_tests"].parameters.get("properties") or {}) if "run_tests" in talk.tools else False
    return {"trace": True} if knows_trace else {}


def _latest_run(talk: Conversation) -> TestRun | None:
    runs = talk.made("run_tests")
    return read_run(runs[-1].result or "") if runs else None


def _kept(talk: Conversation) -> tuple[dict[str, str], int] | None:
    """Return the candidate that made all tests pass, and how many there are."""
    for call in talk.made("try_edits"):
        if found := kept_candidate(call.result or ""):
            return dict(call.arguments["candidates"][found[0]]), found[1]
    return None


def _unread(talk: Conversation, run: TestRun) -> tuple[Want, ...]:
    """Return what to read: the files the failing tests went through first, then the tests themselves, then the rest; then what is left of long ones."""
    if reads := talk.made("read_file"):
        whole = read_files(talk)
        cut = [call for call in reads if call.arguments.get("lines") == LINES_MAX and call.arguments["path"] not in whole]
        return tuple(
            Want("read_file", {"path": call.arguments["path"], "lines": PART_LINES, "start_line": start})
            for call in (cut if len({call.turn for call in reads}) == 1 else ())
            for start in range(1, 1 + min(lines_of(call.result or ""), PART_LINES * PARTS_MAX), PART_LINES)
        )
    if talk.tried("read_file"):
        return ()
    listed = [path for path in listed_files(talk) if path.endswith(".py")]
    of_tests = paths_of_tests(listed)
    named = [path for path, _ in sorted(run.suspicious, key=lambda place: -run.suspicious[place])] + [failing.path for failing in run.failing if failing.path]
    tests = [failing.test.split("::", 1)[0] for failing in run.failing]

    def rank(path: str) -> tuple[int, str]:
        first = (
            next((at for at, name in enumerate(named) if same_file(path, name)), len(named))
            if path not in of_tests
            else len(named) + (0 if any(same_file(path, t) for t in tests) else 2)
        )
        return first, path

    return tuple(Want("read_file", {"path": path, "lines": LINES_MAX}) for path in sorted(listed, key=rank)[:FILES_MAX])


def _try(talk: Conversation, run: TestRun) -> Turn:
    """Try the next batch for the defect at hand; keep an edit that repairs a part, and go on from there."""
    edits_made = len(talk.made("replace_in_file"))
    since = max((at for at, call in enumerate(talk.calls) if call.tool == "replace_in_file"), default=-1)
    tried = [call for call in talk.calls[since + 1 :] if call.tool == "try_edits"]
    if since >= 0 and not any(call.tool == "run_tests" for call in talk.calls[since + 1 :]):
        return Turn("", (Want("run_tests", _trace(talk)),))
    if tried and (gain := best_improvement(tried[-1].result or "")) and edits_made < REPAIRS_MAX and not talk.failed("replace_in_file"):
        chosen = tried[-1].arguments["candidates"][gain[0]]
        return Turn(f"This repairs {gain[1]} of {run.failed} failing tests and breaks none; I keep it and go on.", (Want("replace_in_file", dict(chosen)),))
    if len(tried) >= BATCHES_MAX or (tried and tried[-1].is_error) or not talk.offers("try_edits"):
        return _finish(talk, run)
    batch = candidates(read_files(talk), run, BATCH * (len(tried) + 1))[BATCH * len(tried) :]
    if not batch:
        return _finish(talk, run)
    return Turn("", (Want("try_edits", {"candidates": [candidate._asdict() for candidate in batch], "seconds_max": SECONDS_MAX}),))


def _without_run(talk: Conversation) -> Turn:
    failed = talk.failed("run_tests")
    if len(failed) == 1:
        return Turn("I run the tests again without tracing.", (Want("run_tests", {}),))
    reason = shorten(" ".join((failed[-1].result or "").split()), 600) if failed else "no result"
    return _submit(talk, f"The tests could not be run: {reason} Nothing was changed.")


def _finish(talk: Conversation, run: TestRun) -> Turn:
    has_changes = bool(_kept(talk) or talk.made("replace_in_file"))
    if has_changes and talk.offers("show_diff") and not talk.tried("show_diff"):
        return Turn("", (Want("show_diff", {}),))
    return _submit(talk, _summary(talk, run))


def _submit(talk: Conversation, summary: str) -> Turn:
    refused = talk.failed("submit_patch")
    if len(refused) > 1:
        return Turn(f"{summary}\n\nThe patch was not accepted: {shorten(refused[-1].result or '', 500)}")
    if refused and talk.calls[-1].tool == "submit_patch" and talk.offers("run_tests"):
        return Turn("I run all tests once more, so that the result belongs to the files as they are.", (Want("run_tests", {}),))
    for phrase in talk.constraints.must_mention:
        summary += f"\nAbout “{phrase}” the tests say nothing." if phrase.lower() not in summary.lower() else ""
    return Turn("", (Want("submit_patch", {"summary": summary}),))


def _summary(talk: Conversation, run: TestRun) -> str:
    first = read_run(talk.made("run_tests")[0].result or "")
    if not first.failed and not first.passed:
        return f"There are no tests to go by, so nothing was changed. {shorten(' '.join(first.text.split()), 400)}"
    if not first.failed:
        wish = f" {BEYOND}" if _WISH.match(strip_fillers(talk.question)) else ""
        return f"{_all(first.passed)}; nothing was changed.{wish}"
    names = ", ".join(f"`{failing.test.rsplit('::', 1)[-1]}`" for failing in first.failing[:6])
    lines = [f"{first.failed} of {first.failed + first.passed} tests failed: {names}."]
    lines += [f"- {failing.test}: {shorten(failing.message, 200)}" for failing in first.failing[:6] if failing.message]
    kept = _kept(talk)
    changes = [dict(call.arguments) for call in talk.made("replace_in_file")] + ([kept[0]] if kept else [])
    if changes:
        lines += ["", "Changed:", "", *(_shown(change) for change in changes)]
    if kept or not run.failed:
        return "\n".join([*lines, f"{_all(kept[1] if kept else run.passed)} now. {CAVEAT}"])
    lines += ["", _unrepaired(talk, run, has_changes=bool(changes))]
    if suspects := suspicious_lines(read_files(talk), run):
        lines += ["", "The most suspicious lines:", "", *(f"- `{line}`" for line in suspects)]
    return "\n".join(lines)


def _unrepaired(talk: Conversation, run: TestRun, *, has_changes: bool) -> str:
    if forbids_changes(talk.question):
        return "Nothing was tried, because the task says to change nothing."
    tried = sum(len(call.arguments.get("candidates") or ()) for call in talk.calls if call.tool == "try_edits")
    files = "." if has_changes else f", so the files are as {'an earlier try left them' if _goes_on(talk) else 'they were'}."
    return f"{run.failed} {'test still fails' if run.failed == 1 else 'tests still fail'} after trying {tried} small edits{files}"


def _shown(change: dict[str, str]) -> str:
    return f"In `{change['path']}`:\n\n```diff\n{_marked('-', change['old'])}\n{_marked('+', change['new'])}\n```\n"


def _marked(sign: str, text: str) -> str:
    return "\n".join(f"{sign}{line}" for line in text.split("\n"))


def _all(count: int) -> str:
    return "The only test passes" if count == 1 else f"All {count} tests pass"


def _goes_on(talk: Conversation) -> bool:
    """Say whether an earlier try of this task, which was sent back, changed files."""
    return any(item.key == talk.key and any(ref.name.startswith(PREFIX) for ref in item.outcome.artifacts) for item in talk.context)
