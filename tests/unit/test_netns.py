"""A network namespace is opened safely, identified, and entered by a thread that ends."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from multibinder.kernel import netns
from multibinder.kernel.socket_options import netns_cookie_of
from tests.support import descriptors_unchanged, wait_until
from tests.support.namespaces import NetworkNamespace

OURS = "/proc/self/ns/net"


def test_our_own_namespace_is_recognized_by_its_cookie() -> None:
    with descriptors_unchanged():
        descriptor = netns.open_netns(OURS)
        try:
            assert netns.cookie_of_netns(descriptor) == netns.own_cookie() != 0
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("what", ["file", "fifo", "device", "directory", "link", "other"])
def test_what_is_no_network_namespace_is_not_opened(run_dir: Path, what: str) -> None:
    path = run_dir / what
    if what == "file":
        path.touch()
    elif what == "fifo":
        os.mkfifo(path)  # to open it would wait for a writer
    elif what == "directory":
        path.mkdir()
    elif what == "link":
        path.symlink_to(OURS)
    with descriptors_unchanged(), pytest.raises(netns.NotANetworkNamespaceError):
        netns.open_netns({"device": "/dev/null", "other": "/proc/self/ns/mnt"}.get(what, str(path)))


def test_a_name_a_path_and_a_process_lead_to_the_same_namespace() -> None:
    with NetworkNamespace("same") as other, descriptors_unchanged():
        paths = [netns.path_of_name(other.name), other.path, netns.path_of_process(other.pid)]
        descriptors = [netns.open_netns(path) for path in paths]
        cookies = {netns.cookie_of_netns(each) for each in descriptors}
        assert len(cookies) == 1
        assert netns.own_cookie() not in cookies
        assert cookies == {netns.inside(descriptors[0], netns.own_cookie)}
        assert other.name in netns.names()
        for each in descriptors:
            os.close(each)


def test_a_socket_made_inside_belongs_to_the_namespace_and_leads_back_to_it() -> None:
    with NetworkNamespace("socket") as other, descriptors_unchanged():
        descriptor = netns.open_netns(other.path)
        with netns.inside(descriptor, socket.socket) as made, socket.socket() as ours:
            assert netns_cookie_of(made) == netns.cookie_of_netns(descriptor) != netns_cookie_of(ours)
            back = netns.netns_of(made)
            assert os.path.sameopenfile(back, descriptor)
            os.close(back)
        os.close(descriptor)


def test_the_thread_that_entered_has_ended_and_its_exception_is_raised_here() -> None:
    with NetworkNamespace("thread") as other, descriptors_unchanged():
        descriptor, before = netns.open_netns(other.path), set(os.listdir("/proc/self/task"))
        with pytest.raises(ZeroDivisionError):
            netns.inside(descriptor, lambda: 1 // 0)
        os.close(descriptor)
        assert netns.own_cookie() != 0
        wait_until(lambda: set(os.listdir("/proc/self/task")) <= before, "the thread is gone")
