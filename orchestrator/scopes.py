"""What the model calls of a task are charged to: its scopes, named and limited at dispatch. Pure.

    run/<run>                           the run
    tree/<task>                         everything that began with one task: runs whose task names a parent belong to the parent's tree
    kind/<tenant>/<kind>/<day>          all agents of a kind, per tenant and day
    user/<tenant>/<user>/<day>          one user's work of a day
    tenant/<tenant>/<day>               all work of a tenant on a day
    trial/<tenant>/<name>               an evaluation or the shadows of a day; only its runs

Days are those of the dispatch, in UTC: a task that works past midnight is charged to the day it began on. A surface that has a limit of its
own for one of the daily scopes has an account of its own there, too: `tenant/acme/2026-11-21/batch`. Every task is charged to the first five,
limited or not, so that a limit set later finds what was spent already. Only those of shadows are not charged to days: what nobody asked for must
not use up what is there for work that somebody waits for; their own scope bounds them.
"""

from __future__ import annotations

from crewlog.events.limits import soft_of
from crewlog.orchestrator.run import RunState
from crewlog.schemas.budget import ScopeLimit, kind_scope, run_scope, tenant_scope, tree_scope, trial_scope, user_scope, utc_day
from crewlog.schemas.subjects import SHADOW_LANE
from crewlog.schemas.trial import Trial


def scopes_of(state: RunState, kind: str, now_us: int) -> tuple[ScopeLimit, ...]:
    """Name what a task of an agent kind that is opened now is charged to, with the limits that apply where a scope is new."""
    brief, day = state.brief, utc_day(now_us)
    given: dict[str, tuple[str, ScopeLimit]] = {}
    for limit in state.limits:
        of, account = _split(limit.scope)
        given[of] = (account, limit)
    days = (
        ("kind/day", kind_scope(brief.tenant, kind, day)),
        ("user/day", user_scope(brief.tenant, brief.user, day)),
        ("tenant/day", tenant_scope(brief.tenant, day)),
    )
    named = (("run", run_scope(state.run_id)), ("tree", tree_scope(state.tree)), *(() if brief.priority == SHADOW_LANE else days))
    hard, soft = brief.budget.hard_micro_usd, brief.budget.soft_micro_usd
    own = ScopeLimit("run", soft_of(hard) if soft is None else soft, hard)
    tried = (_trial(brief.tenant, brief.trial),) if brief.trial is not None and brief.trial.name else ()
    return (*(_limited(of, scope, given.get(of), own if of == "run" else None) for of, scope in named), *tried)


def _trial(tenant: str, trial: Trial) -> ScopeLimit:
    # no soft limit: past one, tasks may go on with cheaper models, and what was to be compared would be another one
    return ScopeLimit(trial_scope(tenant, trial.name), None, trial.hard_micro_usd)


def _split(kind_of_scope: str) -> tuple[str, str]:
    """Take `tenant/day/batch` apart: the kind of scope, and the surface that has an account of its own."""
    of, _, account = kind_of_scope.partition("/day/")
    return (f"{of}/day", account) if account else (kind_of_scope, "")


def _limited(of: str, scope: str, given: tuple[str, ScopeLimit] | None, own: ScopeLimit | None) -> ScopeLimit:
    account, limit = given or ("", ScopeLimit(of, None, None))
    if own is not None:
        hard = _least(limit.hard_micro_usd, own.hard_micro_usd)
        limit = ScopeLimit(of, _least(limit.soft_micro_usd, own.soft_micro_usd, hard), hard)
    return ScopeLimit(f"{scope}/{account}" if account else scope, limit.soft_micro_usd, limit.hard_micro_usd)


def _least(*amounts: int | None) -> int | None:
    return min((amount for amount in amounts if amount is not None), default=None)
