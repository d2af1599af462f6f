"""What goes wrong in one schedule, as data drawn from a seed: a schedule is a pure function of its plan, so it can be replayed and shrunk.

Each seed draws a mix of its own (how slow, how lossy) and a few faults; such a swarm finds more than one fixed mix does.
"""

from __future__ import annotations

import random
from typing import Final, Literal, NamedTuple

from crewlog.events import faults

FaultKind = Literal["kill", "kill_at_call", "kill_at_point", "freeze", "cut", "wipe_queues", "log_away"]
Role = Literal["orchestrator", "worker"]
OrderVerb = Literal["pause_run", "pause_tenant", "pause_kind", "quarantine_run", "quarantine_tenant", "terminate", "drain", "set_budget"]

KINDS: Final[tuple[FaultKind, ...]] = (
    *("kill", "kill_at_call", "kill_at_call", "kill_at_point", "kill_at_point"),
    *("freeze", "freeze", "cut", "wipe_queues", "log_away"),
)
"""As often as they are drawn."""


class Mix(NamedTuple):
    """How the network behaves until the faults are over."""

    latency_s: float
    """Longest one-way delay; each message draws its own."""
    loss: float
    """Share of messages, requests and answers that vanish."""
    duplication: float
    """Share of messages that arrive twice."""
    model_failures: float
    """Share of model calls that end in an error that is worth another try."""


class Fault(NamedTuple):
    """One thing that goes wrong.

    `kill` and the others with a time happen at `at` seconds. `kill_at_call`: the victim dies when its call number `at` on a port has
    been carried out and before it hears of it. `kill_at_point`: it dies when it passes the fault point `point` for the `at`-th time.
    """

    kind: FaultKind
    role: Role
    index: int
    at: float
    lasts_s: float = 0.0
    point: str = ""


class Order(NamedTuple):
    """What an operator does at `at` seconds, and takes back `lasts_s` later if it can be: to run number `number`, or to worker number `number`.

    `set_budget`: the run may spend nothing before it is given what the others have.
    """

    verb: OrderVerb
    number: int
    at: float
    lasts_s: float


class Plan(NamedTuple):
    """One schedule."""

    seed: int
    mix: Mix
    faults: tuple[Fault, ...]
    runs: int
    orders: tuple[Order, ...] = ()


PASSED: Final[dict[Role, tuple[str, ...]]] = {"worker": faults.OF_AGENTS, "orchestrator": faults.OF_ORCHESTRATORS}
"""Fault points that a process of a role may pass."""
VERBS: Final[tuple[OrderVerb, ...]] = (
    *("pause_run", "pause_run", "pause_tenant", "pause_tenant", "pause_kind", "quarantine_run", "quarantine_tenant", "terminate", "drain"),
    *("set_budget", "set_budget"),
)
"""As often as they are drawn."""
ORDERS_SHARE: Final = 0.35
"""Of the schedules, in which an operator does something."""
ORCHESTRATORS: Final = 2
WORKERS: Final = 3
FAULTS_UNTIL_S: Final = 30.0
"""No fault begins later than this; a victim that waits for a call or a point is spared from then on."""


def draw_plan(seed: int) -> Plan:
    """Draw the plan of a seed."""
    rng = random.Random(f"{seed}/plan")
    mix = Mix(rng.choice((0.001, 0.05, 0.5)), rng.choice((0.0, 0.02, 0.15)), rng.choice((0.0, 0.05, 0.3)), rng.choice((0.0, 0.0, 0.2)))
    faults = tuple(_draw_fault(rng) for _ in range(rng.randrange(5)))
    runs = rng.randint(1, 3)
    # numbers of their own, so that the faults of a seed are what they were before there were orders
    return Plan(seed, mix, faults, runs, _draw_orders(random.Random(f"{seed}/orders"), runs))


def _draw_orders(rng: random.Random, runs: int) -> tuple[Order, ...]:
    if rng.random() > ORDERS_SHARE:
        return ()
    return tuple(Order(rng.choice(VERBS), rng.randrange(runs), rng.uniform(0.5, 15), rng.choice((1.0, 8.0, 25.0))) for _ in range(rng.randint(1, 3)))


def _draw_fault(rng: random.Random) -> Fault:
    kind: FaultKind = rng.choice(
        ("kill", "kill_at_call", "kill_at_call", "kill_at_point", "kill_at_point", "freeze", "freeze", "cut", "wipe_queues", "log_away")
    )
    role: Role = rng.choice(("orchestrator", "worker", "worker"))
    index = rng.randrange(ORCHESTRATORS if role == "orchestrator" else WORKERS)
    at = rng.uniform(0, FAULTS_UNTIL_S / 3) if rng.random() < 0.8 else rng.uniform(0, FAULTS_UNTIL_S)
    match kind:
        case "kill_at_call":
            return Fault(kind, role, index, rng.randint(1, 60))
        case "kill_at_point":
            return Fault(kind, role, index, rng.randint(1, 4), point=rng.choice(PASSED[role]))
        case _:
            return Fault(kind, role, index, at, lasts_s=rng.choice((0.5, 5.0, 40.0)))


def simpler(plan: Plan) -> list[Plan]:
    """Return plans that are one step simpler, most promising first: what shrinking tries."""
    calm = [plan._replace(orders=plan.orders[:n] + plan.orders[n + 1 :]) for n in range(len(plan.orders))]
    fewer = [plan._replace(faults=plan.faults[:n] + plan.faults[n + 1 :]) for n in range(len(plan.faults))]
    calmer = [
        plan._replace(mix=plan.mix._replace(**{field: value}))
        for field, value in (("loss", 0.0), ("duplication", 0.0), ("model_failures", 0.0), ("latency_s", 0.001))
        if getattr(plan.mix, field) != value
    ]
    smaller = [plan._replace(runs=plan.runs - 1)] if plan.runs > 1 else []
    return [*fewer, *calm, *smaller, *calmer]
