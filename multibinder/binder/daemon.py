"""The daemon: the assembly of its parts, and the phases of its life.

restore    take over inherited listeners, and recover missing ones
assemble   construct the parts around the restored listeners
serve      serve until a signal, or until an upgrade whose rehearsal succeeded
leave      stop; or pass every descriptor to the next version, which begins by restoring them
"""

from __future__ import annotations

import functools
import os
import signal
import socket
from collections.abc import Mapping, Sequence

import msgspec

from multibinder.binder import abandoned, client_state, events, inherit, lifeboat, next_version
from multibinder.binder.address_search import AddressSearch
from multibinder.binder.adopt import Adoption
from multibinder.binder.adopted_groups import AdoptedGroups
from multibinder.binder.client_state import CLIENT, ClientState
from multibinder.binder.control_socket import ControlSocket, open_control_socket
from multibinder.binder.counters import RequestCounters
from multibinder.binder.descriptor_limit import fit_descriptors
from multibinder.binder.durable_state import DurableState
from multibinder.binder.failures import callback_failed
from multibinder.binder.health_monitor import HealthMonitor
from multibinder.binder.holder_scan import HolderScan
from multibinder.binder.inherit import NOT_KEPT, Inheritance
from multibinder.binder.keeper import GUARDED, Keeper, keeper_for
from multibinder.binder.keeping import keep_the_rest
from multibinder.binder.listings import Listings
from multibinder.binder.loop import Loop
from multibinder.binder.methods import Methods
from multibinder.binder.path_watch import watch_listeners
from multibinder.binder.pidfile import remove_pidfile, write_pidfile
from multibinder.binder.policy import Policy
from multibinder.binder.policy_in_force import PolicyInForce
from multibinder.binder.policy_source import PolicySource, load_first_policy, require_file
from multibinder.binder.program import Program
from multibinder.binder.quotas import Limits, Quotas
from multibinder.binder.ready import report_ready
from multibinder.binder.records import Record
from multibinder.binder.server import ControlServer
from multibinder.binder.settings import Settings
from multibinder.binder.signals import SignalQueue
from multibinder.binder.slices import Slices
from multibinder.binder.status import BinderStatusSource
from multibinder.binder.store import ListenerStore
from multibinder.binder.supervisor import Supervisor
from multibinder.binder.upgrader import Upgrader
from multibinder.kernel.socket_options import inode_of
from multibinder.wire.errors import BindError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run(settings: Settings, program: Program) -> None:
    """Run until SIGTERM or SIGINT. An upgrade executes the installed version in this process.

    Raises MultibinderError if the binder cannot start.
    """
    # The exit status of a child must not be lost because the program that started us ignored SIGCHLD.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    inherited, failure = inherit.receive(os.environ), None
    while (descriptors := _run_one_life(settings, program, inherited, failure)) is not None:
        descriptors, failure = next_version.execute(program.command, program.version, descriptors, settings.socket_path)
        inherited = inherit.identify(descriptors)


def _run_one_life(
    settings: Settings, program: Program, inherited: Inheritance, upgrade_failure: str | None
) -> list[tuple[str, int]] | None:
    """Restore, assemble, serve and leave. Return the named descriptors for the next version; None after a stop.

    ``upgrade_failure`` tells why the upgrade failed that ended the life before this one.
    """
    limits = fit_descriptors(settings.limits)
    with open_control_socket(
        settings.socket_path, settings.mode, settings.group, inherited.control, inherited.lock
    ) as control:
        if settings.pidfile is not None:
            write_pidfile(settings.pidfile, required=not inherited.listeners)
        restored = _restore(settings, limits, inherited)
        daemon = Daemon(settings, program, limits, restored, control, upgrade_failure)
        clients = daemon.serve(inherited)
        descriptors = daemon.detach_all(clients) if daemon.is_upgrading else None
    if descriptors is None:
        daemon.stop()
    return descriptors


class Restored(msgspec.Struct, frozen=True):
    """The result of the restore phase: the listeners, and the objects that were needed to restore them."""

    loop: Loop
    store: ListenerStore
    durable: DurableState
    keeper: Keeper | None
    policy: Policy | None


def _restore(settings: Settings, limits: Limits, inherited: Inheritance) -> Restored:
    """Take over inherited listeners, recover missing ones, and begin the journal. Raises PolicyError."""
    loop = Loop()
    keeper = keeper_for(os.environ, loop, inherited.kept_names)
    durable = DurableState(
        f"{settings.socket_path}.state" if settings.recover else None,
        inherited,
        keeper,
        lambda: store,
        upgraded=os.environ.pop(next_version.UPGRADED, None) is not None,
    )
    watch = functools.partial(watch_listeners, loop)
    store = ListenerStore(
        durable, watch, loop.call_later, limit=limits.listeners, limit_per_uid=limits.listeners_per_uid
    )
    for _, sock in inherited.listeners:
        _restore_listener(store, sock, durable.record_of(sock))
    for record, sock in durable.recover_all():
        _restore_listener(store, sock, record)
    policy = load_first_policy(settings.policy, had_policy=durable.had_policy, has_listeners=len(store) > 0)
    durable.begin(policy=policy is not None)
    return Restored(loop, store, durable, keeper, policy)


def _restore_listener(store: ListenerStore, sock: socket.socket, record: Record | None) -> None:
    try:
        store.restore(sock, record)
    except BindError as error:
        events.error("inherited-lost", why=error)
        sock.close()


class Daemon:
    """One life of the binder from the end of the restore phase until its descriptors are passed on or closed."""

    def __init__(
        self,
        settings: Settings,
        program: Program,
        limits: Limits,
        restored: Restored,
        control: ControlSocket,
        upgrade_failure: str | None,
    ) -> None:
        self._settings, self._program, self._control = settings, program, control
        self._supervisor = Supervisor(restored.loop)
        self._loop, self._store = loop, store = restored.loop, restored.store
        self._durable, self._keeper = durable, keeper = restored.durable, restored.keeper
        self._is_stopping = self._is_upgrading = False
        self._policy, self._quotas = policy, quotas = PolicyInForce(restored.policy), Quotas(limits)
        timings, version, counters, slices = program.timings, program.version, RequestCounters(), Slices(loop)
        # The keeper is our parent, and has copies of all listeners.
        ignored_pids = () if keeper is None else (os.getppid(),)
        scan = HolderScan(loop, slices, program.find_holders, ignored_pids, timings.look_timeout_s)
        self._monitor = monitor = HealthMonitor(loop, slices, store, scan, settings.orphan_ttl, grace_s=timings.grace_s)
        listings = Listings(slices, quotas, store, policy)
        self._upgrader = Upgrader(
            loop, program.command, version, store, check=self._check_upgrade, begin=self._begin_upgrade
        )
        self._policy_source = PolicySource(loop, settings.policy, policy, self._note_policy, timeout_s=timings.policy_s)
        self._groups = AdoptedGroups(loop, monitor, store)
        self._search = AddressSearch(loop, program.who_listens, ignored_pids if GUARDED in os.environ else ())
        methods = Methods(
            store,
            version,
            policy=policy,
            counters=counters,
            status_source=BinderStatusSource(version, monitor, listings, durable, keeper, quotas, policy, counters),
            listings=listings,
            search=self._search,
            upgrader=self._upgrader,
            keeper=keeper,
            run=lambda steps, uid: slices.run(steps, quotas.user(uid)),
            adoption=Adoption(store, policy, keeper, control.inodes, self._groups.watch),
            upgrade_failure=upgrade_failure,
        )
        self._server = ControlServer(
            loop,
            control.sockets,
            quotas=quotas,
            slices=slices,
            counters=counters,
            answer=methods.answer,
            handoffs=store.handoffs,
        )

    @property
    def is_upgrading(self) -> bool:
        """Return whether the next version takes over. A stop signal after the rehearsal cancels the upgrade."""
        return self._is_upgrading and not self._is_stopping

    def serve(self, inherited: Inheritance) -> list[tuple[socket.socket, ClientState]]:
        """Serve until a signal or an upgrade. Return the clients to pass on at an upgrade, which the caller owns.

        The clients of ``inherited`` belong to the server from now on.
        """
        if self._keeper is not None and self._control.was_replaced:
            self._keeper.forget([name for name, _ in self._control.for_keeper()])
        (keep := functools.partial(keep_the_rest, self._keeper, self._control, self._store))()
        signals = SignalQueue(_SIGNALS)
        self._loop.watch_always(signals.fileno(), lambda: self._obey_all(signals.read()))
        self._control.warn_who_may_connect(has_policy=self._policy.current is not None)
        self._store.repair()
        for repair in (self._monitor.repair, self._durable.catch_up, self._look_at_control_socket):
            self._loop.call_every(self._program.timings.repair_every_s, repair)
        self._loop.call_every(self._program.timings.look_every_s, self._monitor.look_regularly)
        events.catch_up_by(self._loop.call_later)
        self._loop.call_every(self._program.timings.look_every_s, keep)
        self._supervisor.feed_watchdog()
        events.info(
            "serving",
            socket=self._settings.socket_path,
            pid=os.getpid(),
            version=self._program.version,
            inherited=len(self._store),
        )
        self._supervisor.report_ready(self._settings.socket_path)
        report_ready()
        abandoned.settle(self._loop, self._store.handoffs, self._monitor, inherited.peers, self._settings.limits)
        lifeboat.dismiss(inherited.lifeboat)
        lifeboat.reap(os.environ, self._loop)
        for client in inherited.peers:
            self._server.accept(client, inherited.client_states.get(inode_of(client)))
        remaining = self._server.run()
        for part in (self._policy_source, self._upgrader, self._monitor, self._search, self._groups):
            part.stop()
        self._loop.close()
        signals.close()
        return remaining

    def _look_at_control_socket(self) -> None:
        kept = [name for name, _ in self._control.for_keeper()]
        if self._control.look():
            self._server.listen_on(self._control.sockets)
            self._control.close_retired()
            if self._keeper is not None:
                self._keeper.forget(kept)
                self._keeper.keep(self._control.for_keeper(), lambda confirmed: None)

    def detach_all(self, clients: Sequence[tuple[socket.socket, ClientState]]) -> list[tuple[str, int]]:
        """Return every descriptor that the next version needs, with its name. The caller owns them.

        ``clients`` are sockets, which it takes, and what is known of them.
        """
        journal = self._durable.detach_journal()
        self._supervisor.close()
        if self._keeper is not None:
            self._keeper.close(os.environ)
        return [*self._control.detach(), *journal, *client_state.detach(clients), *self._store.detach_all()]

    def stop(self) -> None:
        """Close the listeners, and remove the files that describe this process."""
        self._durable.remove_file_if_useless()
        self._store.close()
        if self._settings.pidfile is not None:
            remove_pidfile(self._settings.pidfile)
        events.info("stopped")

    def _obey_all(self, signals: bytes) -> None:
        for number in signals:
            try:
                self._obey(number)
            except Exception as error:  # a signal that arrived with it must be obeyed all the same
                callback_failed(self._obey, error)

    def _obey(self, number: int) -> None:
        name = signal.Signals(number).name
        if number in (signal.SIGTERM, signal.SIGINT):
            self._is_stopping = True
            self._server.stop()
            events.info("stopping", signal=name, listeners=len(self._store))
            self._supervisor.report_stopping(name)
        elif number == signal.SIGUSR1:
            self._upgrader.upgrade()
        elif number == signal.SIGHUP:
            self._policy_source.reload()
        else:
            events.warning("signal-ignored", signal=name, why="this version has no use for it")

    def _note_policy(self) -> None:
        self._durable.note_policy(self._policy.current is not None)

    def _check_upgrade(self) -> Mapping[str, str]:
        """Return the variables of a rehearsal. Raises MultibinderError for a fault that it would not notice."""
        has_policy = self._policy.current is not None
        if has_policy:
            require_file(self._settings.policy)
        names = [listener.kept_name if listener.kept else NOT_KEPT for listener in self._store.listeners()]
        return next_version.rehearsal_environment(names + [CLIENT] * self._quotas.clients, policy_required=has_policy)

    def _begin_upgrade(self) -> None:
        self._is_upgrading = True
        self._store.releases.end_drains()
        if self._keeper is not None:
            self._keeper.stop_waiting()
        self._server.drain()
