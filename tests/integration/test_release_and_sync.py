"""``multibinder.release`` and ``multibinder.sync``: an owner's listeners are what it says."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

import multibinder
from multibinder import (
    Address,
    ArgumentError,
    BindError,
    Client,
    ListenerSpec,
    LocalProtocolError,
    Options,
    TcpAddress,
)
from tests.support import PATIENCE_S, Binder, can_connect, descriptors_unchanged, later, require_ipv6


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


def test_a_listener_is_released_by_whatever_names_it(binder: Binder, host: str) -> None:
    address = TcpAddress.of(host, 8000)
    for name in ("listener", "tuple", "address", "spec", "status", "health"):
        with multibinder.bind(host, 8000, owner="web", name="mine") as listener, descriptors_unchanged():
            named_by: dict[str, multibinder.ReleaseTarget] = {
                "listener": listener,
                "tuple": (host, 8000),
                "address": address,
                "spec": ListenerSpec(address, Options(name="mine")),
                "status": status_of(str(address)),
                "health": health_of(str(address)),
            }
            released = multibinder.release(named_by[name], owner="web")
            assert (released.address, released.outcome, released.had_claim) == (f"{host}:8000", "closed", True), name
            assert not can_connect((host, 8000)), f"{name}: for every holder"


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


@pytest.mark.parametrize("how", ["release", "sync"])
def test_with_drain_a_client_that_waits_is_accepted_before_the_port_closes(binder: Binder, host: str, how: str) -> None:
    served: list[bytes] = []
    with multibinder.bind(host, 8000, owner="web") as listener, socket.create_connection((host, 8000)) as client:
        client.sendall(b"waited")
        client.settimeout(PATIENCE_S)

        def serve_it() -> None:
            with listener.accept()[0] as accepted:
                served.append(accepted.recv(6))

        with later(0.1, serve_it):
            if how == "sync":
                assert multibinder.sync("web", [], drain=PATIENCE_S) == []
            else:
                released = multibinder.release(listener, owner="web", drain=PATIENCE_S)
                assert (released.outcome, released.reset) == ("closed", 0)
            assert not can_connect((host, 8000))
        assert served == [b"waited"]
    assert claims(binder) == {}


def test_a_drain_that_is_longer_than_the_timeout_is_waited_for(binder: Binder, host: str) -> None:
    with multibinder.bind(host, 8000, owner="web"), socket.create_connection((host, 8000)):
        released = multibinder.release((host, 8000), owner="web", drain=0.6, timeout=0.3)
        assert (released.outcome, released.reset) == ("closed", 1)


def test_a_drain_that_is_no_number_of_seconds_changes_nothing(binder: Binder, host: str) -> None:
    multibinder.bind(host, 8000, owner="web").close()
    wrong: list[Any] = [-1, None, "5", float("inf"), float("nan"), True]
    with descriptors_unchanged():
        for drain in wrong:
            with pytest.raises(ArgumentError, match=r"^drain "):
                multibinder.release((host, 8000), owner="web", drain=drain)
            with pytest.raises(ArgumentError, match=r"^drain "):
                multibinder.sync("web", [(host, 8001)], drain=drain)
    assert claims(binder) == {f"{host}:8000": ["web"]}


# What is in the way


def test_a_collision_names_the_listener_its_owner_and_v6only(binder: Binder) -> None:
    require_ipv6()
    with multibinder.bind("::", 0, owner="web", v6only=False) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BindError, match=rf"in use, by \[::\]:{port}, which this binder holds for web") as refusal:
            multibinder.bind("::ffff:0.0.0.0", port)
        assert (refusal.value.listener, refusal.value.owners, refusal.value.v6only) == (f"[::]:{port}", ["web"], False)
        with pytest.raises(BindError, match="exists with v6only False, and True was asked for") as refusal:
            multibinder.bind("::", port, v6only=True)
        assert (refusal.value.listener, refusal.value.owners, refusal.value.v6only) == (f"[::]:{port}", ["web"], False)
    multibinder.release(Address.parse(f"[::]:{port}"), owner="web")


def test_a_collision_outside_of_the_binder_names_the_process_and_its_other_address(binder: Binder, host: str) -> None:
    require_ipv6()
    with socket.create_server((host, 8000)), pytest.raises(BindError, match=r"\(pid \d+\); take it over") as refusal:
        multibinder.bind(host, 8000)
    assert (refusal.value.listener, list(refusal.value.owners), refusal.value.v6only) == (None, [], None)
    remedy = r"\(give v6only=true to the IPv6 one to have both\); stop it or choose another port"
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as six:
        port = six.getsockname()[1]
        with pytest.raises(BindError, match=rf"{host}:{port}: .*, by .* on \[::\]:{port} {remedy}"):
            multibinder.bind(host, port)
    with socket.create_server(("0.0.0.0", 0)) as four:
        port = four.getsockname()[1]
        with pytest.raises(BindError, match=rf"\[::\]:{port}: .*, by .* on 0\.0\.0\.0:{port} {remedy}"):
            multibinder.bind("::", port, v6only=False)
        multibinder.bind("::", port, v6only=True).close()


def test_sync_without_a_label_is_an_error_also_where_no_binder_is(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError):
        multibinder.sync("", [], socket_path=tmp_path / "none")
