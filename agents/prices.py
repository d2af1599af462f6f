"""What a model call cost, from the price table inside genai-prices; recorded with the call and never computed again."""

from __future__ import annotations

from decimal import ROUND_CEILING

from crewlog.schemas.usage import Price, Usage

FREE = Price(0, "offline")


def price(provider: str, model: str, usage: Usage) -> Price:
    """Price one call.

    Returns:
        The cost in micro-USD, rounded up; 0 for the offline provider; unpriced when the table does not know the model.
    """
    if provider == "offline":
        return FREE
    import genai_prices

    tokens = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    try:
        calculated = genai_prices.calc_price(tokens, model_ref=model, provider_id=provider)
    except (LookupError, ValueError):  # ValueError: counts that contradict each other
        return Price(None, "unpriced")
    micro_usd = int((calculated.total_price * 1_000_000).to_integral_value(ROUND_CEILING))
    return Price(micro_usd, f"genai-prices {genai_prices.__version__}")
