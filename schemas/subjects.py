"""NATS subjects: the one place that spells them.

tasks.<tenant>.<type>            anybody publishes an AgentTask                         JetStream TASKS
api.<tenant>.<noun>.<verb>       request-reply with the orchestrator                    core
api.system.agents.<verb>.<kind>  the same, by workers of a kind about themselves        core
outcomes.<tenant>.<run>          the end of a run, for those who wait                   core, a hint
work.<kind>.<lane>               orchestrator -> agents                                 JetStream WORK
events.<tenant>.<run>.<type>     every fact, after its commit, relayed from the log     JetStream EVENTS
rejected.<tenant>.<type>         bad messages, kept                                     JetStream REJECTED
dlq.<kind>                       messages nobody could handle                           JetStream DLQ
wake.<run>                       "look at this run", by whoever appended                core, a hint
poke.log                         "the log has grown", to projector and relay            core, a hint
live.<tenant>.<run>.<task>       an answer while it is written, for eyes only           core, lossy
telemetry.<kind>.<worker>        heartbeats                                             core
control.worker.<worker>          questions to one worker                                core
control.<kind>                   "look, and say that you are there", to workers of a kind  core, a hint
control.orchestrators.all        what each orchestrator holds back                      core, a hint
control.orchestrators.<name>     questions to one orchestrator                          core
replay.>                         recorded runs, published again by a person             core, nobody of the crew listens
supervisor.<verb>                commands to `crewlog up` (scale, down, status)         core
"""

from __future__ import annotations

from typing import Final, NamedTuple

from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import TOKEN, WORKER, RunId, TaskId, id_text

LANES: Final = ("high", "normal", "low")
"""Those that workers fetch from, the most urgent first."""
SHADOW_LANE: Final = "shadow"
"""That of work which only workers fetch that were started for shadows: they form a group of their own, and no other work waits behind theirs."""
QUEUES: Final = (*LANES, SHADOW_LANE)
"""Lanes that each kind has a queue for."""
VERSION_LANES: Final = tuple(f"version{number}" for number in range(32))
"""Those of work that needs a certain version of an agent. A kind has a queue for those of the versions it had. There are few, because the permissions
of the bus name each; see `version_lane`."""
_APART: Final = frozenset((SHADOW_LANE, *VERSION_LANES))
POKE: Final = "poke.log"
ORCHESTRATORS: Final = "control.orchestrators.all"
OURS: Final = frozenset(
    {"tasks", "api", "work", "events", "rejected", "dlq", "wake", "poke", "live", "telemetry", "control", "supervisor", "outcomes", "_INBOX"}
)
"""First tokens of what a crew listens to or keeps; those that begin with `$` are the server's own."""
REPLAY: Final = "replay"
"""First token of subjects that a crew's own server lets people publish to as they like."""
SUBJECT_CHARS_MAX: Final = 255
WORKER_SHOWN: Final = 200
"""Characters of a name that cannot be one, in the error."""


def _token(what: str, value: str) -> str:
    if not isinstance(value, str) or not TOKEN.fullmatch(value):
        raise ContractError(f"{what} {value!r} cannot be part of a subject; it must match [A-Za-z0-9_-]{{1,64}}")
    return value


def tasks(tenant: str, type_: str) -> str:
    """Where to publish a task."""
    return f"tasks.{_token('tenant', tenant)}.{_token('type', type_)}"


def api(tenant: str, noun: str, verb: str) -> str:
    """Where to send a request to the orchestrator."""
    return f"api.{_token('tenant', tenant)}.{noun}.{verb}"


def agents(verb: str, kind: str) -> str:
    """Where a worker asks something of the orchestrator. Its kind stands there and not only in the request, so that the bus can see to it that nobody
    speaks for another kind."""
    return f"api.{NO_RUN}.agents.{verb}.{_token('kind', kind)}"


def work(kind: str, lane: str) -> str:
    """Where the orchestrator puts a dispatched task."""
    return f"work.{_token('kind', kind)}.{_token('lane', lane)}"


def version_lane(version: str) -> str:
    """Return the lane of work that needs this version of an agent.

    Versions that differ in one digit never share a lane; of other two, one pair in 32 does. Then a worker may be handed what the other one has to do,
    and gives it back.
    """
    number = 0
    for byte in version.encode():
        number = (number * 37 + byte) % len(VERSION_LANES)  # odd, so that no place of the text is lost
    return VERSION_LANES[number]


def worker_group(kind: str, lane: str) -> str:
    """Name the workers that take what lies in a lane of a kind: `research` for the usual ones, `research.shadow` or `research.version7` for a lane that
    only some of them serve. A kind cannot be called like the latter."""
    return f"{kind}.{lane}" if lane in _APART else kind


NO_RUN: Final = "system"
"""Tenant and run of events outside runs, in the subjects of `events`."""


def events(tenant: str, run_id: RunId | str, type_: str) -> str:
    """Where the relay publishes a fact."""
    return f"events.{_token('tenant', tenant)}.{run_id}.{type_}"


def outcome(tenant: str, run_id: RunId | str) -> str:
    """Where the orchestrator says that a run has ended, for those who wait; the same fact follows on `events.>`."""
    return f"outcomes.{_token('tenant', tenant)}.{run_id}"


def rejected(tenant: str, type_: str) -> str:
    """Where a bad message is kept; tokens that could not be part of a subject become `invalid`."""
    return ".".join(["rejected", *(t if TOKEN.fullmatch(t) else "invalid" for t in (tenant, type_))])


def dead_letter(kind: str) -> str:
    """Where a message ends that no worker could handle."""
    return f"dlq.{_token('kind', kind)}"


def wake(run_id: RunId) -> str:
    """How to wake the orchestrator for one run."""
    return "wake." + id_text(run_id)


def live(tenant: str, run_id: RunId | str, task_id: TaskId | str) -> str:
    """Where a worker tells the text of an answer while it is being written."""
    return f"live.{_token('tenant', tenant)}.{run_id}.{task_id}"


def telemetry(kind: str, worker: str) -> str:
    """Where a worker sends its heartbeats."""
    return f"telemetry.{kind}.{worker}"


def control_worker(worker: str) -> str:
    """Where one worker can be asked what it holds.

    Raises:
        ContractError: no worker can be called so. Names of others' workers are what somebody has written into the log.
    """
    if not WORKER.fullmatch(worker):
        raise ContractError(f"no worker can be called {worker[:WORKER_SHOWN]!r}: its name must match [A-Za-z0-9_-]{{1,128}}")
    return f"control.worker.{worker}"


def control_orchestrator(name: str) -> str:
    """Where one orchestrator can be asked what it holds back."""
    return f"control.orchestrators.{name}"


def control_kind(kind: str) -> str:
    """Where all workers of a kind are asked to read what is paused or ended, and for a heartbeat; `orchestrator`: where all of those look."""
    return f"control.{_token('kind', kind)}"


class TaskSubject(NamedTuple):
    """A parsed `tasks.<tenant>.<type>`."""

    tenant: str
    type: str


def parse_tasks(subject: str) -> TaskSubject:
    """Parse the subject a task was published to.

    Raises:
        ContractError: when it has not exactly three valid tokens.
    """
    parts = subject.split(".")
    if len(parts) != 3 or parts[0] != "tasks" or not all(TOKEN.fullmatch(p) for p in parts[1:]):
        raise ContractError(f"subject {subject!r} is not tasks.<tenant>.<type>")
    return TaskSubject(parts[1], parts[2])


def is_answerable(reply: str) -> bool:
    """Say whether an answer may go to the subject that a request names for it.

    Whoever answers may publish where whoever asks may not, and the server does not check that subject: an answer must never be taken for work, a
    command, or a request to the server itself.
    """
    first = reply.partition(".")[0]
    return first.startswith("_INBOX") or not (first == "" or first in OURS or first.startswith("$"))


def parse_foreign(subject: str) -> str:
    """Check a subject that a person names to have something published there.

    Raises:
        ContractError: it is no subject, it has a wildcard, or it is one of the crew's or the server's own.
    """
    tokens = subject.split(".")
    if len(subject) > SUBJECT_CHARS_MAX or not all(token.isascii() and token.isprintable() and token and " " not in token for token in tokens):
        raise ContractError(f"{subject!r} is no subject: it needs tokens without blanks between single dots, such as {REPLAY}.mine")
    if any(wild in subject for wild in "*>"):
        raise ContractError(f"{subject!r} has a wildcard: something can be published to one subject only, such as {REPLAY}.mine")
    if tokens[0] in OURS or tokens[0].startswith(("$", "_INBOX")):
        raise ContractError(f"{subject!r} is a subject that crews work with: a recorded event would be taken for a new one; use another, such as {REPLAY}.mine")
    return subject
