"""The commands of root work on an instance of ``run`` of another user, and run none of its code as root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support import as_user, wait_until
from tests.support.commands import clean_environment, multibinder
from tests.support.installation import for_everybody
from tests.support.waiting import PATIENCE_S

USER = 65534


def test_root_reloads_shows_and_stops_an_instance_of_another_user(run_dir: Path, host: str) -> None:
    as_another = as_user(USER)
    run_dir.chmod(0o755)
    home = run_dir / "home"
    home.mkdir(mode=0o755)
    os.chown(home, USER, USER)
    program = str(for_everybody().directory / "bin" / "multibinder")
    environment = {
        "MULTIBINDER_RUN_RUNTIME_DIR": str(home / "run"),
        "MULTIBINDER_HAPROXY_RUNTIME_DIR": str(home / "haproxy"),
    }
    hook = f"id -u >> {home}/ids"
    words = [
        "run",
        "--name",
        "web",
        "-b",
        f"{host}:8080",
        "--ready-after",
        "0",
        "--pre-start",
        hook,
        "--",
        "sleep",
        "99",
    ]
    with (run_dir / "log").open("wb") as log:
        process = subprocess.Popen(
            [*as_another, program, *words], env=clean_environment(environment), stdout=log, stderr=log, cwd=home
        )

    def do(*arguments: str) -> subprocess.CompletedProcess[str]:
        return multibinder(*arguments, program=(program,), environment=environment)

    try:
        wait_until(
            lambda: "generation 1, ready" in do("instances", "web").stdout,
            "the copy is ready",
            log=(run_dir / "log").read_text,
        )
        done = do("reload", "web")
        assert (done.returncode, "generation 2" in done.stdout) == (0, True), done.stderr
        assert do("reload", "--all").returncode == 0
        done = do("reload", "--continue", "web")
        assert (done.returncode, "there is nothing to continue" in done.stderr) == (1, True), done.stderr
        done = do("stop", "web")
        assert done.returncode == 0, done.stderr
        assert process.wait(PATIENCE_S) == 0
        assert do("stop", "web").returncode == 3
        assert {*(home / "ids").read_text().split()} == {str(USER)}
        assert {path.stat().st_uid for path in (home / "run" / "web").iterdir()} == {USER}
    finally:
        process.kill()
        process.wait(PATIENCE_S)
