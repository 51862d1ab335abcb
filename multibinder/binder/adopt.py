"""The method ``adopt``: take over the listeners of a program that has opened them without the binder.

The client, ``multibinder adopt``, has copied them out of the program with its own rights, so the binder needs none. It
asks twice: the first request gets the permission to send descriptors, the second one has them. The binder believes
nothing of a request but what the kernel says of the sockets.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import time
from collections.abc import Callable, Collection, Generator, Sequence

import msgspec

from multibinder.binder import events
from multibinder.binder.answer import Answer, Reply, result
from multibinder.binder.caller import Caller
from multibinder.binder.key import Key, netns_of, own_netns
from multibinder.binder.listener import Listener
from multibinder.binder.listener_methods import Answering, StoreDescriptors
from multibinder.binder.owner import Owner, is_privileged, owner_named
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.records import Record
from multibinder.binder.store import ListenerStore
from multibinder.kernel.socket_options import cookie_of, inode_of, is_connected, netns_cookie_of
from multibinder.wire import kinds, messages
from multibinder.wire.addresses import Address
from multibinder.wire.adopt_params import Adopted, AdoptParams, AdoptResult, decode_adopt_params
from multibinder.wire.errors import RequestError
from multibinder.wire.listener_params import check_spec
from multibinder.wire.messages import LIMIT_REACHED, ListenerSpec, Request
from multibinder.wire.options import COOKIE

_NOT_KEPT = "this listener would not survive a crash of the binder; its log says why"


#: Takes listeners that share an address, each with the processes that hold it.
WatchHolders = Callable[[Sequence[tuple[Listener, Collection[int]]]], None]


class _Asked(msgspec.Struct, frozen=True):
    """One element of a request that the policy allows; see ``AdoptParams``."""

    spec: ListenerSpec
    owner: Owner
    holders: Sequence[int]
    moves_clients: bool


class _Verified(msgspec.Struct, frozen=True):
    """A socket that is what its element says. ``held`` is the listener if the binder has this socket already."""

    asked: _Asked
    socket: socket.socket
    held: Listener | None


class Adoption:
    """Answer requests to adopt sockets.

    ``keeper`` stores them before the answer; None if there is no keeper. ``own_inodes`` returns the inodes of the
    control sockets, which are no listeners. ``watch_holders`` watches the holders of shards (``AdoptedGroups``).
    """

    def __init__(
        self,
        store: ListenerStore,
        policy: PolicyInForce,
        keeper: StoreDescriptors | None,
        own_inodes: Callable[[], Collection[int]] = frozenset,
        watch_holders: WatchHolders = lambda adopted: None,
    ) -> None:
        self._store = store
        self._policy = policy
        self._keeper = keeper
        self._own_inodes = own_inodes
        self._watch_holders = watch_holders

    def adopt(self, request: Request, caller: Caller, reply: Reply) -> Answering:
        descriptors, all_came = caller.intake.take()
        try:
            if not all_came:
                sentence = "the binder is at its limit of open files (LimitNOFILE= in its unit)"
                raise _refused_all(f"the kernel dropped descriptors on their way: {sentence}")
            asked = yield from self._allowed(decode_adopt_params(request.params), caller)
            if not descriptors:
                caller.intake.permit(len(asked))
                return result(request.id, AdoptResult(send=len(asked), uid=os.geteuid()))
            if len(descriptors) != len(asked):
                raise _refused_all(f"{len(asked)} descriptors were to come, and {len(descriptors)} did")
            verified = yield from self._verify(asked, descriptors)
        finally:
            for descriptor in descriptors:  # the sockets have copies of their own
                os.close(descriptor)
        try:
            adopted = self._take_over(verified)
        except BaseException:
            for each in verified:
                each.socket.close()
            raise
        return self._answer(request, caller, reply, verified, adopted)

    def _allowed(self, params: Sequence[AdoptParams], caller: Caller) -> Generator[None, None, list[_Asked]]:
        """Return the elements of a request, after the policy allowed them. Raises RequestError and NotAllowed."""
        if not is_privileged(caller.uid):  # a client of another PID namespace never is
            raise RequestError(
                "Not allowed to adopt: only root and the binder's own user may hand sockets to the binder, from its "
                f"own PID namespace (uid {caller.uid}, pid {caller.pid})",
                messages.NOT_ALLOWED,
            )
        asked = []
        for index, element in enumerate(params):
            yield
            spec, owner = check_spec(index, element), owner_named(element.owner, caller.uid)
            spec = msgspec.structs.replace(spec, netns=_canonical(spec.netns))
            self._policy.require_allowed_for(caller, "adopt", spec, self._store.find(spec, owner.uid))
            asked.append(_Asked(spec, owner, element.holders, element.moves_clients))
        return asked

    def _verify(self, asked: Sequence[_Asked], descriptors: Sequence[int]) -> Generator[None, None, list[_Verified]]:
        """Return the sockets of all descriptors, which the caller owns. Raises RequestError if one is refused."""
        verified: list[_Verified] = []
        own_inodes, seen = self._own_inodes(), set[int]()
        try:
            for each, descriptor in zip(asked, descriptors, strict=True):
                yield
                address = each.spec.address
                sock = _socket_of(descriptor, address)
                verified.append(_Verified(each, sock, self._held(each.spec, sock)))
                if inode_of(sock) in own_inodes:
                    raise _refused(address, "it is the control socket of this binder")
                if (cookie := cookie_of(sock)) in seen:
                    raise _refused(address, "the same socket came twice in one request")
                seen.add(cookie)
                _require_listener(sock, each.spec)
        except BaseException:
            for one in verified:
                one.socket.close()
            raise
        return verified

    def _held(self, spec: ListenerSpec, sock: socket.socket) -> Listener | None:
        """Return the listener whose socket this is, or None."""
        cookie = cookie_of(sock)
        return next((each for each in self._store.listeners() if each.cookie == cookie), None)

    def _take_over(self, verified: Sequence[_Verified]) -> list[Listener]:
        """Hold the sockets that are not held yet, and return all listeners. Raises RequestError; none is held then."""
        new = [each for each in verified if each.held is None]
        groups: dict[Key, set[int]] = {}
        chosen: list[int] = []
        for each in new:
            key = Key.of(msgspec.structs.replace(each.asked.spec, shard=0))
            numbers = groups.setdefault(key, {other.shard for other in self._store.shards_on(key)})
            if numbers and not kinds.of_address(key.address).can_shard:
                raise _refused(key.address, "this binder holds another socket for this address; release that one first")
            number = next(number for number in itertools.count() if number not in numbers)
            numbers.add(number)
            chosen.append(number)
        if len(new) > self._store.room:
            sentence = "this binder holds its limit of listeners (multibinder serve --max-listeners)"
            raise RequestError(f"Could not adopt: {sentence}", LIMIT_REACHED, {"limit": "listeners"})
        records: list[Record] = []
        for each, number in zip(new, chosen, strict=True):
            address, is_alone = each.asked.spec.address, len(groups[Key.of(each.asked.spec)]) == 1
            records.append(_record(each, number, is_alone=is_alone))
            kinds.of_address(address).prepare_adopted(each.socket, address)
            if is_alone:
                with contextlib.suppress(OSError):  # the command has done it before, with more rights
                    kinds.of_address(address).take_alone(each.socket, address)
        try:
            adopted = iter(self._store.adopt([(each.socket, one) for each, one in zip(new, records, strict=True)]))
        except OSError as error:
            why = f"the binder cannot record the owner: {error.strerror}; see 'journal-lost' in its log, and try again"
            raise _refused_all(why) from error
        listeners = [each.held or next(adopted) for each in verified]
        asked = [each.asked for each in verified]
        pairs = zip(listeners, asked, strict=True)
        self._watch_holders([(each, its.holders) for each, its in pairs if len(self._store.shards_on(each.key)) > 1])
        return listeners

    def _answer(
        self,
        request: Request,
        caller: Caller,
        reply: Reply,
        verified: Sequence[_Verified],
        listeners: Sequence[Listener],
    ) -> Answer | None:
        """Answer when the keeper has the listeners."""
        new = []
        for each, listener in zip(verified, listeners, strict=True):
            if each.held is not None:
                each.socket.close()
                continue
            new.append(listener)
            events.limited(
                events.info,
                "adopted",
                caller.uid,
                address=listener.address,
                owner=each.asked.owner.label or "-",
                backlog=listener.queue_limit,
                pid=caller.pid,
                uid=caller.uid,
            )

        def answer(caution: str | None) -> Answer:
            outcomes = [
                Adopted(
                    str(listener.address),
                    "adopted" if each.held is None else "held",
                    listener.shard,
                    listener.queue_limit,
                    caution if each.held is None and not listener.kept else None,
                )
                for each, listener in zip(verified, listeners, strict=True)
            ]
            return result(request.id, AdoptResult(listeners=outcomes))

        if self._keeper is None or not new:
            return answer(None)

        def confirmed(kept: Collection[str]) -> None:
            for listener in new:
                listener.note_kept(kept)
            reply(answer(_NOT_KEPT))

        self._keeper.keep([listener.for_keeper() for listener in new], confirmed)
        return None


def _socket_of(descriptor: int, address: Address) -> socket.socket:
    """Return a copy of a descriptor that was sent to us, as a socket. The caller owns it. Raises RequestError."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise _refused(address, "the descriptor that came is no socket")
    return socket.socket(fileno=os.dup(descriptor))


def _require_listener(sock: socket.socket, spec: ListenerSpec) -> None:
    """Raise RequestError unless the kernel says that this is a listener on the address of ``spec``."""
    address, kind = spec.address, kinds.of_address(spec.address)
    if kinds.of_socket(sock) is not kind:
        raise _refused(address, f"the socket that came is of another kind ({sock.family!r}, {sock.type!r})")
    try:
        if is_connected(sock):
            raise _refused(address, "the socket that came is connected to a client")
        if not kind.is_bound_to(sock, address):
            raise _refused(address, f"the socket that came is bound to {kind.address_of(sock)}")
        if not kind.is_ready(sock):
            raise _refused(address, "the socket that came does not listen")
        if not kind.is_reachable(sock, address):
            raise _refused(address, "clients do not reach the socket that came at this address")
    except OSError as error:
        raise _refused(address, f"the kernel says of the socket that came: {error.strerror}") from error
    cookie = netns_cookie_of(sock)
    if address.is_in_netns and spec.netns != _canonical(f"{COOKIE}{cookie}"):
        raise _refused(address, f"the socket that came is in another network namespace ({COOKIE}{cookie})")


def _canonical(netns: str) -> str:
    """Return the text for a network namespace, which is empty for the binder's own."""
    return "" if netns == f"{COOKIE}{own_netns()}" else netns


def _record(each: _Verified, shard: int, *, is_alone: bool) -> Record:
    """Return the record of a listener that its owner has bound with the options that its socket has."""
    owner, sock, name = each.asked.owner, each.socket, each.asked.spec.options.name
    kind = kinds.of_address(each.asked.spec.address)
    found = kind.options_of(sock).given
    return Record(
        str(each.asked.spec.address),
        cookie_of(sock),
        inode_of(sock),
        claims={str(owner): 1},
        name=name,
        name_uid=owner.uid if name else None,
        backlog=kind.queue(sock).limit or None,
        handoffs=1,
        created=time.time(),
        netns=netns_of(each.asked.spec),
        shard=shard,
        adopted_shard=not is_alone,
        has_program=each.asked.moves_clients and not is_alone,
        options={option: value for option, value in found.items() if option in kind.live_options},
    )


def _refused(address: Address, why: str) -> RequestError:
    return RequestError(f"Could not adopt: {address}: {why}", messages.COULD_NOT_ADOPT, {"address": str(address)})


def _refused_all(why: str) -> RequestError:
    return RequestError(f"Could not adopt: {why}", messages.COULD_NOT_ADOPT)
