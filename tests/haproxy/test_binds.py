"""What is taken for a bind, for ignored or for read is what the real HAProxy binds, ignores and reads."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from multibinder_haproxy.config import binds
from multibinder_haproxy.config.renderer import Renderer

from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import HAPROXY, Haproxy, bind_tcp, config, get
from tests.support import descriptors, require, require_ipv6, wait_until

DEFAULTS = "defaults\n mode http\n timeout connect 9s\n timeout client 9s\n timeout server 9s\n"
ANSWER = " http-request return status 200 content-type text/plain string ok\n"

StartBare = Callable[[str, socket.socket], int]


@pytest.fixture
def start_bare(run_dir: Path) -> Iterator[StartBare]:
    """Return a function that starts HAProxy alone with a listener to inherit, and returns its PID when it serves."""
    with contextlib.ExitStack() as running:

        def start(text: str, listener: socket.socket) -> int:
            log = run_dir / "log"
            (run_dir / "bare.cfg").write_text(text.replace("FD", f"fd@{listener.fileno()}"))
            output = running.enter_context(log.open("wb"))
            process = subprocess.Popen(
                [HAPROXY, "-f", str(run_dir / "bare.cfg")],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            running.callback(process.wait)
            running.callback(process.kill)
            host, port = listener.getsockname()[:2]
            address = ("[::1]" if host == "::" else host, port)
            wait_until(lambda: process.poll() is not None or accepts(process.pid, listener), "HAProxy accepts")
            assert process.poll() is None, log.read_text()
            assert get(address) == "ok"
            return process.pid

        yield start


def accepts(pid: int, listener: socket.socket) -> bool:
    """Return whether a process has the listener in an epoll instance."""
    numbers = copies(pid, listener)
    watched: set[str] = set()
    for number, what in descriptors(pid).items():
        if what == "anon_inode:[eventpoll]":
            with contextlib.suppress(FileNotFoundError):
                lines = Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
                watched |= {line.split()[1] for line in lines if line.startswith("tfd:")}
    return any(str(number) in watched for number in numbers)


def copies(pid: int, listener: socket.socket) -> list[int]:
    """Return the descriptors by which a process has a listener."""
    inode = os.fstat(listener.fileno()).st_ino
    return [number for number, what in descriptors(pid).items() if what == f"socket:[{inode}]"]


def options_of(sock: socket.socket) -> dict[str, Any]:
    """Return the options of a socket that a bind line may be about. HAProxy has the same socket."""
    tcp_info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    is_ipv6 = sock.family == socket.AF_INET6
    return {
        "backlog": int.from_bytes(tcp_info[28:32], sys.byteorder),  # tcpi_sacked: the limit of a listener's queue
        "interface": sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16),
        "transparent": sock.getsockopt(socket.IPPROTO_IP, 19),  # IP_TRANSPARENT
        "v6only": sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) if is_ipv6 else None,
        "mss": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG),
        "tcp-ut": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        "defer-accept": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT),
        "tfo": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN),
    }


@pytest.mark.parametrize(
    ("options", "section", "defaults"),
    [
        ("backlog 7 interface lo transparent", "", ""),
        ("", " backlog 7\n", ""),
        ("", "", " backlog 7\n"),
    ],
)
def test_haproxy_does_not_apply_the_words_that_are_warned_of(
    start_bare: StartBare, host: str, options: str, section: str, defaults: str
) -> None:
    text = f"{DEFAULTS}{defaults}frontend web\n{section} bind FD {options}\n{ANSWER}"
    with socket.create_server((host, 8000), backlog=50) as listener:
        before = options_of(listener)
        start_bare(text, listener)
        assert options_of(listener) == before


@pytest.mark.parametrize(("option", "v6only"), [("v6only", False), ("v4v6", True)])
def test_haproxy_does_not_apply_v6only_to_a_socket_that_it_inherits(
    start_bare: StartBare, option: str, v6only: bool
) -> None:
    require_ipv6()
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        listener.bind(("::", 0))
        listener.listen()
        start_bare(f"{DEFAULTS}frontend web\n bind FD {option}\n{ANSWER}", listener)
        assert options_of(listener)["v6only"] == v6only


def test_haproxy_applies_the_words_that_are_not_warned_of(start_bare: StartBare, host: str) -> None:
    text = f"{DEFAULTS}frontend web\n bind FD mss 1400 tcp-ut 5s defer-accept tfo name x maxconn 10\n{ANSWER}"
    with socket.create_server((host, 8000), backlog=50) as listener:
        start_bare(text, listener)
        applied = options_of(listener)
    assert (applied["mss"], applied["tcp-ut"], applied["backlog"]) == (1400, 5000, 50)
    assert applied["defer-accept"] > 0
    assert applied["tfo"] > 0


def test_shards_are_copies_of_the_one_socket(start_bare: StartBare, host: str) -> None:
    known = subprocess.run([HAPROXY, "-v"], capture_output=True, text=True, check=False).stdout
    require("haproxy-shards", "version 2.4" not in known, "HAProxy 2.4 has no shards")
    with socket.create_server((host, 8000)) as listener:
        pid = start_bare(f"global\n nbthread 2\n{DEFAULTS}frontend web\n bind FD shards 2\n{ANSWER}", listener)
        assert len(copies(pid, listener)) == 2


#: A configuration with <80> where a descriptor stands, and whether HAProxy takes a descriptor there.
PLACES = [
    ("frontend web\n bind <80>\n", True),
    ("listen web\n bind 127.0.0.1:81,<80>,127.0.0.1:82 name 'a'\n", True),
    ("log-forward l\n bind <80>\n log 127.0.0.1:1 local0\n", True),
    ("peers p\n bind <80>\n server me\n", True),
    ("global\n stats socket <80> level admin\n", True),
    ("frontend web\n 'bi'nd \"<80>\" # <80>\n", True),
    ("frontend web\n # bind <80>\n", False),
    ("frontend web\n bind 127.0.0.1:81# <80>\n", False),
    ("peers p\n default-bind <80>\n", False),
    ("log-forward l\n dgram-bind <80>\n log 127.0.0.1:1 local0\n", False),
    ("userlist u\n bind <80>\n", False),
    ("backend b\n server s <80>\n", False),
    ("peers p\n peer me <80>\n", False),
    ("program p\n command <80>\n", False),
]


@pytest.mark.parametrize(("text", "taken"), PLACES)
def test_a_slot_is_what_haproxy_takes_a_descriptor_for(run_dir: Path, text: str, taken: bool) -> None:
    (run_dir / "a.cfg.j2").write_text(text.replace("<80>", "{{ bind_tcp('127.0.0.1', 80) }}"))
    slots = Renderer("web", {}, {}).render([(str(run_dir / "a.cfg.j2"), "a.cfg")]).slots
    assert bool(slots) == taken
    # No process has a descriptor of that number; HAProxy says so only where it looks for one.
    (run_dir / "a.cfg").write_text(text.replace("<80>", "fd@987654"))
    checked = subprocess.run([HAPROXY, "-c", "-f", str(run_dir / "a.cfg")], capture_output=True, text=True, check=False)
    sought = "Bad file descriptor" in checked.stdout + checked.stderr
    assert sought == (taken or "dgram-bind" in text)  # which looks for a datagram socket


CONDITIONAL = """global
 setenv SET 1
 quiet
.if defined(SET)
 stats socket <81>
.endif
.if streq("$FROM_OUTSIDE",a) && version_atleast(2.4)
listen a
 bind <82>
.elif defined(SET)
listen b
 bind <83>
 .if defined(NO_SUCH_VARIABLE)
  bind <84>
 .else
  bind <85>
 .endif
.else
listen c
 bind <86>
.endif
listen d
 bind <87>
.if defined(SET)
 disabled
.endif
 nonsense that HAProxy refuses
"""


@pytest.mark.parametrize(("value", "read"), [("a", [81, 82]), ("b", [81, 83, 85])])
def test_the_blocks_that_are_read_are_those_that_haproxy_reads(run_dir: Path, value: str, read: Sequence[int]) -> None:
    text = CONDITIONAL
    for port in range(81, 88):
        text = text.replace(f"<{port}>", f"{{{{ bind_tcp('127.0.0.1', {port}) }}}}")
    (run_dir / "a.cfg.j2").write_text(text)
    rendered = Renderer("web", {}, {}).render([(str(run_dir / "a.cfg.j2"), "a.cfg")])
    probe = binds.probe(rendered)
    assert probe is not None
    (run_dir / "a.cfg").write_bytes(probe["a.cfg"])
    asked = subprocess.run(
        [HAPROXY, "-c", "-V", "-f", str(run_dir / "a.cfg")],
        env={**os.environ, "FROM_OUTSIDE": value},
        capture_output=True,
        text=True,
        check=False,
    )
    unread = binds.unread_blocks(rendered, asked.stdout + asked.stderr)
    assert unread is not None
    decided = binds.decided(rendered, unread)
    assert [slot.port for slot in decided.slots] == read, asked.stderr


def refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) != 0


def test_a_bind_that_becomes_a_comment_is_closed_by_the_reload_and_opened_by_the_next(
    haproxy: Haproxy, host: str
) -> None:
    kept, changed = (host, 8000), (host, 8001)
    text = config(bind_tcp(kept), bind_tcp(changed))
    haproxy.template.write_text(text)
    haproxy.start()
    assert get(changed) == "ok"
    commented = text.replace(f"bind {bind_tcp(changed)}", f"# bind {bind_tcp(changed)}")
    haproxy.template.write_text(commented)
    haproxy.must_reload()
    assert refuses(changed)
    assert get(kept) == "ok"
    assert "8001 is not bound: it is in a comment" in haproxy.command("check", haproxy.name).stderr
    haproxy.template.write_text(text)
    haproxy.must_reload()
    assert get(changed) == "ok"


def test_a_port_of_a_disabled_proxy_is_not_opened_and_said(haproxy: Haproxy, host: str) -> None:
    served, disabled = (host, 8000), (host, 8001)
    off = f"frontend off\n disabled\n bind {bind_tcp(disabled)}\n{ANSWER}"
    haproxy.template.write_text(config(bind_tcp(served), after=off))
    haproxy.start()
    assert get(served) == "ok"
    assert refuses(disabled)
    assert f"{host}:8001 is not bound: its frontend off is disabled" in haproxy.log()
    haproxy.must_reload()
    assert get(served) == "ok"
    assert refuses(disabled)
    assert haproxy.status()["binds"] == [f"{host}:8000"]


def test_a_port_of_a_block_that_haproxy_does_not_read_is_not_opened_and_said(haproxy: Haproxy, host: str) -> None:
    unread, read = (host, 8000), (host, 8001)
    conditional = f".if defined(NO_SUCH_VARIABLE)\n bind {bind_tcp(unread)}\n.else\n bind {bind_tcp(read)}\n.endif\n"
    haproxy.template.write_text(config(after=f"frontend conditional\n{conditional}{ANSWER}"))
    haproxy.start()
    assert get(read) == "ok"
    assert refuses(unread)
    assert f"{host}:8000 is not bound: HAProxy does not read the block that begins in line" in haproxy.log()
    haproxy.must_reload()
    assert get(read) == "ok"
    assert refuses(unread)
    assert haproxy.status()["binds"] == [f"{host}:8001"]


def test_a_file_that_is_no_template_reaches_haproxy_byte_by_byte(make_haproxy: MakeHaproxy, host: str) -> None:
    haproxy = make_haproxy()
    directory = haproxy.directory / "conf.d"
    directory.mkdir()
    content = b"# M\xfcller\r\nglobal\n maxconn 2000\n"
    (directory / "00-global.cfg").write_bytes(content)
    (directory / "10-web.cfg.j2").write_text(config(bind_tcp((host, 8000))))
    haproxy.start(arguments=["-Ws", "-f", str(directory)])
    assert get((host, 8000)) == "ok"
    assert (haproxy.runtime / haproxy.name / "conf.d" / "00-global.cfg").read_bytes() == content


def test_a_listener_that_was_released_by_hand_refuses_and_is_opened_by_the_next_reload(
    haproxy: Haproxy, host: str
) -> None:
    """This is what the docs recommend instead of 'disable frontend'."""
    address = (host, 8000)
    haproxy.template.write_text(config(bind_tcp(address)))
    haproxy.start()
    multibinder = haproxy.wrapper.parent / "multibinder"
    release = [str(multibinder), "release", "--owner", f"haproxy@{haproxy.name}", f"{host}:8000"]
    subprocess.run(release, env=haproxy.environment, check=True)
    assert refuses(address)
    haproxy.must_reload()
    assert get(address) == "ok"
