"""The daemon, put together: limits, signals, readiness."""

from __future__ import annotations

import os
import resource
import signal
import socket

import msgspec
import sdnotify

from multibinder.binder import events
from multibinder.binder.control_socket import control_socket
from multibinder.binder.methods import Methods
from multibinder.binder.server import ControlServer, Limits
from multibinder.binder.store import ListenerStore, WhoListens

#: Descriptors that are neither a listener nor a client: log, selector, signals, notifications, lock, slack.
_RESERVED_DESCRIPTORS = 64


class Settings(msgspec.Struct, frozen=True):
    socket_path: str
    mode: int = 0o600
    group: str | None = None
    max_listeners: int = 16384
    limits: Limits = msgspec.field(default_factory=Limits)


def serve(settings: Settings, version: str, who_listens: WhoListens) -> None:
    """Run until SIGTERM or SIGINT. Raises MultibinderError when it cannot start."""
    max_listeners = _fit_descriptors(settings)
    store = ListenerStore(max_listeners, who_listens)
    notifier = sdnotify.SystemdNotifier()
    wakeup, signalled = socket.socketpair()
    with wakeup, signalled, control_socket(settings.socket_path, settings.mode, settings.group) as listening:
        server = ControlServer(listening, store, Methods(store, version), settings.limits)
        signalled.setblocking(False)
        _watch_signals(signalled)

        def on_signal(number: int) -> None:
            name = signal.Signals(number).name
            if number in (signal.SIGTERM, signal.SIGINT):
                events.info("stopping", signal=name, listeners=len(store))
                notifier.notify(f"STOPPING=1\nSTATUS=Stopping on {name}")
                server.stop()
            else:
                events.warning("signal-ignored", signal=name, why="this version has no use for it")

        events.info("serving", socket=settings.socket_path, pid=os.getpid(), version=version)
        notifier.notify(f"READY=1\nSTATUS=Serving {settings.socket_path}")
        server.run(wakeup, on_signal)
    store.close()
    events.info("stopped")


def _watch_signals(signalled: socket.socket) -> None:
    """From here on a signal is a byte in ``signalled``; nothing is done in a handler."""
    signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)


def _fit_descriptors(settings: Settings) -> int:
    """Raise RLIMIT_NOFILE to its hard limit; how many listeners fit beside the clients."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return settings.max_listeners
    room = max(1, hard - settings.limits.clients - _RESERVED_DESCRIPTORS)
    if room < settings.max_listeners:
        events.warning(
            "limit-lowered",
            max_listeners=room,
            wanted=settings.max_listeners,
            why=f"RLIMIT_NOFILE is {hard} and {settings.limits.clients} clients need room; raise LimitNOFILE=",
        )
    return min(room, settings.max_listeners)
