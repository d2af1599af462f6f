"""Usage and money. Money is a whole number of micro-USD everywhere (1 USD = 1 000 000)."""

from __future__ import annotations

from typing import Final

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one model call. `input_tokens` includes cache reads and writes; `output_tokens` includes reasoning."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


OFFLINE: Final = "offline"
"""Price source of a call that cost nothing, because nobody outside was asked."""
CONFIG: Final = "config"
"""Price source of a call that is priced by the operator's own table."""
WORST_CASE: Final = "worst case"
"""Price source of a call nobody knows the bill of: charged with the most it can have cost."""
ESTIMATE: Final = "estimate"
"""Price source of a call that broke before it told its usage: what was sent and heard, counted by us."""
NOT_BILLED: Final = "not billed"
"""Price source of a call that failed without any sign that it was billed."""
UNPRICED: Final = "unpriced"
"""Price source of a call no table has a price for."""


class Price(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one call cost and who says so. `cost_micro_usd` is None when no price is known: unpriced, never free."""

    cost_micro_usd: int | None
    source: str
    """`offline`, `genai-prices <version>`, `config`, `worst case`, `not billed` or `unpriced`."""
    uncached_micro_usd: int | None = None
    """What the same call would have cost at the same price without prompt caching; None when the cache was not touched."""


def format_usd(micro_usd: int | None) -> str:
    """Show an amount for people: `$0.0042`, or `unpriced`."""
    if micro_usd is None:
        return "unpriced"
    return f"{'-' if micro_usd < 0 else ''}${abs(micro_usd) / 1_000_000:.4f}"
