"""The path of a Unix listener leads to it as long as the binder holds it, whatever others do to the path."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Address, BindError, Client, ListenerSpec, Options
from tests.support import Binder, wait_until

PREFIXES = ("unix@", "uxdg@", "unixseq@")
SHORT_S = 5.0


@pytest.fixture(scope="module")
def binder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Binder]:
    with Binder(tmp_path_factory.mktemp("b")) as binder:
        yield binder.wait_until_ready()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "app"
    directory.mkdir()
    return directory


@pytest.fixture(params=PREFIXES)
def address(request: pytest.FixtureRequest, directory: Path) -> Address:
    return Address.parse(f"{request.param}{directory}/app.sock")


def bound(binder: Binder, address: Address, **options: int) -> socket.socket:
    """Return a plain socket, as a holder has it that knows nothing of multibinder."""
    with Client(binder.socket_path) as client:
        [received] = client.bind([ListenerSpec(address, Options(**options))])  # type: ignore[arg-type]
    return socket.socket(fileno=received.detach())


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def can_reach(address: Address) -> bool:
    with socket.socket(socket.AF_UNIX, getattr(address, "type")) as client:  # noqa: B009
        try:
            client.connect(address.path or "")
            if client.type == socket.SOCK_DGRAM:
                client.send(b"")
        except OSError:
            return False
        return True


def is_reachable_again(binder: Binder, address: Address) -> bool:
    return wait_until(lambda: can_reach(address), "clients reach the path", log=binder.log, timeout_s=SHORT_S)


@pytest.mark.parametrize("how", ["unlink", "rename", "replace"])
def test_a_path_that_a_holder_removes_leads_to_the_same_socket_again_at_once(
    binder: Binder, address: Address, how: str
) -> None:
    path = address.path or ""
    with bound(binder, address) as holder, socket.socket(socket.AF_UNIX, holder.type) as waiting:
        waiting.connect(path)
        waiting.send(b"hello")
        for _ in range(3):
            if how == "unlink":
                os.unlink(path)
            elif how == "rename":
                os.rename(path, f"{path}.old")
            else:
                with socket.socket(socket.AF_UNIX) as other:
                    other.bind(f"{path}.tmp")
                os.rename(f"{path}.tmp", path)
            assert is_reachable_again(binder, address)
        source = holder if holder.type == socket.SOCK_DGRAM else holder.accept()[0]
        assert source.recv(10) == b"hello"
        source.close()


def test_a_listener_that_a_holder_shut_down_gets_a_new_socket_at_its_path(binder: Binder, address: Address) -> None:
    with bound(binder, address) as holder:
        holder.shutdown(socket.SHUT_RDWR)
        assert is_reachable_again(binder, address)
    with bound(binder, address) as again:
        assert again.getsockname() == address.path


@pytest.mark.parametrize("how", ["emptied", "removed", "renamed", "parent removed"])
def test_a_directory_that_is_emptied_or_made_anew_gets_its_sockets_back(
    binder: Binder, directory: Path, how: str
) -> None:
    place = directory / "run"
    place.mkdir()
    addresses = [Address.parse(f"{prefix}{place}/{number}") for number, prefix in enumerate(PREFIXES)]
    for address in addresses:
        bound(binder, address).close()
    if how == "emptied":
        for each in place.iterdir():
            each.unlink()
    elif how == "removed":
        shutil.rmtree(place)
        place.mkdir()
    elif how == "renamed":
        place.rename(f"{place}.old")
        place.mkdir()
    else:
        shutil.rmtree(directory)
        binder.wait_for_log(f"event=cannot-repair address={addresses[0]} ")
        directory.mkdir()
        place.mkdir()
    assert all(is_reachable_again(binder, address) for address in addresses)


def test_a_path_that_another_program_serves_now_is_left_to_it(binder: Binder, address: Address) -> None:
    path = address.path or ""
    bound(binder, address).close()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{path}.tmp")
        other.listen()
        os.rename(f"{path}.tmp", path)
        binder.wait_for_log(f"event=cannot-repair address={address} ")
        with Client(binder.socket_path) as client, pytest.raises(BindError, match="address already in use"):
            client.bind([ListenerSpec(address)])
        other.settimeout(0.05)
        with pytest.raises(TimeoutError):
            other.accept()  # nobody has looked by connecting
        os.unlink(path)
    assert is_reachable_again(binder, address)


def test_a_directory_in_which_much_happens_does_not_keep_the_binder_busy(binder: Binder, directory: Path) -> None:
    address = Address.parse(f"unix@{directory}/app.sock")
    bound(binder, address).close()
    before, until = cpu_s(binder.pid), time.monotonic() + 0.5
    while time.monotonic() < until:
        (directory / "x").touch()
        (directory / "x").unlink()
    assert cpu_s(binder.pid) - before < 0.2
    os.unlink(address.path or "")
    assert is_reachable_again(binder, address)


def test_a_release_removes_the_path_and_leaves_one_that_is_not_its_own(binder: Binder, address: Address) -> None:
    bound(binder, address).close()
    with Client(binder.socket_path) as client:
        assert [each.outcome for each in client.release([address])] == ["closed"]
    assert os.listdir(os.path.dirname(address.path or "")) == []


def test_a_check_leaves_nothing(binder: Binder, address: Address) -> None:
    with Client(binder.socket_path) as client:
        client.check([ListenerSpec(address)])
    assert os.listdir(os.path.dirname(address.path or "")) == []
