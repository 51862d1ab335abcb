"""Two owners on one address are told of each other: the kernel gives each connection to one or the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from multibinder_haproxy.config.model import Slot
from multibinder_haproxy.shared import others_on

from multibinder import Client, ListenerSpec, Options, TcpAddress
from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import bind_tcp, config
from tests.support import Binder, require_ipv6


@contextlib.contextmanager
def bound(binder: Binder, owner: str, *specs: ListenerSpec) -> Iterator[list[ListenerSpec]]:
    with Client(binder.socket_path) as client, contextlib.ExitStack() as stack:
        got = [stack.enter_context(sock) for sock in client.bind(specs, owner=owner)]
        yield [ListenerSpec(TcpAddress.of(*sock.getsockname()[:2])) for sock in got]
        client.release([ListenerSpec(TcpAddress.of(*sock.getsockname()[:2])) for sock in got], owner=owner)


def spec(host: str, port: int, *, v6only: bool | None = None, name: str | None = None) -> ListenerSpec:
    return ListenerSpec(TcpAddress.of(host, port), Options(v6only=v6only, name=name))


def test_the_other_owners_of_an_address_are_named(binder: Binder, host: str) -> None:
    path = str(binder.socket_path)
    slots = [Slot(host, 8000), Slot(host, 8001)]
    with bound(binder, "haproxy@web", spec(host, 8000), spec(host, 8001)):
        assert others_on(path, slots, "haproxy@web") == []
        [told] = others_on(path, slots, "haproxy@api")
        assert told == (
            f"{host}:8000, {host}:8001 are also bound by haproxy@web: each connection goes to one or the other; stop "
            "one of them, or choose another address or port"
        )
        with bound(binder, "", spec(host, 8001)):
            assert [text.partition(": each")[0] for text in others_on(path, slots, "haproxy@web")] == [
                f"{host}:8001 is also bound by a client without a label"
            ]
            assert others_on(path, [Slot(host, 8002)], "haproxy@web") == []
    assert others_on(path, slots, "haproxy@api") == []


def test_a_named_port_0_is_found_by_its_name(binder: Binder, host: str) -> None:
    with bound(binder, "haproxy@web", spec(host, 0, name="stats")) as [chosen]:
        [told] = others_on(str(binder.socket_path), [Slot(host, 0, name="stats"), Slot(host, 0)], "haproxy@api")
        assert told.startswith(f"{chosen.address} is also bound by haproxy@web: ")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (spec("0.0.0.0", 0), "127.0.0.1"),
        (spec("127.0.0.1", 0), "0.0.0.0"),
        (spec("::", 0, v6only=False), "0.0.0.0"),
        (spec("::", 0, v6only=False), "127.0.0.1"),
        (spec("::1", 0), "::"),
    ],
    ids=str,
)
def test_addresses_of_another_owner_that_overlap_are_told(binder: Binder, theirs: ListenerSpec, ours: str) -> None:
    require_ipv6()
    with bound(binder, "haproxy@web", theirs) as [there]:
        slot = Slot(ours, there.address.sockaddr[1])
        [told] = others_on(str(binder.socket_path), [slot], "haproxy@api")
        assert told == (
            f"addresses overlap: {slot.spec.address} with {there.address} of haproxy@web; the clients of both go to "
            "the more specific one"
        )


def test_without_a_binder_nothing_is_told() -> None:
    assert others_on("", [Slot("127.0.0.1", 80)], "haproxy@web") == []
    assert others_on("/nowhere/mb.sock", [Slot("127.0.0.1", 80)], "haproxy@web") == []


def test_two_instances_on_one_address_are_told_at_check(make_haproxy: MakeHaproxy, host: str) -> None:
    web, api = make_haproxy("web"), make_haproxy("api")
    for each in (web, api):
        each.template.write_text(config(bind_tcp((host, 8000))))
    web.start()
    told = f"{host}:8000 is also bound by haproxy@%s: each connection goes to one or the other"
    done = api.command("check", "--", api.haproxy, "-Ws", "-f", str(api.template))
    assert done.returncode == 0
    assert told % "web" in done.stdout + done.stderr
    api.start()
    done = web.command("check", "web")
    assert done.returncode == 0
    assert told % "api" in done.stdout + done.stderr
