"""Ten questions about a crew, answered in SQL from its public views.

    python examples/ten_questions.py "$(crewlog db url --reader)"

The questions are in questions.sql beside this file. It needs nothing but a Postgres client: here asyncpg, in a notebook whatever you like.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncpg

QUESTIONS = Path(__file__).with_name("questions.sql")


def questions() -> list[tuple[str, str]]:
    """Read the questions: the words of each, and its statement."""
    blocks = QUESTIONS.read_text(encoding="utf-8").split("\n-- ")[1:]
    parts = [block.split("\n", 1) for block in blocks if block[0].isdigit()]
    return [(words, statement.strip().removesuffix(";")) for words, statement in parts]


async def main(url: str) -> None:
    connection = await asyncpg.connect(url, server_settings={"search_path": "crewlog", "default_transaction_read_only": "on"})
    try:
        for words, statement in questions():
            rows = await connection.fetch(statement)
            print(f"\n{words}\n")
            if not rows:
                print("    nothing")
                continue
            print("    " + " | ".join(rows[0].keys()))
            for row in rows[:10]:
                print("    " + " | ".join("" if value is None else str(value) for value in row.values()))
    finally:
        await connection.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
