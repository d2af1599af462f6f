"""A circuit breaker for each model of this process: one that fails again and again is not asked for a while.

    closed ── FAILURES_MAX failures in WINDOW_S, or a refused key ──▶ open ── its time is over ──▶ half-open: one probe, no more
       ▲                                                               ▲                               │
       └────────────────────────── an answer ──────────────────────────┼───────────────────────────────┤
                                                                       └────────── a failure ──────────┘

One that hangs would need many times WINDOW_S to fail so often: calls that time out open it once they have waited for WINDOW_S together while
nobody had an answer, and it stays open for as long as they waited, up to `HANG_OPEN_S_MAX`.

A provider that names a time to wait is held for so long besides, and is asked by everybody afterwards. What a request is to blame for
(`bad_request`, `context_length`, `content_filter`, `not_found`) shows that the provider is up. Each process learns for itself, within a
few calls; nothing is shared over the network on the way to an answer. Times are monotonic and passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from crewlog.agents.model import ErrorKind, Model
from crewlog.schemas.system_events import BreakerState

FAILURES_MAX: Final = 5
"""Failures within `WINDOW_S` that open a breaker."""
WINDOW_S: Final = 30.0
OPEN_S: Final = 20.0
"""How long an open breaker lets nothing through, in seconds."""
HANG_OPEN_S_MAX: Final = 120.0
"""The longest time, in seconds, for one that lets calls wait in vain: to find out whether it is back may take a whole call's time again."""
REFUSED_OPEN_S: Final = 300.0
"""The same after a refused key or an empty account: only a person can mend that."""
HOLD_S_MAX: Final = 300.0
"""Longest that a provider's own wish to wait is heeded, in seconds."""
SHOWN_HOLD_S_MIN: Final = 5.0
"""A shorter hold is everyday business and not announced, in seconds."""
PROBE_WAIT_S: Final = 5.0
"""When to ask again while another call is the probe, in seconds: nobody knows how long it takes."""
_EARLY_S: Final = 0.01
"""A sleep may end this much before its time, in seconds."""

_COUNTS: Final[frozenset[ErrorKind]] = frozenset({"rate_limit", "overloaded", "server", "timeout", "connection", "cut", "malformed"})
_REFUSED: Final[frozenset[ErrorKind]] = frozenset({"auth", "billing"})


class Change(NamedTuple):
    """A breaker went into another state, for `for_s` seconds if that is known, and why."""

    state: BreakerState
    for_s: float = 0.0
    reason: str = ""


class Closed(NamedTuple):
    """A call may not be made now: for how long, in seconds, and why."""

    for_s: float
    reason: str


class Breaker:
    """Decides for one model whether it may be asked."""

    def __init__(self, announce: Callable[[Change], None]) -> None:
        self._announce = announce
        self._failures: list[float] = []
        self._waited_s = 0.0
        self.answers = 0
        self._open_until: float | None = None
        self._held_until = 0.0
        self._probe: Admission | None = None
        self._reason = ""
        self.shown: BreakerState = "closed"

    def admit(self, now: float) -> Admission | Closed:
        """Admit a call, or say for how long there is none. When the time of an open breaker is over, exactly one call is admitted."""
        if now + _EARLY_S < self._held_until:
            return Closed(self._held_until - now, self._reason)
        if self._open_until is None:
            return Admission(self, now)
        if now + _EARLY_S < self._open_until:
            return Closed(self._open_until - now, self._reason)
        if self._probe is not None:
            return Closed(PROBE_WAIT_S, f"{self._reason}; a call is under way that will tell")
        self._probe = Admission(self, now)
        self._show("half_open")
        return self._probe

    def succeeded(self, admission: Admission) -> None:
        """Take note of an answer. Once open, only the probe's closes it: others were on their way before."""
        self.answers += 1
        if self._open_until is None or self._probe is admission:
            self._failures.clear()
            self._waited_s = 0.0
            self._open_until = self._probe = None
            self._show("closed")

    def failed(self, admission: Admission, kind: ErrorKind, now: float, retry_after_s: float | None) -> None:
        """Take note of a failure."""
        if kind not in _COUNTS and kind not in _REFUSED:
            self.succeeded(admission)
            return
        if retry_after_s:
            self._held_until = max(self._held_until, now + min(retry_after_s, HOLD_S_MAX))
        is_probe = self._probe is admission
        if self._open_until is not None and not is_probe:
            return
        self._reason = kind
        self._failures = [*(at for at in self._failures if now - at < WINDOW_S), now]
        if kind == "timeout" and admission.answers == self.answers:
            self._waited_s += now - admission.began
        if kind in _REFUSED:
            self._open_until = now + REFUSED_OPEN_S
        elif is_probe or len(self._failures) >= FAILURES_MAX or self._waited_s >= WINDOW_S:
            self._open_until = now + max(OPEN_S, min(self._waited_s, HANG_OPEN_S_MAX))
        self._probe = None
        closed_s = max(self._open_until or 0.0, self._held_until) - now
        if self._open_until is not None or closed_s > SHOWN_HOLD_S_MIN:
            self._show("open", closed_s)

    def released(self, admission: Admission) -> None:
        """Give the place of a probe back: the call was cancelled, so nothing is known."""
        if self._probe is admission:
            self._probe = None
            self._show("open")

    def _show(self, state: BreakerState, for_s: float = 0.0) -> None:
        if state == "closed" and self.shown == "closed":
            return
        self.shown = state
        self._announce(Change(state, for_s, "" if state == "closed" else self._reason))


class Admission:
    """One call that was let through. Exactly one of its methods ends it."""

    def __init__(self, breaker: Breaker, began: float) -> None:
        self._breaker = breaker
        self.began = began
        self.answers = breaker.answers

    def succeeded(self) -> None:
        """The model answered."""
        self._breaker.succeeded(self)

    def failed(self, kind: ErrorKind, now: float, *, retry_after_s: float | None = None) -> None:
        """The call failed; `retry_after_s` is how long the provider asks to wait, in seconds."""
        self._breaker.failed(self, kind, now, retry_after_s)

    def released(self) -> None:
        """The call was cancelled."""
        self._breaker.released(self)


class Breakers:
    """The breakers of a process, one for each of its models: each stands for an address, a credential and a model's name."""

    def __init__(self, announce: Callable[[Model, Change], None] = lambda _model, _change: None) -> None:
        self._announce = announce
        self._breakers: dict[int, tuple[Model, Breaker]] = {}

    def of(self, model: Model) -> Breaker:
        """Return the breaker of a model, made when it is first asked for."""
        if id(model) not in self._breakers:
            self._breakers[id(model)] = model, Breaker(lambda change: self._announce(model, change))
        return self._breakers[id(model)][1]

    def states(self) -> list[tuple[Model, BreakerState]]:
        """List the state of every model that was asked."""
        return [(model, breaker.shown) for model, breaker in self._breakers.values()]
