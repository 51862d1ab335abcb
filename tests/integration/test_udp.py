"""UDP listeners of a real binder: what holding them is worth, and what their holders cannot break."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import multibinder
from multibinder import BindError, Client, ListenerStatus, Options
from multibinder.kernel.socket_options import cookie_of
from multibinder.wire.addresses import Address
from multibinder.wire.kinds.udp import UDP
from multibinder.wire.messages import ListenerSpec
from tests.conftest import StartBinder
from tests.support import PATIENCE_S, Binder, require, wait_until
from tests.support.campaign import times

#: Answers each datagram with its text.
ECHO = """
import multibinder, sys
sock = multibinder.bind(sys.argv[2], socket_path=sys.argv[1], owner="echo", rcvbuf=1_000_000)
print("ready", flush=True)
while True:
    sock.sendto(*sock.recvfrom(2000))
"""
RATE = 400


@pytest.fixture
def binder(start_binder: StartBinder) -> Binder:
    return start_binder()


@pytest.fixture
def echo(binder: Binder, host: str) -> Iterator[Echo]:
    with Echo(binder, f"udp@{host}:5000") as echo:
        yield echo


class Echo:
    """A server that can be killed, and started again."""

    def __init__(self, binder: Binder, address: str) -> None:
        self._command = [sys.executable, "-c", ECHO, str(binder.socket_path), address]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Sender:
    """Sends numbered datagrams at a rate, and counts the answers."""

    def __init__(self, host: str) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
        self.sock.bind((host, 0))
        self._to = (host, 5000)
        self.sent = 0
        self.answered: set[bytes] = set()

    def send(self, count: int) -> None:
        began = time.monotonic()
        for number in range(count):
            self._answers(began + number / RATE - time.monotonic())
            self.sock.sendto(b"%d" % self.sent, self._to)
            self.sent += 1

    def wait(self) -> None:
        def all_are() -> bool:
            self._answers(0.01)
            return len(self.answered) == self.sent

        wait_until(all_are, "all are answered")

    def _answers(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while select.select([self.sock], [], [], max(0.0, until - time.monotonic()))[0]:
            self.answered.add(self.sock.recv(100))


def test_no_datagram_is_lost_while_the_server_is_killed_and_started_again(
    binder: Binder, echo: Echo, host: str
) -> None:
    sender = Sender(host)
    with sender.sock:
        for _ in range(times(2, 50)):
            sender.send(20)
            sender.wait()  # The server has taken none that it has not answered.
            echo.kill()
            sender.send(int(0.7 * RATE))
            echo.start()
            sender.send(20)
        sender.wait()
    [listener] = listeners(binder)
    assert (listener.kind, listener.options["rcvbuf"]) == ("udp", 1_000_000)


def listeners(binder: Binder) -> list[ListenerStatus]:
    with Client(binder.socket_path) as client:
        return client.list()


def bound(binder: Binder, address: str, owner: str = "", **options: int) -> socket.socket:
    """Return a plain socket, as a holder has it that knows nothing of multibinder."""
    with Client(binder.socket_path) as client:
        spec = ListenerSpec(Address.parse(address), Options(**options))  # type: ignore[arg-type]
        [received] = client.bind([spec], owner=owner)
    return socket.socket(fileno=received.detach())


def send(address: str, text: bytes = b"ping") -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(text, Address.parse(address).sockaddr)


def received(sock: socket.socket) -> list[bytes]:
    texts = []
    with contextlib.suppress(BlockingIOError):
        while True:
            texts.append(sock.recv(100, socket.MSG_DONTWAIT))
    return texts


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_a_server_that_shuts_the_socket_down_costs_the_next_one_no_datagram(
    binder: Binder, host: str, how: int
) -> None:
    address = f"udp@{host}:5000"
    with bound(binder, address) as old:
        with pytest.raises(OSError, match="not connected"):
            old.shutdown(how)
        wait_until(lambda: "event=repaired" in binder.log(), "the binder has repaired it", log=binder.log, timeout_s=5)
        send(address)
        with bound(binder, address) as new:
            assert cookie_of(new) != cookie_of(old)
            assert received(new) == [b"ping"]
            assert received(old) == []
            with Client(binder.socket_path) as client:
                [health] = client.status().listeners
            assert health.repairs == 1
            assert health.queue is not None


def test_a_server_that_connects_the_socket_silences_the_others_until_the_next_handoff(
    binder: Binder, host: str
) -> None:
    address = f"udp@{host}:5000"
    with bound(binder, address) as one, bound(binder, address) as other:
        other.connect((host, 9))
        send(address)
        assert received(one) == []
        with bound(binder, address):
            send(address)
            assert received(one) == [b"ping"]


def test_a_released_socket_is_silent_for_its_holders_and_its_address_can_be_bound_again(
    binder: Binder, host: str
) -> None:
    address = f"udp@{host}:5000"
    with bound(binder, address) as old:
        multibinder.release(address, socket_path=binder.socket_path)
        assert listeners(binder) == []
        send(address)
        assert received(old) == []
        with bound(binder, address) as new:
            send(address)
            assert received(new) == [b"ping"]
            assert received(old) == []


@pytest.mark.parametrize("host_of", ["{host}", "[::1]"])
def test_a_drain_ends_when_the_holders_have_received_what_waits(binder: Binder, host: str, host_of: str) -> None:
    with bound(binder, f"udp@{host_of.format(host=host)}:0") as sock:
        address = str(UDP.address_of(sock))
        with socket.socket(sock.family, socket.SOCK_DGRAM) as client:
            client.sendto(b"first", sock.getsockname())
            release = [sys.executable, "-c", RELEASE, str(binder.socket_path), address]
            with subprocess.Popen(release, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as draining:
                wait_until(lambda: "event=draining" in binder.log(), "it drains", log=binder.log)
                wait_until(lambda: UDP.is_retired(sock), "no datagram comes any more")
                assert draining.poll() is None
                client.sendto(b"second", sock.getsockname())
                assert received(sock) == [b"first"]
                assert draining.communicate(timeout=PATIENCE_S)[0] == "closed 0\n"


RELEASE = """
import multibinder, sys
released = multibinder.release(sys.argv[2], socket_path=sys.argv[1], drain=15)
print(released.outcome, released.reset)
"""


def test_a_listener_for_quic_is_shared_with_every_user_and_the_log_says_so(binder: Binder, host: str) -> None:
    with bound(binder, f"quic4@{host}:5000") as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(sock.getsockname())
        [line] = [line for line in binder.log().splitlines() if "event=caution" in line]
        assert f"address=quic4@{host}:5000" in line
        assert f"every user of this host can bind udp@{host}:5000 too, with SO_REUSEADDR" in line
        with pytest.raises(BindError, match="in use"):
            bound(binder, f"udp@{host}:5000")


def test_a_buffer_is_raised_on_the_live_socket_and_datagrams_that_find_no_room_are_counted(
    binder: Binder, host: str
) -> None:
    address = f"udp@{host}:5000"
    with bound(binder, address, "dns", rcvbuf=20_000) as sock:
        for _ in range(100):
            send(address)
        with Client(binder.socket_path) as client:
            [health] = client.status().listeners
        assert health.drops == 100 - len(received(sock)) > 0
        with bound(binder, address, "dns", rcvbuf=400_000):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 800_000
        with bound(binder, address, "dns"):
            default = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with default:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == default.getsockopt(
                    socket.SOL_SOCKET, socket.SO_RCVBUF
                )


def test_an_option_without_its_capability_is_refused_with_option_capability_and_drop_in(
    start_binder: StartBinder, host: str
) -> None:
    require("root", os.geteuid() == 0, "taking capabilities away needs root")
    require("setpriv", shutil.which("setpriv"), "there is no setpriv")
    binder = start_binder(prefix=["setpriv", "--bounding-set=-net_admin,-net_raw"])
    with pytest.raises(BindError) as refusal:
        bound(binder, f"udp@{host}:5000", mark=7)
    assert str(refusal.value) == (
        f"Could not bind: udp@{host}:5000: option mark: operation not permitted: SO_MARK needs CAP_NET_ADMIN or "
        "CAP_NET_RAW in the binder (drop-in socket-options.conf)"
    )
    with bound(binder, f"{host}:5000", "web"):
        with pytest.raises(BindError, match="option mark: operation not permitted"):
            bound(binder, f"{host}:5000", "web", mark=7)
        [listener] = listeners(binder)
        assert listener.options.get("mark") is None


def test_a_vsock_listener_is_bound_once_and_handed_over(binder: Binder) -> None:
    try:
        sock = bound(binder, "vsock@*:0", "guests", backlog=7)
    except BindError as refusal:
        require("vsock", refusal.errno != errno.EAFNOSUPPORT, "this kernel has no vsock")
        raise
    with sock:
        [listener] = listeners(binder)
        assert listener.address == f"vsock@*:{sock.getsockname()[1]}"
        assert listener.kind == "vsock"
        with bound(binder, listener.address, "guests") as again:
            assert cookie_of(again) == cookie_of(sock)
        with Client(binder.socket_path) as client:
            [health] = client.status().listeners
        assert (health.queue, health.drops) == (None, None)
