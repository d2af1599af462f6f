"""Retry policy: pure arithmetic, no clock and no randomness of its own."""

from __future__ import annotations

from typing import Final

import msgspec

DOUBLINGS_MAX: Final = 64
"""Of any first wait: more than any longest wait allows, and a number that can still be multiplied."""


def doubled_s(first_s: float, times: int, *, longest_s: float) -> float:
    """Return a wait that doubles, in seconds: bounded by `longest_s` however often it was doubled, since a server may be away for days.

    >>> [doubled_s(0.2, times, longest_s=5.0) for times in (0, 1, 2, 9, 1_000_000)]
    [0.2, 0.4, 0.8, 5.0, 5.0]
    """
    return min(longest_s, first_s * 2.0 ** min(times, DOUBLINGS_MAX))


class RetryPolicy(msgspec.Struct, frozen=True):
    """How often a failed attempt of a task is tried again, and how long after."""

    attempts_max: int = 3
    """Attempts in all, the first included."""
    base_s: float = 1.0
    """Longest wait before the second attempt, in seconds; doubled for each further one."""
    cap_s: float = 60.0
    """Longest wait at all, in seconds."""

    def delay_s(self, attempt: int, fraction: float) -> float:
        """Return the wait before attempt number `attempt + 1`, in seconds: full jitter with a floor of a tenth.

        Args:
            attempt: the attempt that failed, from 1.
            fraction: a number in [0, 1) that the caller draws or derives; the same one gives the same wait.

        >>> RetryPolicy(base_s=1.0).delay_s(1, 0.5)
        0.5
        >>> RetryPolicy(base_s=1.0, cap_s=4.0).delay_s(10, 0.99)
        3.96
        """
        longest = doubled_s(self.base_s, attempt - 1, longest_s=self.cap_s)
        return max(longest * fraction, longest / 10)
