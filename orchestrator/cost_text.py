"""How costs look in a terminal: one line per group, with everything that the bare sum would hide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from crewlog.orchestrator.cli_output import print_table, say
from crewlog.orchestrator.reprice import Repriced
from crewlog.projections.query_rows import CostView, Group
from crewlog.schemas.usage import format_usd

_HEADINGS: Final = {"kind": "AGENT", "run_id": "RUN", "task_id": "TASK", "key": "STEP", "user_name": "USER"}
_NUMBERS: Final = frozenset({"CALLS", "TOKENS IN", "CACHED", "TOKENS OUT", "COST", "SAVED", "RECORDED", "REPRICED", "CHANGE"})


def print_costs(costs: Sequence[CostView]) -> None:
    """Print usage and money per group, with a total. What caching saved has columns of its own as soon as a cache was used."""
    if not costs:
        say("no model was called")
        return
    lines = [*costs, _total(costs)] if len(costs) > 1 else list(costs)
    cached = any(c.cached_tokens or c.cache_write_tokens for c in costs)
    rows = []
    for names, c in zip(_names([c.group for c in costs]), lines, strict=False):
        cache, saved = ([_hits(c)], [format_usd(c.saved_micro_usd)]) if cached else ([], [])
        rows.append([*names, c.calls, c.input_tokens, *cache, c.output_tokens, _amount(c), *saved, "; ".join(_remarks(c))])
    headings = [*_group_headings(costs[0].group), "CALLS", "TOKENS IN", *(["CACHED"] if cached else []), "TOKENS OUT", "COST"]
    print_table([*headings, *(["SAVED"] if cached else []), ""], rows, right=_NUMBERS)


def print_repriced(groups: Sequence[Repriced]) -> None:
    """Print what calls cost and what they would have cost, with a total."""
    if not groups:
        say("no model was called")
        return
    rows = []
    for names, g in zip(_names([g.group for g in groups]), [*groups, _total_repriced(groups)] if len(groups) > 1 else groups, strict=False):
        change = format_usd(g.repriced_micro_usd - g.recorded_micro_usd)
        rows.append([*names, g.repriced_calls, format_usd(g.recorded_micro_usd), format_usd(g.repriced_micro_usd), change, "; ".join(_left_out(g))])
    print_table([*_group_headings(groups[0].group), "CALLS", "RECORDED", "REPRICED", "CHANGE", ""], rows, right=_NUMBERS)


def _names(groups: Sequence[Group]) -> Iterator[list[object]]:
    for group in groups:
        yield list(group.values())
    yield ["total", *[""] * (len(groups[0]) - 1)]


def _group_headings(group: Group) -> list[str]:
    return [_HEADINGS.get(name, name.upper()) for name in group]


def _hits(cost: CostView) -> str:
    """Show how much of the input came from a provider's cache, and which part of it that is."""
    return f"{cost.cached_tokens} ({cost.cached_tokens * 100 // max(cost.input_tokens, 1)} %)"


def _amount(cost: CostView) -> str:
    if cost.unpriced_calls and cost.unpriced_calls + cost.open_calls == cost.calls:
        return format_usd(None)
    return format_usd(cost.cost_micro_usd) + ("+" if cost.unpriced_calls or cost.open_calls else "")


def _remarks(c: CostView) -> Iterator[str]:
    if c.simulated:
        yield "simulated"
    if c.failed_calls:
        yield f"{c.failed_calls} failed: {format_usd(c.failed_micro_usd)}"
    if c.unused_calls:
        yield f"{c.unused_calls} not used: {format_usd(c.unused_micro_usd)}"
    if c.worst_case_calls:
        yield f"{c.worst_case_calls} at their worst case: {format_usd(c.worst_case_micro_usd)}"
    if c.unpriced_calls:
        yield f"{c.unpriced_calls} without a price"
    if c.open_calls:
        yield f"{c.open_calls} without an outcome"


def _left_out(g: Repriced) -> Iterator[str]:
    if g.unlisted_calls:
        yield f"{g.unlisted_calls} not in the table ({', '.join(g.unlisted_models)}): {format_usd(g.unlisted_micro_usd)} recorded"
    if g.unmeasured_calls:
        yield f"{g.unmeasured_calls} of unknown usage: {format_usd(g.unmeasured_micro_usd)} recorded"


def _total(costs: Sequence[CostView]) -> CostView:
    sums = {name: sum(getattr(c, name) for c in costs) for name in CostView.__struct_fields__ if name not in ("group", "simulated")}
    return CostView(group={}, simulated=False, **sums)


def _total_repriced(groups: Sequence[Repriced]) -> Repriced:
    sums = {name: sum(getattr(g, name) for g in groups) for name in Repriced.__struct_fields__ if name not in ("group", "unlisted_models")}
    return Repriced(group={}, unlisted_models=tuple(sorted({name for g in groups for name in g.unlisted_models})), **sums)
