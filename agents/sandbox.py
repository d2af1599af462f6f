"""How well this machine can keep untrusted Python away from everything else: found out once, by trying.

| level         | the child sees                                                  | needs                                                   |
|---------------|-----------------------------------------------------------------|---------------------------------------------------------|
| `namespaces`  | its folder, the interpreter, /usr; no network, no other process | root with CAP_SYS_ADMIN, user namespaces, or bubblewrap |
| `limits-only` | what any user of the machine may see, network included          | nothing                                                 |

Every level has the limits, the clean environment and the supervision of `child`, and never runs the child as root. Where the kernel has Landlock, no
child can look into the worker's processes, although it may be of the same user. The level stands in each result, and a `minimum` makes the tools
refuse instead of running below it.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import shutil
import site
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from crewlog.agents.child import LIMITS_ONLY, NAMESPACES, ChildLimits, ChildResult, Isolation, SandboxError, run_child
from crewlog.agents.scratch import scratch

Level = Literal["namespaces", "limits-only"]

SYSTEM_PATHS: Final = tuple(
    Path(path)
    for path in (
        *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime"),
        *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/fonts", "/etc/mime.types", "/etc/ssl/certs"),
    )
)
RUNTIMES: Final = Path("/var/tmp")  # noqa: S108  (its entries are checked for their owner before use)
PROBE: Final = "import os, socket, msgspec; print(os.getuid(), *(name for _, name in socket.if_nameindex()))"
"""Imports a compiled package, prints who the child is and which networks it has."""
PROBE_LIMITS: Final = ChildLimits(wall_s=20, cpu_s=10)


@dataclass(frozen=True, slots=True)
class Ready:
    """A way to run Python that was seen working. `reason` says why it is not a better one."""

    level: Level
    isolation: Isolation
    python: str
    readable: tuple[Path, ...]
    environment: Mapping[str, str]
    reason: str = ""


class Sandbox:
    """Runs Python in the best isolation this machine has."""

    def __init__(
        self,
        *,
        minimum: Level = "limits-only",
        mechanisms: Sequence[str] = ("namespaces", "bubblewrap", "limits-only"),
        runtimes: Path = RUNTIMES,
        modules: Sequence[str] = (),
    ) -> None:
        """Make a sandbox; nothing is tried before it is first used.

        Args:
            minimum: refuse to run anything below this level.
            mechanisms: what to try, best first.
            runtimes: where a copy of the interpreter goes when a child of root could not reach the original.
            modules: what children will import. A child cannot store bytecode, so it is made once before the first.
        """
        self._minimum, self._mechanisms, self._runtimes, self._modules = minimum, tuple(mechanisms), runtimes, tuple(modules)
        self._ready: Ready | None = None
        self._lock = asyncio.Lock()

    async def ready(self) -> Ready:
        """Find out what works, once.

        Raises:
            SandboxError: nothing at or above the minimum works; the text says what was tried and what would help.
        """
        async with self._lock:
            if self._ready is None:
                self._ready = await self._find()
            return self._ready

    async def run_python(self, arguments: Sequence[str], *, folder: Path, limits: ChildLimits, start_in: str = "", stdin: bytes = b"") -> ChildResult:
        """Run the interpreter with these arguments.

        Args:
            folder: from `scratch`; the child may write there and nowhere else.
            start_in: where in it the child starts.

        Raises:
            SandboxError: see `ready`, or the child could not be started.
        """
        ready = await self.ready()
        return await run_child(
            [ready.python, *arguments],
            cwd=folder / start_in,
            stdin=stdin,
            limits=limits,
            env={**clean_environment(folder), **ready.environment},
            isolation=ready.isolation,
            readable=ready.readable,
            writable=folder,
        )

    async def _find(self) -> Ready:
        await _compile(self._modules)
        faults: list[str] = []
        for mechanism in self._mechanisms:
            if self._minimum == "namespaces" and mechanism == "limits-only":
                continue
            try:
                return await self._try(mechanism, "; ".join(faults))
            except SandboxError as error:
                faults.append(f"{mechanism}: {error}")
        raise SandboxError(
            f"no sandbox at level {self._minimum} works here ({'; '.join(faults)}). Install bubblewrap, allow user namespaces, "
            "or install Python and crewlog where other users may read them"
        )

    async def _try(self, mechanism: str, reason: str) -> Ready:
        readable = (*SYSTEM_PATHS, *_python_paths())
        environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        if _extra_sites():
            environment["PYTHONPATH"] = os.pathsep.join(_extra_sites())
        with scratch(Path(tempfile.gettempdir())) as folder:
            if mechanism == "limits-only":
                python = sys.executable
                if os.geteuid() == 0 and not _reachable(Path(sys.executable)):
                    program = await asyncio.to_thread(_copy_runtime, self._runtimes)
                    python, environment["LD_LIBRARY_PATH"] = str(program), str(program.parent.parent / "lib")
                ready = Ready("limits-only", LIMITS_ONLY, python, (), environment, reason)
            else:
                isolation = NAMESPACES if mechanism == "namespaces" else Isolation(namespaces=False, wrapper=_bubblewrap(readable))
                ready = Ready("namespaces", isolation, sys.executable, readable, environment, reason)
            result = await run_child(
                [ready.python, "-I", "-c", PROBE],
                cwd=folder,
                limits=PROBE_LIMITS,
                env={**clean_environment(folder), **environment},
                isolation=ready.isolation,
                readable=ready.readable,
            )
        uid, *networks = result.stdout.decode().split() or [""]
        if not result.ok or uid in ("", "0") or (ready.level == "namespaces" and networks != ["lo"]):
            raise SandboxError(
                f"a trial run gave {result.returncode}, user {uid or '?'}, networks {networks}: {result.stderr.decode(errors='replace')[-300:].strip()}"
            )
        return ready


async def _compile(modules: Sequence[str]) -> None:
    """Import modules once the ordinary way, which leaves their bytecode beside them, unless it is there or not wanted."""
    if sys.dont_write_bytecode or all(map(_has_bytecode, modules)):
        return
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", f"import {', '.join(modules)}", stdin=quiet, stdout=quiet, stderr=quiet, cwd="/")
    await process.wait()  # when it fails, so will the child, which can tell why


def _has_bytecode(module: str) -> bool:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)  # of the package alone: asking for what is in it would import it
    if spec is None or spec.origin is None:
        return True
    source = Path(spec.origin).parent.joinpath(*rest).with_suffix(".py") if rest else Path(spec.origin)
    return Path(importlib.util.cache_from_source(str(source))).exists()


def clean_environment(folder: Path) -> dict[str, str]:
    """Return the whole environment of a child: nothing of ours, the same on every machine, one thread per library."""
    tmp = str(folder / "tmp")
    places = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": tmp, "TMPDIR": tmp, "MPLCONFIGDIR": tmp}
    person = {"USER": "sandbox", "LOGNAME": "sandbox", "LANG": "C.UTF-8", "TZ": "UTC"}
    python = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1", "PYTHONNOUSERSITE": "1"}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    return {**places, **person, **python, **threads}


def _extra_sites() -> list[str]:
    """Return folders of installed packages outside the environment, such as the user's own."""
    return [path for path in (site.getusersitepackages(),) if path in sys.path and Path(path).is_dir()]


def _python_paths() -> tuple[Path, ...]:
    """Return what the interpreter needs to start and to import what is installed, under every name it may be asked for."""
    executable = Path(sys.executable)
    named = [sys.prefix, sys.base_prefix, sys.base_exec_prefix, *_extra_sites()]
    if executable.is_symlink():  # the folder named by a virtual environment may itself be a link
        named.append(str((executable.parent / executable.readlink()).parent.parent))
    paths = {Path(os.path.normpath(path)) for path in named} | {Path(path).resolve() for path in named}
    return tuple(sorted(paths - {Path("/"), Path("/usr")}))


def _bubblewrap(readable: Sequence[Path]) -> tuple[str, ...]:
    """Return bubblewrap and the arguments that give the same view as our own namespaces; the working folder is bound where it is."""
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("bubblewrap is not installed")
    binds = [part for path in sorted(readable, key=lambda path: len(str(path))) for part in ("--ro-bind-try", str(path), str(path))]
    view = ("--unshare-all", "--die-with-parent", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev")  # noqa: S108  (the child's own)
    return (program, *view, *binds, "--bind", "{folder}", "{folder}", "--")


def _reachable(executable: Path) -> bool:
    """Return whether a user without any rights may run this file and read the library beside it."""
    needed = {
        *executable.parents,
        *executable.resolve().parents,
        *Path(sysconfig.get_path("stdlib")).resolve().parents,
        *Path(sysconfig.get_path("purelib")).parents,
    }
    return all(path.stat().st_mode & 0o001 for path in needed)


def _copy_runtime(parent: Path) -> Path:
    """Copy interpreter and packages to where a user without rights can read them, by hard links where possible; return the program.

    Without namespaces this is the only way to run a child of root that is not root when Python lies below a closed folder like /root.
    """
    purelib = Path(sysconfig.get_path("purelib"))
    stdlib = Path(sysconfig.get_path("stdlib"))
    mark = hashlib.sha256(f"{sys.version}|{stdlib}|{purelib}|{purelib.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    target = parent / f"crewlog-python-{mark}"
    program = target / "bin" / "python3"
    if target.exists():
        if target.is_symlink() or target.stat().st_uid != os.geteuid():
            raise SandboxError(f"{target} belongs to somebody else; remove it")
        return program
    made = Path(tempfile.mkdtemp(prefix="crewlog-python-", dir=parent))
    (made / "bin").mkdir()
    _link(os.path.realpath(sys.executable), str(made / "bin" / "python3"))
    library = made / "lib" / stdlib.name
    shutil.copytree(stdlib, library, copy_function=_link, ignore=shutil.ignore_patterns("site-packages", "dist-packages", "test", "idlelib"))
    shutil.copytree(purelib, library / "site-packages", copy_function=_link)
    for shared in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
        _link(str(shared), str(made / "lib" / shared.name))
    made.chmod(0o755)
    try:
        made.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(made)
    return program


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
