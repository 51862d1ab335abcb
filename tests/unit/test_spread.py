"""A text that names several listeners, and shards, are spread out by the client."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

import multibinder
from multibinder import Address, AddressError, ListenerSpec, Options, SharedListener, TcpAddress
from multibinder.wire.arguments import spec_of, specs_of
from multibinder.wire.listener_options import options_of
from multibinder.wire.spread import MOST_LISTENERS, addresses_in, in_shards, shard_count

WEB = ListenerSpec(TcpAddress.of("192.0.2.1", 443))


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("192.0.2.1:80", ["192.0.2.1:80"]),
        ("192.0.2.1:8000-8002", ["192.0.2.1:8000", "192.0.2.1:8001", "192.0.2.1:8002"]),
        ("[::1]:1-2,tcp@192.0.2.1:80", ["[::1]:1", "[::1]:2", "192.0.2.1:80"]),
        ("192.0.2.1:80-80", ["192.0.2.1:80"]),
        ("ipv6@[2001:db8::1]:65534-65535", ["[2001:db8::1]:65534", "[2001:db8::1]:65535"]),
    ],
)
def test_a_list_and_a_range_name_several_addresses_in_their_order(text: str, addresses: list[str]) -> None:
    assert [str(address) for address in addresses_in(text)] == addresses


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("192.0.2.1:9-7", "ends before it begins: write 192.0.2.1:7-9"),
        ("192.0.2.1:0-3", "begins with 1: for port 0 the kernel chooses one"),
        ("192.0.2.1:1-65536", "port 65536 is out of range"),
        ("192.0.2.1:1-999999999", "port 999999999 is out of range"),
        ("192.0.2.1:1-20000", f"names more than {MOST_LISTENERS} listeners: give fewer at a time"),
        (",".join(["192.0.2.1:1-9000", "192.0.2.2:1-9000"]), f"names more than {MOST_LISTENERS} listeners"),
        ("192.0.2.1:80,", "'' has no port"),
        ("192.0.2.1:80, 192.0.2.1:81", "host ' 192.0.2.1' is a name"),
        ("192.0.2.1:80-", "has no port"),
        (80, "of type int"),
    ],
)
def test_a_text_that_names_nothing_sensible_is_refused_with_the_reason(text: Any, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint.replace("(", r"\(")):
        addresses_in(text)


def test_shards_are_so_many_elements_that_say_how_many_there_are() -> None:
    assert [(each.shard, each.shards) for each in in_shards(WEB, 3)] == [(0, 3), (1, 3), (2, 3)]
    assert in_shards(WEB, None) == [WEB]
    assert in_shards(WEB, 1) == [ListenerSpec(WEB.address, shards=1)]
    named = ListenerSpec(WEB.address, Options(backlog=5, name="web"))
    assert [each.options for each in in_shards(named, 2)] == [named.options, Options(backlog=5)]


def test_shards_for_each_cpu_are_as_many_as_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    assert shard_count("cpus") == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert shard_count("cpus") == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("shards", "complaint"),
    [
        (0, "shards 0 is out of range: 1 to 256 listeners"),
        (257, "shards 257 is out of range"),
        (True, "shards True is of type bool: give a number, or 'cpus'"),
        ("4", "shards '4' is of type str"),
    ],
)
def test_a_number_of_shards_that_cannot_be_is_refused(shards: Any, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        in_shards(WEB, shards)


def test_shards_on_a_port_that_the_kernel_chooses_are_refused() -> None:
    with pytest.raises(AddressError, match=r"192\.0\.2\.1:0: shards are on one port, .*: give the port"):
        in_shards(ListenerSpec(TcpAddress.of("192.0.2.1", 0)), 2)


def test_what_a_call_says_is_for_each_target_that_does_not_say_it_itself() -> None:
    own = ListenerSpec(TcpAddress.of("192.0.2.1", 1), shard=2, netns="blue")
    specs = specs_of(["192.0.2.1:80", own, ("192.0.2.1", 81)], shards=2, netns="red")
    assert [(str(spec.address), spec.shard, spec.netns) for spec in specs] == [
        ("192.0.2.1:80", 0, "red"),
        ("192.0.2.1:80", 1, "red"),
        ("192.0.2.1:1", 2, "blue"),
        ("192.0.2.1:81", 0, "red"),
        ("192.0.2.1:81", 1, "red"),
    ]


def test_an_address_is_released_with_all_its_shards_and_a_listener_alone() -> None:
    assert spec_of("192.0.2.1:80", whole=True).shards == 1
    assert spec_of(Address.parse("192.0.2.1:80"), "red", whole=True).netns == "red"
    with socket.create_server(("127.0.0.1", 0)) as sock, SharedListener.received(sock.detach(), 3, "red") as one:
        spec = spec_of(one, whole=True)
    assert (spec.shard, spec.shards, spec.netns) == (3, None, "red")


def test_users_and_groups_are_found_by_their_names() -> None:
    assert (options_of({"user": "root", "group": "0"}).user, options_of({"group": "root"}).group) == (0, 0)
    for option in ("user", "group"):
        with pytest.raises(AddressError, match=f"{option} 'no-such-name': this host has no such {option}"):
            options_of({option: "no-such-name"})


def test_an_option_that_there_is_not_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="there is no option 'bakclog'; a listener has backlog, v6only"):
        multibinder.bind("127.0.0.1", 0, fallback=True, bakclog=5)  # type: ignore[call-overload]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_fallback_has_shards_which_are_copies_of_one_socket(host: str) -> None:
    listeners = multibinder.bind(host, 8000, shards=2, fallback=True)
    assert [listener.shard for listener in listeners] == [0, 1]
    assert {listener.getsockname() for listener in listeners} == {(host, 8000)}
    for listener in listeners:
        listener.close()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_fallback_makes_no_listener_of_another_namespace() -> None:
    with pytest.raises(multibinder.ConfigurationError, match=r"netns='red' needs a binder"):
        multibinder.bind("127.0.0.1", 0, fallback=True, netns="red")
