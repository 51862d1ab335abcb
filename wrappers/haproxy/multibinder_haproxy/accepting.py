"""Ask HAProxy's workers which of the inherited listeners they accept connections on.

A bind in a ``disabled`` proxy, or in an ``.if`` that is false, is a descriptor that HAProxy ignores: the port is open,
no worker accepts, and nothing says so. ``show fd N`` (management guide) of a worker describes a descriptor that it
uses, with the state of its listener: ``l.st=RDY``. A worker has its descriptors under the numbers of the master.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from multibinder.launch.errors import LaunchError, Unreachable
from multibinder_haproxy.config.model import Config, Place, UnusedBind
from multibinder_haproxy.master import Master

#: The states of a listener that accepts, or will accept again: ready, full (``maxconn`` of the bind), limited
#: (``maxconn`` of the proxy or the process, a rate limit), paused (``disable frontend``). After ``shutdown frontend``
#: it is LIS, and no worker will ever accept (enum li_state in listener-t.h).
_ACCEPTING = frozenset(["RDY", "FUL", "LIM", "PAU"])
#: HAProxy 2.6 to 3.5-dev: ``      3 : st=0x020023(…) … l.st=RDY fe=web fam=ipv4 lport=80``.
_ENTRY = re.compile(r"\s*(\d+) : st=0x")
_LISTENER = re.compile(r"\bl\.st=(\w+)")
_WHY = "HAProxy does not accept connections on it"
#: One connection to the master CLI asks for this many descriptors, each in a line of its own.
_PER_QUESTION = 200


class CannotTell(LaunchError):
    """The workers do not say which listeners they accept on."""


def unused_binds(master: Master, workers: Sequence[int], config: Config, fds: Mapping[str, int]) -> list[UnusedBind]:
    """Return the binds of a configuration that none of the new ``workers`` accepts on.

    ``fds`` are the descriptors of HAProxy's master by slot key. Raises CannotTell.
    """
    accepting: set[int] = set()
    # HAProxy tells no state of a descriptor on which it receives datagrams; it shows those that it uses.
    datagrams = {fds[slot.key] for slot in config.slots if slot.key in fds and slot.is_of_datagrams}
    for worker in workers:
        states = _states(master, worker, sorted(set(fds.values())))
        accepting |= {fd for fd, state in states.items() if state in _ACCEPTING or fd in datagrams}
    unused = {key for key, fd in fds.items() if fd not in accepting}
    places = {place.key: place for place in reversed(config.places or _places(config))}
    return [
        UnusedBind(slot.key, place.file if place else "", place.line if place else 0, _WHY)
        for slot in config.slots
        if slot.key in unused
        for place in [places.get(slot.key)]
    ]


def parse_descriptors(answer: str) -> dict[int, str]:
    """Read answers of ``show fd``: the state of the listener of each descriptor, or an empty text without a listener.

    Raises CannotTell for any other text: an error, or the format of another version.
    """
    found = {}
    for line in answer.splitlines():
        if not line.strip():
            continue
        entry = _ENTRY.match(line)
        if entry is None:
            raise CannotTell(f"HAProxy answers 'show fd' with {line.strip()[:80]!r}")
        listener = _LISTENER.search(line)
        found[int(entry[1])] = listener[1] if listener else ""
    return found


def _places(config: Config) -> list[Place]:
    """Find the slots of a configuration that does not say where they stand: an earlier version made it."""
    return [
        Place(slot.key, target, number)
        for target, text in config.files.items()
        for number, line in enumerate(text.splitlines(), 1)
        for slot in config.slots
        if slot.placeholder in line
    ]


def _states(master: Master, worker: int, fds: Sequence[int]) -> dict[int, str]:
    """Return the state of the listener of each descriptor that a worker uses. Raises CannotTell."""
    found: dict[int, str] = {}
    for start in range(0, len(fds), _PER_QUESTION):
        questions = [f"@!{worker} show fd {fd}" for fd in fds[start : start + _PER_QUESTION]]
        answer = _ask(master, "\n".join(questions))
        # Each answer ends with an empty line. A master that re-executes itself answers half of the questions.
        if len([line for line in answer.splitlines() if not line]) < len(questions):
            raise CannotTell(f"HAProxy's master did not answer 'show fd' for each of {len(questions)} descriptors")
        found |= parse_descriptors(answer)
    if fds and not found and not parse_descriptors(_ask(master, f"@!{worker} show fd")):
        raise CannotTell(f"worker {worker} does not show its descriptors")  # every worker has some
    return found


def _ask(master: Master, questions: str) -> str:
    try:
        return master.ask(questions)
    except Unreachable as error:
        raise CannotTell(str(error)) from error


def sentences(unused: Collection[UnusedBind]) -> list[str]:
    """Return a sentence for each bind, with its file and line."""
    return [f"{_place(bind)}{bind.key}: {bind.why}" for bind in unused]


def _place(bind: UnusedBind) -> str:
    if not bind.file:
        return ""
    return f"{bind.file}:{bind.line}: " if bind.line else f"{bind.file}: "
