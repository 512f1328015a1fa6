"""Makes this process what it would be in a container with default settings.

Docker's and containerd's default profile (moby/profiles, `seccomp/default.json`): fourteen
capabilities, and system calls that make namespaces or mounts only with CAP_SYS_ADMIN, which is not
one of them; Landlock and seccomp are allowed. Emulated for x86-64.
"""

import ctypes
import os
import struct

# chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw,
# sys_chroot, mknod, audit_write, setfcap
_KEPT = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
# unshare, mount, setns, umount2, pivot_root, keyctl, add_key, request_key, bpf, perf_event_open,
# userfaultfd, io_uring_setup, name_to_handle_at, open_by_handle_at, mount API, ptrace stays allowed
_DENIED = (272, 165, 308, 166, 155, 250, 248, 249, 321, 298, 323, 425, 303, 304, *range(428, 434))
_CLONE, _CLONE3 = 56, 435
_NEW = 0x7E020000
_PR_CAPBSET_DROP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 24, 22, 38
_LAST_CAPABILITY = 40


def enter() -> None:
    """For good, for this process and all it starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    root = os.geteuid() == 0
    if root:
        for capability in range(_LAST_CAPABILITY + 1):
            if capability not in _KEPT:
                libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        kept = sum(1 << capability for capability in _KEPT)
        header = struct.pack("Ii", 0x20080522, 0)
        low = struct.pack("III", kept, kept, 0)
        if libc.capset(header, low + b"\0" * 12):
            raise OSError(ctypes.get_errno(), "capset")
    else:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    code = [(0x20, 0, 0, 0)]
    for number in _DENIED:
        code += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]
    code += [(0x15, 0, 1, _CLONE3), (0x06, 0, 0, 0x00050026)]
    code += [
        (0x15, 0, 4, _CLONE),
        (0x20, 0, 0, 16),
        (0x54, 0, 0, _NEW),
        (0x15, 1, 0, 0),
        (0x06, 0, 0, 0x00050001),
        (0x06, 0, 0, 0x7FFF0000),
    ]
    data = b"".join(struct.pack("<HBBI", *each) for each in code)
    buffer = ctypes.create_string_buffer(data, len(data))
    program = struct.pack("@HP", len(code), ctypes.addressof(buffer))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(_PR_SET_SECCOMP, 2, ctypes.create_string_buffer(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
