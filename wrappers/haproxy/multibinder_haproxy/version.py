"""The version of a HAProxy program, as far as the wrapper depends on it."""

from __future__ import annotations

import os
import re
import subprocess

from multibinder_haproxy.errors import HaproxyTooOld

#: HAProxy before 2.0 does not say in ``show proc`` which version its processes have, and before 1.9 it has no master
#: CLI. Each version from 2.0 to 3.5-dev was seen to start, reload and stop.
_OLDEST = (2, 0)
#: ``quic+fd@N`` came with 2.8.
_OLDEST_WITH_QUIC = (2, 8)
#: "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/"; before 2.4 "HA-Proxy version 2.2.0 2020/07/07".
_FIRST_LINE = re.compile(r"HA-?Proxy version (?P<version>(?P<major>\d+)\.(?P<minor>\d+)\S*)")
_TIMEOUT_S = 10.0


def refuse_too_old(haproxy: str) -> None:
    """Raise HaproxyTooOld if the program is a HAProxy that is too old to be run here. Starts ``haproxy -v``.

    A program that says nothing of its version may be a wrapper of the operator's, and is believed.
    """
    said = _version(haproxy)
    if said and (int(said["major"]), int(said["minor"])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise HaproxyTooOld(
            f"{haproxy} is HAProxy {said['version']}, which is too old: {oldest} or later is needed, because the "
            "master of an older one cannot be asked what its workers do"
        )


def refuse_without_quic(haproxy: str) -> None:
    """Raise HaproxyTooOld if the program cannot inherit a listener of QUIC. Starts ``haproxy -v``."""
    said = _version(haproxy)
    if said and (int(said["major"]), int(said["minor"])) < _OLDEST_WITH_QUIC:
        oldest = ".".join(map(str, _OLDEST_WITH_QUIC))
        raise HaproxyTooOld(
            f"{haproxy} is HAProxy {said['version']}, which is too old for bind_quic(): {oldest} or later can inherit "
            "a listener of QUIC; remove the bind, or install a later HAProxy"
        )


def can_inherit_quic(haproxy: str) -> bool:
    """Return whether the program can inherit a listener of QUIC, or may be able to. Starts ``haproxy -v``."""
    try:
        refuse_without_quic(haproxy)
    except HaproxyTooOld:
        return False
    return True


def _version(haproxy: str) -> re.Match[str] | None:
    """Return what a program says of its version; None if it does not."""
    try:
        finished = subprocess.run(  # noqa: S603
            [haproxy, "-v"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # the check of the configuration runs the program too, and says what is wrong with it
    return _FIRST_LINE.match(finished.stdout)


def was_replaced_since(haproxy: str, at: float) -> bool:
    """Return whether the program file is newer than ``at``, in seconds since the epoch. True if that is unknown."""
    try:
        status = os.stat(haproxy)
    except OSError:
        return True
    return max(status.st_ctime, status.st_mtime) >= at
