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
from multibinder.cli.invocation import Invocation
from tests.conftest import StartBinder
from tests.support import RawClient, wait_until

#: A binder that appends the name of each module that it imports after its start to a file, and of each file of Python
#: or of an installed package that it opens.
_PROGRAM = """
import logging.handlers, multibinder, os, sys  # logging.handlers: imported at a start with --log-file
from multibinder.cli import binder_main
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(event, args):
    if event == "import":
        os.write({log_number}, args[0].encode() + b"\\n")
    elif event == "open" and str(args[0]).startswith((sys.prefix, sys.base_prefix + "/lib", *multibinder.__path__)):
        os.write({log_number}, str(args[0]).encode() + b"\\n")
os.dup2(log, {log_number}, inheritable=False)
sys.addaudithook(note)
{more}
binder_main.main()
"""
_LOG_NUMBER = 250


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("more", ["", "import sched"])
def test_a_binder_imports_nothing_after_its_start(
    run_dir: Path, start_binder: StartBinder, host: str, more: str, log_format: str
) -> None:
    address = TcpAddress(host, 8000)
    policy, log = run_dir / "policy.toml", run_dir / "imports"
    policy.write_text("")
    binder_log = str(run_dir / "mb.log") if log_format == "json" else None
    settings = Settings(str(run_dir / "mb.sock"), policy=str(policy), pidfile=str(run_dir / "pid"))
    program = _PROGRAM.format(log=str(log), log_number=_LOG_NUMBER, more=more)
    argument = msgspec.json.encode(Invocation(settings, log_format, log_file=binder_log)).decode()
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
        binder.wait_for_log("policy-reloaded")
        policy.write_text('[[rule]]\nuid = ["root", "no-such-user"]\ngid = "no-such-group"\nallow = "*"\n')
        binder.send_signal(signal.SIGHUP)
        binder.wait_for_log("no-such-user")
        policy.write_text("[[rule]]\nnonsense = 1\n")
        binder.send_signal(signal.SIGHUP)
        binder.wait_for_log("there is no such key")
        with pytest.raises(MultibinderError):
            client.upgrade()
        binder.send_signal(signal.SIGUSR1)
        wait_until(lambda: binder.log_path.read_text().count("upgrade-refused") == 2, "it is refused", log=binder.log)
        binder.send_signal(signal.SIGUSR2)
        binder.wait_for_log("signal-ignored")
        policy.write_text("")
    with RawClient(binder.socket_path) as raw:
        assert "error" in raw.ask(b"nonsense")
    with RawClient(binder.socket_path) as raw:
        assert "error" in raw.ask(
            '{"jsonrpc":"2.0","id":1,"method":"b\\ud800","params":[{"address":"xn--\u00fc"}]}'.encode()
        )
    assert binder.stop() == 0
    noted = log.read_text().split()
    if more:
        assert noted.pop(0) == "sched"
        assert Path(noted.pop(0)).name.startswith("sched.")
    assert [each for each in noted if "/sched" not in each] == []
