"""A world is played to its end by itself: nothing is logged, its points are struck, and nothing of its loop is left behind."""

from __future__ import annotations

import logging
from typing import TypeVar

from sim.world import World

from crewlog.events import faults

W = TypeVar("W", bound=World)


def played(world: W) -> W:
    """Play a world; returns it as it was in the end."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    faults.hook = world.point
    try:
        world.loop.run_until_complete(world.play())
    finally:
        world.loop.forget()
        faults.hook = None
        logging.disable(before)
    return world
