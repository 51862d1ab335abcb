"""One run of the chaos: the actions of a seed, the promises that are checked during it, and its figures."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder import Client, MultibinderError
from tests.chaos import hostile, kinds
from tests.chaos.actions import BASE, HALF_REPLACED, Actions, configure, small_disk
from tests.chaos.customer import Customer
from tests.chaos.ledger import OPEN, Ledger, listening_ports
from tests.chaos.service import Service, Usage
from tests.haproxy.support import Haproxy
from tests.support import installation, wait_until
from tests.support.load import Load, Result

#: The slack of the comparison of a process at the end with the same process, or its predecessor, after warm-up.
_MORE_DESCRIPTORS, _MORE_MEMORY_KIB = 8, 8 * 1024
#: A client gives up later than any promise does, so that a wait that is too long is measured.
_CLIENT_PATIENCE_S = 30.0


class Chaos:
    """One run. ``broken`` has a sentence for each promise that was not kept."""

    def __init__(self, seed: int, seconds: float, rate: float) -> None:
        self._seed, self._seconds, self._rate = seed, seconds, rate
        self._began = time.monotonic()
        self._done: Counter[str] = Counter()
        self.broken: list[str] = []

    def run(self) -> None:
        """Start everything, do the actions, and judge."""
        _say(f"seed {self._seed}, {self._seconds / 60:g} minutes, {self._rate:g} connections a second")
        with contextlib.ExitStack() as undo:
            undo.enter_context(installation.directory_of_the_run())
            directory = Path(tempfile.mkdtemp(prefix="mb-chaos-"))
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            directory.chmod(0o711)
            control = directory / "c"
            control.mkdir()
            control.chmod(0o711)
            undo.enter_context(small_disk(control))
            try:
                self._run(directory, control, _own_host())
            except (Exception, pytest.fail.Exception) as error:
                self.broken.append(f"the run did not end: {error!r}")
                traceback.print_exc(file=sys.stdout)
            if self.broken:
                kept = Path(f"/tmp/chaos-{self._seed}-failed")
                shutil.copytree(directory, kept, dirs_exist_ok=True, ignore=_only_files)
                _say(f"the logs are in {kept}")

    def _run(self, directory: Path, control: Path, host: str) -> None:
        with contextlib.ExitStack() as undo:
            undo.enter_context(contextlib.redirect_stderr(io.StringIO()))  # an instance writes its log there
            service = undo.enter_context(Service(directory, control))
            service.wait_until_it_answers()
            instances = {name: undo.enter_context(_instance(directory, service, name, host)) for name in BASE}
            ledger = Ledger(host, lambda: kinds.violations(directory, host))
            for port in BASE.values():
                ledger.put(port, OPEN)
            targets = [(host, port) for port in BASE.values()]
            actions = Actions(service, instances, host, ledger)
            for name, why in actions.skipped.items():
                _say(f"left out: {name}: {why}")
            before = self._warm_up(service, host)
            with (
                Load(targets, rate=self._rate, timeout_s=_CLIENT_PATIENCE_S) as load,
                Customer(service.socket_path, host, range(20000, 20060), self._seed, ledger) as customer,
            ):
                self._act(actions, ledger, customer, service, load)
                customer.stop()
                service.set_clock(0)
                service.wait_until_it_answers()
                for instance in instances.values():
                    actions.reload_until_it_succeeds(instance)
                self._settle(service, customer)
                self._judge_listeners(service, ledger, host, kinds.held(directory, host))
                self._judge_usage(service, before)
                self._last_act(service, ledger)
                self._judge_load(load.stop(), actions, customer, ledger)
        self._judge_log(service.log.text())

    def _judge_log(self, log: str) -> None:
        """A traceback is a bug, but for that of a start while the installation is broken, or without descriptors."""
        self.broken += [f"the log has: {line}" for line in log.splitlines() if "event=callback-failed" in line]
        for traceback_ in log.split("Traceback (most recent call last):")[1:]:
            # Lines of the guard's log may be between those of a traceback.
            if HALF_REPLACED not in traceback_[:4000] and "OSError: [Errno 24]" not in traceback_[:4000]:
                self.broken.append(f"the log has a traceback: {traceback_[:1000]}")

    def _act(self, actions: Actions, ledger: Ledger, customer: Customer, service: Service, load: Load) -> None:
        chance = random.Random(self._seed)
        names = sorted([*actions.by_name, *actions.skipped])
        end = time.monotonic() + self._seconds
        number = 0
        while time.monotonic() < end and not self.broken:
            number += 1
            # Also an action that is left out here takes its number, so that others stay as they are.
            name, own, gap_s = chance.choice(names), random.Random(chance.randrange(1 << 62)), chance.uniform(0.1, 2.5)
            if name in actions.skipped:
                continue
            load.mark(f"{number} {name}")
            began = time.monotonic() - self._began
            what = actions.by_name[name](own)
            self._done[name] += 1
            _say(f"{began:8.2f} s  {number:4} {name}: {what}")
            self._check(ledger, customer, service)
            pause_until = time.monotonic() + gap_s
            while time.monotonic() < pause_until:
                time.sleep(0.1)
                self._check(ledger, customer, service)
        load.mark("after the last action")

    def _check(self, ledger: Ledger, customer: Customer, service: Service) -> None:
        self.broken += [each for each in ledger.violations() if each not in self.broken]
        if service.process.poll() is not None:
            self.broken.append(f"the guard ended with {service.process.returncode}")
        if customer.failure is not None:
            self.broken.append(f"a client got what it must not: {customer.failure!r}")

    def _warm_up(self, service: Service, host: str) -> dict[str, Usage]:
        """Return the usage of both processes after a crash, upgrades and some work."""
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGKILL):
            pid = service.guard if number == signal.SIGUSR2 else service.binder()
            assert pid is not None
            starts = service.log.text().count("event=serving ")
            time.sleep(0.5)
            os.kill(pid, number)
            if number != signal.SIGUSR2:
                wait_until(
                    lambda starts=starts: service.log.text().count("event=serving ") > starts,  # type: ignore[misc]
                    f"a binder serves after {number.name}",
                    log=service.last_lines,
                )
            service.wait_until_it_answers()
        with Client(service.socket_path) as client:
            addresses = [(host, port) for port in range(20000, 20060)]
            for _ in range(20):
                for sock in client.bind(addresses, owner="warm-up"):
                    sock.close()
                client.release(addresses, owner="warm-up")
            client.status()
        time.sleep(1)
        return self._usage(service)

    def _usage(self, service: Service) -> dict[str, Usage]:
        binder = service.binder()
        assert binder is not None, "there is no binder"
        return {"guard": Usage(service.guard), "binder": Usage(binder)}

    def _settle(self, service: Service, customer: Customer) -> None:
        def released() -> bool:
            try:
                customer.release_all()
            except MultibinderError:
                return False
            return True

        wait_until(released, "the binder releases", log=service.last_lines, timeout_s=60)

    def _judge_listeners(self, service: Service, ledger: Ledger, host: str, of_other_kinds: list[str]) -> None:
        def only_those_of_haproxy() -> bool:
            return listening_ports(host) == set(BASE.values())

        with contextlib.suppress(pytest.fail.Exception):
            wait_until(only_those_of_haproxy, "only HAProxy's listeners are left", timeout_s=20)
        self.broken += ledger.violations()
        listening, wanted = listening_ports(host), set(BASE.values())
        never = sorted(listening & set(hostile.PORTS))
        if never:
            self.broken.append(f"open, although no client ever got it: {never}")
        if other := sorted(listening - wanted - set(never)):
            self.broken.append(f"open, although nobody has asked for it or it was released: {other}")
        with Client(service.socket_path, timeout=30) as client:
            listeners = client.status().listeners
        for each in listeners:
            if not each.holders or each.orphan_since is not None:
                self.broken.append(f"an orphan: {each.address} ({each.state})")
            if not each.kept:
                self.broken.append(f"not kept: {each.address}")
        held = sorted(each.address for each in listeners)
        shards = [BASE[kinds.NAME]] * (kinds.SHARDS - 1)
        tcp = [f"{host}:{port}" for port in [*wanted, *shards]]
        if held != sorted([*tcp, *of_other_kinds]):
            self.broken.append(f"the binder holds {held}")

    def _judge_usage(self, service: Service, before: dict[str, Usage]) -> None:
        deadline = time.monotonic() + 20
        while self._has_more_descriptors(before, now := self._usage(service)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for who, usage in now.items():
            _say(f"{who}: {before[who]} after warm-up, {usage} at the end")
            if usage.descriptors > before[who].descriptors + _MORE_DESCRIPTORS:
                self.broken.append(f"descriptors of the {who}: {before[who].descriptors}, then {usage.descriptors}")
            if usage.memory_kib > before[who].memory_kib + _MORE_MEMORY_KIB:
                self.broken.append(f"memory of the {who}: {before[who]}, then {usage}")

    def _has_more_descriptors(self, before: dict[str, Usage], now: dict[str, Usage]) -> bool:
        return any(now[who].descriptors > before[who].descriptors + _MORE_DESCRIPTORS for who in before)

    def _last_act(self, service: Service, ledger: Ledger) -> None:
        """Kill the guard. The binder goes on alone; a kill of the binder would lose its listeners from then on."""
        binder = service.binder()
        assert binder is not None
        os.kill(service.guard, signal.SIGKILL)
        service.process.wait()

        def answers() -> bool:
            with contextlib.suppress(MultibinderError), Client(service.socket_path) as client:
                return client.hello().pid == binder
            return False

        try:
            wait_until(answers, "the binder goes on without its guard", log=service.last_lines)
        finally:
            time.sleep(0.5)
            self.broken += ledger.violations()
            os.kill(binder, signal.SIGTERM)

    def _judge_load(self, result: Result, actions: Actions, customer: Customer, ledger: Ledger) -> None:
        total = result.total
        if total.failed:
            phases = [phase.name for phase in result.phases if phase.failed]
            self.broken.append(f"{total.failed} connections failed ({total.causes}), in {phases}")
        allowed = 2 * actions.longest_pause_s + 1
        worst = max(result.phases, key=lambda phase: phase.longest_stall_s)
        if worst.longest_stall_s > allowed:
            self.broken.append(
                f"a client waited {worst.longest_stall_s:.2f} s in {worst.name!r}; {allowed:.2f} s are allowed"
            )
        _say(f"{sum(self._done.values())} actions: {', '.join(f'{n} {a}' for a, n in sorted(self._done.items()))}")
        _say(
            f"{total.tried} connections: {total.ok} answered, {total.refused} refused, {total.reset} reset, "
            f"{total.timed_out} timed out, {total.other + total.bad_status} other"
        )
        _say(
            f"longest wait {worst.longest_stall_s:.2f} s, in '{worst.name}' (the load was late by "
            f"{worst.generator_lag_max_s:.2f} s there); longest pause made {actions.longest_pause_s:.2f} s, "
            f"allowed {allowed:.2f} s"
        )
        _say(f"{ledger.acknowledged} binds and releases acknowledged, {customer.failed} requests without an answer")


def run(seed: int, seconds: float, rate: float) -> list[str]:
    """Run the chaos of a seed, print what happens, and return a sentence for each promise that was broken."""
    chaos = Chaos(seed, seconds, rate)
    chaos.run()
    for sentence in chaos.broken:
        _say(f"BROKEN: {sentence}")
    _say(f"again: make chaos SEED={seed} MINUTES={seconds / 60:g}" if chaos.broken else "every promise was kept")
    return chaos.broken


@contextlib.contextmanager
def _instance(directory: Path, service: Service, name: str, host: str) -> Iterator[Haproxy]:
    with Haproxy(directory, service.socket_path, name=name) as instance:
        configure(instance, host, [BASE[name]])
        instance.start(*(["--take-binds"] if name == kinds.NAME else []))
        yield instance


def _own_host() -> str:
    """Return a loopback address that no test uses (tests.support.own_host), and no other run."""
    pid = os.getpid()
    return f"127.{200 + pid % 50}.{pid // 50 % 250}.7"


def _only_files(directory: str, names: list[str]) -> set[str]:
    """Leave out sockets, which copytree cannot copy."""
    paths = {name: Path(directory, name) for name in names}
    return {name for name, path in paths.items() if not (path.is_file() or path.is_dir())}


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
