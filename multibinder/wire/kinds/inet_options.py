"""Set and read the options of sockets of IPv4 and IPv6 (``wire/options.py`` describes them)."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

from multibinder.wire.kinds.kind import OptionError
from multibinder.wire.options import Options

#: asm-generic/socket.h, linux/in.h and linux/in6.h, as far as Python has no names.
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_BUF_LOCK = 32, 33, 72
_IP_FREEBIND, _IP_TRANSPARENT, _IPV6_FREEBIND, _IPV6_TRANSPARENT = 15, 19, 78, 75
_INTERFACE_BYTES = 16  # IFNAMSIZ
#: What setsockopt(2) fails with where the kernel has no such option for this kind of socket.
_UNKNOWN = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)

#: Options that are one number of the kernel, and the number that a new socket has.
_PLAIN = {
    "mark": (socket.SOL_SOCKET, socket.SO_MARK, 0),
    "mss": (socket.IPPROTO_TCP, socket.TCP_MAXSEG, 0),
    "defer_accept": (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0),
    "fastopen": (socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 0),
    "user_timeout": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0),
}
#: Options that IPv4 and IPv6 have by different numbers.
_BY_FAMILY = {
    ("freebind", socket.AF_INET): (socket.IPPROTO_IP, _IP_FREEBIND),
    ("freebind", socket.AF_INET6): (socket.IPPROTO_IPV6, _IPV6_FREEBIND),
    ("transparent", socket.AF_INET): (socket.IPPROTO_IP, _IP_TRANSPARENT),
    ("transparent", socket.AF_INET6): (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT),
    ("tos", socket.AF_INET): (socket.IPPROTO_IP, socket.IP_TOS),
    ("tos", socket.AF_INET6): (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
}
#: The kernel has a default of its own for these. Any of them switches SO_KEEPALIVE on.
_KEEPALIVE = {
    "keepalive_idle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    "keepalive_interval": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "keepalive_count": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
}
#: The option, the one that ignores the largest size, the bit of SO_BUF_LOCK (linux/socket.h) and the largest size.
_BUFFERS = {
    "rcvbuf": (socket.SO_RCVBUF, _SO_RCVBUFFORCE, 2, "rmem_max"),
    "sndbuf": (socket.SO_SNDBUF, _SO_SNDBUFFORCE, 1, "wmem_max"),
}
_FLAGS = ("freebind", "transparent")
#: What an option is called in socket(7), ip(7) and tcp(7).
_FEATURES = {
    "freebind": "IP_FREEBIND",
    "transparent": "IP_TRANSPARENT",
    "interface": "SO_BINDTODEVICE",
    "mark": "SO_MARK",
    "mss": "TCP_MAXSEG",
    "defer_accept": "TCP_DEFER_ACCEPT",
    "fastopen": "TCP_FASTOPEN",
    "user_timeout": "TCP_USER_TIMEOUT",
    "keepalive_idle": "TCP_KEEPIDLE",
    "keepalive_interval": "TCP_KEEPINTVL",
    "keepalive_count": "TCP_KEEPCNT",
    "tos": "IP_TOS",
    "rcvbuf": "SO_RCVBUF",
    "sndbuf": "SO_SNDBUF",
}
#: The capabilities without which the kernel answers EPERM.
_RIGHTS = {
    "transparent": "CAP_NET_ADMIN or CAP_NET_RAW",
    "interface": "CAP_NET_RAW",
    "mark": "CAP_NET_ADMIN or CAP_NET_RAW",
    "rcvbuf": "CAP_NET_ADMIN",
    "sndbuf": "CAP_NET_ADMIN",
}


def set_option(sock: socket.socket, option: str, value: Any) -> None:
    """Set an option; None gives it the default of a new socket back. Raises OptionError."""
    try:
        if option in _PLAIN:
            level, number, default = _PLAIN[option]
            sock.setsockopt(level, number, default if value is None else value)
        elif option in _BUFFERS:
            _set_buffer(sock, option, value)
        elif option in _KEEPALIVE:
            _set_keepalive(sock, option, value)
        elif option == "interface":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, (value or "").encode() + b"\0")
        else:
            level, number = _BY_FAMILY[option, sock.family]
            sock.setsockopt(level, number, int(value or 0))
            if option == "tos" and sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, value or 0)  # for its clients of IPv4
    except OSError as error:
        if value is None and error.errno in _UNKNOWN:
            return  # it was never set
        raise OptionError(option, error, _remedy(sock, option, value, error.errno)) from error


def set_all(sock: socket.socket, options: Options) -> None:
    """Set all options that are given and that sockets have before bind(2). Raises OptionError."""
    for option, value in options.given.items():
        if option in _FEATURES:
            set_option(sock, option, value)


def read_option(sock: socket.socket, option: str) -> Any:
    """Return the value of an option, as ``set_option`` takes it; None for an interface if there is none.

    A buffer has half the size that the kernel shows. Raises OSError.
    """
    if option == "interface":
        name = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _INTERFACE_BYTES)
        return name.rstrip(b"\0").decode(errors="replace") or None
    if option in _BUFFERS:
        return sock.getsockopt(socket.SOL_SOCKET, _BUFFERS[option][0]) // 2
    if option in _PLAIN:
        level, number, _ = _PLAIN[option]
    else:
        level, number = _KEEPALIVE[option] if option in _KEEPALIVE else _BY_FAMILY[option, sock.family]
    value = sock.getsockopt(level, number)
    return bool(value) if option in _FLAGS else value


def options_set(sock: socket.socket, options: frozenset[str]) -> dict[str, Any]:
    """Return those of ``options`` that have not the value of a new socket. Raises OSError for a shortage."""
    found: dict[str, Any] = {}
    with _new_socket(sock) as new:
        for option in sorted(options & _FEATURES.keys()):
            with contextlib.suppress(OSError):  # this kernel has no such option
                value = read_option(sock, option)
                if value != read_option(new, option):
                    found[option] = value
    return found


def _set_buffer(sock: socket.socket, option: str, value: int | None) -> None:
    number, force, bit, _ = _BUFFERS[option]
    if value is None:
        with _new_socket(sock) as new:
            default = new.getsockopt(socket.SOL_SOCKET, number) // 2
        sock.setsockopt(socket.SOL_SOCKET, number, default)
        # Else the kernel never adapts the buffers of its connections to what they need (SOCK_RCVBUF_LOCK).
        locks = sock.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK)
        sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, locks & ~bit)
        return
    before = sock.getsockopt(socket.SOL_SOCKET, number) // 2
    sock.setsockopt(socket.SOL_SOCKET, number, value)
    # The kernel reduces it to the largest size without a word.
    if sock.getsockopt(socket.SOL_SOCKET, number) < 2 * value:
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, value)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, number, before)
            raise


def _set_keepalive(sock: socket.socket, option: str, value: int | None) -> None:
    level, number = _KEEPALIVE[option]
    if value is not None:
        sock.setsockopt(level, number, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return
    with _new_socket(sock) as new:
        defaults = {each: new.getsockopt(*each) for each in _KEEPALIVE.values()}
    sock.setsockopt(level, number, defaults[level, number])
    if all(sock.getsockopt(*each) == default for each, default in defaults.items()):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)


@contextlib.contextmanager
def _new_socket(like: socket.socket) -> Iterator[socket.socket]:
    with socket.socket(like.family, like.type, like.proto) as sock:
        yield sock


def _remedy(sock: socket.socket, option: str, value: Any, number: int | None) -> str:
    """Return what follows the kernel's message: what the option needs."""
    feature = _FEATURES[option]
    if option == "tos" and sock.family == socket.AF_INET6:
        feature = "IPV6_TCLASS"
    if number == errno.EPERM and option in _BUFFERS:
        setting = _BUFFERS[option][3]
        return (
            f": net.core.{setting} is {_core_setting(setting)}; raise it ('sysctl -w net.core.{setting}={value}'), or "
            "give the binder CAP_NET_ADMIN (drop-in socket-options.conf)"
        )
    if number == errno.EPERM and option in _RIGHTS:
        return f": {feature} needs {_RIGHTS[option]} in the binder (drop-in socket-options.conf)"
    if number == errno.ENODEV:
        return f": no interface has the name {value} in the listener's network namespace ('ip link')"
    if number in _UNKNOWN:
        return f": this kernel has no {feature} for such a socket; bind without it"
    if number == errno.EINVAL and option == "mss":
        return f": {feature} is a number from 88 to 32767"
    return f": {feature}"


def _core_setting(name: str) -> str:
    try:
        with open(f"/proc/sys/net/core/{name}") as setting:
            return setting.read().strip()
    except OSError:
        return "too small"
