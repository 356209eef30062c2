"""Orders of a round's replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fedopt.testing.task import Order

Item = TypeVar("Item")


def ordered(items: Sequence[Item], order: Order) -> list[Item]:
    """Return items as they are, from last to first, or the second half before the first."""
    if order == "reversed":
        return list(items[::-1])
    if order == "rotated":
        middle = (len(items) + 1) // 2
        return [*items[middle:], *items[:middle]]
    return list(items)
