"""What tokens cost, resolved for one model: pure arithmetic over a usage. Rates are micro-USD per token, the same number as USD per million."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from typing import NamedTuple

from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.usage import Price, Usage


class Step(NamedTuple):
    """Rates of a call whose input is longer than `above` tokens: long inputs may cost more, and then all of their tokens do."""

    above: int
    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    call: Decimal = Decimal(0)
    """Micro-USD per call, whatever its size."""


class Rates(NamedTuple):
    """The rates of one model in ascending steps, the first of which holds for every call; `source` says whose they are."""

    source: str
    steps: Sequence[Step]


def flat(prices: TokenPrices, source: str) -> Rates:
    """Return the rates of an entry of a price table of one's own."""
    read = prices.input if prices.cache_read is None else prices.cache_read
    written = prices.input if prices.cache_write is None else prices.cache_write
    return Rates(source, (Step(-1, prices.input, prices.output, read, written),))


def charge(rates: Rates, usage: Usage) -> Price:
    """Price a usage, rounded up to a whole micro-USD.

    Counts that contradict each other are charged, not dropped: cached tokens that are more than the whole input count as they are.
    """
    read, written = max(usage.cache_read_tokens, 0), max(usage.cache_write_tokens, 0)
    whole, output = max(usage.input_tokens, read + written), max(usage.output_tokens, 0)
    step = next(step for step in reversed(rates.steps) if whole > step.above)
    rest = step.output * output + step.call
    cost = _whole((whole - read - written) * step.input + read * step.cache_read + written * step.cache_write + rest)
    return Price(cost, rates.source, _whole(whole * step.input + rest) if read or written else None)


def bound(rates: Rates, *, input_tokens: int, output_tokens: int) -> Price:
    """Return the most that a call within these counts can cost, however its input is cached."""
    reachable = [step for step in rates.steps if input_tokens > step.above]
    most = max(max(s.input, s.cache_read, s.cache_write) * input_tokens + s.output * output_tokens + s.call for s in reachable)
    return Price(_whole(most), rates.source)


def _whole(micro_usd: Decimal) -> int:
    return int(micro_usd.to_integral_value(ROUND_CEILING))
