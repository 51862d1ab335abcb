"""Binds on overlapping addresses in one configuration, which plain HAProxy serves thanks to SO_REUSEPORT."""

from __future__ import annotations

import pytest

from tests.haproxy.support import Haproxy, bind_tcp, get
from tests.support import own_port, require_ipv6

_FRONTENDS = """
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
"""


def configuration(binds: dict[str, str]) -> str:
    """Return a configuration with a frontend for each name, which answers with its name."""
    return _FRONTENDS + "".join(
        f"frontend {name}\n    bind {bind}\n    http-request return status 200 content-type text/plain string {name}\n"
        for name, bind in binds.items()
    )


@pytest.fixture
def port() -> int:
    return own_port()


def test_wildcard_and_specific_binds_each_get_their_clients_through_reloads_and_a_crash(
    haproxy: Haproxy, host: str, port: int
) -> None:
    require_ipv6()
    any4, any6, one = bind_tcp(("0.0.0.0", port)), bind_tcp(("::", port)), bind_tcp((host, port))

    def served() -> list[str]:
        return [get((target, port)) for target in ("127.0.0.1", host, "[::1]") for _ in range(40)]

    haproxy.template.write_text(configuration({"any4": any4, "any6": any6}))
    haproxy.start()
    assert served() == ["any4"] * 80 + ["any6"] * 40
    haproxy.template.write_text(configuration({"one": one, "any4": any4, "any6": any6}))
    haproxy.must_reload()
    assert served() == ["any4"] * 40 + ["one"] * 40 + ["any6"] * 40
    haproxy.kill()
    haproxy.start()
    assert served() == ["any4"] * 40 + ["one"] * 40 + ["any6"] * 40
    haproxy.template.write_text(configuration({"any6": any6}))
    haproxy.must_reload()
    assert served() == ["any6"] * 120
    haproxy.template.write_text(configuration({"any4": any4, "any6": any6}))
    haproxy.must_reload()
    assert served() == ["any4"] * 80 + ["any6"] * 40


@pytest.mark.parametrize(
    ("first", "second", "fits"),
    [
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::", "0.0.0.0", True),
        ("::ffff:127.0.0.1", "127.0.0.1", False),
    ],
)
def test_a_check_of_overlapping_binds_says_what_a_start_does(
    haproxy: Haproxy, port: int, first: str, second: str, fits: bool
) -> None:
    require_ipv6()
    haproxy.template.write_text(configuration({"one": bind_tcp((first, port)), "other": bind_tcp((second, port))}))
    arguments = ["-Ws", "-f", str(haproxy.template)]
    checked = haproxy.command("check", "--", haproxy.haproxy, *arguments)
    haproxy.start(arguments=arguments, ready=fits)
    if fits:
        assert checked.returncode == 0, checked.stderr
    else:
        assert (checked.returncode, haproxy.wait()) == (1, 1)
        assert f"it collides with [{first}]:{port} of the same request" in checked.stderr
