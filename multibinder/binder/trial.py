"""The trial start of a new version: try what its start will need, beside a running binder, which is not disturbed."""

from __future__ import annotations

import grp
import os
import selectors
import socket

from multibinder.binder.control_lock import cannot_create
from multibinder.binder.pidfile import try_to_write_pidfile
from multibinder.binder.policy_source import load_policy
from multibinder.binder.settings import Settings
from multibinder.kernel import files
from multibinder.wire.errors import ConfigurationError


def try_start(settings: Settings, *, policy_required: bool) -> None:
    """Try what a start with inherited descriptors needs. Raises MultibinderError or OSError for what would fail.

    The running binder notices nothing: what is created is removed again, and no file of it is changed.
    """
    load_policy(settings.policy, required=policy_required)
    if settings.pidfile is not None:
        try_to_write_pidfile(settings.pidfile)
    if settings.group is not None:
        try:
            grp.getgrnam(settings.group)
        except KeyError:
            raise ConfigurationError(f"--group {settings.group}: there is no such group") from None
    _try_control_socket(settings.socket_path)
    _try_resources()


def _try_control_socket(path: str) -> None:
    """Try to create a file beside the control socket if the socket or its lock has to be created again."""
    if os.path.lexists(path) and os.path.lexists(f"{path}.lock"):
        return
    draft = f"{path}.{os.getpid()}.new"
    try:
        os.close(files.create(draft))
        os.unlink(draft)
    except OSError as error:
        raise cannot_create(path, error) from error


def _try_resources() -> None:
    """Open and close one of each kind that a start opens. Raises OSError for a shortage."""
    selectors.DefaultSelector().close()
    for end in socket.socketpair():
        end.close()
    memfd = os.memfd_create("multibinder-trial", os.MFD_CLOEXEC)
    try:
        files.write_all(memfd, b"\n")
    finally:
        os.close(memfd)
