"""``multibinder.release`` and ``multibinder.sync``: an owner's listeners are what it says."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import multibinder
from multibinder import (
    Address,
    BindError,
    Client,
    ListenerSpec,
    LocalProtocolError,
    Options,
    SharedListener,
    TcpAddress,
)
from tests.support import Binder, can_connect, descriptors_unchanged


@pytest.fixture(autouse=True)
def the_environment_names_the_binder(binder: Binder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIBINDER_SOCK", str(binder.socket_path))


def claims(binder: Binder) -> dict[str, list[str]]:
    with Client(binder.socket_path) as client:
        return {each.address: each.owners for each in client.list()}


def status_of(address: str) -> multibinder.ListenerStatus:
    with Client() as client:
        return next(each for each in client.list() if each.address == address)


def health_of(address: str) -> multibinder.ListenerHealth:
    with Client() as client:
        return next(each for each in client.status(fresh=False).listeners if each.address == address)


@pytest.mark.parametrize(
    "named_by",
    [
        lambda listener: listener,
        lambda listener: listener.getsockname(),
        lambda listener: TcpAddress.of(*listener.getsockname()),
        lambda listener: ListenerSpec(TcpAddress.of(*listener.getsockname()), Options(name="mine")),
        lambda listener: status_of("{}:{}".format(*listener.getsockname())),
        lambda listener: health_of("{}:{}".format(*listener.getsockname())),
    ],
    ids=["listener", "tuple", "address", "spec", "status", "health"],
)
def test_a_listener_is_released_by_whatever_names_it(
    binder: Binder, host: str, named_by: Callable[[SharedListener], SharedListener]
) -> None:
    with multibinder.bind(host, 8000, owner="web", name="mine") as listener, descriptors_unchanged():
        released = multibinder.release(named_by(listener), owner="web")
        assert (released.address, released.outcome, released.had_claim) == (f"{host}:8000", "closed", True)
        assert not can_connect((host, 8000)), "for every holder"


def test_a_release_by_an_owner_without_a_claim_is_said(binder: Binder, host: str) -> None:
    multibinder.bind(host, 8000, owner="web").close()
    with pytest.warns(RuntimeWarning, match=r":8000: not released: owner 'wbe' has no claim, but web has$") as warned:
        released = multibinder.release((host, 8000), owner="wbe")
    assert [Path(each.filename).name for each in warned] == [Path(__file__).name]
    assert (released.outcome, released.had_claim, released.owners) == ("kept", False, ["web"])
    with pytest.warns(RuntimeWarning, match="a client without a label has no claim, but web has"):
        multibinder.release((host, 8000))
    assert can_connect((host, 8000))
    assert multibinder.release((host, 8001)).outcome == "absent"


def test_a_listener_names_itself_also_after_it_was_closed_and_released(binder: Binder) -> None:
    listener = multibinder.bind("0.0.0.0", 0, owner="web")
    assert multibinder.release(listener, owner="web").outcome == "closed"
    assert multibinder.release(listener, owner="web").outcome == "absent"
    address = listener.address
    listener.close()
    assert multibinder.release(listener, owner="web").address == str(address)


def test_a_socket_that_no_binder_gave_cannot_be_released(binder: Binder, host: str) -> None:
    with socket.socket(socket.AF_UNIX) as other, pytest.raises(LocalProtocolError, match="no socket that a binder can"):
        multibinder.release(other)  # type: ignore[arg-type]
    closed = socket.create_server((host, 0))
    closed.close()
    with descriptors_unchanged(), pytest.raises(LocalProtocolError, match="has no address any more"):
        multibinder.release(closed)  # type: ignore[arg-type]


def test_after_a_sync_the_owner_has_exactly_these(binder: Binder, host: str) -> None:
    for port in (8000, 8001, 8002):
        multibinder.bind(host, port, owner="web").close()
    multibinder.bind(host, 8001, owner="other").close()
    multibinder.bind(host, 8003, owner="other").close()
    with descriptors_unchanged():
        listeners = multibinder.sync("web", [TcpAddress.of(host, 8000), (host, 8004)], blocking=False)
        assert [each.getsockname()[1] for each in listeners] == [8000, 8004]
        assert [each.getblocking() for each in listeners] == [False, False]
        for each in listeners:
            each.close()
    assert claims(binder) == {
        f"{host}:8000": ["web"],
        f"{host}:8001": ["other"],
        f"{host}:8003": ["other"],
        f"{host}:8004": ["web"],
    }
    assert not can_connect((host, 8002))


def test_a_sync_with_a_name_keeps_the_port_that_the_kernel_chose(binder: Binder, host: str) -> None:
    def port() -> int:
        [listener] = multibinder.sync("web", [ListenerSpec(TcpAddress.of(host, 0), Options(name="web"))])
        with listener:
            number: int = listener.getsockname()[1]
            return number

    assert port() == port()


def test_a_sync_with_no_addresses_releases_all_of_this_user_alone(binder: Binder, host: str) -> None:
    with Client() as client:
        for each in client.bind([(host, 8000)], owner="web") + client.bind([(host, 8001)], owner="web:12345"):
            each.close()
        assert client.sync("web", []) == []
        assert list(claims(binder)) == [f"{host}:8001"]
        assert client.sync("web:12345", []) == []
    assert claims(binder) == {}


def test_a_sync_that_cannot_bind_all_releases_nothing(binder: Binder, host: str) -> None:
    multibinder.bind(host, 8000, owner="web").close()
    with socket.create_server((host, 8001)), descriptors_unchanged(), pytest.raises(BindError):
        multibinder.sync("web", [(host, 8002), (host, 8001)])
    assert claims(binder) == {f"{host}:8000": ["web"]}


def test_a_sync_needs_an_owner_of_its_own(binder: Binder, host: str) -> None:
    multibinder.bind(host, 8000).close()
    with descriptors_unchanged(), pytest.raises(multibinder.AddressError, match="owner '' is not usable"):
        multibinder.sync("", [])
    assert claims(binder) == {f"{host}:8000": [""]}


# What is in the way


def test_a_collision_names_the_listener_its_owner_and_v6only(binder: Binder) -> None:
    with multibinder.bind("::", 0, owner="web", v6only=False) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BindError, match=rf"in use, by \[::\]:{port}, which this binder holds for web") as refusal:
            multibinder.bind("::ffff:0.0.0.0", port)
        assert (refusal.value.listener, refusal.value.owners, refusal.value.v6only) == (f"[::]:{port}", ["web"], False)
        with pytest.raises(BindError, match="exists with v6only False, and True was asked for") as refusal:
            multibinder.bind("::", port, v6only=True)
        assert (refusal.value.listener, refusal.value.owners, refusal.value.v6only) == (f"[::]:{port}", ["web"], False)
    multibinder.release(Address.parse(f"[::]:{port}"), owner="web")


def test_a_collision_outside_of_the_binder_names_no_listener(binder: Binder, host: str) -> None:
    with socket.create_server((host, 8000)), pytest.raises(BindError) as refusal:
        multibinder.bind(host, 8000)
    assert (refusal.value.listener, list(refusal.value.owners), refusal.value.v6only) == (None, [], None)
