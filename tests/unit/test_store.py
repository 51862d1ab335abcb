"""The listener store is called directly, on real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from multibinder import BindError, ListenerSpec, Options, RequestError, TcpAddress
from multibinder.binder.listener import Grant
from multibinder.binder.owner import Owner
from multibinder.binder.store import ListenerStore
from multibinder.kernel.accept_queue import accept_queue
from multibinder.wire.addresses import Address
from tests.support import (
    can_connect,
    descriptors_unchanged,
    is_nonblocking,
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
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return "{}:{}".format(*sock.getsockname())


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


def test_a_name_that_differs_is_refused_with_both_values(store: ListenerStore) -> None:
    grant = bind_one(store, spec(name="web"))
    with pytest.raises(BindError, match="exists with name web, and api was asked for; it cannot change") as refusal:
        bind_one(store, ListenerSpec(grant.listener.address, Options(name="api")))
    assert refusal.value.address == str(grant.listener.address)


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


def test_a_collision_at_listen_binds_nothing_and_leaks_nothing(store: ListenerStore) -> None:
    # With SO_REUSEADDR both can be bound while neither listens; the second listen() is refused.
    one = spec(free_address())
    every = spec(f"0.0.0.0:{one.address.sockaddr[1]}")
    with descriptors_unchanged(), pytest.raises(BindError) as refusal:
        bind(store, one, every)
    assert refusal.value.data["errname"] == "EADDRINUSE"
    assert refusal.value.address == str(every.address)
    assert len(store) == 0
    assert not can_connect(one.address.sockaddr)


# Refusals say why


def test_an_address_in_use_is_refused_with_the_name_of_its_holder(taken: str) -> None:
    store = new_store(who_listens=lambda address: f"nginx (pid 812) at {address}")
    with pytest.raises(BindError) as refusal:
        bind_one(store, spec(taken))
    assert str(refusal.value) == (
        f"Could not bind: {taken}: address already in use, by nginx (pid 812) at {taken}; "
        "stop it or choose another port"
    )
    assert refusal.value.errno == 98


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
    third = bind_one(store, same(grant))
    assert third.backlog == 20, "a request without a backlog does not change it"


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
    again = bind_one(store, same(grant))
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
    again = bind_one(store, same(grant))
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
        store.take_back(grants)
        assert len(store) == 0
    assert not can_connect(sockaddr(grants[0]))


def test_a_listener_that_was_asked_for_twice_in_such_a_request_is_closed_too(store: ListenerStore) -> None:
    address = free_address()
    store.take_back(bind(store, spec(address), spec(address)))
    assert len(store) == 0
    assert not can_connect(TcpAddress.parse(address).sockaddr)


def test_a_claim_made_for_an_answer_that_never_arrived_is_dropped(store: ListenerStore) -> None:
    grant = bind_one(store, owner="a")
    store.take_back([bind_one(store, same(grant), owner="b")])
    assert store.release(same(grant), mine("a")).outcome == "closed"


def test_an_earlier_claim_stays(store: ListenerStore) -> None:
    grant = bind_one(store, owner="a")
    store.take_back([bind_one(store, same(grant), owner="a")])
    assert store.statuses()[0].owners == ["a"]


def test_a_listener_that_another_owner_got_meanwhile_stays(store: ListenerStore) -> None:
    lost = bind_one(store, owner="a")
    bind_one(store, same(lost), owner="b")
    store.take_back([lost])
    assert can_connect(sockaddr(lost))
    assert store.release(same(lost), mine("b")).outcome == "closed", "the claim of 'a' never arrived"


def test_a_claim_that_the_same_owner_repeated_meanwhile_stays(store: ListenerStore) -> None:
    lost = bind_one(store, owner="a")
    bind_one(store, same(lost), owner="a")
    store.take_back([lost])
    assert store.statuses()[0].owners == ["a"]
    assert can_connect(sockaddr(lost))


def test_taking_back_a_listener_that_was_released_meanwhile_changes_nothing(store: ListenerStore) -> None:
    lost = bind_one(store, owner="a")
    store.release(same(lost), mine("a"))
    again = bind_one(store, same(lost), owner="b")
    store.take_back([lost])
    assert can_connect(sockaddr(again))
    assert len(store) == 1


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
            store.check([ListenerSpec(grant.listener.address, Options(name="api"))], [mine()])


def test_the_list_shows_each_listener_as_the_kernel_has_it(store: ListenerStore) -> None:
    grant = bind_one(store, spec(backlog=10, name="web"), owner="a")
    bind_one(store, same(grant), owner="b")
    other = bind_one(store)
    first, second = store.statuses()
    assert (first.address, first.name, first.owners) == (str(grant.listener.address), "web", ["a", "b"])
    assert (first.backlog, first.backlog_requested, first.handoffs, first.v6only) == (10, 10, 2, None)
    assert (second.address, second.owners, second.backlog_requested) == (str(other.listener.address), [""], None)
    assert first.cookie == int.from_bytes(grant.listener.socket.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
    assert first.cookie != second.cookie


def test_more_listeners_than_the_limit_can_be_restored_and_leave_no_room_for_another() -> None:
    store = new_store(1)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    for sock in sockets:
        store.restore(sock, None)
    assert len(store) == 2
    with pytest.raises(RequestError, match="holds its limit of 1 listeners"):
        bind_one(store)
    store.close()


def test_searches_for_the_holder_of_an_address_are_throttled_for_users_without_privileges(taken: str) -> None:
    searched: list[str] = []

    def who_listens(address: Address) -> str:
        searched.append(str(address))
        return "nginx (pid 812)"

    store = new_store(who_listens=who_listens)
    one = spec(free_address())
    every = spec(f"0.0.0.0:{one.address.sockaddr[1]}")
    stranger = Owner("", os.geteuid() + 1)
    with pytest.raises(BindError, match="by nginx"):
        store.bind([spec(taken)], [stranger])
    with pytest.raises(BindError, match="find who has it"):
        store.bind([spec(taken)], [stranger])
    with pytest.raises(BindError, match="find who has it"):
        store.bind([one, every], [stranger, stranger])  # the second one fails when it listens
    assert searched == [taken]
    with pytest.raises(BindError, match="by nginx"):
        bind_one(store, spec(taken))
