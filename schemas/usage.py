"""Usage and money. Money is a whole number of micro-USD everywhere (1 USD = 1 000 000)."""

from __future__ import annotations

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


class Price(msgspec.Struct, frozen=True):
    """What one call cost and who says so. `cost_micro_usd` is None when no price is known: unpriced, never free."""

    cost_micro_usd: int | None
    source: str
    """`offline` (the call cost nothing), `genai-prices <version>`, `config`, or `unpriced`."""


def format_usd(micro_usd: int | None) -> str:
    """Show an amount for people: `$0.0042`, or `unpriced`."""
    return "unpriced" if micro_usd is None else f"${micro_usd / 1_000_000:.4f}"
