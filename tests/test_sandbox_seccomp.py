"""The list of system calls, run by an interpreter of BPF written here (no kernel needed)."""

import struct

import pytest

from lm_eval_exl2.sandbox.inside.seccomp import build_filter, supports

PID = 4242
ALLOWED, KILLED, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Numbers from the kernel's headers: (x86-64, arm64).
CALLS = {
    "read": (0, 63), "openat": (257, 56), "mmap": (9, 222), "futex": (202, 98),
    "exit_group": (231, 94), "getrandom": (318, 278), "fork": (57, None), "vfork": (58, None),
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "socket": (41, 198),
    "connect": (42, 203), "socketpair": (53, 199), "sendto": (44, 206), "bind": (49, 200),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "chroot": (161, 51),
    "memfd_create": (319, 279), "shmget": (29, 194), "keyctl": (250, 219), "bpf": (321, 280),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    "pidfd_open": (434, 434), "process_vm_readv": (310, 270), "openat2": (437, 437),
    "unlinkat": (263, 35), "mkdirat": (258, 34), "renameat2": (316, 276), "ftruncate": (77, 46),
    "fchmodat": (268, 53), "fchownat": (260, 54), "utimensat": (280, 88), "setpriority": (141, 140),
    "sched_setaffinity": (203, 122), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "setuid": (105, 146), "prctl": (157, 167), "kill": (62, 129), "tgkill": (234, 131),
    "fcntl": (72, 25), "ioctl": (16, 29), "prlimit64": (302, 261), "clone": (56, 220),
    "clone3": (435, 435), "getpgid": (121, 155), "getsid": (124, 156),
    "sched_getaffinity": (204, 123), "sched_getparam": (143, 121), "sched_getscheduler": (145, 120),
}  # fmt: skip
NEVER = [
    name
    for name in CALLS
    if name
    not in (
        "read", "openat", "mmap", "futex", "exit_group", "getrandom", "prctl", "kill", "tgkill",
        "fcntl", "ioctl", "prlimit64", "clone", "clone3", "getpgid", "getsid", "sched_getaffinity",
        "sched_getparam", "sched_getscheduler",
    )
]  # fmt: skip
THREAD = 0x003D0F00  # what pthread_create passes to clone

machines = pytest.mark.parametrize("machine", ARCHITECTURES)


def run(machine, number, *arguments, architecture=None):
    """The filter's answer to one system call."""
    data = struct.pack("<iIQ", number, architecture or ARCHITECTURES[machine], 0)
    data += struct.pack("<6Q", *(arguments + (0,) * 6)[:6])
    program = list(struct.iter_unpack("<HBBI", build_filter(machine, PID)))
    assert len(program) < 4096
    place = accumulator = 0
    while True:
        code, if_true, if_false, value = program[place]
        place += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, value)[0]
            case 0x54:
                accumulator &= value
            case 0x15:
                place += if_true if accumulator == value else if_false
            case 0x35:
                place += if_true if accumulator >= value else if_false
            case 0x06:
                return value


def call(machine, name, *arguments):
    number = CALLS[name][machine == "aarch64"]
    return EPERM if number is None else run(machine, number, *arguments)


@machines
def test_what_a_program_needs_is_allowed(machine):
    for name in ("read", "openat", "mmap", "futex", "exit_group", "getrandom"):
        assert call(machine, name) == ALLOWED, name


@machines
@pytest.mark.parametrize("name", NEVER)
def test_what_reaches_outside_is_refused(machine, name):
    assert call(machine, name) == EPERM


@machines
def test_threads_may_be_made_and_processes_and_namespaces_not(machine):
    assert call(machine, "clone", THREAD) == ALLOWED
    assert call(machine, "clone", 17) == EPERM  # SIGCHLD: a fork
    for flag in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 1 << 28, 1 << 29, 1 << 30):
        assert call(machine, "clone", THREAD | flag) == EPERM
    assert call(machine, "clone3") == ENOSYS


@machines
def test_signals_and_limits_reach_only_the_process_itself(machine):
    for name in ("kill", "tgkill"):
        assert call(machine, name, PID, 9) == ALLOWED
        for other in (PID + 1, 0, 1, 2**32 - 1):
            assert call(machine, name, other, 9) == EPERM
    for name in ("prlimit64", "getpgid", "getsid", "sched_getaffinity", "sched_getparam"):
        assert call(machine, name, 0) == call(machine, name, PID) == ALLOWED
        assert call(machine, name, 1) == EPERM


@machines
def test_descriptors_and_terminals_have_no_side_doors(machine):
    assert call(machine, "fcntl", 3, 1030) == ALLOWED
    for command in (8, 10, 1024, 1031):  # F_SETOWN, F_SETSIG, F_SETLEASE, F_SETPIPE_SZ
        assert call(machine, "fcntl", 3, command) == EPERM
    assert call(machine, "ioctl", 0, 0x5401) == ALLOWED
    for command in (0x5412, 0x541C, 0x8901):  # TIOCSTI, TIOCLINUX, FIOSETOWN
        assert call(machine, "ioctl", 0, command) == EPERM
    assert call(machine, "prctl", 15) == ALLOWED
    for option in (1, 4, 8, 22, 24, 38):  # PR_SET_PDEATHSIG and others
        assert call(machine, "prctl", option) == EPERM


@machines
def test_other_architectures_are_killed(machine):
    assert run(machine, 0, architecture=0x40000003) == KILLED  # 32-bit x86
    if machine == "x86_64":
        assert run(machine, 0x40000000) == KILLED  # x32


def test_machines_without_a_table_are_said_to_have_none():
    assert supports("x86_64")
    assert supports("aarch64")
    assert not supports("riscv64")
