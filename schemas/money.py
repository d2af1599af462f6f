"""Amounts of money as people write them, read without ever being a float."""

from __future__ import annotations

import re
from typing import Final

from crewlog.schemas.budget import MICRO_USD_MAX
from crewlog.schemas.errors import ContractError

_USD: Final = re.compile(r"\$?([0-9]+)(?:\.([0-9]+))?")
_MICRO: Final = re.compile(r"([0-9]+) ?micro(?:-?usd)?", re.IGNORECASE)


def parse_usd(text: str) -> int:
    """Read an amount: US dollars such as `0.50` or `$2`, or whole millionths of one such as `500000micro`.

    Returns:
        micro-USD, exactly what was written.

    Raises:
        ContractError: it is negative, no number, finer than a millionth of a dollar, or above a billion dollars.
    """
    given = text.strip()
    if micro := _MICRO.fullmatch(given):
        return _checked(text, int(micro[1]))
    usd = _USD.fullmatch(given)
    if usd is None:
        why = "money cannot be negative" if given.startswith(("-", "$-")) else "write US dollars such as 0.50, or millionths such as 500000micro"
        raise ContractError(f"{text!r} is not an amount: {why}")
    fraction = (usd[2] or "").rstrip("0")
    if len(fraction) > 6:
        raise ContractError(f"{text!r} is finer than a millionth of a dollar: write at most six digits behind the point")
    return _checked(text, int(usd[1]) * 1_000_000 + int(fraction.ljust(6, "0")))


def _checked(text: str, micro_usd: int) -> int:
    if micro_usd > MICRO_USD_MAX:
        raise ContractError(f"{text!r} is more than {MICRO_USD_MAX // 1_000_000} US dollars")
    return micro_usd
