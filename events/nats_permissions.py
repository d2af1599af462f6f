"""Who may do what on the bus: the permissions of every user of the embedded NATS server, least privilege.

The streams are shared by all, so what keeps a research agent from taking code work or answering for the orchestrator stands here.
Everything not allowed is refused by the server. Wildcards of NATS match whole tokens only, hence one line per consumer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from crewlog.events.controls import CONTROL_TYPES
from crewlog.events.grants import BUILT_IN_KINDS
from crewlog.events.jetstream import consumer_elected, work_consumer
from crewlog.schemas.subjects import NO_RUN, QUEUES, REPLAY, VERSION_LANES, events
from crewlog.schemas.system_events import BudgetChanged

_REPLIES: Final = {"max": 16, "expires": "2m"}
"""Answers to requests that were received: how many each, and for how long."""
_JETSTREAM: Final = "$JS.API"
_ORCHESTRATORS_HEAR: Final = ("api.>", "wake.*", "poke.log", "telemetry.>", "control.>", "dlq.>", "$SRV.>", "$JS.EVENT.ADVISORY.*.LEADER_ELECTED.>")
_LANES: Final = (*QUEUES, *VERSION_LANES)


_CLIENTS_SEND: Final = ("tasks.*.*", "api.*.tasks.submit", "api.*.runs.get")
_CLIENTS_HEAR: Final = ("events.>", "outcomes.>", "live.>", "rejected.>")


def accounts(passwords: Mapping[str, str]) -> dict[str, Any]:
    """Return the accounts as the server's configuration wants them: one for the crew, and one for programs that only hand in work.

    Within an account the server confirms a message of a stream at whatever subject its sender names, without a look at permissions: one that may do
    no more than hand in a task could have the confirmation taken for work, a fact or a command. To another account only what is exported comes, and
    answers go back to whoever asked.

    Args:
        passwords: user -> password.
    """
    users = {user: {"user": user, "password": password, "permissions": permissions(user)} for user, password in sorted(passwords.items())}
    clients = [users.pop("client")] if "client" in users else []
    shared = [("service", subject) for subject in _CLIENTS_SEND] + [("stream", subject) for subject in (*_CLIENTS_HEAR, "_INBOX_client.>")]
    return {
        "CREW": {"jetstream": "enabled", "users": [*users.values()], "exports": [{way: subject} for way, subject in shared]},
        "CLIENTS": {"users": clients, "imports": [{way: {"account": "CREW", "subject": subject}} for way, subject in shared]},
    }


def permissions(user: str) -> dict[str, Any]:
    """Return the permissions of one user as the server's configuration wants them.

    Users without rules of their own get those of an agent of that kind.
    """
    rules = {
        "orchestrator": _orchestrator,
        "projector": _projector,
        "operator": _operator,
        "client": _client,
        "supervisor": _supervisor,
        "specialist": _specialist,
    }
    made = rules[user]() if user in rules else _agent(user)
    made["subscribe"]["allow"].append(f"_INBOX_{user}.>")
    return {**made, "allow_responses": _REPLIES}


def _agent(kind: str) -> dict[str, Any]:
    return {
        "publish": {"allow": [*_agent_publish(), f"api.system.agents.*.{kind}", f"telemetry.{kind}.*", f"dlq.{kind}", *_work_of([kind])]},
        "subscribe": {"allow": ["control.worker.*", f"control.{kind}", *_elections(work_consumer(kind, lane).name for lane in _LANES)]},
    }


def _specialist() -> dict[str, Any]:
    """Any kind but the built-in ones: NATS cannot tell the kinds that users make apart, as all log in as this one."""
    named = (("api.system.agents.*", ""), ("telemetry", ".*"), ("dlq", ""))
    built_in = [*_work_of(BUILT_IN_KINDS), *(f"{prefix}.{kind}{rest}" for kind in BUILT_IN_KINDS for prefix, rest in named)]
    return {
        "publish": {"allow": [*_agent_publish(), "api.system.agents.*.*", "telemetry.*.*", "dlq.*", *_work("*")], "deny": built_in},
        "subscribe": {"allow": ["control.worker.*", "control.*", *_elections(["*"])], "deny": [f"control.{kind}" for kind in BUILT_IN_KINDS]},
    }


def _agent_publish() -> list[str]:
    # `control.worker.*` is where a worker asks another one whether it still holds a task
    return ["wake.*", "poke.log", "live.*.*.*", "control.worker.*"]


def _work_of(kinds: Iterable[str]) -> list[str]:
    return [subject for kind in kinds for lane in _LANES for subject in _work(work_consumer(kind, lane).name)]


def _work(consumer: str) -> list[str]:
    """Pull from one consumer of WORK, and end deliveries of it (in both forms of the acknowledgement's subject)."""
    return [f"{_JETSTREAM}.CONSUMER.MSG.NEXT.WORK.{consumer}", f"$JS.ACK.WORK.{consumer}.>", f"$JS.ACK.*.*.WORK.{consumer}.>"]


def _elections(consumers: Iterable[str]) -> list[str]:
    return [consumer_elected("WORK", consumer) for consumer in consumers]


def _orchestrator() -> dict[str, Any]:
    """Dispatches, answers, makes streams and consumers. It does not publish facts: those come from the log."""
    return {
        "publish": {"allow": [">"], "deny": ["events.>", "supervisor.>"]},
        "subscribe": {"allow": [*_ORCHESTRATORS_HEAR, *_said()]},
    }


def _said() -> list[str]:
    """What people have said about more than a run: the relay tells it once more, should the first word have been lost."""
    return [events(NO_RUN, NO_RUN, type_) for type_ in (*sorted(CONTROL_TYPES), BudgetChanged.__name__)]


def _projector() -> dict[str, Any]:
    """Relays the log to `events.>`, and keeps that stream."""
    stream = [f"{_JETSTREAM}.STREAM.{verb}.EVENTS" for verb in ("CREATE", "UPDATE", "INFO", "PURGE", "MSG.GET")]
    return {
        "publish": {"allow": ["events.>", "telemetry.projector.*", *stream, f"{_JETSTREAM}.DIRECT.GET.EVENTS"]},
        "subscribe": {"allow": ["poke.log", "telemetry.>", "control.worker.*", "control.projector"]},
    }


def _operator() -> dict[str, Any]:
    """People and clients: submit, ask, watch. Consumers of their own on EVENTS, REJECTED and DLQ; the lag of all others.

    Dead letters they read and drop themselves; to publish one again is the orchestrator's business, which knows whether its task waits.
    """
    own = [
        f"{_JETSTREAM}.CONSUMER.{verb}.{stream}{rest}"
        for stream in ("EVENTS", "REJECTED", "DLQ")
        for verb, rest in (("CREATE", ""), ("CREATE", ".>"), ("MSG.NEXT", ".*"), ("INFO", ".*"), ("DELETE", ".*"))
    ]
    look = [f"{_JETSTREAM}.{verb}" for verb in ("INFO", "STREAM.NAMES", "STREAM.LIST", "STREAM.INFO.*", "CONSUMER.INFO.WORK.*", "CONSUMER.INFO.TASKS.*")]
    letters = [f"{_JETSTREAM}.STREAM.MSG.{verb}.DLQ" for verb in ("GET", "DELETE")]
    acks = [f"$JS.ACK.{prefix}{stream}.>" for stream in ("EVENTS", "REJECTED", "DLQ") for prefix in ("", "*.*.")]
    sent = ["tasks.>", "api.>", "supervisor.>", "control.worker.*", "poke.log", f"{REPLAY}.>"]
    return {
        "publish": {"allow": [*sent, "$SRV.>", "$JS.FC.>", *own, *look, *letters, *acks]},
        # `_INBOX.>` because a client that knows nothing of us uses that prefix; nobody else gets answers there
        "subscribe": {"allow": ["_INBOX.>", "events.>", "outcomes.>", "live.>", "rejected.>", "dlq.>", "telemetry.>", f"{REPLAY}.>"]},
    }


def _client() -> dict[str, Any]:
    """Programs that hand in work and follow it, and decide nothing: no limit, approval, schedule or end of anything is theirs to change.

    What a task says of itself (tenant, user, surface, `auto_approve`) is not checked here: a message does not say who sent it. They keep no
    consumers, and hear answers under `_INBOX_client` only.
    """
    return {
        "publish": {"allow": [*_CLIENTS_SEND]},
        "subscribe": {"allow": [*_CLIENTS_HEAR]},
    }


def _supervisor() -> dict[str, Any]:
    """Runs the processes: prepares streams and consumers, is told to scale, tells workers to stop."""
    return {
        "publish": {"allow": [f"{_JETSTREAM}.>", "control.>", "wake.*", "poke.log"]},
        "subscribe": {"allow": ["supervisor.>", "telemetry.>"]},
    }
