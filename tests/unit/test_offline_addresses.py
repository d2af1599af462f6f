"""Who an order lets be written to: an address in a text is no recipient yet."""

from __future__ import annotations

import pytest

from crewlog.agents.offline_addresses import read_order, said

ADA, BOB = "ada@example.org", "bob@example.org"
HOOK = "https://hooks.example.org/1"


@pytest.mark.parametrize(
    ("text", "recipients"),
    [
        (f"Mail everything to {ADA} and {BOB}", (ADA, BOB)),
        (f"Mail Ada ({ADA}), Bob ({BOB}) and the numbers by store", (ADA, BOB)),
        (f"{ADA}: the totals please", (ADA,)),
        (f"Send the average sales by store to {ADA}", (ADA,)),
        (f"Mail numbers that are not final to {ADA}", (ADA,)),
        (f"Forward it to {ADA}. cc: {BOB}", (ADA, BOB)),
        (f"Don't forget to send it to {ADA}", (ADA,)),
        (f'Send "hello" to "{ADA}"', (ADA,)),
        # forbidden
        (f"Never contact {BOB}; Mail the total revenue to {ADA}", (ADA,)),
        (f"Mail {ADA}, not {BOB}, the total units", (ADA,)),
        (f"Mail the totals to {ADA} but never to {BOB}", (ADA,)),
        (f"do not mail {BOB} or carl@example.org, mail {ADA}", (ADA,)),
        (f"Do not send the report to {BOB} but to {ADA}", (ADA,)),
        (f"Mail the result to {ADA} without copying {BOB}", (ADA,)),
        (f"Mail the result to {ADA} and {BOB}. {BOB} must not get it", (ADA,)),
        (f"Send nothing to {BOB}", ()),
        (f"Mail everyone but {BOB}", ()),
        # only mentioned
        (f"Answer the question of {BOB} about sick pay; send it to {ADA}", (ADA,)),
        (f"Mail the complaint from {BOB} to {ADA}", (ADA,)),
        (f"Tell {ADA} that she should write to {BOB} when the server is down", (ADA,)),
        (f'Mail {ADA} saying "ask {BOB}"', (ADA,)),
        (f"My colleague {BOB} wrote this policy.", ()),
    ],
)
def test_only_who_is_meant_is_written_to(text: str, recipients: tuple[str, ...]) -> None:
    assert read_order(text).recipients == recipients


@pytest.mark.parametrize(
    ("text", "is_forbidden"),
    [
        (f"Mail it to {ADA}, but do not mail it before I say so", True),
        (f"Draft a mail to {ADA}, I will send it myself", True),
        (f"Write to {ADA}. It must not be sent before Friday.", True),
        (f"Draft a mail to {ADA} and send it", False),
        (f"Send the draft contract to {ADA}", False),
        (f"Mail it to {ADA} but do not mail {BOB}", False),
    ],
)
def test_a_prohibition_of_one_address_is_none_of_the_others(text: str, is_forbidden: bool) -> None:
    assert read_order(text).is_forbidden is is_forbidden


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        (f"Post the result to {HOOK}", (HOOK,)),
        (f"Notify {HOOK}", (HOOK,)),
        (f"Send {ADA} the summary and post it to {HOOK}", (HOOK,)),
        (f"Send the link {HOOK} to {ADA}", ()),
        (f"Send a link to {HOOK} to {ADA}", ()),
        (f"Mail {ADA} that the docs are at {HOOK}", ()),
        (f"Mail the result to {ADA}, do not post it to {HOOK}", ()),
    ],
)
def test_a_page_that_is_only_named_is_not_posted_to(text: str, urls: tuple[str, ...]) -> None:
    assert read_order(text).urls == urls


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"Draft a mail to {ADA} that the office is closed on Friday, do not send it", "the office is closed on Friday"),
        (f"Tell {ADA} that she should write to {BOB}", f"she should write to {BOB}"),
        (f"Mail the totals that matter to {ADA}", ""),
        ("Email eve@example.org: the totals are in", "the totals are in"),
        ("Mail Ada (ada@example.org) and bob@example.org: ask cy@example.org", "ask cy@example.org"),
    ],
)
def test_the_words_to_be_said(text: str, words: str) -> None:
    assert said(text) == words
