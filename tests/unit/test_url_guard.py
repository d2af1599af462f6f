from __future__ import annotations

import pytest
from support.receiver import receiving

from crewlog.agents.url_guard import Hosts, Refused, is_public, resolve
from crewlog.agents.webhook import post

SETTING = "CREWLOG_WEBHOOK_HOSTS"


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_hosts_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "192.88.99.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:0:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1",
        "2002:7f00:1::",
        "2002:808:808::1",
        "2001:0:4136:e378::1",
        "2001:db8::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "localhost",
        "",
    ],
)
def test_everything_else_is_not(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    ("url", "hosts", "problem"),
    [
        ("https://hook.example.org/", (), r"hook.example.org:443 is not among the hosts .*\(none\).*CREWLOG_WEBHOOK_HOSTS"),
        ("https://hook.example.org.evil.example/", ("hook.example.org",), "is not among the hosts"),
        ("https://sub.hook.example.org/", ("hook.example.org",), "is not among the hosts"),
        ("https://hook.example.org:8443/", ("hook.example.org",), "hook.example.org:8443 is not among the hosts"),
        ("https://hook.example.org/", ("hook.example.org:8443",), "hook.example.org:443 is not among"),
        ("https://user:pw@hook.example.org/", ("hook.example.org",), "user name or password"),
        ("https://hook.example.org@evil.example/", ("hook.example.org",), "user name or password"),
        ("https://evil.example\\@hook.example.org/", ("hook.example.org",), "without blanks or backslashes"),
        ("https://hook.example.org/\r\nX-Evil: 1", ("hook.example.org",), "without blanks or backslashes"),
        ("https://hook.example.org/\t", ("hook.example.org",), "without blanks or backslashes"),
        ("https://ｈook.example.org/", ("hook.example.org",), "plain ASCII"),
        ("https://①②⑦.0.0.1/", ("127.0.0.1",), "plain ASCII"),
        ("https://" + "a" * 2_000, (), "at most 2000 characters"),
        ("ftp://hook.example.org/", ("hook.example.org",), "must begin with https:// or http://"),
        ("file:///etc/passwd", (), "must begin with"),
        ("https:///path", (), "must begin with"),
        ("gopher://hook.example.org/", ("hook.example.org",), "must begin with"),
        ("https://[::1", (), "is not a URL"),
        ("http://127.0.0.1/", ("127.0.0.1",), "127.0.0.1, which is not a public address"),
        ("http://localhost/", ("localhost",), "which is not a public address"),
        ("http://localhost./", ("localhost",), "which is not a public address"),
        ("http://[::ffff:127.0.0.1]/", ("::ffff:127.0.0.1",), "which is not a public address"),
        ("http://2130706433/", ("2130706433",), "127.0.0.1, which is not a public address"),
        ("http://0x7f.1/", ("0x7f.1",), "127.0.0.1, which is not a public address"),
        ("http://127.0.0.1:8080/", ("127.0.0.1",), "127.0.0.1:8080 is not among"),
        ("http://127.0.0.1/", ("*",), "which is not a public address"),
        ("http://169.254.169.254/latest/meta-data/", ("*",), "which is not a public address"),
        ("http://[64:ff9b::a9fe:a9fe]/", ("*",), "which is not a public address"),
        ("http://017700000001/", ("*",), "127.0.0.1, which is not a public address"),
        ("http://0/", ("*",), "which is not a public address"),
        ("https://example.org:8443/", ("*",), "example.org:8443 is not among"),
        ("http://example.org:443/", ("*",), "example.org:443 is not among"),
        ("https://example.org/", ("*.example.org",), "is not among"),
        ("https://evilexample.org/", ("*.example.org",), "is not among"),
        ("https://a.example.org.evil.example/", ("*.example.org",), "is not among"),
        (f"https://{'a' * 64}.example/", (f"{'a' * 64}.example",), "cannot be resolved"),
    ],
)
async def test_where_a_post_may_not_go(url: str, hosts: tuple[str, ...], problem: str) -> None:
    with pytest.raises(Refused, match=problem):
        await resolve(url, Hosts(hosts, SETTING))


async def test_the_operator_may_vouch_for_a_private_endpoint() -> None:
    target = await resolve("http://127.0.0.1:8080/hook#part", Hosts(("127.0.0.1:8080",), SETTING))
    assert (str(target.url), target.addresses) == ("http://127.0.0.1:8080/hook", ("127.0.0.1",))
    v6 = await resolve("http://[::1]:8080/hook", Hosts(("[::1]:8080",), SETTING))
    assert v6.addresses == ("::1",)


async def test_the_connection_goes_to_a_checked_address_under_the_name_that_was_asked_for() -> None:
    async with receiving() as receiver:
        target = await resolve(f"http://LOCALHOST:{receiver.port}/", Hosts((f"localhost:{receiver.port}",), SETTING))
        elsewhere = target._replace(url=target.url.copy_with(host="name-that-does-not-resolve.invalid"))
        answer = await post(elsewhere, b"{}", key="k")
    assert (answer.status, answer.text) == (200, "ok")
    assert receiver.requests[0][1]["host"] == f"name-that-does-not-resolve.invalid:{receiver.port}"


async def test_an_address_nobody_listens_at_is_certain() -> None:
    target = await resolve("http://127.0.0.1:1/", Hosts(("127.0.0.1:1",), SETTING))
    with pytest.raises(Refused, match=r"127.0.0.1:1 cannot be reached at 127.0.0.1"):
        await post(target, b"{}", key="k")


async def test_names_below_a_listed_one_and_every_name_must_resolve_to_public_addresses_only() -> None:
    async def public(host: str, port: int) -> list[str]:
        return ["93.184.215.14", "2606:4700:4700::1111"]

    async def mixed(host: str, port: int) -> list[str]:
        return ["93.184.215.14", "10.0.0.7"]

    for entry in ("*", "*.example.org"):
        target = await resolve("https://a.b.Example.org/x", Hosts((entry,), SETTING), look_up=public)
        assert target.addresses == ("93.184.215.14", "2606:4700:4700::1111")
        with pytest.raises(Refused, match=r"resolves to 10\.0\.0\.7, which is not a public address"):
            await resolve("https://a.b.example.org/x", Hosts((entry,), SETTING), look_up=mixed)


async def test_a_name_is_resolved_once_so_a_second_answer_gains_nothing() -> None:
    answers = [["127.0.0.1"], ["127.0.0.2"]]

    async def rebinding(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async with receiving() as receiver:
        target = await resolve(f"http://turns.example:{receiver.port}/", Hosts((f"turns.example:{receiver.port}",), SETTING), look_up=rebinding)
        assert (await post(target, b"{}", key="k")).status == 200
    assert (answers, receiver.requests[0][1]["host"]) == ([["127.0.0.2"]], f"turns.example:{receiver.port}")
