"""The sandbox's system-call filter, as a classic BPF program (seccomp(2)).

What is denied fails with EPERM, so that a program sees an ordinary error: other processes, the
network, mounts and namespaces, and the parts of the kernel that ordinary programs never call and
attacks often do. Calls newer than this table fail with ENOSYS, as on an older kernel; libraries
are used to that. Calls of another architecture (also x32) kill the program: their numbers mean
something else here.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import NamedTuple

from common.errors import MissingToolError

# name: (number on x86_64, number on aarch64); None where the architecture has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # New processes. clone is judged by its flags below; clone3 hides them behind a pointer, so it
    # does not exist here, and the C library falls back to clone.
    "fork": (57, None),
    "vfork": (58, None),
    "execveat": (322, 281),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    # Sockets. socketpair is judged below; send and recv on a pair are harmless, passing descriptors
    # through one is not needed.
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "sendmmsg": (307, 269),
    "recvmmsg": (299, 243),
    # Mounts, namespaces, file handles.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # Rich kernel interfaces.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "seccomp": (317, 277),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_setup": (206, 0),
    "io_destroy": (207, 1),
    "io_submit": (209, 2),
    "io_cancel": (210, 3),
    "io_getevents": (208, 4),
    "io_pgetevents": (333, 292),
    "splice": (275, 76),
    "tee": (276, 77),
    "vmsplice": (278, 75),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "remap_file_pages": (216, 234),
    "lookup_dcookie": (212, 18),
    # Memory that neither the address-space limit nor the size of the file system counts.
    "memfd_create": (319, 279),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # The machine itself.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
}

FIRST_NEW = 424
"""From here on all architectures share their numbers; a call that is not listed does not exist."""
NEW_ALLOWED = {
    "close_range": 436,
    "faccessat2": 439,
    "epoll_pwait2": 441,
    "futex_waitv": 449,
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
}


class Architecture(NamedTuple):
    column: int
    """Which number of a row of `DENIED` is this architecture's."""
    audit: int
    """AUDIT_ARCH_*, which the kernel reports with each call."""
    clone: int
    socketpair: int
    ioctl: int


ARCHITECTURES = {
    "x86_64": Architecture(0, 0xC000003E, clone=56, socketpair=53, ioctl=16),
    "aarch64": Architecture(1, 0xC00000B7, clone=220, socketpair=199, ioctl=29),
}

_X32 = 0x40000000
_CLONE_THREAD = 0x00010000
_AF_UNIX = 1
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # type into, paste into, the terminal

# Where the call's number, its architecture and its arguments stand (struct seccomp_data). Both
# architectures are little-endian: the low half of an argument comes first.
_NUMBER, _ARCH, _FIRST, _SECOND = 0, 4, 16, 24

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM = 0x00050000 | errno.EPERM
_ENOSYS = 0x00050000 | errno.ENOSYS

Instruction = tuple[int, int, int, int]
"""One sock_filter: (code, instructions to skip if true, to skip if false, operand)."""


def build_filter(machine: str | None = None) -> bytes:
    """Return the filter for `machine` (default: this one), as an array of struct sock_filter.

    Raises:
        MissingToolError: there is no table for this architecture.
    """
    name = machine or platform.machine()
    if name not in ARCHITECTURES:
        known = " and ".join(ARCHITECTURES)
        raise MissingToolError(f"model-written code runs on {known} only, and this is {name}")
    architecture = ARCHITECTURES[name]
    program = [*_right_architecture(architecture), *_new_calls()]
    for numbers in DENIED.values():
        number = numbers[architecture.column]
        if number is not None:
            program += [_unless_equal(number, 1), _return(_EPERM)]
    program += _judged_by_arguments(architecture)
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _right_architecture(architecture: Architecture) -> list[Instruction]:
    """Kill calls of another architecture, and leave the call's number loaded."""
    return [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, architecture.audit),
        _return(_KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        _return(_KILL),
    ]


def _new_calls() -> list[Instruction]:
    """Refuse numbers from `FIRST_NEW` on with ENOSYS, a few excepted."""
    allowed: list[Instruction] = []
    for number in NEW_ALLOWED.values():
        allowed += [_unless_equal(number, 1), _return(_ALLOW)]
    return [(_AT_LEAST, 0, len(allowed) + 1, FIRST_NEW), *allowed, _return(_ENOSYS)]


def _judged_by_arguments(architecture: Architecture) -> list[Instruction]:
    """Allow threads but no processes, only local socket pairs, and no typing into terminals."""
    return [
        _unless_equal(architecture.clone, 4),
        (_LOAD, 0, 0, _FIRST),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        _return(_EPERM),
        _return(_ALLOW),
        _unless_equal(architecture.socketpair, 4),
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 1, 0, _AF_UNIX),
        _return(_EPERM),
        _return(_ALLOW),
        _unless_equal(architecture.ioctl, 4),
        (_LOAD, 0, 0, _SECOND),
        (_EQUAL, 1, 0, _TIOCSTI),
        (_EQUAL, 0, 1, _TIOCLINUX),
        _return(_EPERM),
        _return(_ALLOW),
    ]


def _unless_equal(number: int, skip: int) -> Instruction:
    """Skip the next `skip` instructions unless the loaded value is `number`."""
    return (_EQUAL, 0, skip, number)


def _return(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)
