"""What the operator allows to be spent, read from the configuration: limits per surface and kind of scope.

    CREWLOG_BUDGETS="run=0.50, tenant/day=20:14, batch.run=5, batch.tenant/day=none"

    [budgets]                                     # work from any surface that has nothing of its own below
    run = 0.50                                    # US dollars; the soft limit is 70 % of the hard one
    "tenant/day" = { hard = 20, soft = 14 }
    [budgets.batch]                               # work whose task says `surface: batch`
    run = "5000000micro"

Amounts are never floats: what TOML has read as one is taken by its shortest decimal form, which is what was written for up to 15 digits,
and no amount has more. 0 lets nothing be spent; `none` is no limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import TOKEN
from crewlog.schemas.money import parse_usd

SCOPE_KINDS: Final = ("run", "tree", "kind/day", "user/day", "tenant/day")
DEFAULT_SURFACE: Final = "default"
SOFT_PERCENT: Final = 70
"""Where the soft limit is when nobody said, as a part of the hard one."""

Limits = Mapping[str, Mapping[str, ScopeLimit]]
"""Surface -> kind of scope -> limits."""
NO_LIMITS: Final[Limits] = MappingProxyType({})

_Entry = tuple[str, str, Any]
"""Surface, kind of scope, and what was written for it."""
_FIELDS: Final = ("hard", "soft", "hard_micro_usd", "soft_micro_usd")


def soft_of(hard_micro_usd: int | None) -> int | None:
    """Return the soft limit that belongs to a hard one."""
    return None if hard_micro_usd is None else hard_micro_usd * SOFT_PERCENT // 100


def parse_limits(given: Any) -> Limits:
    """Read limits from the text or the table that stands above.

    Raises:
        ValueError: naming everything that is wrong.
    """
    limits: dict[str, dict[str, ScopeLimit]] = {}
    faults: list[str] = []
    for surface, kind, written in _entries(given, faults):
        name = kind if surface == DEFAULT_SURFACE else f"{surface}.{kind}"
        if kind not in SCOPE_KINDS:
            faults.append(f"{name}: there is no such kind of scope; there are {', '.join(SCOPE_KINDS)}")
        elif not TOKEN.fullmatch(surface):
            faults.append(f"{name}: a surface is named with letters, digits, - and _")
        elif kind in limits.get(surface, ()):
            faults.append(f"{name}: is set twice")
        else:
            try:
                limits.setdefault(surface, {})[kind] = _limit(kind, written)
            except ContractError as error:
                faults.append(f"{name}: {error}")
    if faults:
        raise ValueError("; ".join(faults))
    return limits


def limits_for(limits: Limits, surface: str) -> tuple[ScopeLimit, ...]:
    """Return the limits for work from one surface, `scope` being the kind of a scope.

    What the surface has of its own replaces what all have. For a daily scope that is an account of its own, which its name says
    (`tenant/day/batch`): else whichever surface came first on a day would set the limit for all.
    """
    found = dict(limits.get(DEFAULT_SURFACE, {}))
    if surface != DEFAULT_SURFACE:
        for kind, limit in limits.get(surface, {}).items():
            scope = f"{kind}/{surface}" if kind.endswith("/day") else kind
            found[kind] = ScopeLimit(scope, limit.soft_micro_usd, limit.hard_micro_usd)
    return tuple(found[kind] for kind in SCOPE_KINDS if kind in found)


def _entries(given: Any, faults: list[str]) -> Iterator[_Entry]:
    if isinstance(given, str):
        for part in filter(None, (part.strip() for part in given.split(","))):
            name, equals, amount = part.partition("=")
            surface, dot, kind = name.strip().rpartition(".")
            if equals:
                yield surface if dot else DEFAULT_SURFACE, kind, amount.strip()
            else:
                faults.append(f"{part!r} is not [SURFACE.]SCOPE=HARD[:SOFT]")
    elif isinstance(given, Mapping):
        for name, value in given.items():
            if name in SCOPE_KINDS or not isinstance(value, Mapping):
                yield DEFAULT_SURFACE, str(name), value
            else:
                yield from ((str(name), str(kind), written) for kind, written in value.items())
    else:
        faults.append(f"expected a table or text, got {type(given).__name__}")


def _limit(kind: str, written: Any) -> ScopeLimit:
    if isinstance(written, Mapping):
        return _from_table(kind, written)
    hard_text, colon, soft_text = written.partition(":") if isinstance(written, str) else (written, "", "")
    hard = _amount(hard_text)
    return _checked(kind, hard, _amount(soft_text) if colon else soft_of(hard))


def _from_table(kind: str, table: Mapping[Any, Any]) -> ScopeLimit:
    unknown = [str(name) for name in table if name not in _FIELDS]
    if unknown or ("hard" in table and "hard_micro_usd" in table) or ("soft" in table and "soft_micro_usd" in table):
        what = f"unknown {', '.join(unknown)}" if unknown else "the same amount is given twice"
        raise ContractError(f"{what}; write hard and soft in US dollars, or hard_micro_usd and soft_micro_usd")
    hard = _amount(table["hard"]) if "hard" in table else _whole(table.get("hard_micro_usd"))
    if "soft" in table or "soft_micro_usd" in table:
        return _checked(kind, hard, _amount(table["soft"]) if "soft" in table else _whole(table["soft_micro_usd"]))
    return _checked(kind, hard, soft_of(hard))


def _checked(kind: str, hard: int | None, soft: int | None) -> ScopeLimit:
    if hard is not None and soft is not None and soft > hard:
        raise ContractError(f"its soft limit of {soft} micro-USD is above its hard limit of {hard}: it would never warn in time")
    return ScopeLimit(kind, soft, hard)


def _amount(written: Any) -> int | None:
    """Read US dollars, as text or as the number that TOML or JSON made of it."""
    if isinstance(written, str):
        return None if written.strip().lower() == "none" else parse_usd(written)
    if isinstance(written, int | float) and not isinstance(written, bool):
        number = Decimal(repr(written))
        return parse_usd(format(number, "f") if number.is_finite() else str(number))
    raise ContractError(f"expected an amount, got {type(written).__name__}")


def _whole(written: Any) -> int | None:
    if written is None:
        return None
    if isinstance(written, int) and not isinstance(written, bool):
        return parse_usd(f"{written}micro" if written >= 0 else str(written))
    raise ContractError(f"micro-USD are whole numbers, got {written!r}")
