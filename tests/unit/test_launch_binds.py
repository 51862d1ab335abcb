"""``-b ADDRESS[,OPTION=VALUE...][=NAME]``."""

from __future__ import annotations

import os
import socket

import pytest

from multibinder.launch import binds
from multibinder.launch.direct.received import is_listener
from multibinder.wire import kinds
from multibinder.wire.addresses import Address
from multibinder.wire.errors import AddressError
from multibinder.wire.options import Options


@pytest.mark.parametrize(
    ("text", "name", "slots"),
    [
        ("127.0.0.1:80", "", [{"host": "127.0.0.1", "port": 80}]),
        ("[::1]:80=web", "web", [{"host": "::1", "port": 80}]),
        ("udp@127.0.0.1:53=dns", "dns", [{"endpoint": "udp@127.0.0.1:53"}]),
        ("unix@/run/app.sock,mode=660=app", "app", [{"endpoint": "unix@/run/app.sock", "mode": 0o660}]),
        ("/run/app.sock=app", "app", [{"endpoint": "unix@/run/app.sock"}]),
        ("127.0.0.1:0=any", "any", [{"host": "127.0.0.1", "port": 0, "name": "any"}]),
        (
            "0.0.0.0:443,backlog=8192,defer-accept=5=web",
            "web",
            [{"host": "0.0.0.0", "port": 443, "backlog": 8192, "defer_accept": 5}],
        ),
        (
            "0.0.0.0:80,[::]:80,v6only=true=web",
            None,
            None,  # v6only is none of IPv4
        ),
        (
            "127.0.0.1:80-81=web",
            "web",
            [{"host": "127.0.0.1", "port": 80}, {"host": "127.0.0.1", "port": 81}],
        ),
        (
            "0.0.0.0:443,shards=2",
            "",
            [{"host": "0.0.0.0", "port": 443, "shards": 2}, {"host": "0.0.0.0", "port": 443, "shard": 1, "shards": 2}],
        ),
        ("127.0.0.1:80,netns=blue", "", [{"host": "127.0.0.1", "port": 80, "netns": "blue"}]),
        ("unix@/run/a.sock,user=root,group=0", "", [{"endpoint": "unix@/run/a.sock", "user": 0, "group": 0}]),
    ],
)
def test_a_bind_has_an_address_options_and_a_name(
    text: str, name: str | None, slots: list[dict[str, object]] | None
) -> None:
    if slots is None:
        with pytest.raises(AddressError):
            binds.parse(text)
        return
    bind = binds.parse(text)
    assert (bind.text, bind.name, bind.slots) == (text, name, slots)


def test_shards_can_be_as_many_as_cpus() -> None:
    assert len(binds.parse("127.0.0.1:80,shards=cpus").slots) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no port"),
        ("80", "has no port"),
        ("backlog=5", "has no address"),
        ("127.0.0.1:80,", "addresses are|has no port"),
        ("localhost:80", "is a name: give a numeric address"),
        ("127.0.0.1:80,backlog", "backlog has no value: write backlog=1000"),
        ("127.0.0.1:80,backlog=many", "backlog is a number, as in backlog=1000, not 'many'"),
        ("127.0.0.1:80,backlog=0", "'127.0.0.1:80,backlog=0': backlog 0 is out of range"),
        ("127.0.0.1:80,backlog=1,backlog=2", "backlog is given twice"),
        ("127.0.0.1:80,fish=1", "there is no option fish; a listener has backlog"),
        ("127.0.0.1:80,freebind=yes", "freebind is true or false, not 'yes'"),
        ("127.0.0.1:80,mode=rw", "the mode is written as chmod"),
        ("127.0.0.1:80=web,backlog=5", "the name is the last part"),
        ("127.0.0.1:80,backlog=5,127.0.0.1:81", "addresses stand before options"),
        ("127.0.0.1:80=we b", "the name 'we b' is not usable"),
        ("127.0.0.1:80=", "the name '' is not usable"),
        ("127.0.0.1:80=ready", "private listener"),
        ("127.0.0.1:0", "write 127.0.0.1:0=NAME"),
        ("127.0.0.1:0,[::1]:0=web", "port 0 stands alone"),
        ("unix@/run/a.sock,user=nobody-of-this-name", "has no such user"),
        ("unix@/run/a.sock,shards=2", "has no shards"),
    ],
)
def test_a_mistake_is_a_sentence_that_says_what_to_write(text: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        binds.parse(text)


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["127.0.0.1:80=a", "127.0.0.1:80=b"], "is given by '127.0.0.1:80=a' too"),
        (["127.0.0.1:80", "127.0.0.1:80"], "is given twice"),
        (["127.0.0.1:80=a", "127.0.0.1:81=a"], "have the same name a"),
    ],
)
def test_no_listener_and_no_name_is_given_twice(texts: list[str], complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        binds.parse_all(texts)


def test_listeners_without_names_may_be_several() -> None:
    assert [bind.name for bind in binds.parse_all(["127.0.0.1:80", "127.0.0.1:81"])] == ["", ""]


@pytest.mark.parametrize("prefix", ["", "mptcp@", "udp@", "quic4@", "unix@", "uxdg@", "unixseq@", "abns@", "abnsz@"])
def test_a_listener_of_each_kind_is_known_again(prefix: str, tmp_path: object) -> None:
    rest = {"u": f"{tmp_path}/a.sock", "a": f"multibinder-{os.getpid()}"}.get(prefix[:1], "127.0.0.1:0")
    rest = "127.0.0.1:0" if prefix == "udp@" else rest
    address = Address.parse(prefix + rest)
    kind = kinds.of_address(address)
    try:
        sock = kind.open(address, Options())
    except OSError as error:
        pytest.skip(f"this kernel: {error}")
    with sock:
        kind.make_ready(sock, None)
        bound = kind.address_of(sock)
        wanted = address if prefix == "quic4@" else bound
        slot: dict[str, object] = {"endpoint": str(wanted)}
        if not prefix:
            slot = {"host": "127.0.0.1", "port": sock.getsockname()[1]}
        assert is_listener(sock.fileno(), slot)
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            assert not is_listener(other.fileno(), slot)
