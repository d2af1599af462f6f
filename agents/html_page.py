"""Read the text of an HTML page, a large one in a process of its own: there it can be ended.

What a page costs does not follow from its size: a tag with very many attributes, or very many paragraphs, takes time that grows with their square, all
within one call of a parser. Run as a program, this module reads a page from its input, UTF-8, and writes its text and title as a JSON array.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from typing import Final

from crewlog.events.child_launch import launch_command, spawn
from crewlog.schemas.errors import ContractError

_LARGE_BYTES: Final = 64 * 1024
"""A page of this size takes two seconds at most, whatever is in it; a process takes one to begin."""
_ADDRESS_BYTES_MAX: Final = 4 * 1024**3
_INHERITED: Final = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONPYCACHEPREFIX")


def is_large(page: bytes) -> bool:
    """Say whether a page is to be read in a process of its own."""
    return len(page) > _LARGE_BYTES


async def read_apart(name: str, page: bytes, cpu_s: int) -> tuple[str, str]:
    """Read the text and title of a page in a process that has so many seconds of computing.

    Args:
        name: of the page, for errors.
        page: in UTF-8.

    Raises:
        ContractError: it takes longer, or cannot be read.
    """
    command = launch_command([sys.executable, "-P", "-m", __name__, str(cpu_s)], signal_number=signal.SIGKILL)
    environment = {name: value for name in _INHERITED if (value := os.environ.get(name))}
    pipe = asyncio.subprocess.PIPE
    process = await spawn(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    try:
        written, complaint = await process.communicate(page)
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        raise
    if process.returncode == -signal.SIGXCPU:
        raise ContractError(f"HTML page {name!r} takes more than {cpu_s} s of computing; split it")
    if process.returncode != 0:
        lines = complaint.decode(errors="replace").strip().splitlines()
        raise ContractError(f"HTML page {name!r} cannot be read: {lines[-1] if lines else f'its reader ended with {process.returncode}'}")
    text, title = json.loads(written)
    return text, title


def read_page(page: bytes) -> tuple[str, str]:
    """Return the text of a page, as Markdown where it has a main part, and its title.

    Args:
        page: in UTF-8.

    Raises:
        ImportError: the libraries are not installed.
        Exception: whatever parsers raise over a broken page.
    """
    import lxml.html
    import trafilatura

    # a str that names its encoding is refused by lxml, and pages do
    tree = lxml.html.document_fromstring(page, parser=lxml.html.HTMLParser(encoding="utf-8", no_network=True))
    title = tree.findtext(".//title") or ""
    # the readers below remove elements from the tree they are given
    text = trafilatura.extract(page.decode(), output_format="markdown", include_comments=False, include_tables=True, favor_recall=True)
    if not text:
        for element in tree.xpath("//script | //style | //noscript | //template | //title"):
            element.drop_tree()
        text = "\n".join(line.strip() for line in tree.text_content().split("\n") if line.strip())
    return text, title


def _main(cpu_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES_MAX, _ADDRESS_BYTES_MAX))
    json.dump(read_page(sys.stdin.buffer.read()), sys.stdout)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
