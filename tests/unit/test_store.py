"""The listener store is called directly, on real sockets."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from multibinder import BindError, ListenerSpec, Options, RequestError, TcpAddress
from multibinder.binder.bind_refusal import AddressInUse, Asker
from multibinder.binder.listener import Grant
from multibinder.binder.owner import Owner
from multibinder.binder.store import ListenerStore
from multibinder.kernel.accept_queue import accept_queue
from multibinder.kernel.socket_options import cookie_of
from multibinder.wire.status import OwnerStatus
from tests.support import (
    can_connect,
    descriptors_unchanged,
    is_nonblocking,
    own_port,
    require_ipv6,
    somaxconn,
)
from tests.support.stores import new_store


@pytest.fixture
def store() -> Iterator[ListenerStore]:
    store = new_store()
    yield store
    store.close()


def spec(
    address: str = "127.0.0.1:0", *, backlog: int | None = None, v6only: bool | None = None, name: str | None = None
) -> ListenerSpec:
    return ListenerSpec(TcpAddress.parse(address), Options(backlog, v6only, name))


def mine(label: str = "") -> Owner:
    return Owner(label, os.geteuid())


def bind(store: ListenerStore, *specs: ListenerSpec, owner: str = "") -> list[Grant]:
    return store.bind(specs, [mine(owner)] * len(specs))


def bind_one(store: ListenerStore, wanted: ListenerSpec | None = None, *, owner: str = "") -> Grant:
    [grant] = bind(store, wanted or spec(), owner=owner)
    return grant


def same(grant: Grant) -> ListenerSpec:
    """Return a spec that asks for the listener of ``grant`` by its address."""
    return ListenerSpec(grant.listener.address)


def sockaddr(grant: Grant) -> tuple[str, int]:
    host, port = grant.listener.address.sockaddr
    return host, port


def free_address() -> str:
    return f"127.0.0.1:{own_port()}"


@pytest.fixture
def taken() -> Iterator[str]:
    """The address of a listener that the store does not have."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield "{}:{}".format(*sock.getsockname())


# One key, one socket


def test_equal_addresses_get_the_same_socket(store: ListenerStore) -> None:
    first = bind_one(store)
    second = bind_one(store, same(first))
    assert second.listener is first.listener
    assert (first.created, second.created) == (True, False)
    assert len(store) == 1


def test_equal_addresses_in_one_request_get_the_same_socket(store: ListenerStore) -> None:
    address = free_address()
    first, second = bind(store, spec(address), spec(address))
    assert second.listener is first.listener
    assert len(store) == 1


def test_a_new_listener_takes_clients_at_once(store: ListenerStore) -> None:
    assert can_connect(sockaddr(bind_one(store)))


def test_port_0_without_a_name_is_a_new_listener_each_time(store: ListenerStore) -> None:
    grants = bind(store, spec(), spec()) + bind(store, spec())
    assert len({sockaddr(grant)[1] for grant in grants} - {0}) == 3


def test_port_0_with_a_name_is_found_again(store: ListenerStore) -> None:
    first = bind_one(store, spec(name="web"))
    assert sockaddr(first)[1] != 0
    assert bind_one(store, spec(name="web")).listener is first.listener
    assert bind_one(store, same(first)).listener is first.listener


def test_a_name_is_found_again_in_the_same_request(store: ListenerStore) -> None:
    first, second = bind(store, spec(name="web"), spec(name="web"))
    assert first.listener is second.listener


def test_a_listener_can_get_a_name_later(store: ListenerStore) -> None:
    first = bind_one(store)
    bind_one(store, ListenerSpec(first.listener.address, Options(name="web")))
    assert bind_one(store, spec(name="web")).listener is first.listener


def test_a_name_is_free_again_after_the_release(store: ListenerStore) -> None:
    first = bind_one(store, spec(name="web"))
    assert store.release(spec(name="web"), mine("")).outcome == "closed"
    assert bind_one(store, spec(name="web")).listener is not first.listener


def test_one_name_never_stands_for_two_listeners(store: ListenerStore) -> None:
    one, other = bind(store, spec(), spec())
    with pytest.raises(BindError):
        bind(
            store,
            ListenerSpec(one.listener.address, Options(name="web")),
            ListenerSpec(other.listener.address, Options(name="web")),
        )


def test_the_binder_never_touches_the_blocking_mode(store: ListenerStore) -> None:
    grant = bind_one(store)
    assert not is_nonblocking(grant.listener.socket)
    with grant.listener.socket.dup() as holder:
        holder.setblocking(False)
        bind_one(store, spec(str(grant.listener.address), backlog=7))
        assert is_nonblocking(holder)


# What cannot change


def test_a_second_name_is_refused_while_another_owner_holds_the_listener(store: ListenerStore) -> None:
    grant = bind_one(store, spec(name="web"), owner="a")
    for renamer in ("b", "a"):
        with pytest.raises(BindError, match="exists with name web, and api was asked for; only its only") as refusal:
            bind_one(store, ListenerSpec(grant.listener.address, Options(name="api")), owner=renamer)
        assert refusal.value.address == str(grant.listener.address)
        assert store.statuses()[0].name == "web"
        bind_one(store, same(grant), owner="b")  # from now on, the owner of the name is not the only one either


def test_the_only_owner_can_rename_its_listener_and_the_old_name_is_gone(store: ListenerStore) -> None:
    grant = bind_one(store, spec(name="web"), owner="a")
    renamed = bind_one(store, ListenerSpec(grant.listener.address, Options(name="api")), owner="a")
    assert renamed.listener is grant.listener
    assert (store.statuses()[0].name, renamed.listener.record().name) == ("api", "api")
    assert bind_one(store, spec(name="api"), owner="a").listener is grant.listener
    assert bind_one(store, spec(name="web"), owner="a").listener is not grant.listener


def test_a_name_that_means_another_address_is_refused_with_both_values(store: ListenerStore) -> None:
    grant = bind_one(store, spec(name="web"))
    with pytest.raises(BindError, match=f"exists with address {grant.listener.address}, and 127.0.0.1:81 was asked"):
        bind_one(store, spec("127.0.0.1:81", name="web"))


def test_v6only_that_differs_is_refused_with_both_values(store: ListenerStore) -> None:
    require_ipv6()
    grant = bind_one(store, spec("[::1]:0", v6only=True))
    address = str(grant.listener.address)
    assert bind_one(store, spec(address)).listener is grant.listener, (
        "a request without the option gets the listener as it is"
    )
    assert bind_one(store, spec(address, v6only=True)).listener is grant.listener
    with pytest.raises(BindError, match="exists with v6only True, and False was asked for"):
        bind_one(store, spec(address, v6only=False))


def test_v6only_is_known_also_when_it_was_not_asked_for(store: ListenerStore) -> None:
    require_ipv6()
    grant = bind_one(store, spec("[::1]:0"))
    default = bool(grant.listener.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    with pytest.raises(BindError, match=f"exists with v6only {default}, and {not default} was asked for"):
        bind_one(store, spec(str(grant.listener.address), v6only=not default))


def test_a_conflict_inside_one_request_binds_nothing(store: ListenerStore) -> None:
    address = free_address()
    with descriptors_unchanged(), pytest.raises(BindError, match="exists with name a, and b was asked for"):
        bind(store, spec(address, name="a"), spec(address, name="b"))
    assert len(store) == 0


# All or nothing


def test_a_request_with_one_address_in_use_binds_nothing_and_leaks_nothing(store: ListenerStore, taken: str) -> None:
    first = spec(free_address())
    with descriptors_unchanged(), pytest.raises(BindError) as refusal:
        bind(store, first, spec(taken))
    assert refusal.value.address == taken
    assert refusal.value.data["errname"] == "EADDRINUSE"
    assert len(store) == 0
    assert not can_connect(first.address.sockaddr)


def test_a_refused_request_leaves_existing_listeners_as_they_were(store: ListenerStore, taken: str) -> None:
    grant = bind_one(store, spec(backlog=10), owner="a")
    before = store.statuses()
    with pytest.raises(BindError):
        bind(store, spec(str(grant.listener.address), backlog=20, name="new"), spec(taken), owner="b")
    assert store.statuses() == before


HOSTS = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "[::]", "[::]+v6only", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:0.0.0.0]"]


#: Not the two of one address: a listener is found by its address.
PAIRS = [pair for pair in itertools.combinations(HOSTS, 2) if pair != ("[::]", "[::]+v6only")]


def on(host: str, port: int) -> ListenerSpec:
    bare = host.removesuffix("+v6only")
    return spec(f"{bare}:{port}", v6only=("+" in host) if bare == "[::]" else None)


#: Where clients connect: to each specific address, and to addresses that only a wildcard takes.
TARGETS = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"]


def served_by(sockets: Sequence[socket.socket], port: int) -> dict[str, int]:
    """Return, for each target, the index of the listening socket that gets its clients. Refused ones are left out."""
    served: dict[str, int] = {}
    for target in TARGETS:
        try:
            clients = [socket.create_connection((target, port)) for _ in range(3)]
        except ConnectionRefusedError:
            continue
        with contextlib.ExitStack() as stack:
            for client in clients:
                stack.enter_context(client)
            waiting = [accept_queue(sock).length for sock in sockets]
            for sock, number in zip(sockets, waiting, strict=True):
                for _ in range(number):
                    sock.accept()[0].close()
        assert sorted(waiting) == [0] * (len(sockets) - 1) + [3], f"the clients of {target} were divided"
        served[target] = waiting.index(3)
    return served


def kernel_serves(specs: Sequence[ListenerSpec], *, reuseport: bool) -> dict[str, int] | None:
    """Return ``served_by`` of sockets on these addresses; None if the kernel refuses to let them listen together."""
    with contextlib.ExitStack() as stack:
        opened = []
        try:
            for each in specs:
                sock = stack.enter_context(socket.socket(each.address.family))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuseport)
                if each.options.v6only is not None:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, each.options.v6only)
                sock.bind(each.address.sockaddr)
                sock.listen()
                opened.append(sock)
        except OSError:
            return None
        return served_by(opened, TcpAddress.parse(str(specs[0].address)).port)


def expected_of(one: str, other: str) -> dict[str, int] | None:
    """Return which of two addresses gets the clients of each target; None if they cannot be beside each other.

    They can if the kernel gives each target to the same one in both orders, and each gets some.
    """
    port = own_port()
    there = kernel_serves([on(one, port), on(other, port)], reuseport=False)
    if there is not None:
        return there
    there = kernel_serves([on(one, port), on(other, port)], reuseport=True)
    back = kernel_serves([on(other, port), on(one, port)], reuseport=True)
    assert there is not None
    assert back is not None
    is_certain = there == {target: 1 - index for target, index in back.items()}
    # This host may have no second IPv6 address that only "::" takes.
    each_gets_some = {*there.values()} == {0, 1} or (one, other) == ("[::]+v6only", "[::1]")
    return there if is_certain and each_gets_some else None


def shares_a_port(grant: Grant) -> bool:
    return bool(grant.listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def a_stranger_is_refused(address: str, v6only: bool | None = None) -> bool:
    """Return whether the kernel refuses another program of the same user on this address, also with SO_REUSEPORT."""
    return kernel_serves([spec(address, v6only=v6only)], reuseport=True) is None


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("together", [True, False], ids=["in one request", "one after the other"])
def test_check_and_bind_grant_overlapping_addresses_if_the_kernel_always_prefers_the_same_one(
    one: str, other: str, together: bool
) -> None:
    require_ipv6()
    expected = expected_of(one, other)
    for hosts in ((one, other), (other, one)):
        with contextlib.closing(new_store()) as store:
            port = own_port()
            specs = [on(host, port) for host in hosts]
            if not together:
                bind_one(store, specs[0])
            asked = specs if together else specs[1:]
            if expected is not None:
                store.check(asked, [mine()] * len(asked))
                grants = bind(store, *specs)
                assert not any(map(shares_a_port, grants))
                served = served_by([grant.listener.socket for grant in grants], port)
                assert served == {target: index if hosts[0] == one else 1 - index for target, index in expected.items()}
                # "::" last is the exception of side_by_side(), for a process without CAP_CHOWN.
                if together or os.geteuid() == 0 or hosts[1] != "[::]":
                    for each in specs:
                        assert a_stranger_is_refused(str(each.address), each.options.v6only)
                continue
            for ask in (store.check, store.bind):
                with descriptors_unchanged(), pytest.raises(BindError) as refusal:
                    ask(asked, [mine()] * len(asked))
                how = (
                    f"it collides with {specs[0].address} of the same request; "
                    if together
                    else f"address already in use, by {specs[0].address}, which this binder holds for a client without "
                )
                assert str(refusal.value).startswith(f"Could not bind: {specs[1].address}: {how}")
                assert refusal.value.data["errname"] == "EADDRINUSE"
                assert refusal.value.address == str(specs[1].address)
                assert len(store) == (0 if together else 1)
                assert not together or not can_connect(("127.0.0.1", port))
                assert not any(listener.socket.getsockopt(1, socket.SO_REUSEPORT) for listener in store.listeners())


@pytest.mark.parametrize(
    "requests",
    [
        ["0.0.0.0", "127.0.0.1"],
        ["127.0.0.1", "0.0.0.0"],
        ["[::]", "0.0.0.0"],
        ["[::1]", "[::]+v6only"],
        ["0.0.0.0 [::]"],
        ["127.0.0.1 [::] 0.0.0.0"],
    ],
)
def test_a_binder_that_may_not_give_files_away_lets_no_other_program_join(
    store: ListenerStore, monkeypatch: pytest.MonkeyPatch, requests: list[str]
) -> None:
    require_ipv6()

    def fchown(descriptor: int, uid: int, gid: int) -> None:
        raise PermissionError  # as without CAP_CHOWN

    monkeypatch.setattr(os, "fchown", fchown)
    port = own_port()
    for hosts in requests:
        bind(store, *(on(host, port) for host in hosts.split()))
    for listener in store.listeners():
        assert a_stranger_is_refused(str(listener.address), listener.options.v6only)


def test_a_listener_beside_another_is_repaired_and_neither_shares_its_port_afterwards(store: ListenerStore) -> None:
    require_ipv6()
    port = own_port()
    grants = bind(store, spec(f"0.0.0.0:{port}"), spec(f"[::]:{port}", v6only=False), spec(f"127.0.0.1:{port}"))
    sockets = [grant.listener.socket for grant in grants]
    for broken in ([0], [1], [2], [0, 1, 2]):
        for index in broken:
            sockets[index].shutdown(socket.SHUT_RDWR)
        if len(broken) == 1:
            store.check([same(grants[broken[0]])], [mine()])
        store.repair()
        assert served_by(sockets, port) == {"127.0.0.1": 2, "127.0.0.2": 0, "127.0.0.3": 0, "::1": 1}
        assert not any(map(shares_a_port, grants))
    sockets[0].shutdown(socket.SHUT_RDWR)
    bind(store, same(grants[0]))
    assert served_by(sockets, port)["127.0.0.2"] == 0


def test_a_refusal_in_the_middle_of_a_request_leaves_no_port_shared_and_no_socket_open(
    store: ListenerStore, taken: str
) -> None:
    every = bind_one(store, spec("0.0.0.0:0"))
    for ask in (store.check, store.bind):
        with descriptors_unchanged(), pytest.raises(BindError, match=taken):
            ask([spec(wildcard(every, "127.0.0.1")), spec(taken)], [mine()] * 2)
    assert not shares_a_port(every)
    assert a_stranger_is_refused(wildcard(every, "127.0.0.1"))
    assert served_by([every.listener.socket], sockaddr(every)[1])["127.0.0.1"] == 0


def test_a_socket_of_another_process_that_shares_its_port_is_not_joined(store: ListenerStore) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root's sockets get a user of their own while they bind")
    mine_first = bind_one(store, spec(free_address()))
    port = sockaddr(mine_first)[1]
    with socket.create_server(("127.0.0.2", port), reuse_port=True), pytest.raises(AddressInUse):
        bind_one(store, spec(f"0.0.0.0:{port}"))
    assert not shares_a_port(mine_first)


def test_no_user_takes_clients_from_the_listener_of_another_user(store: ListenerStore) -> None:
    me, other = Owner("", os.geteuid() + 1), Owner("", os.geteuid() + 2)
    [every] = store.bind([spec("0.0.0.0:0")], [me])
    one = [spec(wildcard(every, "127.0.0.1"))]
    for ask in (store.check, store.bind):
        with descriptors_unchanged(), pytest.raises(BindError, match=r"address already in use, by 0\.0\.0\.0"):
            ask(one, [other])
    store.bind([same(every)], [other])
    for owner in (me, other):
        with pytest.raises(BindError, match=r"address already in use, by 0\.0\.0\.0"):
            store.bind(one, [owner])
    store.release(same(every), other)
    assert store.bind(one, [me])[0].created
    two = [spec(wildcard(every, "127.0.0.2")), spec(f"[::]:{sockaddr(every)[1]}", v6only=False)]
    with pytest.raises(BindError, match=r"address already in use, by 0\.0\.0\.0"):
        store.bind(two, [other, other])
    assert all(grant.created for grant in store.bind(two, [mine()] * 2)), "root and the binder's own user may"


def test_two_users_of_one_request_get_no_overlapping_addresses(store: ListenerStore) -> None:
    port = own_port()
    owners = [Owner("", os.geteuid() + 1), Owner("", os.geteuid() + 2)]
    with descriptors_unchanged(), pytest.raises(BindError, match="of the same request; leave one of the two out"):
        store.bind([spec(f"0.0.0.0:{port}"), spec(f"127.0.0.1:{port}")], owners)


def test_what_a_killed_binder_left_on_a_socket_is_taken_off() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    with contextlib.closing(new_store()) as store:
        store.restore(sock, None)
        [listener] = store.listeners()
        assert not listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


def test_new_addresses_that_collide_are_refused_with_the_remedy(store: ListenerStore) -> None:
    require_ipv6()
    port = own_port()
    with pytest.raises(BindError, match="of the same request; leave one of the two out"):
        store.check([spec(f"127.0.0.1:{port}"), spec(f"[::ffff:127.0.0.1]:{port}")], [mine()] * 2)
    two = [Owner("", os.geteuid() + 1), Owner("", os.geteuid() + 2)]
    with pytest.raises(BindError, match="of the same request; give v6only=true to the IPv6 one"):
        store.check([spec(f"[::]:{port}", v6only=False), spec(f"0.0.0.0:{port}")], two)


def test_a_port_that_a_holder_has_shut_down_is_not_given_to_an_address_that_collides(store: ListenerStore) -> None:
    # The kernel would allow it, and then the repair of the first could never succeed.
    require_ipv6()
    grant = bind_one(store, spec(free_address()), owner="a")
    grant.listener.socket.shutdown(socket.SHUT_RDWR)
    for ask in (store.check, store.bind):
        with descriptors_unchanged(), pytest.raises(BindError, match="which this binder holds for a;"):
            ask([spec(wildcard(grant, "[::ffff:127.0.0.1]"))], [mine()])


def test_a_check_refuses_a_listener_that_can_no_longer_listen(store: ListenerStore) -> None:
    grant = bind_one(store, spec(free_address()))
    grant.listener.socket.shutdown(socket.SHUT_RDWR)
    store.check([same(grant)], [mine()])
    assert not grant.listener.kind.is_ready(grant.listener.socket), "a check repairs nothing"
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(sockaddr(grant))
        stranger.listen()
        for ask in (store.check, store.bind):
            with descriptors_unchanged(), pytest.raises(BindError, match="address already in use"):
                ask([same(grant)], [mine()])


# Refusals say why


def test_an_address_in_use_by_another_process_is_refused_with_its_address_for_a_search(
    store: ListenerStore, taken: str
) -> None:
    with pytest.raises(AddressInUse) as refusal:
        bind_one(store, spec(taken))
    assert (str(refusal.value.bound), refusal.value.errno) == (taken, 98)
    assert str(AddressInUse(refusal.value.bound, "nginx (pid 812)")) == (
        f"Could not bind: {taken}: address already in use, by nginx (pid 812); take it over with "
        f"'multibinder adopt {taken}', stop it, or choose another port"
    )
    assert str(AddressInUse(refusal.value.bound, None)) == (
        f"Could not bind: {taken}: address already in use, and no process listens there: a connection or a bound "
        "socket has it; find it ('ss -tanp', as root) or choose another port"
    )


def wildcard(port_of: Grant, host: str) -> str:
    return f"{host}:{port_of.listener.address.sockaddr[1]}"


def test_an_address_in_use_by_a_listener_of_the_binder_is_refused_with_its_owner(store: ListenerStore) -> None:
    require_ipv6()
    one = bind_one(store, spec("127.0.0.1:0"), owner="haproxy@web")
    with pytest.raises(BindError) as refusal:
        bind_one(store, spec(wildcard(one, "[::ffff:127.0.0.1]")))
    assert str(refusal.value) == (
        f"Could not bind: {refusal.value.address}: address already in use, by {one.listener.address}, which "
        "this binder holds for haproxy@web; release it, or choose another address or port"
    )
    assert refusal.value.errno == 98


def test_ipv6_beside_another_users_ipv4_is_refused_with_v6only_as_the_remedy(store: ListenerStore) -> None:
    require_ipv6()
    stranger = Owner("", os.geteuid() + 1)
    four = bind_one(store, spec("0.0.0.0:0"), owner="haproxy@web")
    six = spec(wildcard(four, "[::]"), v6only=False)
    with pytest.raises(BindError) as refusal:
        store.bind([six], [stranger])
    assert str(refusal.value) == (
        f"Could not bind: {six.address}: address already in use, by {four.listener.address}, which this binder holds "
        f"for haproxy@web of uid {os.geteuid()}; give v6only=true to the IPv6 one"
    )
    assert store.bind([spec(str(six.address), v6only=True)], [stranger])[0].created


def test_ipv4_beside_another_users_ipv6_is_refused_with_v6only_as_the_remedy(store: ListenerStore) -> None:
    require_ipv6()
    six = bind_one(store, spec("[::]:0", v6only=False))
    with pytest.raises(
        BindError, match=r"which this binder holds for a client without a label of uid \d+, with v6only=false; give"
    ) as refusal:
        store.bind([spec(wildcard(six, "127.0.0.1"))], [Owner("", os.geteuid() + 1)])
    assert refusal.value.listener == str(six.listener.address)
    assert refusal.value.owners == [f"a client without a label of uid {os.geteuid()}"]
    assert refusal.value.v6only is False


def test_a_client_that_may_not_know_of_the_listener_is_told_nothing_about_it(store: ListenerStore) -> None:
    require_ipv6()
    every = bind_one(store, spec("0.0.0.0:0", name="secret"), owner="haproxy@web")
    one = spec(wildcard(every, "127.0.0.1"))
    stranger = Owner("", os.geteuid() + 1)
    asker = Asker(stranger.uid, lambda listener: False)
    with pytest.raises(BindError) as refusal:
        store.bind([one], [stranger], asker=asker)
    assert str(refusal.value) == (
        f"Could not bind: {one.address}: address already in use; choose another address or port"
    )
    assert (refusal.value.listener, list(refusal.value.owners), refusal.value.v6only) == (None, [], None)
    six = bind_one(store, spec("[::1]:0", v6only=True))
    with pytest.raises(BindError, match="exists with v6only True, and False was asked for") as refusal:
        store.bind([spec(str(six.listener.address), v6only=False)], [stranger], asker=asker)
    assert (refusal.value.listener, list(refusal.value.owners)) == (None, [])
    with pytest.raises(BindError, match="exists with name of another owner") as refusal:
        store.bind([spec(str(every.listener.address), name="mine")], [stranger], asker=asker)
    assert "secret" not in str(refusal.value)


def test_an_address_of_another_host_is_refused_with_the_remedy(store: ListenerStore) -> None:
    with pytest.raises(BindError, match=r"no interface of this host has 192\.0\.2\.1; .*ip_nonlocal_bind=1"):
        bind_one(store, spec("192.0.2.1:8000"))


# The accept queue


def test_without_a_backlog_the_queue_is_what_the_kernel_allows(store: ListenerStore) -> None:
    grant = bind_one(store)
    assert grant.backlog == accept_queue(grant.listener.socket).limit == somaxconn()
    assert grant.warning is None


def test_a_backlog_is_applied_to_the_live_socket(store: ListenerStore) -> None:
    grant = bind_one(store, spec(backlog=10))
    assert accept_queue(grant.listener.socket).limit == 10
    again = bind_one(store, spec(str(grant.listener.address), backlog=20))
    assert (again.backlog, accept_queue(grant.listener.socket).limit) == (20, 20)
    third = bind_one(store, same(grant), owner="other")
    assert third.backlog == 20, "a request of another owner without a backlog does not change it"
    assert bind_one(store, same(grant)).backlog == somaxconn()


def test_an_option_ends_with_the_claim_of_the_owner_that_set_it_last(store: ListenerStore) -> None:
    grant = bind_one(store, spec(backlog=10), owner="first")
    bind_one(store, spec(str(grant.listener.address), backlog=20), owner="second")
    store.release(same(grant), mine("first"))
    assert accept_queue(grant.listener.socket).limit == 20
    bind_one(store, same(grant), owner="third")
    store.release(same(grant), mine("second"))
    assert accept_queue(grant.listener.socket).limit == somaxconn()
    assert grant.listener.options.backlog is None


def test_a_moved_claim_takes_its_options_along(store: ListenerStore) -> None:
    grant = bind_one(store, spec(backlog=10), owner="web")
    bind_one(store, same(grant), owner="other")
    store.move(mine("web"), 12345)
    assert grant.listener.setters == {"backlog": Owner("web", 12345)}
    assert grant.listener.options.backlog == 10


def test_who_has_set_an_option_is_known_after_a_restart(store: ListenerStore) -> None:
    alone = bind_one(store, spec(backlog=10), owner="web")
    shared = bind_one(store, spec(backlog=10), owner="web")
    bind_one(store, same(shared), owner="other")
    assert (alone.listener.record().setters, shared.listener.record().setters) == ({}, {"backlog": str(mine("web"))})
    records = {record.cookie: record for record in store.records()}
    sockets = [socket.socket(fileno=descriptor) for _, descriptor in store.detach_all()]
    next_version = new_store()
    for sock in sockets:
        next_version.restore(sock, records[cookie_of(sock)])
    for listener in next_version.listeners():
        assert listener.setters == {"backlog": mine("web")}
        next_version.release(ListenerSpec(listener.address), mine("web"))
    [left] = next_version.listeners()
    assert accept_queue(left.socket).limit == somaxconn()
    next_version.close()


def test_changing_the_backlog_loses_no_client_that_waits(store: ListenerStore) -> None:
    grant = bind_one(store, spec(backlog=10))
    with socket.create_connection(sockaddr(grant)) as client:
        bind_one(store, spec(str(grant.listener.address), backlog=20))
        connection, peer = grant.listener.socket.accept()
        connection.close()
        assert peer == client.getsockname()


def test_a_backlog_above_somaxconn_is_granted_with_a_warning_that_has_the_effective_value(
    store: ListenerStore,
) -> None:
    limit = somaxconn()
    grant = bind_one(store, spec(backlog=limit + 1))
    assert grant.backlog == limit
    assert grant.warning == (
        f"a backlog of {limit + 1} was asked for, but the kernel allows {limit}; "
        f"raise it with 'sysctl -w net.core.somaxconn={limit + 1}' and ask again"
    )


def test_a_warning_is_about_its_own_request_whatever_another_one_asks_before_the_answer(store: ListenerStore) -> None:
    too_much = somaxconn() + 1
    grant = bind_one(store, spec(backlog=too_much))
    modest = bind_one(store, spec(str(grant.listener.address), backlog=7))
    assert str(too_much) in str(grant.warning)
    bind_one(store, spec(str(grant.listener.address), backlog=too_much))
    assert modest.warning is None


def test_a_backlog_that_a_holder_changed_is_restored_at_the_next_handoff(store: ListenerStore) -> None:
    grant = bind_one(store, spec(backlog=10))
    with grant.listener.socket.dup() as holder:
        holder.listen(3)  # asyncio does this when it starts to serve
    again = bind_one(store, same(grant), owner="other")
    assert accept_queue(grant.listener.socket).limit == 10
    assert (again.backlog, again.warning) == (10, None)


def test_a_default_backlog_that_a_holder_changed_is_restored_at_the_next_handoff(store: ListenerStore) -> None:
    grant = bind_one(store)
    with grant.listener.socket.dup() as holder:
        holder.listen(3)
    assert bind_one(store, same(grant)).backlog == somaxconn()


# What holders do


def test_a_listener_that_a_holder_shut_down_is_repaired_at_the_next_handoff(store: ListenerStore) -> None:
    grant = bind_one(store, spec(free_address(), backlog=10))
    with grant.listener.socket.dup() as holder:
        holder.shutdown(socket.SHUT_RDWR)
    assert not can_connect(sockaddr(grant))
    again = bind_one(store, spec(str(grant.listener.address), backlog=10))
    assert again.listener is grant.listener
    assert again.backlog == 10
    assert can_connect(sockaddr(grant))


def test_a_repaired_listener_has_the_port_that_the_kernel_once_chose(store: ListenerStore) -> None:
    # The kernel forgets a port that it chose itself when the socket stops listening; listen() would choose another.
    grant = bind_one(store, spec(name="web"))
    with grant.listener.socket.dup() as holder:
        holder.shutdown(socket.SHUT_RDWR)
    again = bind_one(store, spec(name="web"))
    assert again.listener.socket.getsockname() == sockaddr(grant)
    assert can_connect(sockaddr(grant))


def test_a_listener_that_cannot_be_repaired_is_refused_as_in_use(store: ListenerStore) -> None:
    grant = bind_one(store, spec(free_address()))
    with grant.listener.socket.dup() as holder:
        holder.shutdown(socket.SHUT_RDWR)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(sockaddr(grant))
        stranger.listen()
        # Any other exception would end the client's connection without an answer.
        with pytest.raises(BindError, match="address already in use"):
            bind_one(store, same(grant))


# Release


def test_a_release_of_the_last_owner_refuses_clients_also_for_another_holder(store: ListenerStore) -> None:
    grant = bind_one(store, owner="a")
    with grant.listener.socket.dup() as holder:
        assert can_connect(sockaddr(grant))
        released = store.release(same(grant), mine("a"))
        assert (released.address, released.outcome, released.owners) == (str(grant.listener.address), "closed", [])
        assert not can_connect(sockaddr(grant))
        with pytest.raises(OSError, match="Invalid argument"):
            holder.accept()
    assert len(store) == 0


def test_a_release_leaves_no_descriptor_open(store: ListenerStore) -> None:
    with descriptors_unchanged():
        store.release(same(bind_one(store)), mine(""))


def test_a_listener_that_another_owner_claims_is_kept(store: ListenerStore) -> None:
    grant = bind_one(store, owner="a")
    bind_one(store, same(grant), owner="b")
    released = store.release(same(grant), mine("a"))
    assert (released.outcome, released.owners) == ("kept", ["b"])
    assert can_connect(sockaddr(grant))
    assert store.release(same(grant), mine("b")).outcome == "closed"


def test_a_release_by_an_owner_without_a_claim_changes_nothing(store: ListenerStore) -> None:
    grant = bind_one(store, owner="a")
    assert store.release(same(grant), mine("b")).outcome == "kept"
    assert store.release(same(grant), mine("")).owners == ["a"]


def test_a_claim_counts_once_however_often_it_was_made(store: ListenerStore) -> None:
    grant = bind_one(store, owner="a")
    bind_one(store, same(grant), owner="a")
    assert store.release(same(grant), mine("a")).outcome == "closed"


def test_a_release_of_an_unknown_listener_reports_that(store: ListenerStore) -> None:
    released = store.release(spec("127.0.0.1:1"), mine("a"))
    assert (released.address, released.outcome) == ("127.0.0.1:1", "absent")


def test_a_listener_that_a_holder_shut_down_can_be_released(store: ListenerStore) -> None:
    grant = bind_one(store)
    grant.listener.socket.shutdown(socket.SHUT_RDWR)
    assert store.release(same(grant), mine("")).outcome == "closed"


def test_a_released_address_can_be_bound_again_while_a_client_is_connected(store: ListenerStore) -> None:
    grant = bind_one(store)
    with socket.create_connection(sockaddr(grant)):
        connection, _ = grant.listener.socket.accept()
        with connection:
            store.release(same(grant), mine(""))
            assert bind_one(store, same(grant)).created


def test_closing_the_store_leaves_the_port_to_its_holders(store: ListenerStore) -> None:
    grant = bind_one(store)
    with grant.listener.socket.dup():
        store.close()
        assert can_connect(sockaddr(grant))
    assert not can_connect(sockaddr(grant))


# An answer that never arrived


def test_a_listener_made_for_an_answer_that_never_arrived_is_closed(store: ListenerStore) -> None:
    with descriptors_unchanged():
        grants = bind(store, spec(), spec(name="web"))
        store.handoffs.take_back(grants)
        assert len(store) == 0
    assert not can_connect(sockaddr(grants[0]))


def test_a_listener_that_was_asked_for_twice_in_such_a_request_is_closed_too(store: ListenerStore) -> None:
    address = free_address()
    store.handoffs.take_back(bind(store, spec(address), spec(address)))
    assert len(store) == 0
    assert not can_connect(TcpAddress.parse(address).sockaddr)


def test_a_claim_made_for_an_answer_that_never_arrived_is_dropped(store: ListenerStore) -> None:
    grant = bind_one(store, owner="a")
    store.handoffs.take_back([bind_one(store, same(grant), owner="b")])
    assert store.release(same(grant), mine("a")).outcome == "closed"


def test_an_earlier_claim_stays(store: ListenerStore) -> None:
    grant = bind_one(store, owner="a")
    store.handoffs.take_back([bind_one(store, same(grant), owner="a")])
    assert store.statuses()[0].owners == ["a"]


def test_a_listener_that_another_owner_got_meanwhile_stays(store: ListenerStore) -> None:
    lost = bind_one(store, owner="a")
    bind_one(store, same(lost), owner="b")
    store.handoffs.take_back([lost])
    assert can_connect(sockaddr(lost))
    assert store.release(same(lost), mine("b")).outcome == "closed", "the claim of 'a' never arrived"


def test_a_claim_that_the_same_owner_repeated_meanwhile_stays(store: ListenerStore) -> None:
    lost = bind_one(store, owner="a")
    bind_one(store, same(lost), owner="a")
    store.handoffs.take_back([lost])
    assert store.statuses()[0].owners == ["a"]
    assert can_connect(sockaddr(lost))


def test_taking_back_a_listener_that_was_released_meanwhile_changes_nothing(store: ListenerStore) -> None:
    lost = bind_one(store, owner="a")
    store.release(same(lost), mine("a"))
    again = bind_one(store, same(lost), owner="b")
    store.handoffs.take_back([lost])
    assert can_connect(sockaddr(again))
    assert len(store) == 1


# Names and labels of several users

OTHER_UID = os.geteuid() + 1


def theirs(label: str = "") -> Owner:
    return Owner(label, OTHER_UID)


def test_each_user_has_names_of_its_own(store: ListenerStore) -> None:
    [stranger] = store.bind([spec(name="stats")], [theirs()])
    grant = bind_one(store, spec(name="stats"))
    assert grant.listener is not stranger.listener
    assert bind_one(store, spec(name="stats")).listener is grant.listener
    [again] = store.bind([spec(name="stats")], [theirs()])
    assert again.listener is stranger.listener
    fixed = spec(free_address(), name="stats")
    with pytest.raises(BindError, match="exists with address"):
        bind_one(store, fixed)
    assert store.bind([spec(str(fixed.address), name="admin")], [theirs()])[0].created
    assert bind_one(store, spec(name="admin")).created


def test_each_user_has_labels_of_its_own(store: ListenerStore) -> None:
    [stranger] = store.bind([spec()], [theirs("haproxy@web")])
    grant = bind_one(store, owner="haproxy@web")
    bind_one(store, same(stranger), owner="haproxy@web")
    kept = store.release(same(grant), theirs("haproxy@web"))
    assert (kept.outcome, kept.had_claim, kept.claims) == ("kept", False, [OwnerStatus("haproxy@web", os.geteuid())])
    assert store.release(same(stranger), theirs("haproxy@web")).outcome == "kept"
    assert can_connect(sockaddr(grant))
    assert can_connect(sockaddr(stranger))
    assert store.release(same(stranger), mine("haproxy@web")).outcome == "closed"


def test_a_label_of_any_user_means_the_own_claim_first(store: ListenerStore) -> None:
    grant = bind_one(store, owner="a")
    store.bind([same(grant)] * 2, [theirs("a"), theirs("b")])
    first = store.release(same(grant), mine("a"), of_any_uid=True)
    assert (first.outcome, first.owners, first.had_claim) == ("kept", ["a", "b"], True)
    second = store.release(same(grant), mine("a"), of_any_uid=True)
    assert (second.outcome, second.owners, second.had_claim) == ("kept", ["b"], True)
    assert not store.release(same(grant), mine("a"), of_any_uid=True).had_claim
    assert store.release(same(grant), mine("b"), of_any_uid=True).outcome == "closed"


def test_a_name_goes_with_the_last_claim_of_its_user(store: ListenerStore) -> None:
    grant = bind_one(store, spec(name="web"))
    store.bind([same(grant)], [theirs()])
    store.release(same(grant), mine())
    assert (store.statuses()[0].name, grant.listener.record().name) == (None, None)
    assert bind_one(store, spec(name="web")).listener is not grant.listener
    [renamed] = store.bind([spec(str(grant.listener.address), name="theirs")], [theirs()])
    assert renamed.listener.options.name == "theirs"


def test_claims_and_names_can_move_to_another_user(store: ListenerStore) -> None:
    grants = bind(store, spec(name="stats"), spec(), owner="haproxy@web")
    other = bind_one(store, owner="api")
    store.bind([same(grants[1])], [theirs("haproxy@web")])
    moved = store.move(mine("haproxy@web"), OTHER_UID)
    assert moved == [grant.listener for grant in grants]
    assert [list(listener.claims) for listener in store.listeners()] == [
        [theirs("haproxy@web")], [theirs("haproxy@web")], [mine("api")],
    ]  # fmt: skip
    assert store.bind([spec(name="stats")], [theirs("haproxy@web")])[0].listener is grants[0].listener
    assert [store.release(same(grant), theirs("haproxy@web")).outcome for grant in grants] == ["closed", "closed"]
    assert store.release(same(other), mine("api")).outcome == "closed"


def test_records_keep_whose_name_and_label_it_is(store: ListenerStore) -> None:
    mine_first = bind_one(store, spec(name="stats"), owner="a")
    [stranger] = store.bind([spec(name="stats")], [theirs("a")])
    restored = new_store()
    for grant in (mine_first, stranger):
        restored.restore(grant.listener.socket.dup(), grant.listener.record())
    for owner, grant in ((mine("a"), mine_first), (theirs("a"), stranger)):
        [again] = restored.bind([spec(name="stats")], [owner])
        assert again.listener.address == grant.listener.address
    restored.close()


def test_a_name_in_a_record_of_an_older_version_belongs_to_the_first_owner(store: ListenerStore) -> None:
    [grant] = store.bind([spec(name="stats")], [theirs("a")])
    record = msgspec.structs.replace(grant.listener.record(), name_uid=None)
    restored = new_store()
    restored.restore(grant.listener.socket.dup(), record)
    assert restored.bind([spec(name="stats")], [theirs("a")])[0].listener.address == grant.listener.address
    restored.close()


def test_a_recovered_listener_takes_no_name_from_another(store: ListenerStore) -> None:
    grant = bind_one(store, spec(name="stats"))
    record = msgspec.structs.replace(grant.listener.record())
    later = new_store()
    taken = bind_one(later, spec(name="stats"))
    later.restore(grant.listener.socket.dup(), record)
    assert [(each.address, each.name) for each in later.statuses()] == [
        (str(taken.listener.address), "stats"), (str(grant.listener.address), None),
    ]  # fmt: skip
    assert bind_one(later, spec(name="stats")).listener is taken.listener
    later.close()


# Limits, check, list


def test_a_listener_past_the_limit_is_refused_and_the_others_stay() -> None:
    store = new_store(2)
    first = bind_one(store)
    with descriptors_unchanged(), pytest.raises(RequestError, match=r"holds its limit of 2 listeners.*--max-listeners"):
        bind(store, spec(), spec())
    assert len(store) == 1
    assert bind(store, same(first), spec())[0].listener is first.listener
    assert len(store) == 2
    store.close()


def test_a_check_creates_nothing(store: ListenerStore) -> None:
    wanted = spec(free_address())
    with descriptors_unchanged():
        store.check([wanted, spec(name="web")], [mine()] * 2)
        assert len(store) == 0
        assert not can_connect(wanted.address.sockaddr)
        with socket.socket() as other:
            other.bind(wanted.address.sockaddr)


def test_a_check_changes_no_existing_listener(store: ListenerStore) -> None:
    grant = bind_one(store, spec(backlog=10), owner="a")
    before = store.statuses()
    store.check([spec(str(grant.listener.address), backlog=20, name="web")], [mine()])
    assert store.statuses() == before


def test_a_check_refuses_requests_that_bind_would_refuse(store: ListenerStore, taken: str) -> None:
    grant = bind_one(store, spec(name="web"))
    with descriptors_unchanged():
        with pytest.raises(BindError, match="address already in use"):
            store.check([spec(), spec(taken)], [mine()] * 2)
        with pytest.raises(BindError, match="exists with name web"):
            store.check([ListenerSpec(grant.listener.address, Options(name="api"))], [mine("another")])


def test_the_list_shows_each_listener_as_the_kernel_has_it(store: ListenerStore) -> None:
    grant = bind_one(store, spec(backlog=10, name="web"), owner="a")
    bind_one(store, same(grant), owner="b")
    other = bind_one(store)
    assert store.statuses()[0].claims == [OwnerStatus("a", os.geteuid()), OwnerStatus("b", os.geteuid())]
    first, second = store.statuses()
    assert (first.address, first.name, first.owners) == (str(grant.listener.address), "web", ["a", "b"])
    assert (first.backlog, first.backlog_requested, first.handoffs, first.v6only) == (10, 10, 2, None)
    assert (second.address, second.owners, second.backlog_requested) == (str(other.listener.address), [""], None)
    assert first.cookie == int.from_bytes(grant.listener.socket.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
    assert first.cookie != second.cookie


def test_an_address_that_is_given_twice_counts_once_against_the_limits() -> None:
    store = new_store(1, limit_per_uid=1)
    stranger = Owner("", os.geteuid() + 1)
    wanted = [spec(free_address())] * 2
    store.check(wanted, [stranger] * 2)
    assert len(store.bind(wanted, [stranger] * 2)) == 2
    assert len(store.bind(wanted, [stranger] * 2)) == 2
    for ask in (store.check, store.bind):
        with pytest.raises(RequestError, match="has its limit of 1 listeners"):
            ask([spec()], [stranger])
    store.close()


def test_more_listeners_than_the_limit_can_be_restored_and_leave_no_room_for_another() -> None:
    store = new_store(1)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    for sock in sockets:
        store.restore(sock, None)
    assert len(store) == 2
    with pytest.raises(RequestError, match="holds its limit of 1 listeners"):
        bind_one(store)
    store.close()
