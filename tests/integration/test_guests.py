"""Clients of other PID namespaces have no right that their uid would have: in a container, root is every user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from multibinder import Client, ListenerSpec, TcpAddress
from multibinder.binder.owner import GUEST_UID
from multibinder.wire.status import OwnerStatus
from tests.conftest import StartBinder
from tests.support import PATIENCE_S, Binder, Stranger, Told, children, own_port, require

UID = 4242
NOT_ALLOWED = 10003
#: The binder is outside of the PID namespace of its client; or its client is inside, and it sees its PID.
BOTH = pytest.mark.parametrize("inside", ["client", "binder"])


class Start(Protocol):
    def __call__(self, inside: str, policy: str | None = None) -> Binder: ...


@pytest.fixture
def start(run_dir: Path, start_binder: StartBinder) -> Iterator[Start]:
    """Start a binder; ``inside`` is "binder" if it is in a PID namespace of its own."""
    require("root", os.geteuid() == 0, "making PID namespaces needs root")
    run_dir.chmod(0o711)

    def start(inside: str, policy: str | None = None) -> Binder:
        options = []
        if policy is not None:
            (run_dir / "policy.toml").write_text(policy)
            (run_dir / "policy.toml").chmod(0o600)
            options = ["--policy", str(run_dir / "policy.toml")]
        if inside != "binder":
            return start_binder("--mode", "0666", *options)
        prefix = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        binder = start_binder("--mode", "0666", *options, prefix=prefix)
        contained.extend(children(binder.pid))
        return binder

    contained: list[int] = []
    yield start
    for pid in contained:
        os.kill(pid, signal.SIGTERM)  # unshare itself ignores it


def guest(binder: Binder, inside: str, uid: int = 0) -> Stranger:
    return Stranger(uid, binder.socket_path, contained=inside == "client")


def code_of(told: Told) -> int:
    code: int = told.reply["error"]["code"]
    return code


@BOTH
@pytest.mark.parametrize("uid", [0, UID])
def test_a_guest_gets_listeners_of_its_own_and_nothing_of_others(
    start: Start, inside: str, uid: int, host: str
) -> None:
    binder = start(inside)
    ours, theirs = own_port(), own_port()
    with guest(binder, inside, uid) as stranger:
        assert stranger.bind(host, theirs, owner="web").addresses == [f"{host}:{theirs}"]
        bind_as_root(binder, inside, host, ours)
        claims = {each["address"]: each["claims"] for each in stranger.ask("list").reply["result"]}
        assert claims[f"{host}:{theirs}"] == [{"label": "web", "uid": GUEST_UID}]
        assert claims[f"{host}:{ours}"] == [{"label": "web", "uid": 0}]
        assert stranger.ask("hello").reply["result"]["uid"] == GUEST_UID
        # It can neither drop the claim of root nor name its owner, nor move claims, nor replace the binder.
        stranger.ask("release", {"address": host, "port": ours, "owner": "web"})
        assert code_of(stranger.bind(host, theirs, owner="web:0")) == NOT_ALLOWED
        assert code_of(stranger.ask("release", {"address": host, "port": ours, "owner": "web:0"})) == NOT_ALLOWED
        assert code_of(stranger.ask("move", {"owner": "web:0", "to": GUEST_UID})) == NOT_ALLOWED
        refused = stranger.ask("upgrade")
        assert code_of(refused) == NOT_ALLOWED
        assert "another PID namespace" in refused.refusal
        claims = {each["address"]: each["claims"] for each in stranger.ask("list").reply["result"]}
        assert claims[f"{host}:{ours}"] == [{"label": "web", "uid": 0}]
        stranger.ask("release", {"address": host, "port": theirs, "owner": "web"})
        assert [each["address"] for each in stranger.ask("list").reply["result"]] == [f"{host}:{ours}"]


@BOTH
def test_a_rule_for_a_user_is_not_for_a_guest_that_says_to_be_it(start: Start, inside: str, host: str) -> None:
    port = own_port()
    binder = start(
        inside,
        f"""
[[rule]]
uid = [0, {UID}]
allow = "*"

[[rule]]
gid = [0, {UID}]
allow = "*"

[[rule]]
uid = "@guest"
allow = ["bind", "release"]
address = "{host}:{port}"
""",
    )
    for uid in (0, UID):
        with guest(binder, inside, uid) as stranger:
            assert stranger.bind(host, port).addresses == [f"{host}:{port}"]
            refused = stranger.bind(host, port + 1)
            assert code_of(refused) == NOT_ALLOWED
            assert "a client of another PID namespace" in refused.refusal
            assert code_of(stranger.ask("upgrade")) == NOT_ALLOWED
            assert code_of(stranger.ask("list")) == NOT_ALLOWED


def test_the_limits_hold_for_a_guest_that_is_root(start_binder: StartBinder, host: str) -> None:
    require("root", os.geteuid() == 0, "making PID namespaces needs root")
    binder = start_binder("--max-listeners-per-uid", "1")
    with guest(binder, "client") as stranger:
        assert stranger.bind(host, 0).received
        assert "limit of 1 listeners" in stranger.bind(host, 0).refusal
    with Client(binder.socket_path) as client:
        for _ in range(2):
            client.bind([ListenerSpec(TcpAddress(host, 0))], owner="root")[0].close()
        assert next(each.claims for each in client.list()) == [OwnerStatus("", GUEST_UID)]


def test_the_children_of_a_process_that_has_ended_are_guests(binder: Binder) -> None:
    require("root", os.geteuid() == 0, "the test is about root")
    binder.suspend()
    with Stranger(0, binder.socket_path) as ended:
        client = ended.connect()
        # Its process ends before the binder accepts; we have its connection still.
        ended._ours.close()
        ended._process.wait()
        binder.resume()
        client.send(b'{"jsonrpc":"2.0","method":"hello","id":1,"params":[]}\n')
        assert f'"uid":{GUEST_UID}' in client.receive()[0].decode()


def bind_as_root(binder: Binder, inside: str, host: str, port: int) -> None:
    """Bind from a process in the binder's PID namespace."""
    pid = children(binder.pid)[0] if inside == "binder" else os.getpid()
    code = (
        "import multibinder, sys\n"
        "with multibinder.Client(sys.argv[1]) as client:\n"
        "    address = multibinder.TcpAddress(sys.argv[2], int(sys.argv[3]))\n"
        "    client.bind([multibinder.ListenerSpec(address)], owner='web')"
    )
    command = ["nsenter", f"--target={pid}", "--pid", sys.executable, "-c", code]
    subprocess.run([*command, str(binder.socket_path), host, str(port)], check=True, timeout=PATIENCE_S)
