"""Loading the SDK of a provider when its model is first asked: workers that never ask it stay small, and start at once."""

from __future__ import annotations

import asyncio
import importlib
import sys


async def load_sdk(name: str) -> None:
    """Import a module beside the event loop: an SDK takes a second or more, in which a worker has to go on answering.

    Args:
        name: full name of the module; importing it afterwards costs nothing.
    """
    if name not in sys.modules:
        await asyncio.to_thread(importlib.import_module, name)
