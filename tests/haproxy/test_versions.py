"""What differs between the versions of HAProxy."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import Haproxy, bind_tcp, config, get
from tests.haproxy.versions import HAPROXY, MATRIX, name_of
from tests.support.load import Load

CHANGES = [change for other in MATRIX for change in itertools.permutations((HAPROXY, other))]


def install(program: str, link: Path) -> str:
    """Replace the program file that the instance runs, as a package manager does."""
    draft = link.with_suffix(".new")
    draft.symlink_to(program)
    draft.replace(link)
    return str(link)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-to-".join(map(name_of, change)))
def test_a_reload_that_changes_haproxys_version_up_or_down_is_reported_as_what_it_was(
    make_haproxy: MakeHaproxy, run_dir: Path, host: str, change: tuple[str, str]
) -> None:
    before, after = change
    web = make_haproxy(haproxy=install(before, run_dir / "haproxy"))
    web.template.write_text(config(bind_tcp((host, 8000))))
    web.start()
    [old] = web.workers()
    install(after, run_dir / "haproxy")
    with Load([(host, 8000)], rate=200, timeout_s=20) as load:
        said = web.must_reload()
        result = load.stop()
    [new] = web.workers()
    assert f"worker {old} -> {new}" in said
    assert result.total.failed == 0, result.table()
    assert Path(os.readlink(f"/proc/{new}/exe")) == Path(after).resolve()
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    web.must_reload()
    assert (get((host, 8000)), get((host, 8001))) == ("ok", "ok")
    assert web.status()["state"] == "running"


@pytest.fixture
def web(haproxy: Haproxy, host: str) -> Haproxy:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    return haproxy.start()


@pytest.mark.every_haproxy
def test_after_a_reload_that_haproxy_gave_up_it_is_reloaded_and_stopped_as_ever(web: Haproxy, host: str) -> None:
    worker = web.workers()
    web.template.write_text(config(bind_tcp((host, 8000)), after="    no-such-keyword\n"))
    os.kill(web.pid, signal.SIGUSR2)
    web.wait_until_settled(2)
    assert (web.workers(), get((host, 8000))) == (worker, "ok")
    status = web.command("status", "web")
    assert (status.returncode, "PROBLEM  the last reload failed" in status.stdout) == (1, True), status.stdout
    web.template.write_text(config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    web.must_reload()
    assert web.command("status", "web").returncode == 0
    web.template.write_text(config(bind_tcp((host, 8000)), after="    no-such-keyword\n"))
    os.kill(web.pid, signal.SIGUSR2)
    web.wait_until_settled(4)
    assert web.command("stop", "--timeout", "10", "web").returncode == 0
    web.wait()


@pytest.mark.every_haproxy
def test_a_program_section_makes_no_reload_wait_for_an_answer_that_does_not_come(haproxy: Haproxy, host: str) -> None:
    """The program inherits the listener of the master's CLI, on which it never accepts."""
    if haproxy.version >= (3, 3):
        pytest.skip("HAProxy 3.3 has no program sections")
    allowed = "    expose-deprecated-directives\n" if haproxy.version >= (3, 1) else ""
    program = f"program side\n    command {shutil.which('sleep')} 600\n"
    haproxy.template.write_text(config(bind_tcp((host, 8000)), before=allowed + "    master-worker\n", after=program))
    haproxy.start()
    for _ in range(3):
        said = haproxy.must_reload()
        took = float(said.split("reloaded in ")[1].split()[0])
        assert took < 4, said
    assert get((host, 8000)) == "ok"
