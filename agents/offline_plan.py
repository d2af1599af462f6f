"""Rules of the offline planner: from a goal, its attachments and the kinds that exist to the steps of a plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from crewlog.agents.offline_clauses import (
    BUILT_IN,
    OPENING,
    Clause,
    KindInfo,
    forbids_changes,
    is_about_files,
    is_frame,
    is_question,
    is_vague,
    is_weak,
    reported,
    score,
    split_goal,
)
from crewlog.agents.offline_conversation import KINDS_KEY, NOT_DONE, PART_OF, Attached, Conversation, Turn, Want
from crewlog.agents.offline_text import EMAIL, URL, capital, join_words, name_tokens, terms
from crewlog.schemas.plan import STEPS_MAX
from crewlog.schemas.text import shorten

DATA_SUFFIXES: Final = frozenset({".csv", ".tsv", ".parquet", ".json", ".jsonl", ".ndjson", ".xlsx", ".xlsm"})
DOCUMENT_SUFFIXES: Final = frozenset({".md", ".txt", ".html", ".htm", ".pdf", ".docx", ".rst"})
_CHART: Final = re.compile(r"\b(?:charts?|plots?|graphs?|histograms?|visuali[sz]\w*|figure|diagrams?)\b", re.IGNORECASE)
_WORDS_MAX: Final = re.compile(r"\b(?:at most|no more than|under|up to|maximum(?: of)?|within|in|fewer than|less than)\s+(\d{1,5})\s+words\b", re.IGNORECASE)
_MENTION: Final = re.compile(r"\bmust mention\s+[\"“`]([^\"”`\n]+)[\"”`]", re.IGNORECASE)
_AVOID: Final = re.compile(r"\b(?:do not|don't|never|without) (?:mention|use|say|mentioning|using|saying)\s+[\"“`]([^\"”`\n]+)[\"”`]", re.IGNORECASE)
WORKERS: Final = ("data", "code", "research")
"""The built-in kinds that work on files."""
GOAL_CHARS_MAX: Final = 600
NOTE_CHARS_MAX: Final = 2_000


@dataclass(slots=True)
class Draft:
    """A step while the plan is made."""

    kind: str
    clauses: list[Clause]
    attachments: list[str]
    waits_for: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The clauses in the user's words."""
        if len(self.clauses) == 1:
            return self.clauses[0].text
        texts = [clause.text.rstrip(".;,") for clause in self.clauses]
        return "".join(text + ("" if at == len(texts) - 1 else " " if text.endswith("?") else "; ") for at, text in enumerate(texts))


def plan(talk: Conversation) -> Turn:
    """Answer a planning task with one `submit_plan` call, simplified when the plan before was refused."""
    kinds = known_kinds(talk)
    failures = talk.failed("submit_plan")
    goal = talk.objective
    if len(failures) > 2:
        return Turn(f"I could not make a plan that is accepted. The last answer was: {failures[-1].result}")
    drafts, note = make_drafts(goal, talk.attachments, kinds)
    steps = [step.as_dict() for step in finish(drafts, goal if split_goal(goal)[0] else "")]
    if talk.open_steps:
        steps, note = plan_again(talk, steps)
    if failures:
        # something in the fine print was refused: keep the work and its order, drop what is optional
        steps = [{"key": step["key"], "type": step["type"], "objective": step["objective"], "depends_on": step["depends_on"]} for step in steps]
    note = shorten(note, NOTE_CHARS_MAX)
    return Turn(note, (Want("submit_plan", {"steps": steps, "note": note}),))


def plan_again(talk: Conversation, steps: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Leave out what failed and keep what waited for it: rules that failed once fail again. Finished steps stay in the plan as they are."""
    failed = {step["key"]: step for step in talk.open_steps if step["problem"].startswith("failed")}
    left = [step for step in steps if step["key"] not in failed]
    for step in left:
        step["depends_on"] = [key for key in step["depends_on"] if key not in failed]
        if step["type"] == "communicate" and failed:
            step["objective"] += NOT_DONE + "; ".join(part["objective"].split(PART_OF, 1)[0].rstrip(".") for part in failed.values())
    note = f"Planned again without {join_words(f'`{key}`' for key in failed) or 'what failed'}: the same rules would fail again."
    return left or steps, note


def known_kinds(talk: Conversation) -> tuple[KindInfo, ...]:
    """Return the kinds that tasks can be sent to, from the context the orchestrator gives; the built-in four when it gives none."""
    listed = next((item.outcome.output for item in talk.context if item.key == KINDS_KEY), None)
    if isinstance(listed, list):
        found = tuple(
            KindInfo(str(entry["kind"]), str(entry.get("description") or ""))
            for entry in listed
            if isinstance(entry, dict) and entry.get("kind") not in (None, "planner")
        )
        if found:
            return found
    return tuple(KindInfo(kind, "") for kind in BUILT_IN)


def route(attachments: Sequence[Attached]) -> dict[str, list[str]]:
    """Sort attachments by the kind that works on them. Everything in a folder with Python files belongs to that project."""
    names = [attachment.name for attachment in attachments]
    roots = {PurePosixPath(name).parts[0] for name in names if name.endswith(".py") and "/" in name}
    flat_project = any(name.endswith(".py") and "/" not in name for name in names)
    files: dict[str, list[str]] = {"data": [], "code": [], "research": [], "communicate": []}
    for attachment in attachments:
        path = PurePosixPath(attachment.name)
        suffix = path.suffix.lower()
        if (
            (len(path.parts) > 1 and path.parts[0] in roots)
            or suffix == ".py"
            or (flat_project and path.name in ("pyproject.toml", "setup.cfg", "setup.py", "pytest.ini"))
        ):
            files["code"].append(attachment.name)
        elif suffix in DATA_SUFFIXES or "csv" in attachment.media_type or "parquet" in attachment.media_type:
            files["data"].append(attachment.name)
        elif suffix in DOCUMENT_SUFFIXES or attachment.media_type.startswith("text/") or "pdf" in attachment.media_type:
            files["research"].append(attachment.name)
    for kind, suffixes in (("data", DATA_SUFFIXES), ("research", DOCUMENT_SUFFIXES)):
        # a project's own tables and papers are only looked at by others when there is nothing else
        if not files[kind]:
            files[kind] = [name for name in files["code"] if PurePosixPath(name).suffix.lower() in suffixes]
    return files


def make_drafts(goal: str, attachments: Sequence[Attached], kinds: Sequence[KindInfo]) -> tuple[list[Draft], str]:
    """Turn a goal into steps and a note that says what was done and what was not understood."""
    files = route(attachments)
    headline, clauses = split_goal(goal)
    # "look at these files and tell me what matters" is one piece of work
    clauses = [clause for at, clause in enumerate(clauses) if not (clause.first in OPENING and at + 1 < len(clauses) and is_vague(clauses[at + 1]))]
    drafts: list[Draft] = []
    unclear: list[Clause] = []
    for clause in _with_what_is_reported(clauses, attachments, kinds, files):
        chosen = _kinds_for(clause, kinds, files)
        # a plan has an end: the last steps are kept for what is to be sent
        if not chosen or (len(drafts) + len(chosen) > STEPS_MAX - 2 and "communicate" not in chosen):
            unclear.append(clause)
            continue
        for kind in chosen:
            _place(drafts, kind, clause, _files_for(clause, files.get(kind, [a.name for a in attachments]), kind))
    if not any(draft.kind != "communicate" for draft in drafts):
        framed = [Clause(headline)] if headline else []
        drafts = _by_files([*framed, *(unclear if drafts else clauses)], files, kinds, drafts)
    note = _note(drafts, unclear, attachments, files)
    _order(drafts)
    return drafts, note


def _with_what_is_reported(
    clauses: Sequence[Clause], attachments: Sequence[Attached], kinds: Sequence[KindInfo], files: Mapping[str, Sequence[str]]
) -> list[Clause]:
    """Put before an order to send something that is to be found out first the order to find it out; a file that is named is sent as it is."""
    if len(clauses) != 1 or not (what := reported(clauses[0])) or any(PurePosixPath(a.name).name.lower() in what.lower() for a in attachments):
        return list(clauses)
    first = Clause(what)
    is_work = any(kind in WORKERS and files.get(kind) for kind in _kinds_for(first, kinds, files))
    return [first, *clauses] if is_work else list(clauses)


def _kinds_for(clause: Clause, kinds: Sequence[KindInfo], files: Mapping[str, Sequence[str]]) -> list[str]:
    scores = score(clause, kinds, files)
    names = {info.kind for info in kinds}
    only: list[str] = [kind for kind in WORKERS if kind in names and files.get(kind)]
    if len(only) == 1 and not is_frame(clause) and is_about_files(clause) and (scores or is_question(clause)):
        likeliest = max(scores, key=lambda kind: scores[kind], default="research")
        if likeliest in WORKERS and not files.get(likeliest):
            return only
    if not scores and is_question(clause) and not is_about_files(clause) and "research" in names:
        return ["research"]
    if not scores or is_vague(clause):
        if (is_weak(clause) or is_vague(clause)) and not is_frame(clause):
            return [kind for kind in ("data", "code", "research") if kind in names and files.get(kind)]
        return []
    if is_frame(clause) and max(scores.values()) < 3.0 and "communicate" not in scores:
        return []
    best = max(scores.values())
    winners = [kind for kind in scores if scores[kind] == best]
    vague = is_weak(clause) and best < 1.5 and not any(word in clause.text.lower() for word in ("file.", "table"))
    if (
        vague
        and len([kind for kind in ("data", "code", "research") if files.get(kind)]) > 1
        and re.search(r"\b(?:files|everything|attachments|all|both)\b", clause.text, re.IGNORECASE)
    ):
        return [kind for kind in ("data", "code", "research") if kind in names and files.get(kind)]
    order = [info.kind for info in kinds]
    own = [kind for kind in winners if kind not in BUILT_IN]
    return [min(own or winners, key=lambda kind: (not files.get(kind), order.index(kind)))]


def _files_for(clause: Clause, names: Sequence[str], kind: str) -> list[str]:
    """Return the files a clause names; all of the kind's when it names none, or names all by one word."""
    if kind == "communicate":
        return [name for name in names if PurePosixPath(name).name.lower() in clause.text.lower()]
    if kind == "code":
        roots = {PurePosixPath(name).parts[0] for name in names if "/" in name}
        asked = [root for root in roots if root.lower() in clause.text.lower()]
        return [name for name in names if not asked or PurePosixPath(name).parts[0] in asked]
    exact = [name for name in names if PurePosixPath(name).name.lower() in clause.text.lower() or name.lower() in clause.text.lower()]
    if exact:
        return exact
    content = set(terms(clause.text))
    close = [
        name for name in names if (tokens := [t for t in name_tokens(PurePosixPath(name).stem) if len(t) > 2 and not t.isdigit()]) and set(tokens) <= content
    ]
    return close if close and kind == "data" else list(names)


def _place(drafts: list[Draft], kind: str, clause: Clause, names: list[str]) -> None:
    """Add a clause to the step before it when both are one piece of work, else make a new step."""
    same = [draft for draft in drafts if draft.kind == kind]
    if same and kind in ("code", "communicate"):
        target = same[-1]
        if kind == "communicate" or set(target.attachments) & set(names) or not names:
            target.clauses.append(clause)
            target.attachments = list(dict.fromkeys([*target.attachments, *names]))
            return
    if drafts and drafts[-1].kind == kind and kind != "communicate" and clause.has_pronoun and not clause.refers_back:
        drafts[-1].clauses.append(clause)
        return
    if drafts and drafts[-1].kind == kind == "research" and drafts[-1].clauses[-1].first in OPENING:
        drafts[-1].clauses.append(clause)
        return
    if same and kind == "data" and _CHART.search(clause.text) and len(terms(clause.text)) <= 3 and same[-1] is drafts[-1]:
        same[-1].clauses.append(clause)
        return
    waits = [len(drafts) - 1] if drafts and (clause.after or clause.refers_back) else []
    drafts.append(Draft(kind, [clause], names, waits))


def _by_files(clauses: Sequence[Clause], files: Mapping[str, list[str]], kinds: Sequence[KindInfo], drafts: list[Draft]) -> list[Draft]:
    """Fall back to what the attachments are made for; without any, to one research task over what the tenant has stored."""
    if drafts and not clauses:
        return drafts
    names = {info.kind for info in kinds}
    used = [kind for kind in ("data", "code", "research") if kind in names and files.get(kind)]
    # a kind that is away is planned all the same: the refusal says what it lacks, and nobody else could do its work
    used = used or [kind for kind in WORKERS if files.get(kind)]
    fallback = used or [kind for kind in ("research", *(info.kind for info in kinds)) if kind in names][:1]
    text = list(clauses) or [Clause("Summarise what is attached")]
    return [*(Draft(kind, list(text), list(files.get(kind, []))) for kind in fallback), *drafts]


def _order(drafts: list[Draft]) -> None:
    """Let messages wait for everything they report; everything else stays parallel unless the goal said otherwise."""
    for at, draft in enumerate(drafts):
        if draft.kind == "communicate":
            draft.waits_for = [other for other, step in enumerate(drafts) if step.kind != "communicate"]
        draft.waits_for = [other for other in draft.waits_for if other != at]


def _note(drafts: Sequence[Draft], unclear: Sequence[Clause], attachments: Sequence[Attached], files: Mapping[str, Sequence[str]]) -> str:
    lines = [f"Planned by rules: {len(drafts)} {'step' if len(drafts) == 1 else 'steps'} for {join_words(dict.fromkeys(draft.kind for draft in drafts))}."]
    understood = [clause for draft in drafts for clause in draft.clauses]
    if unclear and all(clause in understood for clause in unclear):
        lines.append(
            "The words did not tell what kind of work this is, so it goes to whoever works on such files"
            + ("." if any(files.values()) else "; here to research.")
        )
    elif unclear:
        lines.append("No step of its own for: " + "; ".join(clause.text.rstrip(".") for clause in unclear) + ".")
    if not attachments and not any(draft.kind == "communicate" for draft in drafts):
        lines.append("Nothing is attached: only documents stored earlier can be used. Attach files (`--attach`) for work on them.")
    handled = {name for names in files.values() for name in names}
    if stray := [a.name for a in attachments if a.name not in handled]:
        lines.append(f"Not used, of unknown type: {join_words(stray[:5])}{' and more' if len(stray) > 5 else ''}.")
    if any(draft.kind == "communicate" for draft in drafts) and not any(EMAIL.search(d.text) or URL.search(d.text) for d in drafts if d.kind == "communicate"):
        lines.append("No address is given, so a message can only be drafted.")
    return " ".join(lines)


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step, in the shape `submit_plan` takes."""

    key: str
    type: str
    objective: str
    depends_on: tuple[str, ...]
    attachments: tuple[str, ...]
    constraints: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the step as JSON data."""
        return {
            "key": self.key,
            "type": self.type,
            "objective": self.objective,
            "depends_on": list(self.depends_on),
            "attachments": list(self.attachments),
            "constraints": dict(self.constraints),
        }


def finish(drafts: Sequence[Draft], goal: str) -> list[Step]:
    """Name the steps, write their objectives and constraints.

    Args:
        goal: what the objectives say they are part of; empty when each stands on its own.
    """
    keys: list[str] = []
    for draft in drafts:
        count = sum(other.kind == draft.kind for other in drafts)
        keys.append(draft.kind if count == 1 else f"{draft.kind}-{1 + sum(other.kind == draft.kind for other in drafts[: len(keys)])}")
    steps = []
    for draft, key in zip(drafts, keys, strict=True):
        objective = capital(draft.text) + (f"{PART_OF}{shorten(goal, GOAL_CHARS_MAX)}" if goal else "")
        steps.append(Step(key, draft.kind, objective, tuple(keys[at] for at in draft.waits_for), tuple(draft.attachments), constraints_for(draft)))
    return steps


def constraints_for(draft: Draft) -> dict[str, Any]:
    """Return the rules that a step's outcome can be held to without judging its words."""
    rules: dict[str, Any] = {}
    if draft.kind == "research" and draft.attachments:
        rules["citations_min"] = 1
    if (
        draft.kind == "code"
        and not forbids_changes(draft.text)
        and any(re.search(r"(?:^|/)(?:test_[^/]*|[^/]*_test)\.py$", name) for name in draft.attachments)
    ):
        rules["tests_pass"] = True
    if draft.kind == "data" and _CHART.search(draft.text):
        rules["files_exist"] = ["*.svg"]
    if found := _WORDS_MAX.search(draft.text):
        rules["words_max"] = max(1, int(found.group(1)))
    if wanted := _MENTION.findall(draft.text):
        rules["must_mention"] = wanted
    if banned := _AVOID.findall(draft.text):
        rules["banned_phrases"] = banned
    return rules
