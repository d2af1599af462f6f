"""The error tree, arranged by who must act.

    OrchestrationError
    ├── ConfigError          the operator: a setting, a missing extra, a directory that cannot be written
    ├── ContractError        the sender: malformed or unknown input; never retried
    │   └── NotFound         the id or prefix matches nothing
    ├── ConflictError        the program: somebody else appended first; read again and decide again
    ├── TransientError       nobody: retry, after `retry_after_s` when given
    │   └── Unavailable      the operator, if it lasts: a server cannot be reached
    ├── TerminalError        the task stops; a retry would end the same way
    │   └── LimitExceeded    a named limit was reached
    │       ├── OverBudget   a budget does not allow what a model call may cost
    │       └── TenantFull   a tenant has as much open or waiting as the operator allows
    └── NotAuthorised        the operator or the approver: the principal may not do this

Errors carry fields; the text is made from them. Each text says what was attempted, with ids, expected against got, and the next step.
"""

from __future__ import annotations

from crewlog.schemas.usage import format_usd


class OrchestrationError(Exception):
    """Root of every error crewlog raises on purpose."""

    code = "error"


class ConfigError(OrchestrationError):
    """A setting or the environment is wrong; `hint` says what to do."""

    code = "config"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.hint = hint


class ContractError(OrchestrationError):
    """Input breaks the public contract. `problems` lists every fault as `(json pointer, text)`."""

    code = "contract"

    def __init__(self, message: str, *, problems: tuple[tuple[str, str], ...] = ()) -> None:
        detail = "".join(f"\n  {pointer or '/'}: {text}" for pointer, text in problems)
        super().__init__(message + detail)
        self.message = message
        self.problems = problems


class NotFound(ContractError):
    """No object, or more than one, answers to the given id or prefix; `candidates` lists the several."""

    code = "not_found"

    def __init__(self, what: str, given: str, *, candidates: tuple[str, ...] = ()) -> None:
        text = f"{what} {given!r} " + (f"is ambiguous: {', '.join(candidates)}" if candidates else "matches nothing")
        super().__init__(text)
        self.what, self.given, self.candidates = what, given, candidates


class ConflictError(OrchestrationError):
    """The stream is at another version than the writer expected, or `closed`: it has its terminal event."""

    code = "conflict"

    def __init__(self, stream: str, *, expected: int, actual: int, closed: bool = False) -> None:
        found = f"the stream was closed at {actual}" if closed else f"expected version {expected}, the stream is at {actual}"
        super().__init__(f"append to {stream}: {found}; read it and decide again")
        self.stream, self.expected, self.actual, self.closed = stream, expected, actual, closed


class TransientError(OrchestrationError):
    """Worth trying again; `retry_after_s` is a lower bound in seconds when the other side named one."""

    code = "transient"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(TransientError):
    """A server could not be reached in time."""

    code = "unavailable"


class TerminalError(OrchestrationError):
    """The task cannot succeed by trying again."""

    code = "terminal"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LimitExceeded(TerminalError):
    """A named limit was reached: `used` of `limit_max`, both in the unit the name ends in."""

    code = "limit"

    def __init__(self, limit: str, *, used: float, limit_max: float) -> None:
        super().__init__(f"limit {limit} reached: {used:.15g} of {limit_max:.15g}")
        self.limit, self.used, self.limit_max = limit, used, limit_max


class OverBudget(LimitExceeded):
    """The budget `scope` has no room: `needed_micro_usd` more on top of what is spent and reserved would pass its hard limit."""

    code = "budget"

    def __init__(self, scope: str, *, limit_micro_usd: int, used_micro_usd: int, needed_micro_usd: int) -> None:
        super().__init__(scope, used=used_micro_usd, limit_max=limit_micro_usd)
        self.scope, self.limit_micro_usd, self.used_micro_usd, self.needed_micro_usd = scope, limit_micro_usd, used_micro_usd, needed_micro_usd
        used, limit, needed = map(format_usd, (used_micro_usd, limit_micro_usd, needed_micro_usd))
        self.reason = f"budget {scope}: a call that may cost {needed} does not fit, {used} of {limit} are spent or reserved; raise the limit"
        self.args = (self.reason,)


class TenantFull(LimitExceeded):
    """A new run of `tenant` is refused: it has `used` of at most `limit_max`. Nothing was written; the same task may be sent again later."""

    code = "tenant_full"

    def __init__(self, tenant: str, limit: str, *, used: int, limit_max: int, what: str, next_step: str) -> None:
        super().__init__(limit, used=used, limit_max=limit_max)
        self.tenant = tenant
        self.reason = f"the run was refused: tenant {tenant} has {used} {what}, and {limit} allows {limit_max}; {next_step}"
        self.args = (self.reason,)


class NotAuthorised(OrchestrationError):
    """`principal` may not do `action`."""

    code = "not_authorised"

    def __init__(self, principal: str, action: str, *, reason: str = "") -> None:
        super().__init__(f"{principal} may not {action}" + (f": {reason}" if reason else ""))
        self.principal, self.action, self.reason = principal, action, reason
