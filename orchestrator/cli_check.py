"""The option --check: a command that judges what came of a run."""

from __future__ import annotations

import shlex
import shutil


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
        raise ContractError(f"--check: there is no program {parts[0]!r} here")
    return parts
