"""Golden tasks: a run that went well, kept as what was asked, what must come of it, and the recording that it can be played from again.

`NAME.golden.json` is for people to read and edit: whatever is taken out of `expect` is not looked at. Beside it lies the recording, a
file as `export` writes it. Attachments lie in `files`, each once under its hash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from crewlog.orchestrator.golden_observe import Observed, compare_values, observe
from crewlog.orchestrator.run_history import RunHistory
from crewlog.orchestrator.whole_file import whole_file
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash
from crewlog.schemas.merge_patch import merged
from crewlog.schemas.run_events import RunForked, RunPlanned, RunSubmitted
from crewlog.schemas.subjects import SHADOW_LANE
from crewlog.schemas.task import AgentTask, Budget, parse_task
from crewlog.schemas.text import shorten

FORMAT: Final = "crewlog golden"
SUFFIX: Final = ".golden.json"
RECORDING: Final = ".golden.run"
FILES: Final = "files"
FILES_BYTES_MAX: Final = 1 << 20
"""Attachments of one task that are kept with it, all together."""
STEPS_SLACK: Final = 1.25
SECONDS_SLACK: Final = 3.0
SECONDS_LEAST: Final = 10.0
COST_SLACK: Final = 1.2
"""How much more than the recorded run a golden task may take, until somebody writes down something else."""
DIFFER_MAX: Final = 5
"""Differences that an error names before it only counts them, each cut to `DIFFER_CHARS_MAX`."""
DIFFER_CHARS_MAX: Final = 120


class Expectation(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What must come of a golden task. None: not looked at."""

    status: str | None = None
    plan: tuple[str, ...] | None = None
    """Steps as `key: kind after other+another`."""
    tasks: Mapping[str, Mapping[str, Any]] | None = None
    """Step key -> its kind, tools in order, verdict, output, citations …; of a task sent back, `key/1` is its first revision."""
    answer: str | None = None
    artifacts: tuple[str, ...] | None = None
    flags: tuple[str, ...] | None = None
    max_cost_micro_usd: int | None = None
    max_steps: int | None = None
    """Model calls that were answered."""
    max_seconds: float | None = None


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One golden task as it lies in a file."""

    format: str = FORMAT
    version: int = 1
    name: str
    task: dict[str, Any]
    """The `AgentTask` without its ids."""
    expect: Expectation


def golden_of(history: RunHistory, name: str, *, budget: Budget | None = None) -> Golden:
    """Make a golden task of a run.

    Args:
        history: the whole run, with the text of its answer.
        budget: what somebody let it spend since it was submitted; None: nobody did.

    Raises:
        ContractError: the run is not over; somebody ended it, which is not in its recording and would never come again; or it is a rollback, which
            nobody hands in.
    """
    seen = observe(history)
    if seen.status == "open":
        raise ContractError(f"run {history.run_id} is not over: a golden task needs its end")
    if seen.status == "cancelled":
        raise ContractError(f"run {history.run_id} was cancelled: a golden task needs a run that came to its own end")
    if any(isinstance(event := recorded.event(), RunPlanned) and event.origin == "rollback" for recorded in history.run_events):
        raise ContractError(f"run {history.run_id} takes back what another one did: a golden task needs a run that can be handed in again")
    task = {key: value for key, value in _submitted(history).items() if key not in ("task_id", "run_id", "parent_task_id", "trial")}
    if budget is not None:
        task["budget"] = msgspec.to_builtins(budget)
    if task.get("priority") == SHADOW_LANE:
        del task["priority"]  # that is for trials alone
    return Golden(name=name, task=task, expect=expected_of(seen))


def expected_of(seen: Observed) -> Expectation:
    """Turn what was seen into what is expected from now on, with some room in what it may take."""
    return Expectation(
        status=seen.status,
        plan=seen.plan,
        tasks=seen.tasks,
        answer=seen.answer,
        artifacts=seen.artifacts,
        flags=seen.flags,
        max_cost_micro_usd=math.ceil(seen.cost_micro_usd * COST_SLACK),
        max_steps=max(seen.steps + 1, math.ceil(seen.steps * STEPS_SLACK)),
        max_seconds=max(SECONDS_LEAST, math.ceil(seen.seconds * SECONDS_SLACK)),
    )


def updated(expected: Expectation, seen: Observed) -> Expectation:
    """Turn what was seen into what is expected from now on, where somebody looks: what was taken out stays out, and a bound that holds stays."""
    fresh = expected_of(seen)
    took = {"max_cost_micro_usd": seen.cost_micro_usd, "max_steps": seen.steps, "max_seconds": seen.seconds}
    kept = {name: most for name in expected.__struct_fields__ if (most := getattr(expected, name)) is None or (name in took and took[name] <= most)}
    tasks = None if expected.tasks is None else {key: _looked_at(task, expected.tasks.get(key)) for key, task in seen.tasks.items()}
    return msgspec.structs.replace(fresh, **{"tasks": tasks, **kept})


def _looked_at(task: Mapping[str, Any], expected: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return task if expected is None else {name: task.get(name) for name in expected}


def _submitted(history: RunHistory) -> dict[str, Any]:
    task: dict[str, Any] = {}
    for recorded in history.run_events:
        event = recorded.event()
        if isinstance(event, RunSubmitted):
            task = msgspec.json.decode(event.task)
        elif isinstance(event, RunForked):
            task = merged(task, msgspec.json.decode(event.changes))
    return task


def task_of(golden: Golden, **fields: Any) -> AgentTask:
    """Return the task to hand in, with ids and further fields."""
    return parse_task({**golden.task, **fields})


def golden_path(to: Path | None, name: str) -> Path:
    """Return where a golden task is written: `to`, which may be a folder, and which gets the ending that `find_golden` looks for."""
    if to is None or to.is_dir():
        return (to or Path("golden")) / f"{name}{SUFFIX}"
    return to if to.name.endswith(SUFFIX) else to.with_name(f"{to.name.removesuffix('.json').removesuffix('.golden')}{SUFFIX}")


def refuse_overwriting(path: Path, golden: Golden) -> None:
    """Refuse to write over a golden task that says something else: somebody may have edited it.

    Raises:
        ContractError: it does, and where; or the file holds something else altogether.
    """
    if not path.exists():
        return
    before, now = (msgspec.to_builtins(one) for one in (read_golden(path), golden))
    differ = [shorten(str(each).removeprefix("."), DIFFER_CHARS_MAX) for each in compare_values("", before, now)]
    if differ:
        more = [f"and {len(differ) - DIFFER_MAX} more"] if len(differ) > DIFFER_MAX else []
        named = "; ".join([*differ[:DIFFER_MAX], *more])
        raise ContractError(f"{path} is there already and says otherwise: {named}\nwrite another file with --to, or replace it with --overwrite")


def write_golden(path: Path, golden: Golden, recording: bytes, files: Mapping[Hash, bytes]) -> list[Path]:
    """Write a golden task, its recording and its attachments; returns what was written. Existing ones are replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = msgspec.json.format(msgspec.json.encode(golden), indent=2)
    written = {path: body + b"\n", recording_of(path): recording}
    if sum(map(len, files.values())) <= FILES_BYTES_MAX:
        written |= {path.parent / FILES / hash_: data for hash_, data in files.items()}
    for where, data in written.items():
        where.parent.mkdir(exist_ok=True)
        with whole_file(where) as file:  # what somebody edited in it is not lost when there is no room
            file.write(data)
    return list(written)


def read_golden(path: Path) -> Golden:
    """Read a golden task.

    Raises:
        ContractError: it is none, or of a later version.
    """
    try:
        golden = msgspec.json.decode(path.read_bytes(), type=Golden)
    except msgspec.MsgspecError as error:
        raise ContractError(f"{path} is no golden task: {error}") from None
    if golden.format != FORMAT or golden.version != 1:
        raise ContractError(f"{path} is a {golden.format!r} of version {golden.version}; this program reads {FORMAT!r} of version 1")
    return golden


def recording_of(path: Path) -> Path:
    """Return where the recording of a golden task lies."""
    return path.with_name(path.name.removesuffix(SUFFIX).removesuffix(".json") + RECORDING)


def find_golden(paths: list[Path]) -> list[Path]:
    """List the golden tasks of files and folders, in the order of their names.

    Raises:
        ContractError: a path is neither, or there are none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path.rglob(f"*{SUFFIX}"))
        elif path.is_file():
            found.append(path)
        else:
            raise ContractError(f"{path} does not exist; record a golden task with: crewlog golden record RUN --to {path}")
    if not found:
        raise ContractError(f"there is no *{SUFFIX} in {', '.join(map(str, paths))}; record one with: crewlog golden record RUN --to FILE")
    return list(dict.fromkeys(found))
