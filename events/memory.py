"""The garbage collector of a process that folds events: what it makes is frozen values, which hold no cycles."""

from __future__ import annotations

import gc
from typing import Final

YOUNG_MAX: Final = 50_000
"""Objects made before the collector looks for cycles among them; 700 by default."""


def settle_memory() -> None:
    """Take what start-up has made out of the collector's sight, and let it look rarely from now on. Call it once a process is ready.

    Reading the log makes tens of thousands of objects at a time, and looking for cycles among them took up to a third of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, 20, 50)
