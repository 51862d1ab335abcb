"""Listeners of every kind, with their options, live in systemd's descriptor store through restarts of the binder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from tests.support import wait_until
from tests.support.kernel_options import expected
from tests.systemd.machine import COMMANDS, Machine
from tests.systemd.support import BINDER, SOCKET_PATH, drop_in, example, restarted

_RUN = "/run/multibinder"
#: Each listener, its options, and the numbers of getsockopt(2) that show them.
LISTENERS: Mapping[str, Mapping[str, Any]] = {
    "127.0.0.1:8301": {"mark": 7, "mss": 1200, "defer_accept": 7, "fastopen": 5, "user_timeout": 5000},
    "127.0.0.1:8302": {"keepalive_idle": 50, "keepalive_interval": 11, "keepalive_count": 4, "rcvbuf": 100_000},
    "mptcp@127.0.0.1:8303": {"mss": 1200, "keepalive_idle": 50},
    "udp@127.0.0.1:8304": {"rcvbuf": 100_000, "sndbuf": 120_000, "mark": 7},
    "quic@127.0.0.1:8305": {"rcvbuf": 100_000},
    f"unix@{_RUN}/stream": {"rcvbuf": 100_000, "mode": 0o606},
    f"uxdg@{_RUN}/datagrams": {"rcvbuf": 100_000, "mode": 0o640},
    f"unixseq@{_RUN}/packets": {"sndbuf": 120_000},
    "abns@multibinder-systemd": {"sndbuf": 120_000},
}
_NUMBERS = {
    "mark": (1, 36), "mss": (6, 2), "defer_accept": (6, 9), "fastopen": (6, 23), "user_timeout": (6, 18),
    "keepalive_idle": (6, 4), "keepalive_interval": (6, 5), "keepalive_count": (6, 6), "rcvbuf": (1, 8),
    "sndbuf": (1, 7),
}  # fmt: skip
_CODE = """
import json, os, stat, sys
from multibinder import Address, Client, ListenerSpec, Options
path, owner, wanted, numbers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
given = owner == "server"
shown = {}
with Client(path) as client:
    asked = {text: options if given else {} for text, options in wanted.items()}
    specs = [ListenerSpec(Address.parse(text), Options(**options)) for text, options in asked.items()]
    for (text, options), sock in zip(wanted.items(), client.bind(specs, owner=owner)):
        shown[text] = {
            name: os.stat(text.partition("@")[2]).st_mode & 0o777 if name == "mode" else sock.getsockopt(*numbers[name])
            for name in options
        }
        sock.close()
    cookies = {each.address: each.cookie for each in client.list()}
print(json.dumps([shown, cookies]))
"""


def ask(machine: Machine, owner: str) -> list[Any]:
    """Bind all listeners, and return what the kernel shows of each. Only the owner ``server`` asks for options."""
    arguments = (SOCKET_PATH, owner, json.dumps(LISTENERS), json.dumps(_NUMBERS))
    answer: list[Any] = json.loads(machine.must(f"{COMMANDS}/python", "-c", _CODE, *arguments))
    return answer


def test_listeners_of_every_kind_keep_their_options_through_restarts_kills_and_upgrades(binder: Machine) -> None:
    with drop_in(binder, BINDER, example(binder, BINDER, "socket-options.conf")):
        binder.must("systemctl", "restart", BINDER)
        shown, cookies = ask(binder, "server")
        wanted = {
            text: {name: value if name == "mode" else expected(name, value) for name, value in options.items()}
            for text, options in LISTENERS.items()
        }
        assert shown == wanted
        for how in ("restart", "reload", "SIGKILL"):
            before = binder.main_pid(BINDER)
            if how == "SIGKILL":
                binder.kill(BINDER)
                wait_until(partial(restarted, binder, before), "the binder is back", log=binder.journal)
            else:
                binder.must("systemctl", how, BINDER)
            assert ask(binder, f"looker-{how}") == [shown, cookies], how
    # Without the drop-in as well: no right is needed to keep what is there.
    binder.must("systemctl", "restart", BINDER)
    assert ask(binder, "looker") == [shown, cookies]
