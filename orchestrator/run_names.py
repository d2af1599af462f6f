"""What people call a run: its id, the first characters of it, or the one submitted last."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final
from uuid import UUID

from crewlog.projections.queries import LAST, Queries
from crewlog.projections.query_rows import RunView
from crewlog.schemas.errors import NotFound
from crewlog.schemas.ids import RunId

NEWEST: Final = ("-", LAST)
"""Names that need no id: the run submitted last, the only approval that waits."""
VIEWS_FOLLOW_WITHIN_S: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Waits between looks at the views, which follow the log within milliseconds, in seconds."""


async def find_run(views: Queries, name: str) -> RunId:
    """Return the id of the run that `name` means; a whole id is taken as it is.

    Raises:
        NotFound: no run, or several.
    """
    with suppress(ValueError):
        return RunId(UUID(name))
    return RunId((await run_once_known(views, name)).run_id)


async def run_once_known(views: Queries, name: str) -> RunView:
    """Return a run; one that is so new that the views have not heard of it is waited for.

    Raises:
        NotFound: no run, or several; then the error lists them.
    """
    name = LAST if name in NEWEST else name
    with suppress(NotFound):
        return await views.run(name)
    for wait_s in VIEWS_FOLLOW_WITHIN_S:
        behind = any(view.waiting_since is not None for view in await views.lag())
        try:
            return await views.run(name)
        except NotFound as error:
            if error.candidates or not behind:
                raise
        await asyncio.sleep(wait_s)
    return await views.run(name)
