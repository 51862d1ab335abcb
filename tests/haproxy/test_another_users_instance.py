"""The commands of root work on an instance of another user, and run none of its code as root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.conftest import StartBinder
from tests.haproxy.support import Haproxy, bind_tcp, config, get
from tests.support import Binder, as_user, require, wait_until
from tests.support.installation import for_everybody

USER = 65534


@pytest.fixture
def theirs(start_binder: StartBinder, run_dir: Path) -> Iterator[Haproxy]:
    """An instance that another user made and runs, in a directory of that user."""
    require("root", os.geteuid() == 0, "acting as another user needs root")
    run_dir.chmod(0o755)
    wrapper = for_everybody().wrapper
    home = run_dir / "home"
    home.mkdir(mode=0o755)
    binder: Binder = start_binder("--mode", "0666")
    with Haproxy(home, binder.socket_path, wrapper=wrapper) as haproxy:
        os.chown(home, USER, USER)
        yield haproxy


def start(theirs: Haproxy, text: str) -> None:
    theirs.template.write_text(text)
    theirs.start(prefix=as_user(USER))


def test_roots_commands_work_on_another_users_instance(theirs: Haproxy, host: str) -> None:
    start(theirs, config(bind_tcp((host, 8000))))
    assert (theirs.runtime / "web").stat().st_uid == USER
    status = theirs.status()
    assert (status["state"], status["master"]) == ("running", theirs.pid)
    assert "running" in theirs.command("status").stdout
    assert theirs.command("check", "web").stdout == f"ok: 1 file(s), {host}:8000\n"
    theirs.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    assert f"added   {host}:8001" in theirs.must_reload()
    assert get((host, 8001)) == "ok"
    assert "[1/1] web: reloaded" in theirs.command("reload", "--all").stdout
    stopped = theirs.command("stop", "web")
    assert stopped.returncode == 0, stopped.stderr
    assert theirs.command("status", "web").returncode == 3
    for path in (theirs.runtime / "web").iterdir():
        assert path.stat().st_uid == USER, path


def test_a_failure_is_reported_with_its_exit_code_and_without_terminal_escapes(theirs: Haproxy, host: str) -> None:
    start(theirs, config(bind_tcp((host, 8000))))
    theirs.template.write_text("{{ nothing }}\n")
    failed = theirs.reload()
    assert failed.returncode == 1
    assert f"{theirs.template}:1: 'nothing' is undefined" in failed.stderr
    every = theirs.command("reload", "--all")
    assert every.returncode == 1
    assert "failed: web" in every.stderr
    theirs.template.write_text("{{ 1 / 0 if env.nothing else bind_tcp('\033]0;title\007', 1) }}\n")
    assert "\033" not in theirs.command("check", "web").stderr


def test_the_template_of_another_user_runs_as_that_user_in_every_command_of_root(
    theirs: Haproxy, host: str, run_dir: Path
) -> None:
    start(theirs, config(bind_tcp((host, 8000))))
    proofs = run_dir / "proofs"
    proofs.mkdir()
    proofs.chmod(0o1777)
    escape = f"# {{{{ cycler.__init__.__globals__.os.system('id -u > {proofs}/$$; env >> {proofs}/$$') and '' }}}}\n"
    theirs.template.write_text(escape + config(bind_tcp((host, 8000))))
    secret = {**theirs.environment, "SECRET": "of root"}
    for command in (["status"], ["status", "web"], ["check", "web"], ["reload", "web"], ["reload", "--all"]):
        done = subprocess.run([str(theirs.wrapper), *command], env=secret, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = [path.read_text() for path in proofs.iterdir()]
        assert found, command
        assert {text.splitlines()[0] for text in found} == {str(USER)}, command
        assert "SECRET" not in "".join(found)
        for path in proofs.iterdir():
            path.unlink()


def test_a_program_that_the_record_of_another_user_names_runs_as_that_user_and_not_as_root(
    theirs: Haproxy, host: str, run_dir: Path
) -> None:
    start(theirs, config(bind_tcp((host, 8000))))
    proof = theirs.directory / "proof"
    program = theirs.directory / "evil"
    program.write_text(f"#!/bin/sh\nid -u > {proof}\n")
    program.chmod(0o755)
    record = theirs.runtime / "web" / "instance.json"
    record.write_bytes(msgspec.json.encode({**msgspec.json.decode(record.read_bytes()), "haproxy": str(program)}))
    assert theirs.command("check", "web").returncode == 0
    wait_until(proof.exists, "the program ran")
    assert proof.read_text() == f"{USER}\n"


def test_root_does_not_start_an_instance_where_another_user_could_replace_it(theirs: Haproxy, host: str) -> None:
    theirs.template.write_text(config(bind_tcp((host, 8000))))
    theirs.start(ready=False)
    assert theirs.wait() == 1
    assert f"{theirs.directory} belongs to " in theirs.log()
    assert f"(uid {USER}), who could replace the configuration in it" in theirs.log()
    assert not theirs.runtime.exists()
