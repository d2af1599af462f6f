# ruff: noqa: PTH102, PTH103, PTH110, PTH112, PTH120, PTH208, PTH211, S108, S606
# (paths here are arguments of system calls; /tmp and /dev/shm are those of a file system made for one command; exec is the point)
"""The small process between a worker and an untrusted command: it confines the command, watches it, and leaves nothing of it behind.

Run as `python -I -S child_launcher.py '<json>'`, alone and single-threaded, so that limits, namespaces and the user are changed by plain
calls and never between fork and exec of a threaded worker. Standard library only: it may run where no package can be imported.

    worker ── launcher ── [init: pid 1 of the namespaces] ── command (own limits, own user, nothing else)

The innermost of launcher and init supervises: as subreaper it inherits every process the command lets go of, so killing its
descendants until there are none left reaches daemons too. With namespaces the command sees a file system that holds what it was
given and nothing else, no network but its own loopback, no other process; when its init dies the kernel kills all of it.

The report goes to the descriptor `status` as one JSON object: `returncode`, `killed` (`timeout`, `memory`, `disk`, `cancelled` or null) and `used`,
which is said of a disk, or `error`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 8, 4096, 16384, 1 << 18, 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 442, -100, 0x8000, 1, 2  # the same on every architecture
SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x41
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_RESTRICT_SELF = 444, 446  # these too
LANDLOCK_VERSION, LANDLOCK_SIGNALS_SINCE, LANDLOCK_MAKE_DEVICE, LANDLOCK_SCOPES = 1, 6, 64, 3
KEYCTL, JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1
DEVICES = ("null", "zero", "full", "random", "urandom")
NOBODY = 65_534
SPARE_UIDS = 0x6000_0000
"""One user id per command, far from those of people and services: process limits count per user, and users may signal their own."""
WATCH_INTERVAL_S = 0.05
MIB = 1024 * 1024
SIGNALS = {signal.SIGCHLD, signal.SIGTERM}

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def prctl(option: int, value: int) -> None:
    check(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    check(
        libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), data.encode() if data else None), f"mount {target}"
    )


def set_read_only(path: str, *, flags: int) -> None:
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, ctypes.c_size_t(len(attributes))), f"make {path} read-only")


def enter_namespaces() -> None:
    """Leave the machine's network, processes and mounts; an ordinary user needs a user namespace for that."""
    spaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        check(libc.unshare(spaces), "unshare")
    else:
        check(libc.unshare(spaces | CLONE_NEWUSER), "unshare")
        for name, text in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP_RUNNING))


def build_root(spec: dict[str, Any]) -> None:
    """Build a file system from an allow-list and make it the root.

    The folders above what is bound are new and can be entered by anybody: an interpreter below a closed folder such as /root works,
    and its neighbours are not there.
    """
    root = spec["writable"]  # a folder to mount on; what is in it was opened before
    wanted = sorted({*spec["readable"], root}, key=len)
    sources = [(path, os.open(path, os.O_PATH)) for path in wanted if os.path.exists(path)]
    devices = [(name, os.open(f"/dev/{name}", os.O_PATH)) for name in DEVICES]
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for folder in ("proc", "dev", "tmp"):
        os.mkdir(f"{root}/{folder}")
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={spec['scratch_bytes_max']}")
    for name, fd in devices:
        bind(fd, f"{root}/dev/{name}", MS_BIND)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"{root}/dev/{name}")
    os.mkdir(f"{root}/dev/shm")
    mount("tmpfs", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={spec['scratch_bytes_max']}")
    for path, fd in sources:
        if path == spec["writable"]:
            bind(fd, root + path, MS_BIND)  # not what is mounted on it: that would be our new root
        else:
            bind(fd, root + path, MS_BIND | MS_REC)
            set_read_only(root + path, flags=AT_RECURSIVE)
    set_read_only(root, flags=0)
    os.chdir(root)
    check(libc.pivot_root(b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "unmount the old root")
    os.chdir("/")


def bind(fd: int, target: str, flags: int) -> None:
    source = f"/proc/self/fd/{fd}"
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()
    mount(source, target, None, flags)
    os.close(fd)


def spare_uid() -> int:
    """Return a user id for this command alone, or nobody's where the machine does not hand out that many."""
    uid = SPARE_UIDS + os.getpid()
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return uid if any(first <= uid < first + count for first, _, count in ranges) else NOBODY


def give_to(uid: int, folder: str) -> None:
    """Make the command's user the owner of its folder. Links are not followed, and a file with a second name is left alone."""
    os.chown(folder, uid, uid)
    for _, names, files, at in os.fwalk(folder):
        for name in (*names, *files):
            if name in names or os.stat(name, dir_fd=at, follow_symlinks=False).st_nlink == 1:
                os.chown(name, uid, uid, dir_fd=at, follow_symlinks=False)


def processes_of(uid: int) -> int:
    """Count the threads a user has already: the process limit counts them too."""
    count = 0
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                count += len(os.listdir(f"/proc/{entry.name}/task"))
    return count


def leave_keyring() -> None:
    """Join an empty keyring: a process keeps that of the session it was started in, with all keys in it, whoever it becomes."""
    number = KEYCTL.get(os.uname().machine)
    if number is not None and libc.syscall(number, JOIN_SESSION_KEYRING, None) < 0 and ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        check(-1, "leave the keyring")  # what the machine forbids altogether, no command can use


def leave_others_alone() -> None:
    """Enter a domain of Landlock, for good. Who is in one cannot look into processes outside, not even of the same user: their environment, memory and
    files; nor signal them, or reach their abstract sockets, where the kernel knows that (6.12). Where it knows none of this, nothing changes."""
    version = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    # a domain must forbid something: before there were scopes, the making of devices, which no command may do anyway
    wanted = struct.pack("=QQQ", 0, 0, LANDLOCK_SCOPES) if version >= LANDLOCK_SIGNALS_SINCE else struct.pack("=Q", LANDLOCK_MAKE_DEVICE)
    ruleset = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, wanted, ctypes.c_size_t(len(wanted)), 0) if version > 0 else -1
    if ruleset >= 0:
        check(libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0), "enter a Landlock domain")
        os.close(ruleset)


def execute(spec: dict[str, Any], uid: int | None, status: int) -> NoReturn:
    """Become the command: limits, user, signals as a fresh process has them, then exec."""
    try:
        limits = dict(spec["limits"])
        if uid is None:
            limits["NPROC"] += spec["processes_before"]
        for name, value in limits.items():
            number = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(number)[1]
            allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (allowed, allowed))
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if not spec["is_wrapped"]:  # a wrapper mounts things, which not every domain may
            leave_others_alone()
        leave_keyring()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it
        os.umask(0o022)
        os.chdir(spec["cwd"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except BaseException as error:  # noqa: BLE001  (there is nobody above a forked process: whatever it was is reported)
        report(status, error=f"start {spec['argv'][0]}: {error}")
        os._exit(127)


def descendants() -> dict[int, int]:
    """Return every living process below this one, with its resident bytes."""
    parents: dict[int, tuple[int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                parents[int(name)] = int(fields[1]), 0 if fields[0] == b"Z" else int(fields[21]) * resource.getpagesize()
    found: dict[int, int] = {}
    level = {os.getpid()}
    while level:
        level = {pid for pid, (parent, _) in parents.items() if parent in level}
        found.update((pid, parents[pid][1]) for pid in level)
    return found


def proportional_bytes(pid: int, resident: int) -> int:
    """Return what a process really adds to memory: pages it shares with its forks count once."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
    except PermissionError:
        return resident
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Pss:")), 0)


def uses_more_than(bytes_max: int) -> bool:
    resident = descendants()
    return sum(resident.values()) > bytes_max and sum(proportional_bytes(pid, size) for pid, size in resident.items()) > bytes_max


class Stored(NamedTuple):
    """What is on the disk: in a folder, and in files without a name that processes hold open."""

    size: int
    files: int
    is_all: bool
    """Nothing was kept from us; else there may be more."""


def stored(folder: str, pids: Iterable[int], *, files_max: int | None = None) -> Stored:
    """Count what a command stores; looking ends where there are more than `files_max` files."""
    size = files = 0
    is_all = True
    linked: set[tuple[int, int]] = set()
    for found in chain(held(pids), below(folder)):
        if found is None:
            is_all = False
            continue
        files += 1
        if files_max is not None and files > files_max:
            break
        if (found.st_dev, found.st_ino) not in linked:
            if found.st_nlink != 1:  # it may come again, by another name or another process
                linked.add((found.st_dev, found.st_ino))
            size += found.st_blocks * 512
    return Stored(size, files, is_all)


def below(folder: str) -> Iterator[os.stat_result | None]:
    """Yield all that is in a folder and its folders; None for one that cannot be read: it is locked, or too deep to be named."""
    left = [folder]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(found.st_mode):
                            left.append(entry.path)
                        yield found
        except (FileNotFoundError, NotADirectoryError):  # it has gone meanwhile
            continue
        except OSError:
            yield None


def held(pids: Iterable[int]) -> Iterator[os.stat_result | None]:
    """Yield the open files without a name of processes; None for a process that cannot be looked into."""
    for pid in pids:
        try:
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    found = Path(f"/proc/{pid}/fd/{number}").stat()
                    if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                        yield found
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            yield None


class Disk:
    """Watches how much a command adds to its folder: no limit of the kernel is about all of its files together."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.folder: str = spec["writable"]
        self.size_max, self.files_max = spec["folder_bytes_max"], spec["folder_files_max"]
        self.before, self.free_before = stored(self.folder, ()), self.free()
        self.next_look = 0.0

    def free(self) -> int:
        of = os.statvfs(self.folder)
        return of.f_bavail * of.f_frsize

    def too_much(self) -> str:
        """Say what is too much, if anything is; what was looked at a moment ago is not looked at again."""
        began = time.monotonic()
        if began < self.next_look:
            return ""
        now = stored(self.folder, descendants(), files_max=self.before.files + self.files_max)
        size, files = now.size - self.before.size, now.files - self.before.files
        self.next_look = time.monotonic() + max(WATCH_INTERVAL_S, 10 * (time.monotonic() - began))
        if size > self.size_max or files > self.files_max:
            return f"{-(-size // MIB)} MiB in {files} files, of {self.size_max // MIB} MiB and {self.files_max} files at most"
        free = 0 if now.is_all else self.free()
        if not now.is_all and free < self.size_max < self.free_before - free:
            return f"not all of it can be seen, and of the disk {free // MIB} MiB are left, {(self.free_before - free) // MIB} MiB less than before"
        return ""


def kill_all(timeout_s: float = 5.0) -> None:
    """Kill descendants until the kernel says there is none. A stopped process cannot fork away from the next round."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        alive = descendants()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        signal.sigtimedwait(SIGNALS, 0.01)


def supervise(command: int, spec: dict[str, Any], disk: Disk, status: int) -> None:
    """Wait for the command within its time, memory and disk, kill what it leaves behind, and report."""
    end = time.monotonic() + spec["wall_s"]
    killed: str | None = None
    used = ""
    pause = WATCH_INTERVAL_S
    code: int | None = None
    while code is None and killed is None:
        came = signal.sigtimedwait(SIGNALS, pause)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == command:
                    code = os.waitstatus_to_exitcode(ended[1])
        began = time.monotonic()
        if came is not None and came.si_signo == signal.SIGTERM:
            killed = "cancelled"
        elif code is None and began >= end:
            killed = "timeout"
        elif code is None and uses_more_than(spec["resident_bytes_max"]):
            killed = "memory"
        elif code is None and (used := disk.too_much()):
            killed = "disk"
        pause = max(WATCH_INTERVAL_S, 10 * (time.monotonic() - began))  # watching takes a tenth of a core at most
    kill_all()
    report(status, returncode=-signal.SIGKILL if code is None else code, killed=killed, used=used)


def report(status: int, **fields: Any) -> None:
    os.write(status, json.dumps(fields).encode() + b"\n")


def spawn(run: Any) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(1)
    return pid


def inside(spec: dict[str, Any], uid: int | None, status: int) -> None:
    """Be the supervisor: the launcher itself, or the first process of the namespaces."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    disk = Disk(spec)
    command = spawn(lambda: execute(spec, uid, status))
    for fd in (0, 1, 2):  # end of file must come when the command is gone, not when we are
        os.close(fd)
    supervise(command, spec, disk, status)


def first_process(spec: dict[str, Any], uid: int | None, status: int) -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        build_root(spec)
    except OSError as error:
        report(status, error=f"private file system: {error}")
        return
    inside(spec, uid, status)


def main(spec: dict[str, Any]) -> None:
    status: int = spec["status"]
    os.set_inheritable(status, False)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != spec["parent"]:
        return  # the worker died before we could ask to be told
    try:
        uid = spare_uid() if os.geteuid() == 0 else None
        spec["processes_before"] = processes_of(os.getuid()) if uid is None else 0
        if uid is not None:
            give_to(uid, spec["writable"])
        if spec["namespaces"]:
            enter_namespaces()
    except OSError as error:
        report(status, error=f"namespaces: {error}")
        return
    if not spec["namespaces"]:
        inside(spec, uid, status)
        return
    first = spawn(lambda: first_process(spec, uid, status))
    for fd in (0, 1, 2):
        os.close(fd)
    while True:
        came = signal.sigwaitinfo(SIGNALS)
        if came.si_signo == signal.SIGTERM:
            os.kill(first, signal.SIGTERM)
        if os.waitpid(first, os.WNOHANG)[0]:
            return


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
