"""The daemon, put together: limits, signals, readiness."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Sequence

import msgspec
import sdnotify

from multibinder.binder import events, inherit, ready, records
from multibinder.binder.bind_refusal import BindRefusals, WhoListens
from multibinder.binder.control_socket import ControlSocket
from multibinder.binder.counters import RequestCounters
from multibinder.binder.health_monitor import LOOK_EVERY_S, OrphanTtl, Watch
from multibinder.binder.keeper import Keeper, keeper_for
from multibinder.binder.listener import Listener, name_of_cookie
from multibinder.binder.loop import Loop
from multibinder.binder.methods import Methods, OnRehearsed
from multibinder.binder.pidfile import remove_pidfile, write_pidfile
from multibinder.binder.policy import Policy
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.quotas import Limits, Users
from multibinder.binder.server import ControlServer
from multibinder.binder.store import ListenerStore
from multibinder.kernel.listen_fds import pass_listen_fds
from multibinder.kernel.socket_options import cookie_of
from multibinder.wire.addresses import Address
from multibinder.wire.errors import BindError, MultibinderError
from multibinder.wire.status import BinderStatus

#: Descriptors that are neither a listener nor a client: log, selector, signals, notifications, lock, slack.
_RESERVED_DESCRIPTORS = 64
#: A holder may shut a shared socket down, or give it another backlog, and nothing tells us.
_REPAIR_EVERY_S = 15.0
#: Whoever holds a socket that we miss may be looked for this often.
_SEARCH_EVERY_S = 1.0
#: Set for our next self, when it is an upgrade and no restart.
_UPGRADED = "MULTIBINDER_UPGRADED"
#: The journal grows with each bind and release; past this, beyond what the listeners themselves need, it begins anew.
_JOURNAL_BYTES = 1024 * 1024
#: Read where nobody says otherwise, if it is there.
DEFAULT_POLICY = "/etc/multibinder/policy.toml"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Settings(msgspec.Struct, frozen=True):
    """``policy`` is the file's path; None for the default one, if it is there."""

    socket_path: str
    mode: int = 0o600
    group: str | None = None
    policy: str | None = None
    orphan_ttl: tuple[OrphanTtl, ...] = ()
    recover: bool = True
    pidfile: str | None = None
    limits: Limits = msgspec.field(default_factory=Limits)


class Daemon:
    """One life of the binder, from what it inherits to what it leaves."""

    def __init__(self, settings: Settings, version: str, who_listens: WhoListens, command: Sequence[str]) -> None:
        self._settings = settings
        self._version = version
        self._command = command
        self._notifier = sdnotify.SystemdNotifier()
        self._limits = _fit_descriptors(settings.limits)
        self._store = ListenerStore(
            BindRefusals(who_listens), self, limit=self._limits.listeners, limit_per_uid=self._limits.listeners_per_uid
        )
        self._state_file = f"{settings.socket_path}.state" if settings.recover else None
        self._missing: records.Records = {}
        self._written: records.Header | None = None
        self._upgraded = os.environ.pop(_UPGRADED, None) is not None
        self._search_again_at = 0.0
        self._waiting: list[OnRehearsed] = []
        self._leaving = False
        self._stopping = False
        self._keeper: Keeper | None = None
        self._journal: records.Journal | None = None
        self._journal_number = 0

    def live(self) -> Sequence[str] | None:
        """Serve until SIGTERM or SIGINT, or until an upgrade: then the command to execute, with all descriptors left
        where it looks for them. Raises MultibinderError when it cannot start."""
        settings = self._settings
        came = inherit.receive(os.environ)
        wakeup, signalled = socket.socketpair()
        with (
            wakeup,
            signalled,
            ControlSocket(settings.socket_path, settings.mode, settings.group, came.control, came.lock) as control,
        ):
            if settings.pidfile is not None:
                write_pidfile(settings.pidfile)
            for _, sock in came.listeners:
                self._adopt(sock, came.records.get(cookie_of(sock)))
            self._recover_all()
            self._loop = Loop()
            self._users = users = Users(self._limits)
            self._started = time.time()
            self._header = self._next_life(came.header)
            first_policy = self._first_policy(had_one=self._header.policy and len(self._store) > 0)
            self._policy = PolicyInForce(first_policy)
            self._header = msgspec.structs.replace(self._header, policy=first_policy is not None)
            self._take_up(came)
            self._counters = RequestCounters()
            methods = Methods(
                self._store,
                self._version,
                policy=self._policy,
                counters=self._counters,
                status_source=self,
                upgrader=self,
                keeper=self._keeper,
            )
            self._server = ControlServer(self._loop, control.socket, self._store, methods, self._counters, users)
            keepers = () if self._keeper is None else (os.getppid(),)
            self._watch = Watch(self._loop, self._store, settings.orphan_ttl, keepers)
            if self._keeper is not None:
                # With the control socket kept too, a client that connects while we are dead waits for our next self.
                self._keeper.keep(control.kept(), lambda confirmed: None)
            wakeup.setblocking(False)
            signalled.setblocking(False)
            _watch_signals(signalled)
            self._loop.watch(wakeup, lambda: self._obey(wakeup.recv(64)))
            control.warn_who_may_connect(self._policy.current is not None)
            self._repair_now_and_then()
            self._loop.call_later(LOOK_EVERY_S, self._watch.look_now_and_then)
            self._feed_watchdog()
            events.info(
                "serving",
                socket=settings.socket_path,
                pid=os.getpid(),
                version=self._version,
                inherited=len(self._store),
            )
            self._notifier.notify(f"READY=1\nSTATUS=Serving {settings.socket_path}")
            if self._notifier.socket is not None:
                self._notifier.socket.setblocking(False)  # who watches us may be slower than we are
            ready.tell_and_let_go()
            for peer in came.peers:
                self._server.welcome(peer)
            peers = self._server.run()
            self._watch.stop()
            self._loop.close()
            # What arrives from here on waits for our next self, which has handlers, to unblock it.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            signal.set_wakeup_fd(-1)
            # A stop that came after the rehearsal is a stop still.
            legacy = self._legacy(control, peers) if self._leaving and not self._stopping else None
            with contextlib.suppress(BlockingIOError):
                for number in wakeup.recv(64):
                    os.kill(os.getpid(), number)  # noted, and not obeyed any more: it waits with the others
        if legacy is not None:
            if self._notifier.socket is not None:
                self._notifier.socket.close()  # else whoever collects it closes what has its number by then
            pass_listen_fds(legacy, os.environ)
            os.environ[_UPGRADED] = "1"
            return self._command
        if not len(self._store) and self._state_file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._state_file)  # nothing is left that could be recovered
        self._store.close()
        if settings.pidfile is not None:
            remove_pidfile(settings.pidfile)
        events.info("stopped")
        return None

    def _take_up(self, came: inherit.Inheritance) -> None:
        numbers = [name.partition("-")[2] for name in came.record_names]
        self._journal_number = max((int(number) for number in numbers if number.isdecimal()), default=0)
        given = [*came.record_names, *(name for name, _ in came.listeners)]
        self._keeper = keeper_for(os.environ, self._loop)
        if self._keeper is not None:
            self._keeper.has(given)
        alive = {listener.kept_name for listener in self._store.listeners()}
        self._renew_journal([name for name in given if name not in alive])

    def _legacy(self, control: ControlSocket, peers: Sequence[socket.socket]) -> list[tuple[str, int]]:
        assert self._journal is not None  # noqa: S101
        self._journal.append(self._store.records())
        if self._keeper is not None:
            self._keeper.close()
        return [
            *control.leave(),
            (self._journal_name, self._journal.memfd),
            *((inherit.PEER, peer.detach()) for peer in peers),
            *self._store.detach_all(),
        ]

    def _adopt(self, sock: socket.socket, record: records.Record | None) -> None:
        try:
            self._store.restore(sock, record)
        except BindError as error:
            events.error("inherited-lost", why=error)
            sock.close()

    def _recover_all(self) -> None:
        """What the state file has and we have not, from whoever holds it still."""
        if self._state_file is None:
            return
        here = {cookie_of(listener.socket) for listener in self._store.listeners()}
        file = records.read_file(self._state_file)
        self._written, written = file.header, file.records
        self._missing = {
            cookie: record for cookie, record in written.items() if cookie not in here and not record.released
        }
        if not self._missing:
            return
        from multibinder.binder.recover import recover

        for record, sock in recover(self._missing.values()):
            del self._missing[record.cookie]
            self._adopt(sock, record)
            events.info("recovered", address=record.address, owners=",".join(record.claims))

    def recover(self, address: Address) -> tuple[records.Record, socket.socket] | None:
        """The same for one address that turned out to be in use."""
        missing = [record for record in self._missing.values() if record.address == str(address)]
        if not missing or time.monotonic() < self._search_again_at:
            return None
        self._search_again_at = time.monotonic() + _SEARCH_EVERY_S
        from multibinder.binder.recover import recover

        for record, sock in recover(missing):
            del self._missing[record.cookie]
            events.info("recovered", address=record.address, owners=",".join(record.claims))
            return record, sock
        return None

    def _renew_journal(self, outdated: Sequence[str]) -> None:
        """Begin a fresh one, with what is there now; whoever keeps our sockets gets it before it may forget others."""
        if self._journal is not None:
            self._journal.close()
        self._journal = records.Journal(
            [*self._store.records(), *self._missing.values()], self._state_file, self._header
        )
        self._journal_number += 1
        if (keeper := self._keeper) is None:
            return
        listeners = self._store.listeners()

        def settle(confirmed: bool) -> None:
            for listener in listeners:
                listener.kept = confirmed
            if confirmed:
                keeper.forget(outdated)

        keeper.keep(
            [(self._journal_name, self._journal.memfd), *(listener.for_keeper() for listener in listeners)], settle
        )

    @property
    def _journal_name(self) -> str:
        return f"{inherit.RECORDS}-{self._journal_number}"

    def _next_life(self, inherited: records.Header | None) -> records.Header:
        before = inherited or self._written
        if before is None:
            return records.Header(records.FORMAT, records.boot_id())
        starts, upgrades = before.starts + (not self._upgraded), before.upgrades + self._upgraded
        return msgspec.structs.replace(before, starts=starts, upgrades=upgrades)

    def status(self, visible: Callable[[], Sequence[Listener]], tell: Callable[[BinderStatus], None]) -> None:
        """Look at the listeners, then ``tell`` the status of those that are ``visible``."""
        self._watch.look(lambda: tell(self._status(visible())))

    def _status(self, visible: Sequence[Listener]) -> BinderStatus:
        keeper = self._keeper
        policy = self._policy.current
        return BinderStatus(
            format=1,
            version=self._version,
            pid=os.getpid(),
            started=self._started,
            starts=self._header.starts,
            upgrades=self._header.upgrades,
            policy=policy.path if policy else None,
            clients=self._users.clients,
            descriptors=len(os.listdir("/proc/self/fd")) - 1,
            descriptors_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            descriptors_in_flight=self._users.in_flight,
            listeners_limit=self._limits.listeners,
            keeper=None if keeper is None else keeper.who,
            kept=0 if keeper is None else keeper.kept,
            kept_limit=0 if keeper is None else keeper.limit,
            looked_at=self._watch.looked_at,
            counters=self._counters.totals,
            listeners=self._watch.health(visible),
        )

    def _repair_now_and_then(self) -> None:
        self._loop.call_later(_REPAIR_EVERY_S, self._repair_now_and_then)
        self._store.repair()

    def _feed_watchdog(self) -> None:
        """From the loop itself, so that a stuck loop is found (sd_watchdog_enabled(3))."""
        interval_us = os.environ.get("WATCHDOG_USEC", "")
        if interval_us.isdigit() and os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self._notifier.notify("WATCHDOG=1")
            self._loop.call_later(int(interval_us) / 1e6 / 2, self._feed_watchdog)

    def write(self, changed: Sequence[records.Record]) -> None:
        assert self._journal is not None  # noqa: S101
        self._journal.append(changed)
        if self._keeper is not None:
            self._keeper.forget([name_of_cookie(record.cookie) for record in changed if record.released])
        if self._journal.size > _JOURNAL_BYTES + 512 * len(self._store):
            self._renew_journal([self._journal_name])

    def _obey(self, signals: bytes) -> None:
        for number in signals:
            name = signal.Signals(number).name
            if number in (signal.SIGTERM, signal.SIGINT):
                events.info("stopping", signal=name, listeners=len(self._store))
                self._notifier.notify(f"STOPPING=1\nSTATUS=Stopping on {name}")
                self._stopping = True
                self._server.stop()
            elif number == signal.SIGUSR1:
                self.upgrade(lambda version, why: None)
            elif number == signal.SIGHUP:
                self._reload_policy()
            else:
                events.warning("signal-ignored", signal=name, why="this version has no use for it")

    def _first_policy(self, *, had_one: bool) -> Policy | None:
        """Raises PolicyError where nothing depends on us yet. A binder that has listeners comes up whatever the file
        says: a policy that cannot be read allows root and our own user, and nobody else."""
        try:
            return load_policy(self._settings, again=had_one)
        except MultibinderError as error:
            if not len(self._store):
                raise
            events.error("policy-broken", why=error, done="only root and this user may ask for anything until SIGHUP")
            return Policy(self._settings.policy or DEFAULT_POLICY, (), os.geteuid())

    def _reload_policy(self) -> None:
        try:
            policy = load_policy(self._settings, again=self._policy.current is not None)
        except MultibinderError as error:
            events.error("policy-broken", why=error, done="the policy of before stays")
            return
        self._policy.replace(policy)
        if self._header.policy != (policy is not None):
            self._header = msgspec.structs.replace(self._header, policy=policy is not None)
            self._renew_journal([self._journal_name])
        if policy is None:
            events.info(
                "policy-reloaded", rules=0, why=f"there is no {DEFAULT_POLICY}: the control socket's mode decides"
            )
        else:
            events.info("policy-reloaded", path=policy.path, rules=len(policy.rules))

    def upgrade(self, tell: OnRehearsed) -> None:
        """Try the new code; several who ask at the same time are told the same."""
        from multibinder.binder.upgrade import Rehearsal

        try:
            # The rehearsal does not know that a policy is in force whose file, the default one, is gone.
            load_policy(self._settings, again=self._policy.current is not None)
        except MultibinderError as error:
            events.error("upgrade-refused", why=error, done=f"version {self._version} goes on")
            tell(None, str(error))
            return
        self._waiting.append(tell)
        if len(self._waiting) == 1:
            Rehearsal(self._loop, self._command, self._rehearsed)

    def _rehearsed(self, version: str | None, why: str) -> None:
        if version is None:
            events.error("upgrade-refused", why=why, done=f"version {self._version} goes on")
        else:
            events.info("upgrading", version=self._version, new=version, listeners=len(self._store))
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell(version, why)
        if version is not None:
            self._leaving = True
            self._server.leave()


def serve(settings: Settings, version: str, who_listens: WhoListens, command: Sequence[str]) -> None:
    """Run until SIGTERM or SIGINT. ``command`` is what to become for an upgrade. Raises MultibinderError when it
    cannot start."""
    while (command_ := Daemon(settings, version, who_listens, command).live()) is not None:
        try:
            os.execv(command_[0], list(command_))
        except OSError as error:
            # All descriptors are where the new program would have found them, and so do we.
            events.error("upgrade-failed", why=error.strerror, done=f"version {version} goes on")


def _watch_signals(signalled: socket.socket) -> None:
    """From here on a signal is a byte in ``signalled``; nothing is done in a handler."""
    signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def load_policy(settings: Settings, *, again: bool = False) -> Policy | None:
    """None where there is none. Raises PolicyError; also when there was a policy before (``again``) and its file is
    gone: whoever moved it away did not say that everybody may do everything; a rule can say so."""
    path = settings.policy
    if path is None:
        if not again and not os.path.lexists(DEFAULT_POLICY):
            return None
        path = DEFAULT_POLICY
    from multibinder.binder.policy_file import load

    return load(path)


def _fit_descriptors(limits: Limits) -> Limits:
    """Raise RLIMIT_NOFILE to its hard limit; what fits beside the clients, and may be on its way to them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return limits
    room = max(1, hard - limits.clients - _RESERVED_DESCRIPTORS)
    if room < limits.listeners:
        events.warning(
            "limit-lowered",
            max_listeners=room,
            wanted=limits.listeners,
            why=f"RLIMIT_NOFILE is {hard} and {limits.clients} clients need room; raise LimitNOFILE=",
        )
    # Without privileges, this many may be under way from all processes of our user (unix(7), ETOOMANYREFS).
    return msgspec.structs.replace(
        limits, listeners=min(room, limits.listeners), in_flight=min(hard // 2, limits.in_flight)
    )
