"""Groups of sockets on one address (SO_REUSEPORT, socket(7)): move connections to another one, steer new ones.

A socket joins its group in listen(2), a datagram socket in bind(2). Members belong to one user. The kernel numbers them
in the order of joining; the last one takes the number of one that leaves (net/core/sock_reuseport.c). A program belongs
to the group, and stays when the process that attached it ends.
"""

from __future__ import annotations

import ctypes
import socket
import struct

#: asm-generic/socket.h.
_SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF, _SO_DETACH_REUSEPORT_BPF = 51, 52, 68
#: linux/bpf_common.h, linux/filter.h: A = a random number; A = A % operand; return A.
_LOAD_WORD, _MODULO, _RETURN_A = 0x20, 0x94, 0x16
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_INSTRUCTION = struct.Struct("=HBBI")


def is_shared(sock: socket.socket) -> bool:
    """Return whether a socket has SO_REUSEPORT: others of its user can join its group."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def set_shared(sock: socket.socket, shared: bool) -> None:
    """Set SO_REUSEPORT, or take it away. A member of a group stays a member.

    Without it on the member that the kernel finds first, this one gets all connections.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)


def attach_migration(member: socket.socket, program: int) -> None:
    """Give a group the program of ``bpf.load_migrating_program``. Needs no privilege. Raises OSError."""
    member.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, struct.pack("i", program))


def steer_to_first(member: socket.socket, count: int) -> None:
    """Give new connections to the first ``count`` members of a group only, at random. Needs no privilege.

    A handshake that has begun goes on where it began. Raises OSError.
    """
    program = (
        _INSTRUCTION.pack(_LOAD_WORD, 0, 0, _RANDOM)
        + _INSTRUCTION.pack(_MODULO, 0, 0, count)
        + _INSTRUCTION.pack(_RETURN_A, 0, 0, 0)
    )
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    argument = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(instructions))
    member.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, argument)


def remove_program(member: socket.socket) -> None:
    """Take the program of a group away, if it has one: the kernel chooses by a hash of the addresses again."""
    try:
        member.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
    except FileNotFoundError:
        return


def migrates_by_setting() -> bool:
    """Return whether net.ipv4.tcp_migrate_req is 1 in the network namespace of the calling thread.

    False if it cannot be read: before Linux 5.14.
    """
    try:
        with open("/proc/sys/net/ipv4/tcp_migrate_req") as setting:
            return setting.read().strip() == "1"
    except OSError:
        return False
