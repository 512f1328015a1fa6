"""The system calls a sandboxed process may make: an allowlist as a classic BPF program.

Everything else fails with EPERM, so that Python and libraries see an ordinary error: no process is
started, no socket made, no file changed other than through a descriptor that Landlock or a
read-only mount let it open, no other process signalled, looked at or slowed down.

Pure: builds bytes and installs nothing. Numbers are from Linux's `unistd_64.h` (x86-64) and
`asm-generic/unistd.h` (arm64); the program format is `linux/filter.h`, its input `struct
seccomp_data`.
"""

# pyright: basic

import struct

# Name: (x86-64, arm64); None where an architecture has no such call.
_ALLOWED = {
    # files: opening is limited by Landlock or mounts, changing them needs calls that are not here
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "open": (2, None),
    "openat": (257, 56),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "lseek": (8, 62),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "getdents": (78, None),
    "getdents64": (217, 61),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getcwd": (79, 17),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "select": (23, None),
    "pselect6": (270, 72),
    "poll": (7, None),
    "ppoll": (271, 73),
    # memory
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    # signals and threads of this process
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "pause": (34, None),
    "alarm": (37, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "get_robust_list": (274, 100),
    "set_tid_address": (218, 96),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # clocks
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    # what a process may know about itself and its machine
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getpgrp": (111, None),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "uname": (63, 160),
    "getrandom": (318, 278),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "getcpu": (309, 168),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
}
# Name: (x86-64, arm64, argument, values): allowed with one of these values only. `None` stands for
# this process's number.
_ALLOWED_FOR = {
    # F_SETOWN with O_ASYNC would send signals to others, F_SETPIPE_SZ takes kernel memory:
    # dup, get and set flags, dup with close-on-exec
    "fcntl": (72, 25, 1, (0, 1, 2, 3, 4, 1030)),
    # terminal or not, its size, bytes waiting, blocking or not, close on exec
    "ioctl": (16, 29, 1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # the name of a thread, of a memory area; never PR_SET_PDEATHSIG
    "prctl": (157, 167, 0, (15, 16, 0x53564D41)),
    "kill": (62, 129, 0, (None,)),
    "tgkill": (234, 131, 0, (None,)),
    "prlimit64": (302, 261, 0, (0, None)),
    "getpgid": (121, 155, 0, (0, None)),
    "getsid": (124, 156, 0, (0, None)),
    "sched_getaffinity": (204, 123, 0, (0, None)),
    "sched_getparam": (143, 121, 0, (0, None)),
    "sched_getscheduler": (145, 120, 0, (0, None)),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080  # every CLONE_NEW* flag

# machine: (audit architecture of seccomp_data, column above, first number of another ABI)
_MACHINES = {
    "x86_64": (0xC000003E, 0, 0x40000000),
    "aarch64": (0xC00000B7, 1, None),
}

_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_ERRNO, _EPERM, _ENOSYS = 0x00050000, 1, 38
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16


def supports(machine: str) -> bool:
    """Whether there is a table for this `os.uname().machine`."""
    return machine in _MACHINES


def build_filter(machine: str, pid: int) -> bytes:
    """The instructions (`struct sock_filter`, 8 bytes each) for a process that installs them.

    Args:
        machine: `os.uname().machine`; must be supported.
        pid: The process's own number, the only one it may signal.
    """
    architecture, column, other_abi = _MACHINES[machine]
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if other_abi is not None:
        code += [(_AT_LEAST, 0, 1, other_abi), (_RETURN, 0, 0, _KILL)]
    for numbers in _ALLOWED.values():
        if numbers[column] is not None:
            code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    for *numbers, argument, values in _ALLOWED_FOR.values():
        tests = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument)]
        for value in values:
            tests += [(_EQUAL, 0, 1, pid if value is None else value), (_RETURN, 0, 0, _ALLOW)]
        code += _only_for(numbers[column], tests)
    code += _only_for(
        _CLONE[column],
        [
            (_LOAD, 0, 0, _ARGUMENTS_AT),
            (_AND, 0, 0, _CLONE_THREAD | _CLONE_NEW),
            (_EQUAL, 0, 1, _CLONE_THREAD),
            (_RETURN, 0, 0, _ALLOW),
        ],
    )
    # glibc falls back to clone, whose flags can be seen here, if there is no clone3.
    code += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    code.append((_RETURN, 0, 0, _ERRNO | _EPERM))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _only_for(number, tests):
    """Instructions that run `tests` for one system call and then refuse it."""
    block = [*tests, (_RETURN, 0, 0, _ERRNO | _EPERM)]
    return [(_EQUAL, 0, len(block), number), *block]
