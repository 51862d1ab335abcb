"""What is done to the service. Each action draws what it needs from a generator of its own, so that a seed replays."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.chaos import hostile, kinds
from tests.chaos.ledger import GONE, OPEN, UNKNOWN, Ledger
from tests.chaos.service import Service
from tests.haproxy.support import Haproxy, bind_tcp, children_of, config
from tests.support import as_user, installation

#: A user that is neither root nor the binder's own.
STRANGER = 4242
#: The ports that an instance binds always, and sometimes.
BASE = {"web": 8000, "api": 8010, kinds.NAME: 8020}
EXTRA = {"web": 8001, "api": 8011, kinds.NAME: 8021}

#: What the log of a start says while the installation is broken.
HALF_REPLACED = "this installation is half replaced"

Action = Callable[[random.Random], str]


class Actions:
    """The actions by name. Each returns a few words about what it did. ``pauses`` has what it made others wait."""

    def __init__(self, service: Service, instances: dict[str, Haproxy], host: str, ledger: Ledger) -> None:
        self._service, self._instances, self._host, self._ledger = service, instances, host, ledger
        self._without_extra = set(instances)
        self.longest_pause_s = 0.0
        self.skipped: dict[str, str] = {}
        self.by_name: dict[str, Action] = {
            "kill-binder": self._kill_binder,
            "kill-binder-while-broken": self._kill_binder_while_broken,
            "stop-binder": lambda chance: self._stop(chance, "binder"),
            "stop-guard": lambda chance: self._stop(chance, "guard"),
            "stop-both": lambda chance: self._stop(chance, "binder", "guard"),
            "stop-haproxy-master": self._stop_master,
            "stop-haproxy": self._stop_instance,
            "upgrade-binder": self._upgrade_binder,
            "upgrade-guard": self._upgrade_guard,
            "upgrade-both": self._upgrade_both,
            "upgrade-broken": self._upgrade_broken,
            "upgrade-and-kill": self._upgrade_and_kill,
            "reload": self._reload,
            "reload-and-kill": self._reload_and_kill,
            "reload-by-signal": self._reload_by_signal,
            "limit": self._limit,
            "remove-path": self._remove_path,
            "log-reader-pauses": self._pause_log_reader,
            "clock-jumps": self._jump,
            "hostile-client": self._hostile,
            "policy-reload": self._policy_reload,
        }
        if why := why_no_full_disk(service.control):
            self.skipped["full-disk"] = why
        else:
            self.by_name["full-disk"] = self._fill_disk
        if os.geteuid() == 0 and shutil.which("setpriv"):
            self.by_name["hostile-stranger"] = self._hostile_stranger
        else:
            self.skipped["hostile-stranger"] = "it needs root and setpriv"

    @contextlib.contextmanager
    def _suspended(self, *pids: int) -> Iterator[None]:
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            yield
        finally:
            for pid in pids:
                _send(pid, signal.SIGCONT)
            self.longest_pause_s = max(self.longest_pause_s, time.monotonic() - began)

    def _kill_binder(self, _: random.Random) -> str:
        return f"pid {_send(self._service.binder(), signal.SIGKILL)}"

    def _kill_binder_while_broken(self, chance: random.Random) -> str:
        """The next binder cannot start before the installation is mended."""
        with self._broken():
            pid = _send(self._service.binder(), signal.SIGKILL)
            time.sleep(chance.uniform(0.5, 2))
        return f"pid {pid}"

    def _stop(self, chance: random.Random, *which: str) -> str:
        """A guard that is stopped is a silent keeper. Nothing is killed meanwhile: that would lose new listeners."""
        seconds = chance.uniform(0.1, 2)
        pids = {"binder": self._service.binder(), "guard": self._service.guard}
        with self._suspended(*filter(None, (pids[each] for each in which))):
            time.sleep(seconds)
        return f"{seconds:.1f} s"

    def _stop_master(self, chance: random.Random) -> str:
        instance, seconds = self._one(chance), chance.uniform(0.1, 2)
        with self._suspended(instance.pid):
            time.sleep(seconds)
        return f"{instance.name}, {seconds:.1f} s"

    def _stop_instance(self, chance: random.Random) -> str:
        """The clients wait in the queue of the listener, or of the worker."""
        instance, seconds = self._one(chance), chance.uniform(0.1, 1)
        with self._suspended(instance.pid, *children_of(instance.pid)):
            time.sleep(seconds)
        return f"{instance.name}, {seconds:.1f} s"

    def _upgrade_binder(self, _: random.Random) -> str:
        return f"pid {_send(self._service.binder(), signal.SIGUSR1)}"

    def _upgrade_guard(self, _: random.Random) -> str:
        return f"pid {_send(self._service.guard, signal.SIGUSR2)}"

    def _upgrade_both(self, chance: random.Random) -> str:
        both = [(self._service.guard, signal.SIGUSR2), (self._service.guard, signal.SIGUSR1)]
        chance.shuffle(both)
        for pid, number in both:
            _send(pid, number)
        return both[0][1].name + " first"

    def _upgrade_broken(self, chance: random.Random) -> str:
        numbers = chance.choice([[signal.SIGUSR1], [signal.SIGUSR2], [signal.SIGUSR1, signal.SIGUSR2]])
        with self._broken():
            for number in numbers:
                _send(self._service.guard, number)
            time.sleep(chance.uniform(0.2, 3))
        return " ".join(number.name for number in numbers)

    def _upgrade_and_kill(self, chance: random.Random) -> str:
        """A kill somewhere in an upgrade: in the rehearsal, in the handover, or in the start of the next version."""
        seconds = chance.uniform(0, 1.5)
        _send(self._service.guard, chance.choice([signal.SIGUSR1, signal.SIGUSR2]))
        time.sleep(seconds)
        return f"pid {_send(self._service.binder(), signal.SIGKILL)} after {seconds:.1f} s"

    def _reload(self, chance: random.Random) -> str:
        return self._reload_one(self._one(chance))

    def _reload_and_kill(self, chance: random.Random) -> str:
        instance, seconds = self._one(chance), chance.uniform(0, 0.5)
        timer = threading.Timer(seconds, lambda: _send(self._service.binder(), signal.SIGKILL))
        timer.start()
        try:
            return f"{self._reload_one(instance)}, killed after {seconds:.1f} s"
        finally:
            timer.join()

    def _reload_by_signal(self, chance: random.Random) -> str:
        instance = self._one(chance)
        _send(instance.pid, signal.SIGUSR2)
        return instance.name

    def _reload_one(self, instance: Haproxy) -> str:
        """Add or drop a bind in turn. A reload may fail while the binder does not answer; then nothing is known."""
        base, extra = BASE[instance.name], EXTRA[instance.name]
        adds = instance.name in self._without_extra
        self._ledger.put(extra, UNKNOWN)
        configure(instance, self._host, [base] + [extra] * adds)
        done = instance.reload()
        self._without_extra.symmetric_difference_update({instance.name})
        if done.returncode == 0 and not done.stderr:
            self._ledger.put(extra, OPEN if adds else GONE)
        what = f"{instance.name} {'adds' if adds else 'drops'} {extra}"
        return what if done.returncode == 0 else f"{what}, failed: {done.stderr.strip().splitlines()[-1:]}"

    def reload_until_it_succeeds(self, instance: Haproxy) -> None:
        """Drop the extra bind for good."""
        self._ledger.put(EXTRA[instance.name], UNKNOWN)
        configure(instance, self._host, [BASE[instance.name]])
        deadline = time.monotonic() + 60
        while (done := instance.reload()).returncode != 0:
            assert time.monotonic() < deadline, f"{done.stdout}{done.stderr}"
            time.sleep(0.5)
        self._ledger.put(EXTRA[instance.name], GONE)

    def _limit(self, chance: random.Random) -> str:
        """Lower a limit below what is in use, for a moment."""
        who = chance.choice(["binder", "guard"])
        what, value = chance.choice([("NOFILE", 3), ("NOFILE", 0), ("FSIZE", 0), ("NOFILE", -8)])
        seconds = chance.uniform(0.2, 3)
        pid = self._service.guard if who == "guard" else self._service.binder()
        if pid is None:
            return f"no {who}"
        kind = getattr(resource, f"RLIMIT_{what}")
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if what == "NOFILE":
                value = max(0, max(map(int, os.listdir(f"/proc/{pid}/fd"))) + value)
            before = resource.prlimit(pid, kind)
            resource.prlimit(pid, kind, (value, before[1]))
            try:
                time.sleep(seconds)
            finally:
                for each in {pid, self._service.binder() or pid}:
                    resource.prlimit(each, kind, before)
        return f"{who}: {what} {value} for {seconds:.1f} s"

    def _remove_path(self, chance: random.Random) -> str:
        """Remove one file of the control directory, as a cleaner of temporary files does."""
        names = sorted(path.name for path in self._service.control.iterdir() if not path.is_dir())
        name = chance.choice(names) if names else ""
        if name:
            (self._service.control / name).unlink(missing_ok=True)
        return name or "nothing is left"

    def _pause_log_reader(self, chance: random.Random) -> str:
        seconds = chance.uniform(0.5, 5)
        self._service.log.pause(seconds)
        return f"{seconds:.1f} s"

    def _jump(self, chance: random.Random) -> str:
        offset = chance.choice([-86400, -3600, -60, 0, 0, 60, 3600, 86400 * 365])
        self._service.set_clock(offset)
        return f"to {offset:+} s"

    def _hostile(self, chance: random.Random) -> str:
        return self._misuse(chance, [sys.executable])

    def _hostile_stranger(self, chance: random.Random) -> str:
        return self._misuse(chance, [*as_user(STRANGER), str(installation.interpreter_for_everybody())])

    def _misuse(self, chance: random.Random, python: list[str]) -> str:
        way, seconds, seed = chance.choice(hostile.WAYS), chance.uniform(0.3, 2), chance.randrange(1 << 30)
        program = Path(hostile.__file__).read_text()
        path = str(self._service.socket_path)
        arguments = [way, path, self._host, str(seconds), str(seed)]
        subprocess.run([*python, "-SIc", program, *arguments], check=True, cwd="/", env={}, timeout=60)
        return f"{way}, {seconds:.1f} s"

    def _policy_reload(self, _: random.Random) -> str:
        return f"pid {_send(self._service.guard, signal.SIGHUP)}"

    def _fill_disk(self, chance: random.Random) -> str:
        """Fill the file system of the control directory, and free it after a moment."""
        seconds = chance.uniform(0.5, 3)
        ballast = self._service.control / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65536))
        time.sleep(seconds)
        ballast.unlink(missing_ok=True)
        return f"{seconds:.1f} s"

    @contextlib.contextmanager
    def _broken(self) -> Iterator[None]:
        self._service.code.breaks(HALF_REPLACED)
        try:
            yield
        finally:
            self._service.code.mend()

    def _one(self, chance: random.Random) -> Haproxy:
        return self._instances[chance.choice(sorted(self._instances))]


def configure(instance: Haproxy, host: str, ports: Iterable[int]) -> None:
    """Write the configuration of an instance that serves on these ports."""
    if instance.name == kinds.NAME:
        text = kinds.plain_configuration(instance.directory, host, ports)
    else:
        text = config(*(bind_tcp((host, port)) for port in ports))
    instance.template.write_text(text)


def _send(pid: int | None, number: signal.Signals) -> int | None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return pid


def why_no_full_disk(directory: Path) -> str | None:
    """Return why the directory may not be filled; None if it is a small file system of its own."""
    return None if os.path.ismount(directory) else "it needs root and a mount namespace of its own"


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """Mount a small file system, which only this process and its children see. Without the rights, do nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private_recursive, detach = 0x00020000, 0x00044000, 2
    path = os.fsencode(directory)
    is_mounted = (
        os.geteuid() == 0
        and libc.unshare(new_namespace) == 0
        and libc.mount(b"none", b"/", None, private_recursive, None) == 0
        and libc.mount(b"tmpfs", path, b"tmpfs", 0, b"size=16m,mode=0755") == 0
    )
    try:
        yield
    finally:
        if is_mounted:
            libc.umount2(path, detach)  # the directory of a mount cannot be removed
