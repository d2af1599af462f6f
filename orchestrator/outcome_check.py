"""The option --check: a command that judges what came of a run."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def check_command(text: str) -> list[str]:
    """Take the command of --check apart, without a shell.

    Raises:
        ContractError: it is none, or there is no such program.
    """
    from crewlog.schemas.errors import ContractError

    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ContractError(f"--check {text!r} is no command: {error}") from None
    if not parts:
        raise ContractError("--check is empty: name a command that ends with 0 when what came of the run is good")
    if shutil.which(parts[0]) is None:
        is_file = Path(parts[0]).is_file()
        raise ContractError(f"--check: {parts[0]!r} may not be executed; chmod +x it" if is_file else f"--check: there is no program {parts[0]!r} here")
    return parts


async def run_check(command: Sequence[str], told: bytes, env: Mapping[str, str] | None = None) -> int:
    """Tell a check on its standard input what came of a run, and return the code it ends with; negative: the signal that killed it.

    It is killed when whoever waits for it is cancelled.

    Raises:
        ContractError: it cannot be started.
    """
    from crewlog.schemas.errors import ContractError

    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, env=env)
    except OSError as error:
        raise ContractError(f"--check: {command[0]!r} cannot be started: {error.strerror}; a script begins with a line such as #!/bin/sh") from None
    try:
        await process.communicate(told)
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):  # it has just ended
            process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode
