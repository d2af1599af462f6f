"""Bills that came after a call was settled as a worst case: what a request to correct one looks like, and the one call of Postgres that does it.

A correction is an append of one `BillCorrected` and nothing else. It goes around `es.append`, through `es.correct_bill`, so that the gate need not
look for it in every batch: it happens when a worker wakes up that was taken for dead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from crewlog.events.append_call import partly_known
from crewlog.events.append_request import encode_request
from crewlog.events.store import Appended, AppendRequest, Recorded
from crewlog.schemas.errors import ContractError, NotAuthorised
from crewlog.schemas.ids import spend_stream
from crewlog.schemas.system_events import BillCorrected, CallSettled
from crewlog.schemas.task_events import ModelCallFailed, ModelCallFinished
from crewlog.schemas.usage import WORST_CASE

Bill = ModelCallFinished | ModelCallFailed | CallSettled
BILL_TYPES: Final = frozenset(cls.__name__ for cls in (ModelCallFinished, ModelCallFailed, CallSettled))
SQL: Final = "SELECT * FROM es.correct_bill($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"


def correction_in(request: AppendRequest) -> BillCorrected | None:
    """Return the correction that a request is about; None for any other request.

    Raises:
        ContractError: it is not alone, is not about its task's stream, or says again that nobody knows the bill.
    """
    if not request.writes or not request.writes[0].stream.startswith("spend/"):
        return None  # nearly every append; nobody has the right to write one anywhere else
    stream = request.writes[0].stream
    event = next((event for event in request.writes[0].events if isinstance(event, BillCorrected)), None)
    if event is None:
        return None
    if len(request.event_ids) > 1 or request.settle or request.reserve is not None or request.limits or stream != spend_stream(event.task_id):
        raise ContractError(f"append to {stream}: the bill of call {event.call_id} is corrected by an append of its own to {spend_stream(event.task_id)}")
    if event.price.source == WORST_CASE or event.price.cost_micro_usd is None:
        raise ContractError(f"append to {stream}: the bill of call {event.call_id} is corrected to what is known, not to {event.price}")
    return event


def first_bill(events: Iterable[Recorded], call_id: str) -> Bill | None:
    """Return what a call was settled by: the first bill of it counts.

    Args:
        events: of its task's stream and of `spend/<task>`, in the order of the log.
    """
    bills = (event for recorded in events if recorded.type in BILL_TYPES and isinstance(event := recorded.event(), Bill))
    return next((bill for bill in bills if bill.call_id == call_id), None)


def settled_otherwise(event: BillCorrected) -> ContractError:
    """Say that a call was not settled as a worst case of the amount that a correction names, or is corrected already."""
    return ContractError(f"the bill of call {event.call_id} of task {event.task_id} is not corrected: no worst case of {event.settled_micro_usd} stands for it")


def correct_arguments(request: AppendRequest, actor: str) -> list[Any]:
    """Lay out a correction as the parameters of `es.correct_bill`, see there."""
    (document,) = encode_request(request).documents
    return [
        *(request.writes[0].stream, request.event_ids[0], request.occurred_us, request.run_id, request.task_id, request.causation_id, request.trace_id),
        *(BillCorrected.schema_version, document, actor),
    ]


def correct_answer(row: Any, request: AppendRequest, event: BillCorrected, actor: str) -> Appended:
    """Take the answer of `es.correct_bill` apart.

    Raises:
        NotAuthorised: this login may not settle calls of that task.
        ContractError: the call is not settled as the event says, the task is of another run, or its event id is that of another event.
    """
    status, version, position = row
    match status:
        case "written" | "duplicate":
            return Appended([version], [position], duplicate=status == "duplicate")
        case "denied":
            raise NotAuthorised(actor, "append", reason=f"task {event.task_id} is unknown or not for this login")
        case "partial":
            raise partly_known(request)
        case "other_run":
            raise ContractError(f"append: task {event.task_id} is not of run {request.run_id}, so its bill cannot be")
        case _:
            raise settled_otherwise(event)
