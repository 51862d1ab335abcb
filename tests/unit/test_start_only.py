from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.start_only import foretold


def may_raise_limits() -> bool:
    status = Path("/proc/self/status").read_text()
    return bool(int(status.split("CapEff:")[1].split()[0], 16) & 1 << 24)


def said(text: str, master: int | None = None) -> list[str]:
    return foretold(Config({"web.cfg": text}, []), master)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("chroot /no/such", "web.cfg:2: chroot /no/such: there is no such directory; only a start can tell"),
        ("stats socket /no/such/s mode 600", "web.cfg:2: stats socket /no/such/s: there is no directory /no/such; "),
        ("stats socket unix@/no/such/s", "web.cfg:2: stats socket /no/such/s: there is no directory /no/such; "),
    ],
)
def test_a_line_with_which_only_a_start_fails_is_foretold(line: str, sentence: str) -> None:
    (found,) = said(f"global\n    {line}\n")
    assert found.startswith(sentence)


@pytest.mark.parametrize(
    "line",
    [
        "chroot /",
        "chroot auto",
        "chroot no/such",
        "chroot /$NO",
        "# chroot /no/such",
        ".if defined(X)\n    chroot /no/such\n.endif\nchroot /no/such",
        "chroot /\nchroot /no/such",
        "stats socket /s",
        "stats socket no/such/s",
        "stats socket abns@/no/such/s",
        "stats socket 127.0.0.1:1",
        "stats timeout /no/such/s",
        "stats socket /run/no-such/s",
        "unix-bind prefix /tmp\nstats socket /no/such/s",
        "maxconn 100000000",
        "description chroot /no/such\ndefaults\n    chroot /no/such",
    ],
)
def test_what_is_not_certain_is_not_said(line: str) -> None:
    assert said(f"global\n    {line}\n") == []


def test_a_directory_of_the_running_master_is_looked_for_where_it_sees_it() -> None:
    (found,) = said("global\n    stats socket /run/no-such/s\n", os.getpid())
    assert found.startswith("web.cfg:2: stats socket /run/no-such/s: there is no directory /run/no-such; ")


@pytest.mark.skipif(may_raise_limits(), reason="CAP_SYS_RESOURCE: any limit can be raised")
def test_a_maxconn_beyond_the_limit_of_the_master_is_foretold() -> None:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    (found,) = said(f"global\n    maxconn {allowed}\n", os.getpid())
    assert f"needs at least {2 * allowed + 24} open files (maxconn {allowed}, 0 binds)" in found
    assert said("global\n    maxconn 10\n", os.getpid()) == []
    assert said(f"global\n    no strict-limits\n    maxconn {allowed}\n", os.getpid()) == []
