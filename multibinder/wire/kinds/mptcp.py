"""Multipath TCP (RFC 8684). Clients without it are served as well."""

from __future__ import annotations

import errno
import socket
from typing import ClassVar

from multibinder.wire.addresses import Address, MptcpAddress
from multibinder.wire.addresses.inet import InetAddress
from multibinder.wire.kinds.inet import inet
from multibinder.wire.kinds.tcp import Tcp


class Mptcp(Tcp):
    """TCP but for the protocol of the socket. Its queue, its repair and its end are TCP's.

    Its sockets take ports of TCP: a TCP listener cannot be beside one on the same address.
    """

    name: ClassVar[str] = "mptcp"
    # Without SO_BUF_LOCK, sizes of buffers cannot be taken off again. TCP_USER_TIMEOUT is not known to it.
    fixed_options = Tcp.fixed_options | {"rcvbuf", "sndbuf"}
    live_options = Tcp.live_options - {"rcvbuf", "sndbuf", "user_timeout"}

    # The kernel takes no program for a group of them, and a connection of an MPTCP client that it moves to another
    # socket, with net.ipv4.tcp_migrate_req=1, is never accepted. So a shard could not go without losing clients.
    can_shard = False
    moves_clients = False

    protocol = socket.IPPROTO_MPTCP
    address_type = MptcpAddress

    def recognizes(self, sock: socket.socket) -> bool:
        return super().recognizes(sock) and sock.proto == socket.IPPROTO_MPTCP

    def effective_addresses(self, address: Address, v6only: bool | None) -> tuple[InetAddress, ...]:
        return super().effective_addresses(_tcp(address), v6only)

    def explain_refusal(self, address: Address, number: int, holders: str | None) -> str | None:
        if number in (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT):
            return (
                ": this kernel has no Multipath TCP (CONFIG_MPTCP), or it is switched off "
                f"('sysctl -w net.mptcp.enabled=1'); or bind {_tcp(address)}, which every client reaches"
            )
        return super().explain_refusal(address, number, holders)


MPTCP = Mptcp()


def _tcp(address: Address) -> InetAddress:
    return address.tcp if isinstance(address, MptcpAddress) else inet(address)
