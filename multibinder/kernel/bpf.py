"""Load one BPF program with bpf(2): for a reuseport group, it lets the kernel move connections to another socket.

Of a group of sockets on one address (SO_REUSEPORT), the program of type SK_REUSEPORT chooses the socket for a
connection. This one chooses none, so that the kernel does, as without a program. Its attach type makes the difference:
with it, the connections in the queue of a socket that stops to listen move to another one of the group
(reuseport_migrate_sock() in net/core/sock_reuseport.c). bpf(2) loads the two instructions; no compiler is needed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

#: The number of bpf(2): asm-generic/unistd.h, and the tables of the older architectures.
_SYSCALLS = {"x86_64": 321, "i386": 357, "i686": 357, "s390x": 351, "ppc64le": 361, "ppc64": 361}
_GENERIC_SYSCALL = 280
#: linux/bpf.h.
_PROG_LOAD, _PROG_TYPE_SK_REUSEPORT, _SELECT_OR_MIGRATE = 5, 21, 40
_SK_PASS = 1
#: Pairs of opcode and operand: ``r0 = SK_PASS`` (BPF_ALU64 | BPF_MOV | BPF_K), ``exit`` (BPF_JMP | BPF_EXIT).
_INSTRUCTIONS = struct.pack("=BBhi", 0xB7, 0, 0, _SK_PASS) + struct.pack("=BBhi", 0x95, 0, 0, 0)
#: The kernel reads the attributes up to ``expected_attach_type``; what follows is zero (union bpf_attr).
_ATTRIBUTES = struct.Struct("=IIQQIIQII16sII")
_LICENSE = b"MIT\0"
_NAME = b"multibinder"

_libc = ctypes.CDLL(None, use_errno=True)


def load_migrating_program() -> int:
    """Load the program and return its descriptor, close-on-exec, which the caller owns.

    Raises OSError: EPERM without CAP_BPF, EINVAL before Linux 5.14, ENOSYS where bpf(2) is filtered or absent.
    """
    instructions = ctypes.create_string_buffer(_INSTRUCTIONS, len(_INSTRUCTIONS))
    license_ = ctypes.create_string_buffer(_LICENSE)
    attributes = _ATTRIBUTES.pack(
        _PROG_TYPE_SK_REUSEPORT,
        len(_INSTRUCTIONS) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license_),
        0,  # no log of the verifier
        0,
        0,
        0,
        0,
        _NAME,
        0,
        _SELECT_OR_MIGRATE,
    )
    argument = ctypes.create_string_buffer(attributes, len(attributes))
    number = _SYSCALLS.get(platform.machine(), _GENERIC_SYSCALL) if sys.platform == "linux" else _GENERIC_SYSCALL
    descriptor: int = _libc.syscall(number, _PROG_LOAD, ctypes.byref(argument), len(attributes))
    if descriptor < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    os.set_inheritable(descriptor, False)  # the kernel has set FD_CLOEXEC already (bpf_prog_new_fd())
    return descriptor
