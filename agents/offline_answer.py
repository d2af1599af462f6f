"""Rules of the synthesis: the answer of a run, put together from the outcomes of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from crewlog.agents.offline_clauses import OPENING, is_frame, split_goal
from crewlog.agents.offline_conversation import PART_OF, Conversation, Turn, Want
from crewlog.agents.offline_plan import route
from crewlog.agents.offline_report import SIMULATED_NOTICE, open_points, section, title_of, trim
from crewlog.agents.offline_text import cut_words, join_words
from crewlog.schemas.text import shorten
from crewlog.schemas.values import SUMMARY_CHARS_MAX, ContextItem

_WORKBOOKS: Final = frozenset({".xlsb", ".xls", ".ods", ".numbers"})


def synthesise(talk: Conversation) -> Turn:
    """Answer a synthesis task with one `submit_answer` call; shorter when the one before was refused."""
    refused = talk.failed("submit_answer")
    if len(refused) > 2:
        return Turn(f"I could not hand in the answer. The last reply was: {refused[-1].result}")
    goal = talk.goal or talk.objective
    words = 450 if not refused else 120
    markdown = write_answer(talk, words_max=words)
    while len(markdown) > SUMMARY_CHARS_MAX and words > 20:
        words //= 2
        markdown = write_answer(talk, words_max=words)
    markdown = shorten(markdown, SUMMARY_CHARS_MAX)
    return Turn("", (Want("submit_answer", {"title": title_of(goal), "markdown": markdown}),))


def write_answer(talk: Conversation, *, words_max: int) -> str:
    """Write the answer: the notice, the goal, a section for each task, and the open points.

    Args:
        words_max: most words of one task's summary.
    """
    items = talk.outcomes
    goal = talk.goal or talk.objective
    lines = [f"*{SIMULATED_NOTICE}*", "", f"# {title_of(goal)}", "", f"Goal: {' '.join(goal.split())}", ""]
    lines += [section(item, words_max=words_max) for item in items]
    if not items:
        lines += ["No task of this run has an outcome, so there is nothing to report.", ""]
    points = [*open_points(items), *(f"- Not done: {text}" for text in talk.not_done)]
    points += [f"- No step was made for: {shorten(text, 120)}" for text in left_out(goal, items)]
    if stray := [name for name in (attachment.name for attachment in talk.attachments) if all(name not in names for names in route(talk.attachments).values())]:
        points.append(f"- Not used, because no rule reads files of this type: {join_words(stray[:6])}{' and more' if len(stray) > 6 else ''}.{_as_csv(stray)}")
    if points:
        lines += ["## Open points", "", *points, ""]
    text = trim("\n".join(lines), talk.constraints.banned_phrases).strip() + "\n"
    return cut_words(text, talk.constraints.words_max) if talk.constraints.words_max else text


def left_out(goal: str, items: Sequence[ContextItem]) -> list[str]:
    """Return the clauses of a goal that no task was given; none when the tasks do not repeat the goal's words at all, as in a plan of the user."""
    given = " ".join(_bare(item.objective.split(PART_OF, 1)[0]) for item in items)
    clauses = [clause for clause in split_goal(goal)[1] if not is_frame(clause) and clause.first not in OPENING]
    missing = [clause.text for clause in clauses if _bare(clause.text) not in given]
    return missing if len(missing) < len(clauses) else []


def _bare(text: str) -> str:
    return " ".join(text.lower().rstrip(" .;,").split())


def _as_csv(names: Sequence[str]) -> str:
    return " Save a workbook as .xlsx." if any(PurePosixPath(name).suffix.lower() in _WORKBOOKS for name in names) else ""
