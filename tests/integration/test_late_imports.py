"""A running binder imports nothing, because the files on disk may be of another version, or gone."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from pathlib import Path

import msgspec
import pytest

from multibinder import Client, ListenerSpec, MultibinderError, Options, TcpAddress
from multibinder.binder.settings import Settings
from multibinder.cli.binder_main import Invocation
from tests.conftest import StartBinder
from tests.support import RawClient

#: A binder that appends the name of each module that it imports after its start to a file.
_PROGRAM = """
import os, sys
from multibinder.cli import binder_main
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(event, args):
    if event == "import":
        os.write({log_number}, args[0].encode() + b"\\n")
os.dup2(log, {log_number}, inheritable=False)
sys.addaudithook(note)
{more}
binder_main.main()
"""
_LOG_NUMBER = 250


@pytest.mark.parametrize("more", ["", "import sched"])
def test_a_binder_imports_nothing_after_its_start(
    run_dir: Path, start_binder: StartBinder, host: str, more: str
) -> None:
    address = TcpAddress(host, 8000)
    policy, log = run_dir / "policy.toml", run_dir / "imports"
    policy.write_text("")
    settings = Settings(str(run_dir / "mb.sock"), policy=str(policy))
    program = _PROGRAM.format(log=str(log), log_number=_LOG_NUMBER, more=more)
    argument = msgspec.json.encode(Invocation(settings)).decode()
    binder = start_binder(command=[sys.executable, "-P", "-c", program, argument], name="mb")
    with Client(binder.socket_path) as client, socket.create_server((host, 0)) as taken:
        renamed = ListenerSpec(address, Options(name="other", v6only=None))
        for wanted in (address, renamed, TcpAddress(*taken.getsockname()), TcpAddress("192.0.2.1", 8001)):
            with contextlib.suppress(MultibinderError):
                client.bind([wanted])[0].close()
        client.check([(host, 8002)])
        assert [status.address for status in client.list()] == [f"{host}:8000"]
        # The child that looks for holders has closed the descriptor of that file, so that an import would fail.
        assert client.status().looked_at is not None
        client.release([(host, 8000)])
        binder.send_signal(signal.SIGHUP)
        binder.wait_for_log("event=policy-reloaded")
        policy.write_text("[[rule]]\nnonsense = 1\n")
        binder.send_signal(signal.SIGHUP)
        binder.wait_for_log("event=policy-broken")
        with pytest.raises(MultibinderError):
            client.upgrade()
        policy.write_text("")
    with RawClient(binder.socket_path) as raw:
        assert "error" in raw.ask(b"nonsense")
    assert binder.stop() == 0
    assert log.read_text().split() == more.split()[1:]
