"""Post JSON to hosts the operator listed, without being led anywhere else (server-side request forgery).

The list decides which host and port may be named. For a bare host name every address it resolves to must be public, and the connection
goes to one of the addresses that were checked: a name that resolves differently a moment later gains nothing. For an entry with a port, the
operator vouches for the endpoint, also on a private network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

import httpx2

from crewlog.schemas.text import clean

REQUEST_BYTES_MAX: Final = 256 * 1024
RESPONSE_BYTES_MAX: Final = 64 * 1024
POST_TIMEOUT_S: Final = 30.0
URL_CHARS_MAX: Final = 2_000

_PORTS: Final = {"http": 80, "https": 443}
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
# global by the registries (or by ipaddress), yet no host of the public internet: protocol assignments and cloud control planes; and 6to4 and
# Teredo, which carry IPv4 addresses inside
_DENIED: Final = tuple(ipaddress.ip_network(n) for n in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "2002::/16", "2001::/32"))


class Refused(Exception):
    """The request may not be made, or certainly had no effect."""


class OutcomeUnknown(Exception):
    """The request went out and no complete answer came back."""


class Target(NamedTuple):
    """Where a request goes: the URL as asked for, and the checked addresses to connect to."""

    url: httpx2.URL
    addresses: tuple[str, ...]


class Answer(NamedTuple):
    """What came back; `text` is cut at `RESPONSE_BYTES_MAX` bytes."""

    status: int
    text: str


def is_public(address: str) -> bool:
    """Tell whether an IP address is a host on the public internet, whatever it is wrapped in.

    >>> [is_public(a) for a in ("93.184.215.14", "127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "224.0.0.1")]
    [True, False, False, False, False, False]
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if embedded is not None:
            return is_public(str(embedded))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in network for network in _DENIED)


async def resolve(url: str, hosts: Sequence[str]) -> Target:
    """Check a URL against the list, resolve its host once, and check every address.

    Args:
        hosts: entries `name` (ports 80 and 443, public addresses only) or `name:port` (this port, any address).

    Raises:
        Refused: saying which rule it breaks.
    """
    if len(url) > URL_CHARS_MAX or not url.isascii() or any(ord(c) <= 32 or c in '\\"<>`' for c in url):
        raise Refused(f"the URL must be plain ASCII without blanks or backslashes, at most {URL_CHARS_MAX} characters")
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise Refused(f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in _PORTS or not parsed.host:
        raise Refused(f"{url!r} must begin with https:// or http:// and name a host")
    if parsed.userinfo:
        raise Refused("a URL with a user name or password is not posted to")
    host, port = parsed.host.lower().rstrip("."), parsed.port or _PORTS[parsed.scheme]
    shown = f"[{host}]" if ":" in host else host
    listed = {entry.lower() for entry in hosts}
    vouched = f"{shown}:{port}" in listed
    if not vouched and (host not in listed or port != _PORTS[parsed.scheme]):
        known = ", ".join(sorted(listed)) or "none"
        raise Refused(f"{shown}:{port} is not among the hosts that may be posted to ({known}); the operator lists them in CREWLOG_WEBHOOK_HOSTS")
    addresses = await _addresses(host, port)
    private = [address for address in addresses if not is_public(address)]
    if private and not vouched:
        raise Refused(f"{host} resolves to {', '.join(private)}, which is not a public address")
    return Target(parsed.copy_with(fragment=None), tuple(addresses))


async def _addresses(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Refused(f"{host} cannot be resolved: {error}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def post(target: Target, body: bytes, *, key: str) -> Answer:
    """Post JSON to a checked target. Redirects are not followed, proxies of the environment not used.

    Args:
        key: sent as `Idempotency-Key`, so that the receiver can recognise a second try.

    Raises:
        Refused: the connection failed before anything was sent.
        OutcomeUnknown: the answer did not arrive in time or broke off.
    """
    host = target.url.netloc.decode()
    headers = {"Host": host, "Content-Type": "application/json", "Idempotency-Key": key, "Accept-Encoding": "identity", "User-Agent": "crewlog"}
    try:
        async with asyncio.timeout(POST_TIMEOUT_S), httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=POST_TIMEOUT_S) as client:
            for address in target.addresses:
                try:
                    return await _post_to(client, target.url, address, headers, body)
                except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                    problem = f"{host} cannot be reached at {address}: {error or type(error).__name__}"
    except (httpx2.HTTPError, TimeoutError) as error:
        raise OutcomeUnknown(f"{host} gave no complete answer: {type(error).__name__}: {error}") from error
    raise Refused(problem)


async def _post_to(client: httpx2.AsyncClient, url: httpx2.URL, address: str, headers: dict[str, str], body: bytes) -> Answer:
    # the name stays in the Host header and in the TLS handshake, where the certificate is checked against it
    extensions = {"sni_hostname": url.host} if url.scheme == "https" else {}
    async with client.stream("POST", url.copy_with(host=address), content=body, headers=headers, extensions=extensions) as response:
        received = b""
        async for part in response.aiter_raw():
            received += part
            if len(received) >= RESPONSE_BYTES_MAX:
                break
        return Answer(response.status_code, clean(received[:RESPONSE_BYTES_MAX].decode(errors="replace")))
