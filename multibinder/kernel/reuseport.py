"""Groups of sockets on one address (SO_REUSEPORT, socket(7)): move connections to another one, steer new ones.

A socket joins its group in listen(2), a datagram socket in bind(2). Members belong to one user. The kernel numbers them
in the order of joining; the last one takes the number of one that leaves (net/core/sock_reuseport.c). A program belongs
to the group, and stays when the process that attached it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Sequence

from multibinder.kernel.netns import inside, netns_of, own_cookie
from multibinder.kernel.socket_options import netns_cookie_of

#: asm-generic/socket.h.
_SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF, _SO_DETACH_REUSEPORT_BPF = 51, 52, 68
#: linux/bpf_common.h, linux/filter.h: A = a random number; A = A % operand; skip one unless A == operand; return.
_LOAD_WORD, _MODULO, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x94, 0x15, 0x06
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_INSTRUCTION = struct.Struct("=HBBI")


def attach_migration(member: socket.socket, program: int) -> None:
    """Give a group the program of ``bpf.load_migrating_program``. Needs no privilege. Raises OSError."""
    member.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_EBPF, struct.pack("i", program))


def steer(member: socket.socket, numbers: Sequence[int]) -> None:
    """Give new connections to the members of a group with these numbers only, at random. Needs no privilege.

    A handshake that has begun goes on where it began. Raises OSError.
    """
    program = _INSTRUCTION.pack(_LOAD_WORD, 0, 0, _RANDOM) + _INSTRUCTION.pack(_MODULO, 0, 0, len(numbers))
    for index, number in enumerate(numbers):
        program += _INSTRUCTION.pack(_JUMP_IF_EQUAL, 0, 1, index) + _INSTRUCTION.pack(_RETURN, 0, 0, number)
    program += _INSTRUCTION.pack(_RETURN, 0, 0, numbers[0])
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


def migrates_by_setting(sock: socket.socket) -> bool:
    """Return whether net.ipv4.tcp_migrate_req is 1 in the network namespace of a socket.

    False if it cannot be read: before Linux 5.14, and for another namespace without the right to enter it.
    """
    with contextlib.suppress(OSError):
        if netns_cookie_of(sock) == own_cookie():
            return _reads_one()
        descriptor = netns_of(sock)
        try:
            return inside(descriptor, _reads_one)
        finally:
            os.close(descriptor)
    return False


def _reads_one() -> bool:
    with open("/proc/sys/net/ipv4/tcp_migrate_req") as setting:
        return setting.read().strip() == "1"
