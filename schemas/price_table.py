"""A price table of one's own: what tokens of which models cost. In the configuration, or in a file for pricing the past with other prices."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from crewlog.schemas.errors import ContractError
from crewlog.schemas.parse import contract_error

UsdPerMillion = Annotated[Decimal, Field(ge=0, le=1_000_000, max_digits=16, decimal_places=9, allow_inf_nan=False)]
"""USD per million tokens, exact: the same number is micro-USD per token."""

_PATTERN: Final = re.compile(r"[^:\s]+:\S+")


class TokenPrices(BaseModel):
    """What tokens of one model cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: UsdPerMillion
    output: UsdPerMillion
    cache_read: UsdPerMillion | None = None
    """None: what comes from the provider's cache costs the same as other input."""
    cache_write: UsdPerMillion | None = None
    """None: what goes into the provider's cache costs the same as other input."""


def _is_pattern(text: str) -> str:
    if not _PATTERN.fullmatch(text):
        raise ValueError(f"{text!r} names no model: write <provider>:<model>, where * stands for anything")
    return text


ModelPattern = Annotated[str, AfterValidator(_is_pattern)]
PriceTable = dict[ModelPattern, TokenPrices]
"""`<provider>:<model>`, where `*` stands for anything -> prices. The most literal pattern that fits a model counts."""

_adapter: Final = TypeAdapter(PriceTable)


def parse_price_table(data: bytes) -> PriceTable:
    """Read a price table from JSON, e.g. `{"openai:gpt-x*": {"input": "1.25", "output": "10", "cache_read": "0.125"}}`.

    Raises:
        ContractError: with every problem and its JSON pointer.
    """
    try:
        table = _adapter.validate_json(data)
    except ValidationError as error:
        raise contract_error("this is not a price table", error, _adapter.json_schema()) from None
    if not table:
        raise ContractError("the price table is empty; write at least one `<provider>:<model>` with its prices in USD per million tokens")
    return table


def read_prices(given: Any) -> Any:
    """Read the JSON of a price table, numbers as exactly as they were written; what is no text is passed on, blank text is an empty table.

    Raises:
        ValueError: it is no JSON.
    """
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given, parse_float=Decimal) if given.strip() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f'it must be JSON such as {{"local:*": {{"input": 0.1, "output": 0.4}}}}: {error}') from None


def find_prices(table: Mapping[str, TokenPrices], provider: str, model: str) -> TokenPrices | None:
    """Return the prices a table has for a model: those of the pattern with most literal characters that fits; None when none does."""
    name = f"{provider}:{model}"
    fitting = [pattern for pattern in table if _fits(pattern, name)]
    return table[max(fitting, key=lambda pattern: (pattern == name, len(pattern) - pattern.count("*"), pattern))] if fitting else None


def _fits(pattern: str, name: str) -> bool:
    return pattern == name or ("*" in pattern and re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None)
