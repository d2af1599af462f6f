"""Runs tried again under other conditions, held against the originals: did they end as well, decide the same, and what did they take. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from crewlog.orchestrator.golden_observe import Observed

Z_95: Final = 1.959964
"""Quantile of the normal distribution for a two-sided interval of 95 %."""
FLAGS_IGNORED: Final = frozenset({"simulated", "stubbed", "unpriced"})
"""Flags that say how a run was made, not what came of it."""


Check = Literal["none", "passed", "failed"]


class Pair(msgspec.Struct, frozen=True):
    """One run and its trial."""

    run_id: str
    trial_id: str
    goal: str
    status: str
    trial_status: str
    is_worse: bool
    """The original was completed and the trial was not, or it has open points that the original had not, or the check refused it."""
    diverges: bool
    """They decided differently: another plan, other tools or in another order, another verdict or output."""
    first: str
    """The first decision that differs."""
    cost_micro_usd: int
    trial_cost_micro_usd: int
    check: Check
    """What a command said that somebody wants each trial to be judged by."""
    model_ms: int
    """Time that models took to answer, all calls together."""
    trial_model_ms: int


class Interval(msgspec.Struct, frozen=True):
    """A share, with the bounds between which the true one lies with 95 % confidence."""

    share: float
    low: float
    high: float
    count: int
    of: int


class Summary(msgspec.Struct, frozen=True):
    """What all pairs together say."""

    pairs: int
    diverging: Interval
    worse: Interval
    cost_micro_usd: int
    trial_cost_micro_usd: int
    model_ms: float
    """Median per run."""
    trial_model_ms: float
    open: int
    """Trials that did not come to an end: stopped, or held by their budget."""


def wilson(count: int, of: int, z: float = Z_95) -> Interval:
    """Return the confidence interval of a share by Wilson's score (1927), which also holds for few cases and for shares near 0 and 1.

    Args:
        count: cases, `of` how many.
    """
    if not of:
        return Interval(0.0, 0.0, 1.0, 0, 0)
    share = count / of
    middle = share + z * z / (2 * of)
    spread = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    # rounding must not push a bound past the share itself
    return Interval(share, max(0.0, min(share, (middle - spread) / scale)), min(1.0, max(share, (middle + spread) / scale)), count, of)


def compare(run_id: str, trial_id: str, goal: str, original: Observed, trial: Observed, *, model_ms: tuple[int, int], check: Check = "none") -> Pair:
    """Hold a trial against the run it was made after.

    Args:
        model_ms: of the original and of the trial.
        check: what a command said about the trial.
    """
    first = first_divergence(original, trial)
    lost = {_flag(f) for f in trial.flags} - {_flag(f) for f in original.flags} - FLAGS_IGNORED
    is_worse = check == "failed" or (original.status == "completed" and (trial.status != "completed" or bool(lost)))
    costs = (original.cost_micro_usd, trial.cost_micro_usd)
    return Pair(run_id, trial_id, goal, original.status, trial.status, is_worse, bool(first), first, *costs, check, *model_ms)


def first_divergence(original: Observed, trial: Observed) -> str:
    """Name the first decision in which two runs differ; empty when there is none. What a model says in its own words is no decision."""
    if original.plan != trial.plan:
        return f"plan: {'; '.join(original.plan) or 'none'} / {'; '.join(trial.plan) or 'none'}"
    for key in {**original.tasks, **trial.tasks}:
        ours, theirs = original.tasks.get(key), trial.tasks.get(key)
        if ours is None or theirs is None:
            return f"{key}: only in the {'trial' if ours is None else 'original'}"
        if ours["tools"] != theirs["tools"]:
            return f"{key}: {_tools(ours['tools'], theirs['tools'])}"
        for name in ("verdict", "output", "error"):
            if ours.get(name) != theirs.get(name):
                return f"{key}: another {name}"
    return "" if original.status == trial.status else f"ended {original.status} / {trial.status}"


def summarised(pairs: Sequence[Pair], *, unfinished: int) -> Summary:
    """Sum up what was compared.

    Args:
        unfinished: trials that came to no end.
    """
    return Summary(
        pairs=len(pairs),
        diverging=wilson(sum(pair.diverges for pair in pairs), len(pairs)),
        worse=wilson(sum(pair.is_worse for pair in pairs), len(pairs)),
        cost_micro_usd=sum(pair.cost_micro_usd for pair in pairs),
        trial_cost_micro_usd=sum(pair.trial_cost_micro_usd for pair in pairs),
        model_ms=statistics.median([pair.model_ms for pair in pairs]) if pairs else 0.0,
        trial_model_ms=statistics.median([pair.trial_model_ms for pair in pairs]) if pairs else 0.0,
        open=unfinished,
    )


def _flag(flag: str) -> str:
    return flag.partition(":")[0]


def _tools(ours: Sequence[str], theirs: Sequence[str]) -> str:
    at = next((n for n, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), min(len(ours), len(theirs)))
    one, other = (tools[at] if at < len(tools) else "the end" for tools in (ours, theirs))
    return f"call {at + 1} is {one} / {other}"
