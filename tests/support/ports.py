"""Ports that a test names before anybody listens there, and that nobody else can be given meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Keep a port of loopback for whoever is told to listen there.

    It is bound and not listened on: the kernel gives it to nobody who asks for any port, who connects is refused, and a server that names it
    gets it, since servers bind with `SO_REUSEADDR` too.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield int(reserved.getsockname()[1])
