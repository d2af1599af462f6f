"""What effects reach, and its book: the receiving side of a schedule."""

from __future__ import annotations

from collections import Counter


class Sink:
    """The outside world: counts what reaches it, and does each key once, as a receiver that knows idempotency keys. What was taken back does
    not happen later either, should it still be on its way."""

    def __init__(self) -> None:
        self.arrivals: Counter[str] = Counter()
        self.explained: dict[str, str] = {}
        """Key -> `task/tool/text` of its first arrival."""
        self.undone: dict[str, str] = {}
        """Key of what was taken back -> the key under which it was."""
        self.confused: list[str] = []
        """Keys that came a second time with something else."""

    def take(self, key: str, what: str) -> None:
        """Do something, once per key."""
        self.arrivals[key] += 1
        if key not in self.undone and self.explained.setdefault(key, what) != what:
            self.confused.append(f"{key} came as {self.explained[key]} and as {what}")

    def undo(self, key: str, under: str) -> None:
        """Take something back, whether it has happened or not."""
        if self.undone.setdefault(key, under) != under:
            self.confused.append(f"{key} was taken back under {self.undone[key]} and under {under}")

    def holds(self, key: str) -> bool:
        """Say whether something has happened and was not taken back."""
        return key in self.explained and key not in self.undone
