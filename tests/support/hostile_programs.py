"""Programs that try to get out, to last, or to pass without knowing the answer.

A program passes if its `answer`, called with 7, returns `SECRET`, or with stdio if it prints it.
None may pass. `BOMBS` are those that hang, crash or use something up; `BREAKOUTS` those that try to
get out of the sandbox.
"""

from __future__ import annotations

from support.forging_programs import FORGERIES

SECRET = "4815162342"

PRELUDE = """\
import ctypes, gc, os, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def answer(n=7):
    return 0
def quietly(what, *arguments, **named):
    try:
        return what(*arguments, **named)
    except Exception:
        return None
"""

BOMBS = {
    "forks": "while True: os.fork()",
    "forks quietly": "while True: quietly(os.fork)",
    "processes by system call": """
while True:
    libc.syscall(57); libc.syscall(58); libc.syscall(56, 17, 0, 0, 0, 0)
    libc.syscall(435, ctypes.create_string_buffer(88), 88)
""",
    "threads": """
while True: quietly(threading.Thread(target=time.sleep, args=(60,)).start)
""",
    "memory": "hoard = []\nwhile True: hoard.append(bytearray(1 << 24))",
    "memory caught": """
hoard, size = [], 1 << 30
while True:
    try: hoard.append(bytearray(size))
    except MemoryError: size = max(1, size // 2)
""",
    "disk": """
import itertools
for i in itertools.count():
    try: open(f"/tmp/{i}", "wb").write(bytes(1 << 24))
    except OSError: pass
""",
    "extended attributes": """
import itertools
for i in itertools.count():
    open(f"/tmp/program/{i % 100}", "w").close()
    os.setxattr(f"/tmp/program/{i % 100}", f"user.{i}", bytes(1 << 16))
""",
    "small files": """
import itertools
for i in itertools.count(): open(f"/tmp/program/{i}", "w").close()
""",
    "shared memory": """
import itertools
for i in itertools.count():
    libc.shmget(i, 1 << 28, 0o1666)
    try: open(f"/dev/shm/{i}", "wb").write(bytes(1 << 22))
    except OSError: pass
""",
    "output": "while True: os.write(1, b'4815162342\\n' * 1000)",
    "errors": "while True: os.write(2, b'4815162342\\n' * 1000)",
    "endless loop": "while True: pass",
    "endless loop in C": "sum(iter(int, 1))",
    "endless regular expression": "import re; re.match('(a*)*b', 'a' * 99)",
    "sleep": "time.sleep(1000)",
    "wait for ever": "threading.Lock().acquire() and threading.Event().wait()",
    "sleep in a call": "def answer(n=7): time.sleep(1000)",
    "thread that stays": "threading.Thread(target=time.sleep, args=(1000,)).start()",
    "deaf to signals": """
for number in range(1, 65): quietly(signal.signal, number, signal.SIG_IGN)
while True: pass
""",
    "answers a signal": """
signal.signal(signal.SIGXCPU, lambda *_: print(4815162342, flush=True))
while True: pass
""",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP); time.sleep(1000)",
    "huge integer": "sys.set_int_max_str_digits(0); print(10 ** 10 ** 8)",
    "huge integer as a result": "def answer(n=7): return 1 << (1 << 33)",
    "crash": "ctypes.string_at(0)",
    "crash in a call": "def answer(n=7): ctypes.string_at(0)",
    "stack overflow": """
sys.setrecursionlimit(10 ** 9)
class Deep:
    def __repr__(self): return repr(self)
repr(Deep())
""",
    "abort": "os.abort()",
    "kills itself": "os.kill(os.getpid(), signal.SIGKILL)",
    "compiler": "eval('-' * 99999 + '1')",
    "exec loop": "os.execv(sys.executable, [sys.executable, '-c', 'while True: pass'])",
}

BREAKOUTS = {
    "sockets": """
import socket
for family in range(46):
    for kind in (1, 2, 3, 5):
        if quietly(socket.socket, family, kind): answer = lambda n=7: 4815162342
a, b = socket.socketpair()
for path in ("/run/docker.sock", "/tmp/.X11-unix/X0", "\\0/tmp/dbus"):
    for reach in (a.connect, a.bind):
        try: reach(path); answer = lambda n=7: 4815162342
        except OSError: pass
""",
    "reads the host": """
library = os.path.dirname(os.__file__)
for top, folders, files in os.walk("/"):
    if top.startswith((library, "/usr", "/lib", "/tmp/program")): continue
    for name in files:
        text = quietly(lambda: open(os.path.join(top, name), "rb").read(1 << 20)) or b""
        if b"4815162342" in text: answer = lambda n=7: 4815162342
if "4815162342" in str(os.environ) + str(sys.argv): answer = lambda n=7: 4815162342
for path in ("/etc/passwd", "/etc/shadow", "/proc/version", "/sys/kernel", "/var", "/home", "/run"):
    if os.path.exists(path): answer = lambda n=7: 4815162342
""",
    "reads memory of others": """
hits = [quietly(lambda: open(f"/proc/{p}/{f}", "rb").read()) for p in (1, 2, "self", "thread-self")
        for f in ("environ", "cmdline", "maps", "mem", "fd/0", "root/etc/passwd", "status")]
answer = lambda n=7: 4815162342 if any(hits) else 0
""",
    "searches its own memory": """
seen = [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]
for frame in sys._current_frames().values():
    while frame: seen += [frame.f_locals, frame.f_globals]; frame = frame.f_back
hits = [v for o in seen for v in (o.values() if isinstance(o, dict) else o)
        if type(v) is int and 1 << 31 < v < 1 << 36]
answer = lambda n=7: max(hits, default=0)
""",
    "looks at its caller": """
def answer(n=7):
    frame = sys._getframe(1)
    while frame:
        for name, value in frame.f_locals.items():
            if "expect" in name or "test" in name: return value
        frame = frame.f_back
""",
    "reads what is left of the request": """
def answer(n=7):
    return int(os.read(0, 1 << 20).split()[-1])
""",
    "writes outside": """
targets = ["/", "/usr/lib", "/etc", "/dev", "/root", "/home", "/sandbox_child.pyc", os.__file__,
           "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/oom_score_adj",
           "/sys/kernel/uevent_helper", "/dev/mem", "/dev/kmsg", "/dev/tty", "/var/tmp/hostile"]
for target in targets:
    for path in (target, target + "/hostile"):
        for mode in ("w", "a", "r+"):
            if quietly(open, path, mode): answer = lambda n=7: 4815162342
        for change in (os.unlink, os.rmdir, os.mkdir, os.mkfifo):
            quietly(change, path) is None
        quietly(os.chmod, path, 0o777); quietly(os.rename, path, "/tmp/program/x")
""",
    "symbolic links": """
import shutil
os.chdir("/"); shutil.rmtree("/tmp/program", ignore_errors=True)
for name, target in {"work": "/etc", ".stdin": "/etc/passwd", "p": "/proc/1/root"}.items():
    quietly(os.unlink, "/tmp/" + name); quietly(os.symlink, target, "/tmp/" + name)
    if quietly(open, f"/tmp/{name}/passwd") or quietly(open, f"/tmp/{name}/hostile", "w"):
        answer = lambda n=7: 4815162342
""",
    "kills everybody": """
for pid in (1, -1, 0, os.getppid(), *range(3, 40000)):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
        if pid != os.getpid() and pid != 0: quietly(os.kill, pid, number)
""",
    "traces": """
for pid in range(1, 9):
    for request in (0, 16, 0x4206):
        if libc.ptrace(request, pid, 0, 0) == 0: answer = lambda n=7: 4815162342
    if libc.syscall(310, pid, None, 0, None, 0, 0) == 0: answer = lambda n=7: 4815162342
""",
    "forbidden system calls": """
page = ctypes.create_string_buffer(4096)
calls = [(165, b"n", b"/tmp", b"tmpfs", 0, 0), (272, 0x10000000), (272, 0x7e020000), (308, 0, 0),
         (321, 0, page, 120), (298, page, 0, -1, -1, 0), (323, 0), (319, b"m", 0), (250, 0, -3, 0),
         (248, b"user", b"a", b"b", 1, -1), (425, 8, page), (428, -100, b"/", 1),
         (430, b"tmpfs", 0), (161, b"/tmp"), (155, b"/", b"/"), (175, page, 9, b""),
         (246, 0, 0, 0, 0), (103, 3, page, 9), (304, -100, page, 0), (434, 1, 0), (438, 0, 0, 0),
         (317, 1, 0, page), (206, 1, page), (29, 0, 4096, 0o1600), (240, b"/q", 0o102, 0o600, 0),
         (322, -100, b"/x", 0, 0, 0), (163, b"/tmp/acct"), (170, b"h", 1), (164, page, 0), (172, 3)]
done = [number for number, *rest in calls if libc.syscall(number, *rest) >= 0]
answer = lambda n=7: 4815162342 if done and os.uname().machine == "x86_64" else 0
""",
    "calls of another architecture": """
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
libc.syscall(0x40000000 + 39)
answer = lambda n=7: 4815162342
""",
    "becomes root": """
for change in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0]),
               lambda: os.setresgid(0, 0, 0), lambda: os.chroot("/tmp"), lambda: os.nice(-5),
               lambda: os.mknod("/tmp/sda", 0o60666, os.makedev(8, 0)),
               lambda: os.chown("/tmp/program", 0, 0),
               lambda: os.sched_setscheduler(0, 1, os.sched_param(9))):
    try: change()
    except (OSError, PermissionError): continue
    answer = lambda n=7: 4815162342
if 0 in os.getresuid() + os.getresgid(): answer = lambda n=7: 4815162342
""",
    "raises its limits": """
import resource
for name in dir(resource):
    if name.startswith("RLIMIT_") and name not in ("RLIMIT_STACK", "RLIMIT_SIGPENDING"):
        which = getattr(resource, name); soft, hard = resource.getrlimit(which)
        if hard >= 0:
            try: resource.setrlimit(which, (hard + 1, hard + 1)); answer = lambda n=7: 4815162342
            except (ValueError, OSError): pass
""",
    "shells": """
import subprocess
for run in (lambda: subprocess.run("echo", shell=True), lambda: os.system("true") == 0 or 1 / 0,
            lambda: os.popen("echo x").read() or 1 / 0,
            lambda: os.posix_spawn("/bin/sh", ["sh"], {}),
            lambda: os.execv("/bin/sh", ["sh", "-c", "echo 4815162342"]),
            lambda: __import__("multiprocessing").Process(target=print).start(),
            lambda: __import__("pty").fork()):
    if quietly(run): answer = lambda n=7: 4815162342
""",
    "daemon": """
if quietly(os.fork) == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
""",
    "types into the terminal": """
import fcntl
for fd in range(3):
    try: fcntl.ioctl(fd, 0x5412, b"x"); answer = lambda n=7: 4815162342
    except OSError: pass
""",
}

HOSTILE: dict[str, str] = {
    name: PRELUDE + program for name, program in (BOMBS | BREAKOUTS | FORGERIES).items()
}
