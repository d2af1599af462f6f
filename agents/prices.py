"""What a model call cost, and the most it can cost. Recorded with the call and never computed again.

the operator's table (`Config.prices`)  →  the table inside genai-prices  →  unpriced, which is not the same as free
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from crewlog.agents.rates import Rates, Step, bound, charge, flat
from crewlog.agents.tokens import estimate_request
from crewlog.schemas.blocks import ModelRequest
from crewlog.schemas.price_table import TokenPrices, find_prices
from crewlog.schemas.usage import CONFIG, OFFLINE, UNPRICED, Price, Usage
from crewlog.schemas.values import Failure

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice, TieredPrices

    from crewlog.agents.model import Model

FREE: Final = Price(0, OFFLINE)
NO_PRICE: Final = Price(None, UNPRICED)
NO_TABLE: Final[Mapping[str, TokenPrices]] = {}

_MINUTE_US: Final = 60_000_000


class _Column(NamedTuple):
    """One price of a model in genai-prices: what it is per token, and what it is above so many tokens of input."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()

    def at(self, above: int) -> Decimal:
        return next((price for start, price in reversed(self.tiers) if above >= start), self.base)


def price(provider: str, model: str, usage: Usage, *, at_us: int, asked: str = "", table: Mapping[str, TokenPrices] = NO_TABLE) -> Price:
    """Price one call.

    Args:
        model: that answered, as the provider names it.
        at_us: when the call began, in microseconds since 1970: prices change with dates, and some with the time of day.
        asked: the model that was asked for, whose price counts when none is known for the one that answered.
        table: the operator's prices, which go before all others.

    Returns:
        The cost in micro-USD, rounded up; 0 for the offline provider; unpriced when no table knows the model.
    """
    if provider == OFFLINE:
        return FREE
    rates = find_rates(provider, [model, asked], at_us=at_us, table=table)
    return NO_PRICE if rates is None else charge(rates, usage)


def worst_case(provider: str, model: str, request: ModelRequest, *, at_us: int, calibration: float = 1.0, table: Mapping[str, TokenPrices] = NO_TABLE) -> Price:
    """Return the most that a call can cost: its estimated input, written to the provider's cache if that costs more, and all of `max_tokens`.

    Args:
        at_us: when the call begins, in microseconds since 1970.
        calibration: largest ratio of counted to estimated input tokens seen with this model.
        table: the operator's prices, which go before all others.

    Returns:
        As `price`.
    """
    if provider == OFFLINE:
        return FREE
    rates = find_rates(provider, [model], at_us=at_us, table=table)
    if rates is None:
        return NO_PRICE
    return bound(rates, input_tokens=estimate_request(request, provider=provider, calibration=calibration), output_tokens=request.max_tokens)


def refuse_unpriced(provider: str, model: str, worst: Price, *, is_allowed: bool) -> Failure | None:
    """Say why a call must not be made: nobody knows what it costs, and the task may spend only so much.

    Args:
        worst: what `worst_case` says of the call.
        is_allowed: the task has no limit, or `CREWLOG_UNPRICED=allow`.
    """
    if worst.cost_micro_usd is not None or is_allowed:
        return None
    name = f"{provider}:{model}"
    return Failure(
        UNPRICED,
        f"no price is known for {name}, and this task has a spending limit; name its price, in USD per million tokens, with "
        f'CREWLOG_PRICES=\'{{"{name}": {{"input": 0, "output": 0}}}}\', or allow calls without a price with CREWLOG_UNPRICED=allow',
    )


def find_rates(provider: str, models: Iterable[str], *, at_us: int, table: Mapping[str, TokenPrices] = NO_TABLE) -> Rates | None:
    """Return the rates of the first of some model names that is known: in the operator's table, else in that of genai-prices; None when none is."""
    names = [name for name in models if name]
    for name in names:
        if (own := find_prices(table, provider, name)) is not None:
            return flat(own, CONFIG)
    return next(filter(None, (_listed(provider, name, at_us // _MINUTE_US) for name in names)), None)


@lru_cache(maxsize=1024)
def _listed(provider: str, model: str, minute: int) -> Rates | None:
    """Look a model up in genai-prices. Kept for a minute, because a look-up takes a quarter of a millisecond."""
    import genai_prices

    at = datetime.fromtimestamp(minute * 60, UTC)
    try:
        found = genai_prices.calc_price(genai_prices.Usage(), model, provider_id=provider, genai_request_timestamp=at)
    except LookupError:
        return None
    return _rates(found.model_price, f"genai-prices {genai_prices.__version__}")


def _rates(prices: ModelPrice, source: str) -> Rates | None:
    whole, output = _column(prices.input_mtok), _column(prices.output_mtok)
    if whole is None or output is None:  # priced by something other than tokens
        return None
    read, written = _column(prices.cache_read_mtok) or whole, _column(prices.cache_write_mtok) or whole
    calls = _column(prices.requests_kcount) or _Column(Decimal(0))
    starts = [-1, *sorted({start for column in (whole, output, read, written) for start, _ in column.tiers})]
    # a price per thousand calls in USD is a thousand times that in micro-USD for one
    return Rates(source, tuple(Step(s, whole.at(s), output.at(s), read.at(s), written.at(s), calls.base * 1000) for s in starts))


def _column(price: Decimal | TieredPrices | None) -> _Column | None:
    if price is None or isinstance(price, Decimal):
        return None if price is None else _Column(price)
    return _Column(price.base, tuple(_tiers(price)))


def _tiers(price: TieredPrices) -> Iterator[tuple[int, Decimal]]:
    for tier in price.tiers:
        yield tier.start, tier.price


def load_prices(models: Iterable[Model]) -> None:
    """Load what is known of models before there is work: importing genai-prices takes a third of a second of CPU, for which every task of the
    process that happened to have the first one would wait. It is left out where all models are simulated."""
    for model in models:
        if not model.simulated:
            context_window(model.provider, model.name)


@lru_cache(maxsize=256)
def context_window(provider: str, model: str) -> int:
    """Return how many tokens input and output of a call may have together, as genai-prices lists it; 0 when it does not say."""
    import genai_prices

    try:
        return genai_prices.calc_price(genai_prices.Usage(), model, provider_id=provider).model.context_window or 0
    except LookupError:
        return 0
