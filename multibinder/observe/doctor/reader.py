"""Read the facts. A fact that cannot be read is reported as unchecked, and the checks run on the others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence

import msgspec

from multibinder.kernel.namespaces import network_namespace_of, network_namespaces
from multibinder.kernel.netns import names
from multibinder.kernel.process import command_line_of, parent_of, unit_of
from multibinder.observe.doctor.facts import (
    Binder,
    BinderListener,
    Descriptors,
    Facts,
    Instance,
    Keeper,
    Namespace,
    Unit,
    namespace_name,
)
from multibinder.observe.doctor.file_modes import read_control
from multibinder.observe.doctor.finding import Unchecked
from multibinder.observe.doctor.losses import is_full
from multibinder.observe.doctor.namespaces import read_namespace
from multibinder.observe.doctor.reuseport import shared_addresses
from multibinder.observe.doctor.runs import read_runs
from multibinder.observe.doctor.unix_paths import read_lost_paths
from multibinder.observe.holders import Holders, Process, holders_of
from multibinder.wire.client import Client
from multibinder.wire.errors import MultibinderError, RequestError
from multibinder.wire.status import ListenerStatus

#: The timeout of each program that is executed.
_PATIENCE_S = 15.0
#: Matches the command of the guard in this version (``guard_main``) and in 0.1.0 (``guard``).
_GUARD = b"multibinder.cli.guard"
#: PID 1 keeps copies of sockets in its descriptor store, and never accepts on them.
_SYSTEMD = 1


def read_facts(
    version: str,
    socket_path: str | None,
    units: Iterable[Unit] = (),
    prefix: str = "/",
    wrapper: str | None = None,
    run_directory: str | None = None,
) -> Facts:
    """Return all the facts of this host.

    ``socket_path`` is the binder's control socket, if it is known; ``wrapper`` the path of ``multibinder-haproxy``,
    ``run_directory`` the runtime directory of ``multibinder run``.
    """
    unchecked: list[Unchecked] = []
    binder = _ask_binder(socket_path, unchecked)
    pid = binder.pid if binder else None
    namespaces = _read_namespaces(binder, unchecked)
    guard = _guard_of(pid)
    holders, descriptors = _read_holders(namespaces, binder, guard)
    if holders.hidden:
        users = ", ".join(map(str, holders.hidden_users))
        unchecked.append(
            Unchecked(
                "who holds the listeners",
                f"processes {f'of users {users} ' if users else ''}may not be looked into",
                "run this as root" if os.geteuid() else "",
            )
        )
    return Facts(
        version=version,
        namespaces=tuple(namespaces),
        holders=holders,
        binder=binder,
        control=read_control(socket_path) if socket_path else (),
        keeper=read_keeper(pid, guard, unchecked) if binder else None,
        descriptors=descriptors,
        instances=tuple(read_instances(wrapper, unchecked)) if wrapper else (),
        runs=tuple(read_runs(run_directory, unchecked)) if run_directory else (),
        units=tuple(units),
        prefix=prefix,
        lost_paths=read_lost_paths(binder, unchecked),
        unchecked=tuple(unchecked),
    )


def _ask_binder(socket_path: str | None, unchecked: list[Unchecked]) -> Binder | None:
    """Return what the binder reports; None if it cannot be asked."""
    if socket_path is None:
        unchecked.append(Unchecked("the binder", "its control socket is not known", "multibinder doctor --socket PATH"))
        return None
    try:
        with Client(socket_path) as client:
            hello = client.hello()
            listeners = client.list()
            kept = _kept_cookies(client, unchecked)
    except RequestError as error:
        unchecked.append(Unchecked("the binder's listeners", str(error)))
        return None
    except MultibinderError as error:
        unchecked.append(Unchecked("the binder", str(error)))
        return None
    held = tuple(
        BinderListener(
            each.address,
            each.cookie,
            _owners(each),
            each.backlog,
            each.backlog_requested,
            kept.get(each.cookie),
            each.shard,
        )
        for each in listeners
    )
    return Binder(hello.pid if _is_binder(hello.pid) else None, hello.version, held)


def _kept_cookies(client: Client, unchecked: list[Unchecked]) -> dict[int, bool]:
    """Return whether the keeper has each listener, by cookie."""
    try:
        return {each.cookie: each.kept for each in client.status(fresh=False).listeners}
    except RequestError as error:
        unchecked.append(Unchecked("which listeners would survive a crash of the binder", str(error)))
        return {}


def _owners(listener: ListenerStatus) -> tuple[str, ...]:
    if len({claim.uid for claim in listener.claims}) < 2:
        return tuple(listener.owners)
    return tuple(f"{claim.label}:{claim.uid}" for claim in listener.claims)


def _is_binder(pid: int) -> bool:
    """Return whether a PID is a binder's. In another PID namespace, the binder's PID is another process here."""
    return b"multibinder" in command_line_of(pid)


def _guard_of(binder: int | None) -> int | None:
    if binder is None:
        return None
    parent = parent_of(binder)
    return parent if _GUARD in command_line_of(parent) else None


def _read_namespaces(binder: Binder | None, unchecked: list[Unchecked]) -> list[Namespace]:
    """Read our own network namespace, and each that has one of the binder's listeners."""
    found: list[Namespace] = []
    held = binder.listeners if binder else ()
    # Only TCP listeners are listed there; an address of another kind has a prefix.
    missing = {(listener.cookie, listener.address) for listener in held if "@" not in listener.address}

    def read(pid: int | None, netns: str = "") -> bool:
        try:
            namespace = read_namespace(pid, netns)
        except (FileNotFoundError, ProcessLookupError):
            return True  # the process has just ended
        except OSError as error:
            where = namespace_name(pid, netns)
            why = (error.strerror or str(error)).lower()
            unchecked.append(Unchecked(where, why, "run this as root" if os.geteuid() else ""))
            return False
        if all(known.number != namespace.number for known in found):
            found.append(namespace)
            missing.difference_update((sock.cookie, str(sock.address)) for sock in namespace.sockets)
        return True

    read(None)
    if missing and binder is not None and binder.pid is not None:
        try:
            ours, theirs = network_namespace_of(), network_namespace_of(binder.pid)
        except OSError:
            unchecked.append(Unchecked("the binder's network namespace", "it may not be seen", "run this as root"))
        else:
            if ours != theirs and not read(binder.pid):
                return found
    if missing:
        # The binder may hold sockets of other network namespaces: a socket unit's, or those of a container.
        for netns in names():
            if missing and not read(None, netns):
                break
        known = {namespace.number for namespace in found}
        for number, pid in network_namespaces().items():
            if missing and number not in known and not read(pid):
                break
    if missing:
        unchecked.append(
            Unchecked(
                f"{len(missing)} of the binder's listeners",
                "they were not found listening in any network namespace that can be seen",
            )
        )
    return found


def _read_holders(
    namespaces: Sequence[Namespace], binder: Binder | None, guard: int | None
) -> tuple[Holders, tuple[Descriptors, ...]]:
    cookies = {listener.cookie for listener in binder.listeners} if binder else set()
    sockets = [sock for namespace in namespaces for sock in namespace.sockets]
    held = {sock.inode for sock in sockets if sock.cookie in cookies}
    suspicious = {sock.inode for sock in sockets if sock.drops or is_full(sock)}
    suspicious |= {sock.inode for each in namespaces for group in shared_addresses(each) for sock in group}
    pid = binder.pid if binder else None
    keepers = {each for each in (_SYSTEMD, pid, guard) if each is not None}
    holders = holders_of(held | suspicious, keepers)
    roles = {pid: "the binder", guard: "the guard"} if binder else {}
    processes = {holder.pid: holder for inode in held for holder in holders.of(inode)}
    found = [read_descriptors(Process(each, "multibinder"), what) for each, what in roles.items() if each is not None]
    found += [
        read_descriptors(Process(each.pid, each.name), "a holder of listeners") for _, each in sorted(processes.items())
    ]
    return holders, tuple(each for each in found if each is not None)


def read_descriptors(process: Process, what: str) -> Descriptors | None:
    """Count the descriptors of a process; None if it is gone, cannot be read, or has no limit."""
    try:
        with open(f"/proc/{process.pid}/limits") as file:
            limit = re.search(r"^Max open files +(\d+) ", file.read(), re.MULTILINE)
        opened = len(os.listdir(f"/proc/{process.pid}/fd"))
    except OSError:
        return None
    return Descriptors(process, what, opened, int(limit[1])) if limit else None


def read_keeper(binder: int | None, guard: int | None, unchecked: list[Unchecked]) -> Keeper:
    """Return the keeper of the sockets: a guard, or systemd's descriptor store (FileDescriptorStoreMax=)."""
    if binder is None:
        unchecked.append(Unchecked("who keeps the sockets", "the binder runs in another PID namespace"))
        return Keeper("unknown")
    if guard is not None:
        return Keeper("guard")
    unit = _service_of(binder)
    if not unit or not shutil.which("systemctl") or not os.path.isdir("/run/systemd/system"):
        return Keeper("none")
    names = ("MainPID", "FileDescriptorStoreMax", "NFileDescriptorStore", "NeedDaemonReload")
    try:
        done = _run(["systemctl", "show", unit, *(f"--property={name}" for name in names)])
        properties = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    except (OSError, subprocess.TimeoutExpired) as error:
        unchecked.append(Unchecked(f"the descriptor store of {unit}", f"systemctl show: {error}"))
        return Keeper("unknown", unit)
    if properties.get("MainPID") != str(binder):
        return Keeper("none")
    limit, stored = properties.get("FileDescriptorStoreMax", ""), properties.get("NFileDescriptorStore", "")
    return Keeper(
        "systemd",
        unit,
        int(limit) if limit.isdigit() else None,
        int(stored) if stored.isdigit() else None,
        unit_changed=properties.get("NeedDaemonReload") == "yes",
    )


def _service_of(pid: int) -> str:
    """Return the service that a process belongs to; empty if it runs in none, or is gone."""
    try:
        unit = unit_of(pid)
    except OSError:
        return ""
    return unit if unit.endswith(".service") else ""


class _Status(msgspec.Struct):
    """The part of ``multibinder-haproxy status --json`` that the checks need. Version 0.1.0 may lack ``changed``."""

    name: str
    state: str = ""
    changed: list[str] | None = None


def read_instances(wrapper: str, unchecked: list[Unchecked]) -> list[Instance]:
    """Return the HAProxy instances that run."""
    what = "whether each HAProxy runs with what is on disk"
    try:
        # The exit code depends on the states of the instances, so it does not tell whether the command worked.
        done = _run([wrapper, "status", "--json"])
        found = msgspec.json.decode(done.stdout, type=list[_Status])
    except (OSError, subprocess.TimeoutExpired) as error:
        unchecked.append(Unchecked(what, f"{wrapper} status: {error}"))
        return []
    except msgspec.DecodeError:
        unchecked.append(Unchecked(what, done.stderr.strip() or f"{wrapper} status gave no JSON"))
        return []
    running = [status for status in found if status.state != "stopped"]
    if any(status.changed is None for status in running):
        unchecked.append(Unchecked(what, f"{wrapper} is of a version that does not tell"))
    return [Instance(status.name, None if status.changed is None else tuple(status.changed)) for status in running]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
    )
