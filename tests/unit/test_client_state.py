"""What the next version gets to know of clients that are passed on to it."""

from __future__ import annotations

import os
import socket

import pytest

from multibinder.binder import client_state
from multibinder.binder.client_state import CLIENT, CLIENTS, ClientState
from multibinder.kernel.socket_options import inode_of
from tests.support import descriptors_unchanged


def test_half_sent_requests_travel_beside_the_connections() -> None:
    with descriptors_unchanged():
        ends = [socket.socketpair() for _ in range(3)]
        inodes = [inode_of(ours) for ours, _ in ends]
        half = b'{"jsonrpc":\xff'
        states = [ClientState(inodes[0]), ClientState(inodes[1], half), ClientState(inodes[2])]
        passed = client_state.detach([(ours, state) for (ours, _), state in zip(ends, states, strict=True)])
        assert [name for name, _ in passed] == [CLIENTS, CLIENT, CLIENT, CLIENT]
        assert [os.fstat(number).st_ino for _, number in passed[1:]] == inodes
        assert client_state.read(passed[0][1]) == {inodes[1]: states[1]}
        for _, number in passed:
            os.close(number)
        for _, theirs in ends:
            theirs.close()


def test_clients_of_which_nothing_is_known_need_no_memfd() -> None:
    ours, theirs = socket.socketpair()
    [(name, number)] = client_state.detach([(ours, ClientState(inode_of(ours)))])
    assert name == CLIENT
    os.close(number)
    theirs.close()


def test_a_line_that_makes_no_sense_costs_its_client_alone(caplog: pytest.LogCaptureFixture) -> None:
    memfd = os.memfd_create("test")
    os.write(memfd, b'nonsense\n{"inode":7,"input":"e30=","newer":1}\n{"inode":"x"}\n')
    assert client_state.read(memfd) == {7: ClientState(7, b"{}")}
    os.close(memfd)
