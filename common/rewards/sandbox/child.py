"""What runs first inside the sandbox: it gives up root, sets limits, then runs one program.

`run.py` starts it as a script with nothing but the standard library at hand; outside, only `encode`
and the constants are imported. Its arguments are uid, gid (-1: keep), threads, CPU seconds, bytes
of address space and bytes of a file (0: no limit), then a command to become, or nothing.

Without a command it says `READY`, reads its request from stdin (8 bytes of length, then a
marshalled `Request`) and becomes the program. Expected values are not part of a request: a program
that reads, forges or replaces anything in here can only give its own answers.
"""

from __future__ import annotations

# Nothing that takes long to import (typing, pathlib, json): each program waits for it.
import builtins
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypedDict

    class Request(TypedDict):
        program: str
        stdin: str | None
        """Input of a program that is run as a script; None to import it and make `calls`."""
        calls: list[tuple[str, list[Any], dict[str, Any]]]
        """(function, arguments, keywords)."""


READY = b"ready\n"
RAISED = '["raised"]'
TOO_MUCH = '["object"]'
FOLDER = "/tmp/program"
STDIN = "/tmp/.stdin"

STACK = 64 << 20

MAX_DEPTH = 64
MAX_NODES = 200_000


def become(uid: int, gid: int) -> None:
    """Give up root for good; it returns only as an ordinary user without capabilities."""
    if uid >= 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    if 0 in os.getresuid() + os.getresgid():
        raise SystemExit("still root")
    try:
        os.setresuid(0, 0, 0)
    except OSError:  # EPERM; EINVAL in a user namespace that has no root
        return
    raise SystemExit("could become root again")


def limit(threads: int, cpu_seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """Set the limits of this process and of what it becomes; 0 leaves one as it is."""
    import resource

    limits = {
        resource.RLIMIT_NPROC: threads,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 256,
        # 0 would still start a core-dump program that the host names in core_pattern; 1 does not.
        resource.RLIMIT_CORE: 1,
    }
    for which, value in limits.items():
        if value:
            resource.setrlimit(which, (value, value))
    if cpu_seconds:
        # The first ends the program with SIGXCPU, the second one that ignores it with SIGKILL.
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))


def deepen_stack() -> None:
    """Let the main thread recurse deep also through C, as memoized functions do.

    Its stack grows as it is used; other threads keep the size that was fixed at the start.
    """
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    stack = STACK if most == resource.RLIM_INFINITY else min(STACK, most)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, most))


def read_request() -> Request:
    """Return the request, and read not one byte more; leave if whoever started us is gone."""
    length = int.from_bytes(_read(8), "little")
    request: Request = marshal.loads(_read(length))
    return request


def _read(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            raise SystemExit("no request")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def run_program(source: str, stdin: str) -> None:
    """Run `source` as a script that reads `stdin`; it returns or raises as the script does."""
    descriptor = os.open(STDIN, os.O_RDWR | os.O_CREAT)
    content = memoryview(stdin.encode("utf-8", "surrogatepass"))
    while content:
        content = content[os.write(descriptor, content) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.dup2(descriptor, 0)
    os.close(descriptor)
    # The old one remembers that it could not seek.
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    # A prompt is for a person at a terminal; without one Python writes it to the output.
    ask = builtins.input
    builtins.input = lambda prompt="", /: ask()
    _execute(source, "__main__")


def run_calls(source: str, calls: list[tuple[str, list[Any], dict[str, Any]]]) -> None:
    """Import `source`, make the calls, write the encoded result of each as a line; never return.

    As in every such benchmark the program is imported: its `if __name__ == "__main__"` part, which
    may wait for input, does not run. What it prints goes nowhere.
    """
    results = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    try:
        namespace = _execute(source, "program")
    except SystemExit as leaving:
        if leaving.code:
            os._exit(1)
        namespace = vars(sys.modules["program"])
    for function, arguments, keywords in calls:
        try:
            line = encode(_find(namespace, function)(*arguments, **keywords))
        except BaseException:
            line = RAISED
        rest = memoryview(line.encode("ascii") + b"\n")
        while rest:
            rest = rest[os.write(results, rest) :]
    os._exit(0)


def _execute(source: str, name: str) -> dict[str, Any]:
    """Run `source` as a fresh module of that name, and return its namespace."""
    path = f"{FOLDER}/program.py"
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # `site`, which has its own, is not run
    # Thread pools are sized by this; the same everywhere, and within the limit on threads.
    for count in ("cpu_count", "process_cpu_count"):
        setattr(os, count, lambda: 4)
    os.chdir(FOLDER)
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(source.encode("utf-8", "surrogatepass"))
    sys.argv = [path]
    sys.path.insert(0, FOLDER)
    module = type(sys)(name)
    module.__file__ = path
    # Classes are pickled, and annotations resolved, through their module's entry.
    sys.modules[name] = sys.modules["__main__"] = module
    namespace = vars(module)
    namespace["__builtins__"] = builtins
    exec(compile(source, path, "exec", dont_inherit=True), namespace)  # noqa: S102
    return namespace


def _find(namespace: dict[str, Any], function: str) -> Any:
    """Return the function, or a method of class Solution of that name, as LeetCode has it."""
    if function in namespace:
        return namespace[function]
    return getattr(namespace["Solution"](), function)


def encode(value: object) -> str:
    """Write a value of built-in types as JSON that keeps its type: `["tuple",["int","0x1"],null]`.

    An instance of a subclass counts as what it holds (a Counter as a dict, a namedtuple as a
    tuple), whatever methods it overrides. Anything else, anything deeper than `MAX_DEPTH` and
    anything larger than `MAX_NODES` is `TOO_MUCH`, which equals no expected value.
    """
    nodes = 0

    def pieces(value: Any, depth: int) -> str:
        nonlocal nodes
        nodes += 1
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise ValueError
        if value is None:
            return "null"
        if value is True or value is False:
            return "true" if value else "false"
        for kind, members in _CONTAINERS:
            if isinstance(value, kind):
                inner = "".join([f",{pieces(member, depth + 1)}" for member in members(value)])
                return f'["{kind.__name__}"{inner}]'
        for kind, text in _SCALARS:
            if isinstance(value, kind):
                return f'["{kind.__name__}","{text(value)}"]'
        raise ValueError

    try:
        return pieces(value, 0)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return TOO_MUCH


_REAL, _IMAGINARY = complex.real.__get__, complex.imag.__get__
# Unbound methods of the built-in types, which no subclass can override. Text that is hexadecimal
# needs no escapes, and integers no quadratic conversion.
_SCALARS: list[tuple[type, Any]] = [
    (int, lambda value: hex(int.__index__(value))),
    (float, float.hex),
    (str, lambda value: str.encode(value, "utf-8", "surrogatepass").hex()),
    (bytes, bytes.hex),
    (complex, lambda value: f"{_REAL(value).hex()} {_IMAGINARY(value).hex()}"),
]
_CONTAINERS: list[tuple[type, Any]] = [
    (list, list.__iter__),
    (tuple, tuple.__iter__),
    (dict, lambda value: tuple(dict.items(value))),
    (set, set.__iter__),
    (frozenset, frozenset.__iter__),
]


def main() -> None:
    uid, gid, *limits = (int(argument) for argument in sys.argv[1:7])
    command = sys.argv[7:]
    become(uid, gid)
    limit(*limits)
    os.closerange(3, 256)
    if command:
        os.execv(command[0], command)
    os.mkdir(FOLDER)  # noqa: PTH102
    deepen_stack()
    os.write(1, READY)
    request = read_request()
    # Bubblewrap's messages, had there been any, were written; the program's own are not kept.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    if request["stdin"] is None:
        run_calls(request["program"], request["calls"])
    else:
        run_program(request["program"], request["stdin"])


if __name__ == "__main__":
    main()
