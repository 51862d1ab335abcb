"""A Unix listener survives what a TCP listener survives: an upgrade, a crash below a guard, and the loss of both."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Address, Client, ListenerSpec, Options
from tests.support import PROGRAM, Binder, serving_pid, wait_until

MODE = 0o640


@pytest.fixture
def addresses(tmp_path: Path) -> list[Address]:
    paths = [f"{prefix}{tmp_path}/{number}" for number, prefix in enumerate(("unix@", "uxdg@", "unixseq@"))]
    return [Address.parse(each) for each in (*paths, f"abns@mb-{os.getpid()}", f"abnsz@mb-{os.getpid()}")]


def specs(addresses: list[Address]) -> list[ListenerSpec]:
    return [ListenerSpec(each, Options(mode=MODE if each.path else None)) for each in addresses]


@pytest.fixture
def binder(run_dir: Path) -> Iterator[Binder]:
    with Binder(run_dir, "--guard") as binder:
        yield binder.wait_until_ready()


@pytest.mark.parametrize("how", [signal.SIGUSR1, signal.SIGKILL], ids=["upgrade", "crash"])
def test_unix_listeners_survive_with_clients_path_and_options(
    binder: Binder, addresses: list[Address], how: signal.Signals
) -> None:
    with Client(binder.socket_path) as client:
        for received in client.bind(specs(addresses), owner="web"):
            received.close()
        before = {each.address: each.cookie for each in client.list()}
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(addresses[0].path or "")
    inodes = [os.stat(each.path).st_ino for each in addresses if each.path]
    pid = serving_pid(binder.socket_path)
    os.kill(pid, how)
    if how == signal.SIGKILL:
        serving_pid(binder.socket_path, not_=pid)
    else:
        wait_until(lambda: binder.log().count("event=serving") == 2, "upgraded", log=binder.log)
    # A path that is removed meanwhile is given back by the new binder.
    os.unlink(addresses[1].path or "")
    wait_until(lambda: os.path.exists(addresses[1].path or ""), "the path is back", log=binder.log)
    with waiting, Client(binder.socket_path) as client:
        assert {each.address: each.cookie for each in client.list()} == before
        assert [os.stat(each.path).st_ino for each in addresses if each.path] == inodes
        assert {os.stat(each.path).st_mode & 0o777 for each in addresses if each.path} == {MODE}
        [first, *others] = client.bind(specs(addresses), owner="web")
        for each in others:
            each.close()
        with socket.socket(fileno=first.detach()) as listener:
            listener.settimeout(5)
            listener.accept()[0].close()
        assert {each.outcome for each in client.release(addresses, owner="web")} == {"closed"}
    assert not [each for each in os.listdir(os.path.dirname(addresses[0].path or "")) if "multibinder" in each]


@pytest.fixture
def dead(run_dir: Path) -> Iterator[Binder]:
    """Return a binder that the test kills."""
    with Binder(run_dir) as binder:
        yield binder.wait_until_ready()


def test_a_binder_that_lost_its_sockets_recovers_them_from_a_holder(dead: Binder, addresses: list[Address]) -> None:
    with Client(dead.socket_path) as client:
        held = client.bind(specs(addresses), owner="web")
        before = {each.address: each.cookie for each in client.list()}
    holder = subprocess.Popen(["sleep", "60"], pass_fds=[each.fileno() for each in held])
    try:
        for each in held:
            each.close()
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        os.unlink(addresses[0].path or "")  # while no binder is there to see it
        command = [*PROGRAM, "serve", "--socket", str(dead.socket_path)]
        with Binder(dead.socket_path.parent, name="next", command=command) as binder:
            binder.socket_path = dead.socket_path
            binder.wait_until_ready()
            with Client(binder.socket_path) as client:
                assert {each.address: each.cookie for each in client.list()} == before
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.connect(addresses[0].path or "")
    finally:
        holder.kill()
        holder.wait()
