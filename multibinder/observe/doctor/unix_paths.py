"""Report Unix listeners whose path does not lead to them."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.kernel.unix_diag import leads_to, unix_sockets
from multibinder.observe.doctor.facts import Binder, Facts
from multibinder.observe.doctor.finding import Finding, Unchecked
from multibinder.wire.addresses import Address
from multibinder.wire.errors import AddressError


def read_lost_paths(binder: Binder | None, unchecked: list[Unchecked]) -> tuple[str, ...]:
    """Return the addresses of the binder's listeners whose path does not lead to them, as this process sees the path.

    A listener whose socket is not in this network namespace is left out.
    """
    try:
        files = {sock.cookie: sock.file for sock in unix_sockets() if sock.file is not None}
    except OSError as error:
        unchecked.append(Unchecked("the paths of Unix sockets", str(error)))
        return ()
    found = []
    for listener in binder.listeners if binder else ():
        file, path = files.get(listener.cookie), _path_of(listener.address)
        if file is not None and path is not None and not leads_to(path, file):
            found.append(listener.address)
    return tuple(found)


def lost_paths(facts: Facts) -> Iterator[Finding]:
    """Report each listener whose clients get no connection, or another program."""
    for address in facts.lost_paths:
        yield Finding(
            check="lost-path",
            level="problem",
            what="the path of a Unix socket does not lead to it",
            where=address,
            why="The directory is missing, another program has a socket there, or the binder has a /tmp of its own "
            "(PrivateTmp=). The binder gives a path back as soon as it can; its log says why it cannot",
            remedy=f"ls -l {_path_of(address)}; journalctl -u multibinder | grep cannot-repair",
        )


def _path_of(address: str) -> str | None:
    try:
        return Address.parse(address).path
    except AddressError:  # of a newer binder
        return None
