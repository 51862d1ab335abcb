"""The binder reads /etc/multibinder/policy.toml. The test has a private copy of /etc."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Client, RequestError
from tests.support import Binder, require, serving_pid

#: Mounts a copy-on-write view of /etc ($1 is an empty directory), with the file $2 as its policy.
_OWN_ETC = """
mount -t tmpfs tmpfs "$1" && mkdir "$1/upper" "$1/work"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" /etc
mkdir -p /etc/multibinder && cp "$2" /etc/multibinder/policy.toml && shift 2 && exec "$@"
"""
_RULE = '[[rule]]\nuid = 65533\nallow = "*"\n'


@pytest.fixture
def governed(run_dir: Path) -> Iterator[Binder]:
    require("root", os.geteuid() == 0 and shutil.which("unshare"), "a private /etc needs root and unshare")
    (run_dir / "etc").mkdir()
    (run_dir / "policy.toml").write_text(_RULE)
    (run_dir / "policy.toml").chmod(0o644)
    own_etc = ["unshare", "--mount", "--propagation=private", "sh", "-ec", _OWN_ETC, "sh"]
    serve = [sys.executable, "-m", "multibinder", "serve", "--guard", "--socket", str(run_dir / "mb.sock")]
    with Binder(run_dir, command=[*own_etc, str(run_dir / "etc"), str(run_dir / "policy.toml"), *serve]) as binder:
        yield binder.wait_until_ready()


def in_its_etc(binder: Binder, *command: str) -> None:
    subprocess.run(["nsenter", "-t", str(binder.pid), "--mount", *command], check=True, timeout=20)


def test_the_default_policy_is_read_and_a_restart_without_it_allows_root_alone(governed: Binder, host: str) -> None:
    with Client(governed.socket_path) as client:
        client.bind([(host, 8000)])[0].close()
        assert client.status().policy == "/etc/multibinder/policy.toml"
    in_its_etc(governed, "rm", "/etc/multibinder/policy.toml")
    with Client(governed.socket_path) as client, pytest.raises(RequestError, match="no such file"):
        client.upgrade()
    before = serving_pid(governed.socket_path)
    os.kill(before, signal.SIGKILL)
    serving_pid(governed.socket_path, not_=before)
    assert "only root and this user" in governed.wait_for_log('event=policy-broken why="/etc')
    with Client(governed.socket_path) as client:
        status = client.status()
        assert (status.policy, [each.address for each in status.listeners]) == (
            "/etc/multibinder/policy.toml",
            [f"{host}:8000"],
        )
