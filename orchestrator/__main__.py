"""Where the command `crewlog` begins: a Ctrl-C while the program is still being loaded ends it as quietly as any later one."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it."""
    try:
        from crewlog.orchestrator.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
