"""The versions of HAProxy that the tests run with.

``HAPROXY_MATRIX`` names programs, separated by colons. A test that is marked ``every_haproxy`` runs with each of them,
and with that of the machine.
"""

from __future__ import annotations

import functools
import os
import subprocess

#: The HAProxy of the machine; that of Debian by default.
HAPROXY = os.environ.get("HAPROXY", "/usr/sbin/haproxy")
MATRIX = [path for path in os.environ.get("HAPROXY_MATRIX", "").split(":") if path]


@functools.cache
def version_of(haproxy: str) -> tuple[int, int]:
    """Return the two first numbers of the version of a program: (3, 5) of ``HAProxy version 3.5-dev5-03bde20ef``."""
    said = subprocess.run([haproxy, "-v"], capture_output=True, text=True, check=True).stdout
    major, minor = said.split()[2].split("-")[0].split(".")[:2]
    return int(major), int(minor)


def name_of(haproxy: str) -> str:
    return "haproxy-{}.{}".format(*version_of(haproxy))
