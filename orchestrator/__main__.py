"""Where the command `crewlog` begins: a Ctrl-C while the program is still being loaded ends it as quietly as any later one."""

from __future__ import annotations

import sys


def main() -> None:
    """Load as much of the command line as the command needs, and run it."""
    try:
        from crewlog.orchestrator.cli_quick import run_quickly

        code = run_quickly(sys.argv[1:])
        if code is not None:
            sys.exit(code)
        from crewlog.orchestrator.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
