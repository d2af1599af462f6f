"""What recorded calls would have cost with other prices. A projection of the log: reads what was used, changes nothing.

Only calls whose usage is known can be priced anew. Calls that failed without a bill, are charged with their worst case, or have no
outcome yet have none: what is recorded for them stands apart, so that both sums always speak of the same calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from crewlog.agents.prices import NO_PRICE, find_rates
from crewlog.agents.rates import charge, flat
from crewlog.projections.query_rows import CallView, Group
from crewlog.schemas.price_table import TokenPrices, find_prices
from crewlog.schemas.usage import CONFIG, OFFLINE, Price, Usage

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)


class Repriced(msgspec.Struct, frozen=True):
    """One group of calls at other prices. `repriced_micro_usd` and `recorded_micro_usd` are of the same calls."""

    group: Group
    calls: int
    repriced_calls: int
    repriced_micro_usd: int
    recorded_micro_usd: int
    """What is recorded for the calls that were priced anew; those recorded without a price add nothing."""
    unlisted_calls: int
    """Calls to models the new prices do not know."""
    unlisted_models: tuple[str, ...]
    unlisted_micro_usd: int
    """What is recorded for them."""
    unmeasured_calls: int
    """Calls nobody knows the usage of."""
    unmeasured_micro_usd: int
    """What is recorded for them."""


async def reprice(calls: AsyncIterator[CallView], table: Mapping[str, TokenPrices] | None) -> list[Repriced]:
    """Price calls anew and sum them up by their groups, the most expensive first.

    Args:
        table: other prices, which alone count; None for the list inside genai-prices, as of the moment of each call.
    """
    groups: dict[bytes, Repriced] = {}
    async for call in calls:
        key = msgspec.json.encode(call.group)
        groups[key] = _add(groups.get(key) or Repriced(call.group, 0, 0, 0, 0, 0, (), 0, 0, 0), call, table)
    return sorted(groups.values(), key=lambda group: (-group.repriced_micro_usd, str(group.group)))


def _add(group: Repriced, call: CallView, table: Mapping[str, TokenPrices] | None) -> Repriced:
    recorded, replace = call.cost_micro_usd or 0, msgspec.structs.replace
    group = replace(group, calls=group.calls + 1)
    usage = Usage(call.input_tokens, call.output_tokens, call.cache_read_tokens, call.cache_write_tokens)
    if call.part in ("open", "worst_case") or usage == Usage():
        return replace(group, unmeasured_calls=group.unmeasured_calls + 1, unmeasured_micro_usd=group.unmeasured_micro_usd + recorded)
    again = _price(call, usage, table).cost_micro_usd
    if again is None:
        names = dict.fromkeys([*group.unlisted_models, f"{call.provider}:{call.model}"])
        return replace(
            group,
            unlisted_calls=group.unlisted_calls + 1,
            unlisted_models=tuple(sorted(names)),
            unlisted_micro_usd=group.unlisted_micro_usd + recorded,
        )
    return replace(
        group,
        repriced_calls=group.repriced_calls + 1,
        repriced_micro_usd=group.repriced_micro_usd + again,
        recorded_micro_usd=group.recorded_micro_usd + recorded,
    )


def _price(call: CallView, usage: Usage, table: Mapping[str, TokenPrices] | None) -> Price:
    if table is not None:
        # a table may name offline models, too: that says what a simulated crew would have cost
        prices = find_prices(table, call.provider, call.model)
        rates = flat(prices, CONFIG) if prices is not None else None
    else:
        rates = find_rates(call.provider, [call.model], at_us=(call.started_at - _EPOCH) // _US)
    if rates is None:
        return Price(0, OFFLINE) if call.provider == OFFLINE else NO_PRICE
    return charge(rates, usage)
