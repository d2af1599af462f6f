"""Retry policy: pure arithmetic, no clock and no randomness of its own."""

from __future__ import annotations

import msgspec


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
        longest = min(self.cap_s, self.base_s * 2.0 ** (attempt - 1))
        return max(longest * fraction, longest / 10)
