"""The errors that the manual pages of the system calls allow, as far as the kernel can cause them in a correct program.

Errors of a wrong argument (EFAULT, EINVAL, EBADF, ENOTSOCK …) are left out. So are calls that cannot fail with correct
arguments (getpid(2), rt_sigprocmask(2), clock_gettime(2) …), and the calls that the sweep never touches: close(2),
munmap(2), whose failure leaves nothing to repair, and the exits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_NO_DESCRIPTOR = ("EMFILE", "ENFILE")
_NO_MEMORY = ("ENOMEM",)

ERRORS: Mapping[str, Sequence[str]] = {
    "accept4": (*_NO_DESCRIPTOR, "ENOMEM", "ENOBUFS", "ECONNABORTED", "EPERM"),
    "bind": ("EADDRINUSE", "EACCES", "ENOMEM", "ENOSPC"),
    "bpf": ("EPERM", "ENOMEM"),
    "chmod": ("EPERM", "EROFS", "EIO"),
    "chown": ("EPERM", "EROFS", "EIO"),
    "clone": ("EAGAIN", "ENOMEM"),
    "clone3": ("EAGAIN", "ENOMEM"),
    "connect": ("EAGAIN", "ECONNREFUSED", "EACCES"),
    "dup": _NO_DESCRIPTOR[:1],
    "dup2": ("EMFILE", "EBUSY"),
    "dup3": ("EMFILE", "EBUSY"),
    "epoll_create1": (*_NO_DESCRIPTOR, "ENOMEM"),
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "epoll_wait": ("EINTR",),
    "epoll_pwait": ("EINTR",),
    "execve": ("ENOENT", "EACCES", "E2BIG", "ENOMEM", "ETXTBSY"),
    "fallocate": ("ENOSPC", "EIO", "EOPNOTSUPP"),
    "fchmod": ("EPERM", "EROFS", "EIO"),
    "fchown": ("EPERM", "EROFS", "EIO"),
    "fcntl": ("EMFILE",),
    "fdatasync": ("EIO", "ENOSPC"),
    "flock": ("EINTR", "ENOLCK"),
    "fork": ("EAGAIN", "ENOMEM"),
    "fstat": _NO_MEMORY,
    "fsync": ("EIO", "ENOSPC"),
    "ftruncate": ("EIO", "EINTR"),
    "getdents64": ("ENOENT", "EIO"),
    "getsockopt": ("ENOBUFS", "ENOMEM"),
    "inotify_add_watch": ("ENOSPC", "ENOMEM", "ENOENT", "EACCES"),
    "inotify_init1": ("EMFILE", "ENOMEM"),
    "kill": ("EPERM", "ESRCH"),
    "link": ("ENOSPC", "EIO", "EPERM"),
    "linkat": ("ENOSPC", "EIO", "EPERM", "EEXIST"),
    "listen": ("EADDRINUSE",),
    "lstat": ("ENOMEM", "EACCES"),
    "memfd_create": (*_NO_DESCRIPTOR, "ENOMEM"),
    "mkdir": ("ENOSPC", "EACCES"),
    "mmap": _NO_MEMORY,
    "mprotect": _NO_MEMORY,
    "newfstatat": ("ENOMEM", "EACCES"),
    "open": (*_NO_DESCRIPTOR, "ENOMEM", "EACCES", "ENOSPC"),
    "openat": (*_NO_DESCRIPTOR, "ENOMEM", "EACCES", "ENOSPC"),
    "pidfd_open": (*_NO_DESCRIPTOR, "ENOMEM", "ESRCH"),
    "pipe2": _NO_DESCRIPTOR,
    "poll": ("EINTR", "ENOMEM"),
    "ppoll": ("EINTR", "ENOMEM"),
    "pread64": ("EIO",),
    "prlimit64": ("EPERM",),
    "pwrite64": ("ENOSPC", "EIO"),
    "read": ("EIO", "EINTR"),
    "readlink": ("ENOENT", "EACCES", "ENOMEM"),
    "readlinkat": ("ENOENT", "EACCES", "ENOMEM"),
    "recvfrom": ("ENOMEM", "ECONNRESET", "EINTR"),
    "recvmsg": ("ENOMEM", "ECONNRESET", "EINTR"),
    "rename": ("ENOSPC", "EIO", "EACCES"),
    "renameat": ("ENOSPC", "EIO", "EACCES"),
    "renameat2": ("ENOSPC", "EIO", "EACCES"),
    "sendmsg": ("EAGAIN", "ENOBUFS", "ENOMEM", "EPIPE", "ETOOMANYREFS"),
    "sendto": ("EAGAIN", "ENOBUFS", "ENOMEM", "EPIPE"),
    "setsockopt": ("ENOMEM", "EPERM"),
    "shutdown": ("ENOTCONN",),
    "socket": (*_NO_DESCRIPTOR, "ENOMEM", "ENOBUFS"),
    "socketpair": (*_NO_DESCRIPTOR, "ENOMEM"),
    "stat": ("ENOMEM", "EACCES"),
    "statx": ("ENOMEM", "EACCES"),
    "truncate": ("EIO", "EINTR"),
    "unlink": ("EIO", "EACCES", "EROFS"),
    "unlinkat": ("EIO", "EACCES", "EROFS"),
    "utimensat": ("EPERM", "EROFS"),
    "vfork": ("EAGAIN", "ENOMEM"),
    "wait4": ("EINTR", "ECHILD"),
    "waitid": ("EINTR", "ECHILD"),
    "write": ("ENOSPC", "EIO", "EPIPE", "EAGAIN"),
    "writev": ("ENOSPC", "EIO", "EPIPE"),
}

#: Calls that the sweep leaves alone: they cannot fail with correct arguments, or a failure has no consequence. brk(2)
#: returns an address in any case; glibc would take an injected error for one.
EXEMPT = frozenset(
    {
        "access", "alarm", "arch_prctl", "brk", "clock_gettime", "clock_nanosleep", "close", "close_range", "exit",
        "exit_group", "faccessat", "faccessat2", "fadvise64", "futex", "getcwd", "getegid", "geteuid", "getgid",
        "getgroups", "getpeername", "getpid", "getppid", "getrandom", "getrlimit", "getsockname", "gettid", "getuid",
        "inotify_rm_watch", "ioctl", "kcmp", "lseek", "madvise", "mremap", "munmap", "pidfd_send_signal", "prctl",
        "pselect6", "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity",
        "sched_yield", "set_robust_list", "set_tid_address", "setitimer", "sigaltstack", "sysinfo", "tgkill",
        "timer_settime", "umask", "uname",
    }
)  # fmt: skip
