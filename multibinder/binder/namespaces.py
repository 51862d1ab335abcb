"""The network namespaces of listeners: found by what a client names, and entered.

No descriptor of a namespace is kept. A request has those that it names; later, a listener's socket leads back to its
namespace (SIOCGSKNS). A namespace lives as long as a socket in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self, TypeVar

from multibinder.binder import namespace_names
from multibinder.binder.key import own_netns, short_cookie
from multibinder.kernel import netns
from multibinder.wire.errors import BindError, RequestError, errname
from multibinder.wire.kinds import OptionError
from multibinder.wire.messages import COULD_NOT_BIND
from multibinder.wire.options import COOKIE

T = TypeVar("T")

_DROP_IN = "the drop-in netns.conf (systemd/examples/multibinder.service.d)"
#: What entering a namespace needs, as a part of a sentence.
NEEDED = f"to enter it, the binder needs CAP_SYS_ADMIN: {_DROP_IN}"


class Namespace(NamedTuple):
    """A network namespace that a request names. ``path`` led to it, and may lead to another one later."""

    cookie: int
    descriptor: int
    path: str


#: The namespaces of the requests that are being answered, by cookie.
_in_use: dict[int, list[Namespace]] = {}


class Resolution:
    """The namespaces of one request. A context manager, which closes their descriptors.

    ``socket_in`` returns a socket of the binder in the namespace with a cookie, or None.
    """

    def __init__(self, socket_in: Callable[[int], socket.socket | None]) -> None:
        self._socket_in = socket_in
        self._cookies: dict[str, int] = {}
        self._opened: list[Namespace] = []

    def canonical(self, text: str, *, is_guest: bool, to_open: bool) -> str:
        """Return ``cookie:N`` for what a client names, and an empty text for the binder's own namespace.

        ``to_open``: sockets will be made there. Raises RequestError.
        """
        if text not in self._cookies:
            namespace_names.forget()
            self._cookies[text] = short_cookie(self._find(text, is_guest, to_open))
        cookie = self._cookies[text]
        return f"{COOKIE}{cookie}" if cookie else ""

    def _find(self, text: str, is_guest: bool, to_open: bool) -> int:
        if text.startswith(COOKIE):
            return self._find_cookie(text, int(text.removeprefix(COOKIE)), to_open)
        if text.isdecimal() and is_guest:
            raise _refused(text, errno.EPERM, "a PID of another PID namespace is another process here; give a name")
        path = path_of(text)
        try:
            descriptor = netns.open_netns(path)
        except OSError as error:
            raise _cannot_open(text, path, error) from error
        try:
            found = Namespace(netns.cookie_of_netns(descriptor), descriptor, path)
        except OSError as error:
            os.close(descriptor)
            raise _refused(text, error.errno or 0, remedy_for(error)) from error
        self._use(found)
        return found.cookie

    def _find_cookie(self, text: str, cookie: int, to_open: bool) -> int:
        if cookie == own_netns():
            return cookie
        known = self._socket_in(cookie)
        if known is not None and not to_open:
            return cookie
        if known is not None:
            with contextlib.suppress(OSError):
                self._use(Namespace(cookie, netns.netns_of(known), ""))
                return cookie
        for name in namespace_names.names_of(cookie):
            with contextlib.suppress(OSError):
                path = netns.path_of_name(name)
                descriptor = netns.open_netns(path)
                self._use(Namespace(netns.cookie_of_netns(descriptor), descriptor, path))
                return cookie
        raise _refused(
            text, errno.ENOENT, f"no listener and no name in {netns.DIRECTORY} leads to it; give a path or a PID"
        )

    def _use(self, found: Namespace) -> None:
        self._opened.append(found)
        _in_use.setdefault(found.cookie, []).append(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._opened:
            _in_use[each.cookie].remove(each)
            if not _in_use[each.cookie]:
                del _in_use[each.cookie]
            os.close(each.descriptor)
        self._opened.clear()


def path_of(text: str) -> str:
    """Return the file of a namespace that is named by a name, a PID or a path."""
    if text.startswith("/"):
        return text
    return netns.path_of_process(int(text)) if text.isdecimal() else netns.path_of_name(text)


def path_in_use(cookie: int) -> str:
    """Return the path that a request has named for a namespace; empty if it has named it in another way."""
    return next((each.path for each in _in_use.get(cookie, ()) if each.path), "")


def inside(cookie: int, sock: socket.socket | None, action: Callable[[], T]) -> T:
    """Call ``action`` in a namespace: one that a request has named, or that of ``sock``. Raises what ``action`` does.

    Raises OptionError, before ``action`` is called, if the namespace cannot be entered.
    """
    try:
        with _descriptor(cookie, sock) as descriptor:
            return netns.inside(descriptor, action)
    except netns.CannotEnterError as error:
        raise OptionError("netns", error, f": {remedy_for(error)}") from error


@contextlib.contextmanager
def _descriptor(cookie: int, sock: socket.socket | None) -> Iterator[int]:
    if cookie in _in_use:
        yield _in_use[cookie][0].descriptor
        return
    try:
        if sock is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        descriptor = netns.netns_of(sock)
    except OSError as error:
        raise netns.CannotEnterError(error.errno, error.strerror) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remedy_for(error: OSError) -> str:
    """Return what entering a namespace needs, as a part of a sentence."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return NEEDED
    return "it cannot be entered"


def _cannot_open(text: str, path: str, error: OSError) -> RequestError:
    number = error.errno or 0
    if isinstance(error, netns.NotANetworkNamespaceError):
        why = f"{path} is not a network namespace, or a symbolic link"
    elif number == errno.ENOENT:
        why = f"there is no {path} where the binder looks" + ("" if text.isdecimal() else "; see 'ip netns list'")
    elif number in (errno.EPERM, errno.EACCES):
        needed = "CAP_SYS_PTRACE" if path.startswith("/proc/") else "CAP_DAC_READ_SEARCH"
        why = f"the binder may not open {path}: it needs {needed}, as in {_DROP_IN}"
    else:
        why = f"{path}: {os.strerror(number).lower()}"
    return _refused(text, number, why)


def _refused(text: str, number: int, why: str) -> BindError:
    data = {"errno": number, "errname": errname(number)}
    return BindError(f"Could not bind: the network namespace {text} cannot be used: {why}", COULD_NOT_BIND, data)
