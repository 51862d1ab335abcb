"""Boot a systemd in a container, over a copy-on-write view of this machine.

The container is in a new PID and a new mount namespace whose first process dies with ours, so that no process and no
mount is left, however a test run ends. It has the network of this machine: tests use loopback addresses of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest

from tests.support import PATIENCE_S, clean_environment, require, wait_until
from tests.support.installation import copy_dependencies, site_packages, wheel

#: Where the project is installed in the container.
HOME = "/opt/multibinder"
COMMANDS = f"{HOME}/bin"

# Mount a merged view in a mount namespace, without the units enabled on this machine. $1 is an empty directory.
# systemd-nspawn forbids pidfd_getfd(2), bpf(2), CAP_NET_ADMIN and CAP_BPF by default, but services of a real machine
# may have them.
_BOOT = r"""
set -eu
root=$1/merged
mount -t tmpfs -o mode=0755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
cd "$root/etc"
rm -rf systemd/system/*.wants systemd/system/*.requires systemd/system/multibinder* rc?.d fstab machine-id
rm -rf haproxy/* default/multibinder-haproxy-* ../opt/multibinder ../run/multibinder* ../var/log/journal
: > fstab
tr -d - < /proc/sys/kernel/random/uuid > machine-id
for group in $2; do echo $$ > "$group/cgroup.procs"; done
code=133  # with --keep-unit, systemd-nspawn ends so when the container reboots
while [ $code = 133 ]; do
    code=0
    systemd-nspawn --quiet --directory="$root" --machine=multibinder-test --register=no --keep-unit --console=pipe \
        --system-call-filter="pidfd_getfd bpf" --capability=CAP_NET_ADMIN,CAP_BPF \
        --boot systemd.unit=multi-user.target || code=$?
done
exit $code
"""


class Machine:
    """A booted container. A context manager; it skips the test where it cannot boot."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "machine"
        self._log_path = directory / "boot.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._groups: list[Path] = []

    def __enter__(self) -> Machine:
        require("systemd", os.geteuid() == 0, "booting a systemd needs root")
        for program in ("systemd-nspawn", "nsenter", "unshare", "setpriv", "/lib/systemd/systemd", "/usr/sbin/haproxy"):
            require("systemd", shutil.which(program), f"there is no {program} to boot a systemd with")
        self._directory.mkdir()
        try:
            self._boot()
            self._install()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            # Other processes of the namespace die after its first. Until then the control groups are in use.
            with contextlib.suppress(FileNotFoundError):
                wait_until(lambda: not Path(f"/proc/{self._leader}").exists(), "the container is gone")
        for group in self._groups:
            for directory, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)

    def _boot(self) -> None:
        self._groups = list(_own_control_groups())
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation=private", "--pid", "--fork"]
        command += ["--kill-child=KILL", "--mount-proc", "sh", "-c", _BOOT, "boot", str(self._directory)]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, " ".join(map(str, self._groups))],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

        def leader() -> int | None:
            assert self._process is not None
            if self._process.poll() is not None:
                require("systemd", False, f"a container does not boot here:\n{self._boot_log()}")
            return next((pid for pid in _descendants(self._process.pid) if _name(pid) == "systemd"), None)

        self._leader = wait_until(leader, "systemd is started", log=self._boot_log)
        wait_until(self._is_up, "systemd is up", log=self._boot_log, timeout_s=60)

    def _is_up(self) -> bool:
        return self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def _boot_log(self) -> str:
        return self._log_path.read_text(errors="replace")[-4000:]

    def _install(self) -> None:
        """Install as a user does: a wheel of this checkout, with pip, in a new virtual environment."""
        try:
            built = wheel()
        except pytest.fail.Exception as error:
            require("systemd", False, f"cannot build a wheel (pip and hatchling?):\n{error}")
        shutil.copy(built, self.path("/opt"))
        python = Path(os.path.realpath(sys.executable))
        # A service that is not root must be able to execute it, also if the interpreter is in a home directory.
        self.must("chmod", "a+rx", *map(str, python.parents))
        self.must(str(python), "-m", "venv", "--without-pip", HOME)
        # The dependencies come from the environment of the tests, not from the network.
        copy_dependencies({"multibinder", "pip"}, self.path(self.site_packages()))
        self.must(f"{COMMANDS}/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                  "--root-user-action=ignore", f"/opt/{built.name}")  # fmt: skip

    def site_packages(self) -> str:
        return site_packages(HOME)

    def path(self, inside: str) -> Path:
        """Return the path outside of the container for a path in it."""
        return Path(f"/proc/{self._leader}/root{inside}")

    def run(self, *command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command in the container to its end."""
        return subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", *command],
            env={"PATH": f"{COMMANDS}:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def must(self, *command: str) -> str:
        """Run a command that must succeed, and return what it printed."""
        done = self.run(*command)
        assert done.returncode == 0, f"{command[:3]}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.journal()}"
        return done.stdout

    def write(self, inside: str, text: str) -> None:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def show(self, unit: str, property_: str) -> str:
        return self.must("systemctl", "show", "--property", property_, "--value", unit).strip()

    def main_pid(self, unit: str) -> int:
        """Return the main PID of a unit in the container's PID namespace; 0 if the unit has none."""
        return int(self.show(unit, "MainPID"))

    def kill(self, unit: str) -> int:
        """Send SIGKILL to the main process of a unit, and return its PID."""
        pid = self.main_pid(unit)
        self.must("kill", "-KILL", str(pid))
        return pid

    def journal(self, *arguments: str, lines: int = 60) -> str:
        """Return the last lines of the journal, or of the part of it that journalctl's arguments choose."""
        # With --after-cursor, -n of journalctl gives the first lines and not the last.
        done = self.run("journalctl", "--no-pager", "--output=short-monotonic", *arguments)
        return "\n".join(["--- journal:", *done.stdout.splitlines()[-lines:], ""])

    def reboot(self) -> None:
        """Reboot the container: its systemd ends and another one starts, with a new boot id and an empty /run."""
        before = self._leader
        self.run("systemctl", "--no-block", "reboot")

        def leader() -> int | None:
            assert self._process is not None
            assert self._process.poll() is None, self._boot_log()
            found = (pid for pid in _descendants(self._process.pid) if _name(pid) == "systemd" and _is_init(pid))
            return next((pid for pid in found if pid != before), None)

        self._leader = wait_until(leader, "systemd is started again", log=self._boot_log, timeout_s=60)
        wait_until(self._is_up, "systemd is up again", log=self._boot_log, timeout_s=60)

    def cursor(self) -> str:
        """Return the present end of the journal, for ``journal(f"--after-cursor={…}")``."""
        return self.must("journalctl", "-n", "0", "--show-cursor").rpartition("cursor: ")[2].strip()


def _own_control_groups() -> list[Path]:
    """Make groups for the container where systemd would make groups of its own, which would stay behind."""
    groups = []
    places = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        places["cgroup2" if number == "0" else controllers] = path
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount_point, (kind, _, options) = before.split()[4], after.split()[:3]
        name = "cgroup2" if kind == "cgroup2" else "name=systemd" if "name=systemd" in options.split(",") else None
        if kind.startswith("cgroup") and name in places:
            group = Path(f"{mount_point}{places[name]}") / f"multibinder-test-{os.getpid()}"
            with contextlib.suppress(OSError):
                group.mkdir(exist_ok=True)
                groups.append(group)
    return groups


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
    return found[1:]


def _is_init(pid: int) -> bool:
    """Return whether a process is the first one of its PID namespace."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return bool(re.search(r"^NSpid:.*\t1$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    return False


def _name(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def listening(machine: Machine, hosts: Sequence[str]) -> set[tuple[str, int]]:
    """Return the TCP sockets that listen on these IPv4 hosts, from the kernel's table (proc(5), /proc/net/tcp)."""
    wanted = {b"".join(bytes([int(part)]) for part in reversed(host.split("."))).hex().upper(): host for host in hosts}
    found = set()
    for line in machine.must("cat", "/proc/net/tcp").splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        host, port = local.split(":")
        if state == "0A" and host in wanted:
            found.add((wanted[host], int(port, 16)))
    return found


__all__ = ["COMMANDS", "PATIENCE_S", "Machine", "listening"]
