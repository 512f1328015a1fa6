"""Programs that reach for what is not theirs. `attack(place)` returns True if it believes it worked.

`place` (see `surroundings.py`) names a secret file, a folder everyone may write to, listening
sockets and a bystander process. What can be seen from outside is looked at there, too, so that an
attack that works and says nothing is still found.
"""

# In front of every program below.
PRELUDE = """
import ctypes, errno, os, platform, sys

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"

def syscall(x86, arm, *arguments):
    "The result of a system call; raises OSError."
    number = x86 if X86 else arm
    if number is None:
        raise OSError(errno.ENOSYS, "no such call here")
    arguments = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def works(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        return False
    return True

def read(path):
    with open(path, "rb") as file:
        return len(file.read(64)) > 0
"""

_READS = {
    "a file": "return read(place['canary'])",
    "a file through the root of a process": "return read('/proc/self/root' + place['canary'])",
    "a file from the current directory": "return read('../../../../../..' + place['canary'])",
    "a file by O_PATH": (
        "d = os.open(place['canary'], os.O_PATH)\n    return read('/proc/self/fd/%d' % d)"
    ),
    "a file through an inherited descriptor": (
        "for d in range(3, 64):\n"
        "        try:\n"
        "            f = os.open('../' * 12 + place['canary'], os.O_RDONLY, dir_fd=d)\n"
        "            return os.read(f, 8) != b''\n"
        "        except OSError: pass"
    ),
    "a file by mapping": "import mmap\n    return mmap.mmap(os.open(place['canary'], os.O_RDONLY), 0, prot=mmap.PROT_READ)[:1] != b''",
    "the home directory": "return bool(os.listdir(place['home']))",
    "the working directory of the harness": "return 'pyproject.toml' in os.listdir(place['harness'])",
    "the folder of temporary files": "return bool(os.listdir(place['folder']))",
    "a token in a file": "return read(place['home'] + '/.cache/huggingface/token')",
    "users": "return read('/etc/passwd')",
    "passwords": "return read('/etc/shadow')",
    "a secret in the environment": "return place['secret'] in os.environ.values()",
    "its first environment": "return place['secret'].encode() in open('/proc/self/environ', 'rb').read()",
    "the environment of its starter": "return read('/proc/%d/environ' % place['starter'])",
    "the command line of its starter": "return read('/proc/%d/cmdline' % place['starter'])",
    "the memory of its starter": "return bool(os.open('/proc/%d/mem' % place['starter'], os.O_RDONLY))",
    "the list of processes": "return any(p.isdigit() for p in os.listdir('/proc'))",
    "the solutions that this package ships": "return read(place['package'] + '/demo/data/humaneval_test.jsonl')",
    "what the package's folder holds": "return bool(os.listdir(place['package']))",
    "packages beside numpy": "import datasets\n    return True",
    "packages of the interpreter behind": "return read(os.path.dirname(os.__file__) + '/site-packages/pip/__init__.py')",
    "packages of the system": "return any(read('/usr/lib/python3/dist-packages/' + n) for n in os.listdir('/usr/lib/python3/dist-packages') if n.endswith('.py'))",
    "the groups of other processes": "return any(works(os.getpgid, p) for p in range(1, 4000) if p != os.getpid())",
    "the sessions of other processes": "return any(works(os.getsid, p) for p in range(1, 4000) if p != os.getpid())",
    "the cores of a bystander": "return bool(os.sched_getaffinity(place['bystander']))",
    "block devices": "return any(read('/dev/' + d) for d in ('vda', 'sda', 'nvme0n1', 'mem', 'kmsg') if os.path.exists('/dev/' + d))",
}

_WRITES = {
    "a file": "open(place['folder'] + '/written', 'w').write('x')\n    return True",
    "the secret file": "open(place['canary'], 'a').write('x')\n    return True",
    "a shorter file": "os.truncate(place['canary'], 0)\n    return True",
    "another mode": "os.chmod(place['canary'], 0o600)\n    return True",
    "another time": "os.utime(place['canary'], (1, 1))\n    return True",
    "another owner": "os.chown(place['canary'], os.getuid(), os.getgid())\n    return True",
    "an attribute": "os.setxattr(place['canary'], 'user.x', b'1')\n    return True",
    "a directory": "os.mkdir(place['folder'] + '/made')\n    return True",
    "a link": "os.symlink('/', place['folder'] + '/link')\n    return True",
    "a second name": "os.link(place['canary'], place['folder'] + '/second')\n    return True",
    "another name": "os.rename(place['canary'], place['folder'] + '/moved')\n    return True",
    "no file any more": "os.unlink(place['canary'])\n    return True",
    "a pipe with a name": "os.mkfifo(place['folder'] + '/fifo')\n    return True",
    "a temporary file": "import tempfile\n    tempfile.NamedTemporaryFile(delete=False).write(b'x')\n    return True",
    "shared memory": "open('/dev/shm/lm_eval_exl2', 'w').write('x')\n    return True",
    "the standard library": "open(os.path.dirname(os.__file__) + '/poison.py', 'w').write('x')\n    return True",
    "the current directory": "open('written', 'w').write('x')\n    return True",
    "a file without a name": "return os.write(syscall(319, 279, b'x', 0), b'x' * (1 << 20)) > 0",
    "entropy for everyone": "return any(works(os.write, os.open('/dev/' + d, os.O_WRONLY), b'x') for d in ('random', 'urandom', 'zero', 'full') if works(os.open, '/dev/' + d, os.O_WRONLY))",
    "a file as large as the disk": "os.posix_fallocate(os.open(place['folder'] + '/written', os.O_CREAT | os.O_RDWR), 0, 1 << 30)\n    return True",
}

_NETWORK = {
    "a TCP connection": "import socket\n    return bool(socket.create_connection(('127.0.0.1', place['tcp']), 1))",
    "a TCP connection by IPv6": "import socket\n    return bool(socket.create_connection(('::1', place['tcp']), 1))",
    "a UDP packet": "import socket\n    return socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', place['udp'])) > 0",
    "a UNIX socket": "import socket\n    s = socket.socket(socket.AF_UNIX)\n    s.connect(place['unix'])\n    return True",
    "an abstract socket": "import socket\n    s = socket.socket(socket.AF_UNIX)\n    s.connect('\\0' + place['abstract'])\n    return True",
    "a pair of sockets": "import socket\n    return bool(socket.socketpair())",
    "a listening socket": "import socket\n    return bool(socket.create_server(('127.0.0.1', 0)))",
    "a raw socket": "import socket\n    return bool(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))",
    "a socket to the kernel": "import socket\n    return bool(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))",
    "a name looked up": "import socket\n    return bool(socket.getaddrinfo('localhost', 80))  # needs a socket or /etc/hosts",
}

_PROCESSES = {
    "fork": "p = os.fork()\n    if p == 0:\n        import time\n        while True: time.sleep(1)\n    return True",
    "a daemon": "if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            import time\n            while True: time.sleep(1)\n        os._exit(0)\n    return True",
    "posix_spawn": "return os.posix_spawn('/bin/sleep', ['sleep', place['nap']], {}) > 0",
    "subprocess": "import subprocess\n    return subprocess.Popen(['/bin/sleep', place['nap']]).pid > 0",
    "os.system": "return os.system('sleep %s &' % place['nap']) == 0",
    "multiprocessing": "import multiprocessing, time\n    p = multiprocessing.Process(target=time.sleep, args=(86399,))\n    p.start()\n    return True",
    "a terminal of its own": "import pty\n    p, d = pty.fork()\n    if p == 0:\n        import time\n        while True: time.sleep(1)\n    return True",
    "exec": "os.execv('/bin/sleep', ['sleep', place['nap']])",
    "vfork": "return syscall(58, None) > 0",
    "clone": "p = syscall(56, 220, 17, 0, 0, 0, 0)\n    if p == 0:\n        import time\n        while True: time.sleep(1)\n    return True",
    "clone3": "a = (ctypes.c_uint64 * 8)()\n    a[4] = 17\n    p = syscall(435, 435, a, 64)\n    if p == 0:\n        import time\n        while True: time.sleep(1)\n    return True",
    "a program in memory": "d = syscall(319, 279, b'x', 0)\n    os.write(d, open('/bin/sleep', 'rb').read())\n    os.execv('/proc/self/fd/%d' % d, ['sleep', place['nap']])",
    "life without a starter": "return libc.prctl(1, 0, 0, 0, 0) == 0",
}

_OTHERS = {
    "a signal to a bystander": "os.kill(place['bystander'], 9)\n    return True",
    "a question to a bystander": "os.kill(place['bystander'], 0)\n    return True",
    "a signal to its starter": "os.kill(place['starter'], 10)\n    return True",
    "a signal to its group": "os.killpg(0, 9)\n    return True",
    "a signal to everyone": "os.kill(-1, 9)\n    return True",
    "a signal by thread": "return syscall(200, 130, place['bystander'], 9) == 0",
    "a signal by thread and group": "return syscall(234, 131, place['bystander'], place['bystander'], 9) == 0",
    "a signal with a value": "return syscall(129, 138, place['bystander'], 10, (ctypes.c_int * 32)(10, 0, -1)) == 0",
    "a handle of a process": "return syscall(434, 434, place['bystander'], 0) >= 0",
    "input as a signal": "import fcntl\n    r, w = os.pipe()\n    fcntl.fcntl(r, fcntl.F_SETOWN, place['bystander'])\n    return True",
    "a traced bystander": "return syscall(101, 117, 16, place['bystander'], 0, 0) == 0",
    "memory of a bystander": "b = ctypes.create_string_buffer(8)\n    v = (ctypes.c_size_t * 2)(ctypes.addressof(b), 8)\n    return syscall(310, 270, place['bystander'], v, 1, v, 1, 0) > 0",
    "limits of a bystander": "import resource\n    resource.prlimit(place['bystander'], resource.RLIMIT_NOFILE, (1, 1))\n    return True",
    "priority of a bystander": "os.setpriority(os.PRIO_PROCESS, place['bystander'], 19)\n    return True",
    "cores of a bystander": "os.sched_setaffinity(place['bystander'], {0})\n    return True",
    "schedule of a bystander": "os.sched_setscheduler(place['bystander'], os.SCHED_IDLE, os.sched_param(0))\n    return True",
    "disk priority of a bystander": "return syscall(251, 30, 1, place['bystander'], 3 << 13) == 0",
    "identity of root": "os.setuid(0)\n    return os.getuid() == 0",
    "a user of its own": "return os.getuid() == 0 or os.geteuid() == 0",
}

_KERNEL = {
    "new namespaces": "return syscall(272, 97, 0x10000000) == 0",
    "another's namespace": "return syscall(308, 268, os.open('/proc/self/ns/net', os.O_RDONLY), 0) == 0",
    "a mount": "return syscall(165, 40, b'none', b'/tmp', b'tmpfs', 0, 0) == 0",
    "another root": "os.chroot('/')\n    return True",
    "a key": "return syscall(248, 217, b'user', b'x', b'y', 1, ctypes.c_long(-3)) > 0",
    "a key ring": "return syscall(250, 219, 0, ctypes.c_long(-3), 1, 0, 0) > 0",
    "BPF": "return syscall(321, 280, 0, (ctypes.c_uint32 * 20)(1, 4, 4, 1), 80) >= 0",
    "performance counters": "return syscall(298, 241, (ctypes.c_uint32 * 32)(1, 128), 0, -1, -1, 0) >= 0",
    "faults handled by itself": "return syscall(323, 282, 1) >= 0",
    "io_uring": "return syscall(425, 425, 1, (ctypes.c_uint32 * 64)()) >= 0",
    "System V memory": "return syscall(29, 194, 0, 1 << 20, 0o1666) >= 0",
    "System V queues": "return syscall(68, 186, 0, 0o1666) >= 0",
    "System V semaphores": "return syscall(64, 190, 0, 1, 0o1666) >= 0",
    "POSIX queues": "return syscall(240, 180, b'x', 0o102, 0o666, 0) >= 0",
    "another personality": "return syscall(135, 92, 0x0040000) >= 0",
    "watched files": "return syscall(294, 26, 0) >= 0",
    "a terminal": "return os.open('/dev/ptmx', os.O_RDWR) >= 0",
    "input for the terminal": "import fcntl\n    fcntl.ioctl(os.open('/dev/tty', os.O_RDWR), 0x5412, b'x')\n    return True",
    "a file by handle": "return syscall(304, 265, -100, (ctypes.c_uint32 * 8)(8, 1), 0) >= 0",
    "a module": "return syscall(313, 273, 0, b'', 0) >= 0",
    "another clock": "return syscall(227, 112, 0, (ctypes.c_long * 2)(1, 0)) == 0",
    "another host name": "import socket\n    socket.sethostname('x')\n    return True",
    "locked memory": "return syscall(151, 230, 3) == 0",
    "pipes of a megabyte": "import fcntl\n    return fcntl.fcntl(os.pipe()[0], 1031, 1 << 20) > 0",
    "calls of another architecture": "return syscall(0x40000000 + 39, None) > 0",
    "more than a gigabyte": "pieces = []\n    for _ in range(1200): pieces.append(bytearray(os.urandom(1)) * (1 << 20))\n    return True",
    "shared pages beyond a gigabyte": "import mmap\n    return len([mmap.mmap(-1, 1 << 26) for _ in range(20)]) == 20",
    "a thousand descriptors": "return len([os.dup(0) for _ in range(1000)]) == 1000",
    "a core dump": "import resource\n    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))\n    return True",
    "more time": "import resource\n    resource.setrlimit(resource.RLIMIT_CPU, (10000, 10000))\n    return True",
}

EFFECTS = {
    f"{kind} {name}": f"{PRELUDE}\ndef attack(place):\n    {body}\n"
    for kind, bodies in (
        ("reads", _READS),
        ("writes", _WRITES),
        ("makes", _NETWORK),
        ("starts", _PROCESSES),
        ("touches", _OTHERS),
        ("takes", _KERNEL),
    )
    for name, body in bodies.items()
}
