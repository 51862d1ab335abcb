"""A plain bind that the binder has no right to open is left to HAProxy, and fails neither a start nor a reload."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Client
from tests.conftest import StartBinder
from tests.haproxy.support import Haproxy, config, get
from tests.haproxy.test_plain import start_plain
from tests.support import Binder, require, wait_until

UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


class Web:
    """An instance with a plain configuration, on a binder with a policy."""

    def __init__(self, haproxy: Haproxy, binder: Binder, host: str, policy: Path) -> None:
        self.haproxy, self.binder, self.host, self.policy = haproxy, binder, host, policy
        self.file = haproxy.directory / "haproxy.cfg"

    def write(self, *binds: str) -> None:
        self.file.write_text(config(*(f"{self.host}:{bind}" for bind in binds)))

    def start(self) -> None:
        start_plain(self.haproxy, self.file)

    def deny(self, *ports: int, options: str = "") -> None:
        addresses = [f"{self.host}:{port}" for port in ports]
        rules = f'[[rule]]\nuid = {os.getuid()}\nallow = ["bind"]\naddress = {addresses}\noptions = []\n' * bool(
            options
        )
        rules += f'[[rule]]\nuid = {os.getuid()}\ndeny = ["bind"]\naddress = {addresses}\n' * bool(ports)
        self.policy.write_text(rules)
        before = self.binder.log_path.read_text().count("policy")
        os.kill(self.binder.pid, signal.SIGHUP)
        wait_until(
            lambda: self.binder.log_path.read_text().count("policy") > before, "the policy is read", log=self.binder.log
        )

    def held(self) -> list[int]:
        with Client(self.binder.socket_path) as client:
            return sorted(int(listener.address.rpartition(":")[2]) for listener in client.list())

    def serves(self, *ports: int) -> bool:
        return all(get((self.host, port)) == "ok" for port in ports)


@pytest.fixture
def web(run_dir: Path, host: str, start_binder: StartBinder, haproxy_program: str) -> Iterator[Web]:
    policy = run_dir / "policy.toml"
    policy.touch(mode=0o600)
    binder = start_binder("--policy", str(policy))
    with Haproxy(run_dir, binder.socket_path, haproxy=haproxy_program) as haproxy:
        yield Web(haproxy, binder, host, policy)


def test_what_a_policy_denies_is_haproxys_own_at_a_start_and_at_a_reload(web: Web) -> None:
    web.deny(8001, 8002)
    web.write("8000", "8001")
    web.start()
    assert web.serves(8000, 8001)
    assert web.held() == [8000]
    assert f"({web.host}:8001: Not allowed to bind {web.host}:8001" in web.haproxy.log()
    web.write("8000", "8001", "8002")
    reloaded = web.haproxy.command("reload", "web")
    assert reloaded.returncode == 0, reloaded.stderr
    assert "Not allowed to bind" in reloaded.stderr
    assert web.serves(8000, 8001, 8002)
    assert web.held() == [8000]


def test_what_is_granted_later_is_haproxys_until_its_next_start(web: Web) -> None:
    web.deny(8001)
    web.write("8000", "8001")
    web.start()
    web.deny()
    assert web.haproxy.command("reload", "web").returncode == 0
    os.kill(web.haproxy.pid, signal.SIGUSR2)
    web.haproxy.wait_until_settled(3)
    assert web.serves(8000, 8001)
    assert web.held() == [8000]
    assert web.haproxy.command("stop", "web").returncode == 0
    web.start()
    assert web.serves(8000, 8001)
    assert web.held() == [8000, 8001]


def test_a_listener_that_is_held_and_refused_now_stays_in_a_reload_and_is_haproxys_after_a_start(web: Web) -> None:
    web.write("8000", "8001")
    web.start()
    web.deny(8000)
    web.write("8000", "8001 name x")
    assert web.haproxy.command("reload", "web").returncode == 0
    assert web.held() == [8000, 8001]
    assert web.haproxy.command("stop", "web", "--keep-listeners").returncode == 0
    assert web.held() == [8000, 8001]
    web.start()
    assert web.serves(8000, 8001)
    assert web.held() == [8001]


def test_a_listener_keeps_its_settings_if_others_are_refused_in_a_reload(web: Web) -> None:
    web.write("8000")
    web.start()
    web.deny(8000, options="none")
    web.write("8000 backlog 7")
    reloaded = web.haproxy.command("reload", "web")
    assert reloaded.returncode == 0, reloaded.stderr
    assert "its listener keeps its settings" in reloaded.stderr
    assert web.serves(8000)
    assert web.held() == [8000]


def test_an_address_in_use_stays_an_error(web: Web, run_dir: Path) -> None:
    web.deny(8001)
    web.write("8000", "8001")
    web.start()
    with Haproxy(run_dir, web.binder.socket_path, name="other") as other:
        web.write("8001")
        refused = other.command("check", "--", other.haproxy, "-Ws", "-f", str(web.file))
        assert refused.returncode == 0, refused.stderr  # left to HAProxy, which would say so
        web.deny()
        refused = other.command("check", "--", other.haproxy, "-Ws", "-f", str(web.file))
        assert refused.returncode == 1
        assert "address already in use" in refused.stderr


def test_a_privileged_port_is_haproxys_if_the_binder_may_not_open_it(
    run_dir: Path, host: str, start_binder: StartBinder
) -> None:
    require("root", os.geteuid() == 0, "only root has the capability")
    require("setpriv", shutil.which("setpriv"), "there is no setpriv")
    require("ports", int(UNPRIVILEGED.read_text()) > 81, "every user may bind port 81 here")
    cap = "-net_bind_service"
    binder = start_binder(prefix=["setpriv", "--bounding-set", cap, "--inh-caps", cap])
    with Haproxy(run_dir, binder.socket_path) as haproxy:
        file = run_dir / "haproxy.cfg"
        file.write_text(config(f"{host}:81", f"{host}:8000"))
        start_plain(haproxy, file)
        assert get((host, 81)) == get((host, 8000)) == "ok"
        assert haproxy.status()["binds"] == [f"{host}:8000"]
        assert "permission denied" in haproxy.log()


def test_a_path_is_haproxys_if_the_binder_may_not_make_it_or_give_it_away(
    run_dir: Path, host: str, start_binder: StartBinder
) -> None:
    require("root", os.geteuid() == 0, "only root may mount")
    require("unshare", shutil.which("unshare") and shutil.which("setpriv"), "there is no unshare or setpriv")
    directory = run_dir / "ro"
    directory.mkdir()
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", mount, str(directory)]
    binder = start_binder(prefix=[*prefix, "setpriv", "--bounding-set", "-chown", "--inh-caps", "-chown"])
    with Haproxy(run_dir, binder.socket_path) as haproxy:
        file = run_dir / "haproxy.cfg"
        paths = [str(directory / "a.sock"), f"{run_dir}/b.sock uid 4242", f"{run_dir}/c.sock"]
        file.write_text(config(f"{host}:8000", *paths))
        start_plain(haproxy, file)
        assert sorted(haproxy.status()["binds"]) == [f"{host}:8000", f"unix@{run_dir}/c.sock"]
        assert (directory / "a.sock").is_socket()
        assert (run_dir / "b.sock").stat().st_uid == 4242
