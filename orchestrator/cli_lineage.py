"""`crewlog lineage`: which source led to a sentence, a file or an effect, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from crewlog.orchestrator.cli_debug import RecordedRun
from crewlog.orchestrator.cli_look import whole_run
from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Output, plain, print_json, printable, run_async

if TYPE_CHECKING:
    from crewlog.orchestrator.lineage import Lineage, Source

SHOWN_MAX: Final = 6
"""Sources without a tie to the text that are listed; JSON has all of them."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run_async(lineage))


async def lineage(
    run: RecordedRun = "-",
    sentence: Annotated[str | None, typer.Option("--sentence", metavar="TEXT", help="A sentence of the answer, or of something that was sent.")] = None,
    artifact: Annotated[str | None, typer.Option("--artifact", metavar="NAME", help="A file that a task made: its name or hash.")] = None,
    effect: Annotated[str | None, typer.Option("--effect", metavar="ID", help="Something done outside: its idempotency key or call id.")] = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say which source led to the answer, a sentence of it, a file or an effect, and how sure that is."""
    from crewlog.orchestrator import lineage as trace
    from crewlog.schemas.errors import ContractError

    if sum(given is not None for given in (sentence, artifact, effect)) > 1:
        raise ContractError("--sentence, --artifact and --effect exclude each other: ask for one thing at a time")
    history = await whole_run(run, home)
    if sentence is not None:
        found = [trace.lineage_of_sentence(history, sentence)]
    elif artifact is not None:
        found = [trace.lineage_of_artifact(history, artifact)]
    elif effect is not None:
        found = [trace.lineage_of_effect(history, effect)]
    else:
        found = trace.lineage_of_answer(history)
    if output is Output.JSON:
        print_json([plain(each) for each in found])
        return
    is_one = len(found) == 1 and (sentence or artifact or effect)
    for each in found:
        for line in _lines(each) if is_one else _brief(each):
            typer.echo(line)
    if not found:
        typer.echo("the run has no answer; ask for a file or an effect")


def _lines(found: Lineage) -> Iterator[str]:
    from crewlog.schemas.text import shorten

    yield printable(f"{found.what}: {shorten(found.text, 200)}")
    yield printable(f"written by {found.writer} in task {found.task}, event {found.index}")
    yield from _source_lines(found.sources, "  ")
    if not found.sources:
        yield "  nothing was in front of the model: it wrote this by itself"
    elif all(source.certainty == "in context" for source in found.sources):
        yield "  nothing ties the text to any of these: the model had them in front of it, no more can be said"


def _source_lines(sources: Sequence[Source], indent: str) -> Iterator[str]:
    loose = [source for source in sources if source.certainty == "in context"]
    for source in (*(s for s in sources if s.certainty != "in context"), *loose[:SHOWN_MAX]):
        shared = f"  “{source.shared}”" if source.shared else ""
        part = f" {source.share:.0%} of it" if source.certainty == "contained" and source.share else ""
        trust = "" if source.trust == "trusted" else f" ({source.trust})"
        yield printable(f"{indent}{source.certainty:<10} {source.what} {source.name}{trust}, task {source.task}, event {source.index}{part}{shared}")
        yield from _source_lines(source.behind, f"{indent}    ")
    if len(loose) > SHOWN_MAX:
        yield f"{indent}and {len(loose) - SHOWN_MAX} more in context"


def _brief(found: Lineage) -> Iterator[str]:
    from crewlog.schemas.text import shorten

    best = _closest(found.sources)
    told = "no source" if best is None else f"{best.certainty}: {best.what} {best.name}, event {best.index}"
    yield printable(shorten(found.text, 120))
    yield printable(f"    {told}")


def _closest(sources: Sequence[Source]) -> Source | None:
    """Return the source that is tied closest; an outcome only stands for what is behind it."""
    if not sources:
        return None
    first = sources[0]
    if first.what == "outcome" and first.behind and (deeper := _closest(first.behind)) is not None and deeper.certainty != "in context":
        return deeper
    return first
