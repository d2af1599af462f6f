"""Where requests may go that somebody else named: hosts the operator listed, without being led anywhere else (server-side request forgery).

The list decides which host and port may be named. For an entry without a port every address the name resolves to must be public, and the
connection goes to one of the addresses that were checked: a name that resolves differently a moment later gains nothing. For an entry with
a port, the operator vouches for the endpoint, also on a private network. A redirect is a new request: it is checked from the start.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import httpx2

URL_CHARS_MAX: Final = 2_000
ANY_HOST: Final = "*"

_PORTS: Final = {"http": 80, "https": 443}
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
# global by the registries (or by ipaddress), yet no host of the public internet: protocol assignments and cloud control planes; and 6to4 and
# Teredo, which carry IPv4 addresses inside
_DENIED: Final = tuple(ipaddress.ip_network(n) for n in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "2002::/16", "2001::/32"))


class Refused(Exception):
    """The request may not be made, or certainly had no effect."""


class Hosts(NamedTuple):
    """What the operator allows, and the setting in which he says so.

    Entries: `name` (ports 80 and 443, public addresses), `*.name` (the same for every name below it), `name:port` (this port, any address),
    and `*` (every name, ports 80 and 443, public addresses).
    """

    entries: Sequence[str]
    setting: str

    def judge(self, host: str, port: int, *, usual: bool) -> bool | None:
        """Return None when the list does not allow this host, False when it does on public addresses, True when the operator vouches for it.

        Args:
            host: lower case, IPv6 addresses without brackets.
            usual: the port is the usual one of the scheme.
        """
        listed = {entry.lower() for entry in self.entries}
        if f"{bracketed(host)}:{port}" in listed:
            return True
        below = any(entry.startswith("*.") and host.endswith(entry[1:]) for entry in listed)
        return False if usual and (host in listed or below or ANY_HOST in listed) else None

    def __str__(self) -> str:
        return ", ".join(sorted(entry.lower() for entry in self.entries)) or "none"


class Target(NamedTuple):
    """Where a request goes: the URL as asked for, and the checked addresses to connect to."""

    url: httpx2.URL
    addresses: tuple[str, ...]


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


def bracketed(host: str) -> str:
    """Return a host as it stands in front of a port."""
    return f"[{host}]" if ":" in host else host


async def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a host, as the system's resolver gives them.

    Raises:
        OSError, UnicodeError: there are none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


LookUp = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve(url: str, hosts: Hosts, *, look_up: LookUp = look_up) -> Target:
    """Check a URL against the list, resolve its host once, and check every address.

    Raises:
        Refused: saying which rule it breaks.
    """
    if len(url) > URL_CHARS_MAX or not url.isascii() or any(ord(c) <= 32 or c in '\\"<>`' for c in url):
        raise Refused(f"the URL must be plain ASCII without blanks or backslashes, at most {URL_CHARS_MAX} characters")
    import httpx2

    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise Refused(f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in _PORTS or not parsed.host:
        raise Refused(f"{url!r} must begin with https:// or http:// and name a host")
    if parsed.userinfo:
        raise Refused("a URL with a user name or password is not used")
    host, port = parsed.host.lower().rstrip("."), parsed.port or _PORTS[parsed.scheme]
    vouched = hosts.judge(host, port, usual=port == _PORTS[parsed.scheme])
    if vouched is None:
        raise Refused(f"{bracketed(host)}:{port} is not among the hosts that may be reached ({hosts}); the operator lists them in {hosts.setting}")
    try:
        addresses = await look_up(host, port)
    except (OSError, UnicodeError) as error:
        raise Refused(f"{host} cannot be resolved: {error}") from error
    private = [address for address in addresses if not is_public(address)]
    if private and not vouched:
        raise Refused(f"{host} resolves to {', '.join(private)}, which is not a public address")
    return Target(parsed.copy_with(fragment=None), tuple(addresses))


def guarded_client(timeout_s: float) -> httpx2.AsyncClient:
    """Make a client that goes nowhere by itself: no redirects, no proxies of the environment, no connection kept for the next host."""
    import httpx2

    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=timeout_s, limits=limits)


async def send(client: httpx2.AsyncClient, method: str, target: Target, headers: Mapping[str, str], body: bytes | None = None) -> httpx2.Response:
    """Send to the first checked address that accepts a connection. The caller reads the body of the answer, and closes it.

    Raises:
        Refused: no address accepts one; nothing was sent.
        httpx2.HTTPError: the request went out and no answer came back.
    """
    import httpx2

    host = target.url.netloc.decode()
    problem = f"{host} has no address"
    for address in target.addresses:
        # the name stays in the Host header and in the TLS handshake, where the certificate is checked against it
        extensions = {"sni_hostname": target.url.host} if target.url.scheme == "https" else {}
        request = client.build_request(
            method, target.url.copy_with(host=address), content=body, headers={"Host": host, "User-Agent": "crewlog", **headers}, extensions=extensions
        )
        try:
            return await client.send(request, stream=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            problem = f"{host} cannot be reached at {address}: {error or type(error).__name__}"
    raise Refused(problem)
