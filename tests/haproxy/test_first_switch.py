"""``run --adopt``: from a server that serves to HAProxy on the binder's sockets, without losing a client."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import multibinder
from multibinder.kernel.process import children_of, is_alive
from tests.haproxy.support import Haproxy, assert_none_lost, config, get
from tests.haproxy.versions import HAPROXY
from tests.support import PATIENCE_S, Binder, clean_environment, require, wait_until
from tests.support.campaign import times
from tests.support.load import Load

#: Connections a second.
RATE = times(300, 1000)
NGINX = os.environ.get("NGINX_PROGRAM", "/usr/sbin/nginx")


@pytest.fixture(autouse=True)
def root() -> None:
    require("root", os.geteuid() == 0, "copying another process's sockets needs root")


@contextlib.contextmanager
def serving(command: list[str], directory: Path, host: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server that has never heard of a binder."""
    with subprocess.Popen(command, env=clean_environment(), cwd=directory, start_new_session=True) as process:
        try:
            wait_until(lambda: serves(host), f"{command[0]} serves")
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def serves(host: str, port: int = 8000) -> bool:
    with contextlib.suppress(OSError):
        return get((host, port), 1) == "ok"
    return False


def haproxy_command(directory: Path, host: str) -> list[str]:
    file = directory / "plain.cfg"
    path = directory / "web.sock"
    file.write_text(config(f"{host}:8000", f"{host}:8001", f"{path} mode 666", before="    nbthread 2"))
    return [HAPROXY, "-Ws", "-f", str(file), "-p", str(directory / "haproxy.pid")]


def nginx_command(directory: Path, host: str) -> list[str]:
    if not os.path.exists(NGINX):
        pytest.skip(f"there is no {NGINX}")
    (directory / "nginx.conf").write_text(
        f"daemon off; worker_processes 2; pid {directory}/nginx.pid; error_log stderr;\nevents {{}}\n"
        f"http {{ access_log off; server {{ listen {host}:8000; listen {host}:8001; "
        f"listen unix:{directory}/web.sock; return 200 ok; }} }}\n"
    )
    return [NGINX, "-p", str(directory), "-c", str(directory / "nginx.conf")]


def held(binder: Binder) -> list[tuple[str, list[str]]]:
    with multibinder.Client(binder.socket_path) as client:
        return sorted((each.address, each.owners) for each in client.list())


@pytest.mark.parametrize("command", [haproxy_command, nginx_command])
def test_a_server_is_replaced_under_load_without_losing_a_client(
    command: Callable[[Path, str], list[str]], binder: Binder, haproxy: Haproxy, run_dir: Path, host: str
) -> None:
    """The new one serves the very sockets; the former one finishes and ends."""
    plain = haproxy_command(run_dir, host)
    with serving(command(run_dir, host), run_dir, host) as former:
        with Load([(host, 8000), (host, 8001)], rate=RATE, timeout_s=PATIENCE_S) as load:
            load.mark("the switch")
            haproxy.start("--adopt", arguments=plain[1:])
            former.wait(PATIENCE_S)
            load.mark("a reload")
            haproxy.must_reload()
            result = load.stop()
        assert_none_lost(result, haproxy.log() + binder.log())
    assert "which served before, was told to finish its connections" in haproxy.log()
    addresses = [f"{host}:8000", f"{host}:8001", f"unix@{run_dir}/web.sock"]
    assert held(binder) == [(address, ["haproxy@web"]) for address in addresses]
    assert not (haproxy.runtime / "web" / "first-switch.json").exists()
    if command is haproxy_command:
        assert int((run_dir / "haproxy.pid").read_text()) == haproxy.pid


@pytest.mark.parametrize("way", ["a broken file", "a worker that dies"])
def test_a_start_that_fails_leaves_the_sockets_to_the_server_that_serves(
    way: str, binder: Binder, haproxy: Haproxy, run_dir: Path, host: str
) -> None:
    with serving(haproxy_command(run_dir, host), run_dir, host) as former:
        broken = run_dir / "broken.cfg"
        # haproxy -c does not look at the directory of a chroot.
        before = "    no such keyword" if way == "a broken file" else "    chroot /var/empty/nowhere"
        broken.write_text(config(f"{host}:8000", before=before))
        with Load([(host, 8000), (host, 8001)], rate=100, timeout_s=PATIENCE_S) as load:
            haproxy.start("--adopt", arguments=["-Ws", "-f", str(broken)], ready=False)
            assert haproxy.process is not None
            haproxy.process.wait(PATIENCE_S)
            wait_until(lambda: held(binder) == [], "the binder has let go", log=lambda: haproxy.log() + binder.log())
            result = load.stop()
        assert_none_lost(result, haproxy.log() + binder.log())
        assert is_alive(former.pid)
        assert children_of(former.pid)


def test_what_no_server_has_is_bound_and_a_second_start_adopts_nothing(
    binder: Binder, haproxy: Haproxy, run_dir: Path, host: str
) -> None:
    plain = haproxy_command(run_dir, host)
    haproxy.start("--adopt", arguments=plain[1:])
    assert serves(host)
    haproxy.kill()
    haproxy.start("--adopt", arguments=plain[1:])
    assert serves(host)
    assert "taking over" not in haproxy.log()


def test_adopt_without_a_binder_is_an_error(run_dir: Path, host: str) -> None:
    haproxy = Haproxy(run_dir, None)
    done = haproxy.command("run", "--name", "web", "--adopt", "--", *haproxy_command(run_dir, host))
    assert (done.returncode, "--adopt needs a binder" in done.stderr) == (2, True), done.stderr
