"""Why a task is not finished: one reason, what is known about it, and what would end it. Pure.

What the log says stands in the views (`waiting_reason`). What only those know that are there now is added here: who works on the task,
whether a worker of its kind answers, and whether an orchestrator holds its message back until its turn comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from crewlog.events.grants import BUILT_IN_KINDS
from crewlog.projections.query_rows import AgentView, ApprovalView, ProviderView, RunView, TaskView
from crewlog.schemas.subjects import SHADOW_LANE, version_lane, worker_group

Reason = Literal[
    "dependency", "paused", "budget", "approval", "retry", "breaker", "quarantine", "fairness", "limit", "no_worker", "queue", "lease", "orchestrator", "none"
]
"""`none`: nothing is known that would end it; that is what an alert is for."""

_GO_ON = "; go on with: "
_ACK_WAIT = "within half a minute"


class Held(NamedTuple):
    """Where a message stands that an orchestrator holds back, see `dispatcher.Held`."""

    ahead: int
    in_flight: int
    size: int
    is_limited: bool


class Known(NamedTuple):
    """What is known besides the views; None where nobody answered."""

    is_shadow: bool = False
    """The task is one of a shadow: only workers that were started for those take it."""
    version: str = ""
    """Version that a worker must have to take it; empty: any."""
    versions: Sequence[str] = ()
    """Those of the workers of its kind that answer."""
    crew: Sequence[AgentView] = ()
    """Workers that may take the task and that answer."""
    gone: AgentView | None = None
    """The worker that might have taken it and registered last, when none answers."""
    holds: bool | None = None
    """Whether the worker of a task that is being worked on says that it holds it."""
    held: Held | None = None
    """Where its message stands, when an orchestrator holds it back."""
    out: Mapping[str, int] | None = None
    """Group of workers -> tasks with them or on their queue; None: no orchestrator answered."""
    approvals: Sequence[ApprovalView] = ()
    """Questions of the task to people."""
    providers: Sequence[ProviderView] = ()
    """Models that workers of the kind do not ask now."""


class Wait(NamedTuple):
    """What something waits for."""

    reason: Reason
    detail: str
    ends: str
    """What ends the wait: an event that will come, or the command that lets it come."""
    until: datetime | None = None


def why_task(task: TaskView, known: Known) -> Wait:
    """Say what an unfinished task waits for. Total: every status has an answer."""
    detail, _, command = (task.waiting_reason or "").partition(_GO_ON)
    if command:
        return Wait("budget" if detail.startswith("budget ") else "paused", detail, command)
    match task.status:
        case "planned" if detail.startswith("waiting for step"):
            return Wait("dependency", detail, f"{detail.removeprefix('waiting for ')} ending; what that waits for stands here as well")
        case "queued":
            return _queued(task, known)
        case "running":
            return _running(task, detail, known)
        case "suspended":
            return _asked(detail, known)
        case "retrying":
            return _retrying(task, detail, known)
        case _:
            return Wait("orchestrator", detail or "the orchestrator has yet to look at it", _orchestrator(known))


def why_run(run: RunView) -> Wait:
    """Say what an open run waits for none of whose tasks waits for anything."""
    short = str(run.run_id)[:8]
    if run.status == "quarantined":
        return Wait("quarantine", "all work is done, and a quarantine keeps the results back", f"crewlog release {short}")
    return Wait("none", "nothing is under way and nothing is due", f"crewlog events {short} says what happened last; crewlog status lists what stands still")


def why_imported() -> Wait:
    """Say what a run waits for that came from a file without its end."""
    return Wait("none", "it was imported, to be looked at: nobody carries it out", "nothing; the file of the whole run completes it here: crewlog import FILE")


def _queued(task: TaskView, known: Known) -> Wait:
    if known.out is None:
        return Wait("orchestrator", "no orchestrator answers, so nobody can say where it stands", "an orchestrator that starts; crewlog status shows them")
    if not known.crew:
        return _nobody(task, known)
    group = worker_group(task.kind, SHADOW_LANE if known.is_shadow else version_lane(known.version) if known.version else "")
    if all(worker.unavailable for worker in known.crew):
        return Wait("no_worker", f"no {task.kind} agent can work: {known.crew[0].unavailable}", "installing that, then restarting the agent")
    slots = sum(worker.slots for worker in known.crew if not worker.unavailable)
    further = f"crewlog scale {group}={len(known.crew) + 1}" if task.kind in BUILT_IN_KINDS else "crewlog agent module:ATTR"
    needed = f"more agents of version {known.version}" if known.version else f"more agents: {further}"
    more = f"the end of those before it, or {needed}"
    if (held := known.held) is not None:
        turn = f"about {held.ahead} others go first, since tenants and runs take turns" if held.ahead else "it is next"
        if held.is_limited:
            detail = f"held back by CREWLOG_IN_FLIGHT_MAX: {held.in_flight} of at most {held.size} {task.kind} tasks are out; {turn}"
            return Wait("limit", detail, f"the end of one of those, or a higher limit for {task.kind}")
        return Wait("fairness", f"{turn}: {held.in_flight} {task.kind} tasks are out for {slots} slots", more)
    out = known.out.get(group, 0)
    detail = f"on the queue of the {task.kind} agents: {out} tasks are out for {slots} slots"
    return Wait("queue", detail, more if out > slots else "an agent, any moment")


def _nobody(task: TaskView, known: Known) -> Wait:
    gone = known.gone
    if gone is None:
        seen = "none has ever registered"
    elif gone.stopped_at is not None:
        seen = f"the last one, {gone.worker}, stopped at {_time(gone.stopped_at)}"
    else:
        seen = f"{gone.worker} registered at {_time(gone.started_at)} and does not answer"
    if known.version:
        live = ", ".join(sorted(set(known.versions))) or f"none ({seen})"
        detail = f"waits for a worker of version {known.version} of kind {task.kind}; versions live: {live}"
        return Wait("no_worker", detail, f"a worker of kind {task.kind} that starts with version {known.version}")
    if known.is_shadow:
        return Wait("no_worker", f"no {task.kind} agent is there for shadows, and others do not take their work: {seen}", _start(task.kind, SHADOW_LANE))
    return Wait("no_worker", f"no {task.kind} agent is there: {seen}", _start(task.kind))


def _start(kind: str, lane: str = "") -> str:
    """Say how an agent is started: of a kind that users made, only they know the module."""
    flag = f" --{lane}" if lane else ""
    if kind in BUILT_IN_KINDS:
        return f"crewlog scale {worker_group(kind, lane)}=1, or crewlog agent {kind}{flag}"
    return f"an agent of kind {kind}: crewlog agent module:ATTR{flag}"


def _running(task: TaskView, detail: str, known: Known) -> Wait:
    since = f" since {_time(task.started_at)}" if task.started_at is not None else ""
    if known.holds:
        return Wait("lease", f"{detail}, held by {task.worker}{since}", "its agent")
    if known.holds is None:
        lost = f"{task.worker} held it{since} and does not answer"
        return Wait("lease", f"{lost} ({detail})", f"another {task.kind} agent, handed it {_ACK_WAIT}" if known.crew else _nobody(task, known).ends)
    return Wait("lease", f"{task.worker} held it{since} and has given it back ({detail})", f"the next {task.kind} agent that takes it, {_ACK_WAIT}")


def _asked(detail: str, known: Known) -> Wait:
    if not known.approvals:
        return Wait("orchestrator" if detail.startswith("approval was decided") else "approval", detail, _orchestrator(known))
    first = min(known.approvals, key=lambda approval: (approval.expires_at, approval.approval_id))
    name = str(first.approval_id)[:8]
    if first.question is not None:
        ends = f"crewlog resolve {name} happened, did-not-happen (it runs again) or give-up, or silence until then, which gives it up"
        return Wait("approval", detail, ends, first.expires_at)
    return Wait("approval", detail, f"crewlog approve {name}, crewlog deny {name}, or silence until then, which is a no", first.expires_at)


def _retrying(task: TaskView, detail: str, known: Known) -> Wait:
    error = f": {task.error}" if task.error else ""
    if known.providers:
        first = min(known.providers, key=lambda provider: (provider.until_at is None, provider.until_at, provider.worker))
        until = f" until {_time(first.until_at)}" if first.until_at is not None else ""
        detail = f"{detail}; breaker open: {first.worker} does not ask {first.provider}/{first.model}{until} ({first.reason})"
        return Wait("breaker", detail, "the model answering again; the next attempt tries it", first.until_at)
    return Wait("retry", f"{detail}{error}", "the time of the next attempt")


def _orchestrator(known: Known) -> str:
    return "an orchestrator that starts; crewlog status shows them" if known.out is None else "an orchestrator, any moment"


def _time(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"
