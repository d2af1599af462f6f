"""A specialist whose effect can be looked up and taken back. Run it beside a crew:

    crewlog agent rooms:AGENT
    crewlog submit 'Book "Blue room"' --type rooms --wait
    crewlog effects --open                      # the booking, until it is cleaned up
    crewlog rollback @last --reason "the meeting is off"

Whoever keeps the bookings (here a SQLite file, ROOMS_DB) stores the idempotency key of the call with each. So a booking is made once however
often the call is tried; should a worker die in the middle, the probe finds out whether there is one; and what the rollback calls, with the id
that was recorded with the effect, may run twice. Nobody books the same room twice within an hour, in whichever runs it is asked for.
"""

import asyncio
import os
import sqlite3
from contextlib import closing

from pydantic import BaseModel, Field

from crewlog.agents import AgentSpec, Probed, ToolContext, ToolFailed, ToolOutput, ToolSpec, Undo


class Book(BaseModel):
    room: str = Field(description="Name of the room.")


class Cancel(BaseModel):
    booking: int


def ask(sql: str, *values: str | int) -> list[tuple[int, str]]:
    """Stand in for the service that keeps the bookings."""
    with closing(sqlite3.connect(os.environ.get("ROOMS_DB", "rooms.sqlite"))) as rooms, rooms:
        rooms.execute("CREATE TABLE IF NOT EXISTS bookings (id INTEGER PRIMARY KEY AUTOINCREMENT, room TEXT UNIQUE, key TEXT UNIQUE)")
        return rooms.execute(sql, values).fetchall()


async def find(key: str) -> int | None:
    found = await asyncio.to_thread(ask, "SELECT id, room FROM bookings WHERE key = ?", key)
    return found[0][0] if found else None


def undo(booking: int) -> Undo:
    return Undo("cancel_booking", {"booking": booking}, resource=f"booking {booking}")


async def book(context: ToolContext, args: Book) -> ToolOutput:
    await asyncio.to_thread(ask, "INSERT OR IGNORE INTO bookings (room, key) VALUES (?, ?)", args.room, context.idempotency_key)
    booking = await find(context.idempotency_key)
    if booking is None:
        raise ToolFailed(f"{args.room} is taken; nothing was booked")
    return ToolOutput(f"{args.room} is booked, as booking {booking}.", undo=undo(booking))


async def probe(context: ToolContext, args: Book) -> Probed:
    booking = await find(context.idempotency_key)
    return Probed("did_not_happen") if booking is None else Probed("happened", f"{args.room} is booked, as booking {booking}.", undo(booking))


async def cancel(_: ToolContext, args: Cancel) -> ToolOutput:
    await asyncio.to_thread(ask, "DELETE FROM bookings WHERE id = ?", args.booking)
    return ToolOutput(f"There is no booking {args.booking} any more.")


AGENT = AgentSpec(
    kind="rooms",
    description="Books meeting rooms.",
    instructions="Book each room that the objective names, once, and say what was booked.",
    tools=(
        ToolSpec("book_room", "Book a room.", Book, book, effect="compensable", trust="trusted", probe=probe, dedupe_window_s=3600),
        ToolSpec("cancel_booking", "Cancel a booking.", Cancel, cancel, effect="idempotent", trust="trusted", undoes=True),
    ),
)
