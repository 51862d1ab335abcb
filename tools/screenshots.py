"""Make docs/images/*.svg from real runs of a binder, servers, clients and HAProxy.

    make screenshots        # as root, because it creates PID, network and mount namespaces

In these namespaces /run is empty, so that the paths in the pictures are those of an installed host.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from multibinder import Client, ListenerSpec, Options, TcpAddress

_ROOT = Path(__file__).resolve().parents[1]
_IMAGES = _ROOT / "docs" / "images"
_INSIDE = "MULTIBINDER_SCREENSHOTS"
_BIN = Path(sys.executable).parent
_SOCKET = "/run/multibinder/control.sock"
_WIDTH, _HEIGHT = 100, 24
#: Long enough for two scans for holders, one every 15 s. A listener without a holder for 10 s is an orphan.
_PATIENCE_S = 60
#: Rich's own format would make the reader's browser load a font from another host.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
_TEMPLATE = """global
    maxconn 2000
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend web
    bind {{ bind_tcp('127.0.0.1', 80) }}
%s    http-request return status 200 content-type text/plain string ok
"""


def main() -> None:
    if _INSIDE not in os.environ:
        unshare = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc"]
        set_up = 'ip link set lo up && hostname lb && mount -t tmpfs -o mode=755 run /run && "$@"'
        command = [*unshare, "sh", "-c", set_up, "sh", sys.executable, "-m", "tools.screenshots"]
        sys.exit(subprocess.run(command, env={**os.environ, _INSIDE: "1"}, cwd=_ROOT, check=False).returncode)  # noqa: S603
    _IMAGES.mkdir(exist_ok=True)
    os.environ.update(MULTIBINDER_SOCK=_SOCKET, FORCE_COLOR="1", COLUMNS=str(_WIDTH), TERM="xterm-256color")
    os.environ["PATH"] = f"{_BIN}:{os.environ['PATH']}"
    Path("/run/multibinder").mkdir()
    with contextlib.ExitStack() as stack:
        _start(stack, "multibinder", "serve", "--guard", "--quiet")
        _wait_until(lambda: Path(_SOCKET).exists())
        _haproxy(stack)
        _traffic(stack)
        _shoot("status", ["multibinder", "status"])
        _watch()
        _shoot("doctor", ["multibinder", "doctor"])


def _haproxy(stack: contextlib.ExitStack) -> None:
    """Start an instance, and take a picture of its reload with one more bind."""
    Path("/run/web.cfg.j2").write_text(_TEMPLATE % "")
    command = ["multibinder-haproxy", "run", "--name", "web", "--", "/usr/sbin/haproxy", "-Ws", "-f", "/run/web.cfg.j2"]
    _start(stack, *command)
    _wait_until(lambda: _answers(80))
    Path("/run/web.cfg.j2").write_text(_TEMPLATE % "    bind {{ bind_tcp('127.0.0.1', 8080) }}\n")
    _shoot("reload", ["multibinder-haproxy", "reload", "web"])


def _traffic(stack: contextlib.ExitStack) -> None:
    """Make a stalled listener, which has more clients than its queue takes, and an orphan."""
    with Client() as client:
        api, old = client.bind(
            [
                ListenerSpec(TcpAddress.of("127.0.0.1", port), Options(backlog))
                for port, backlog in ((9000, 8), (9100, 64))
            ],
            owner="api",
        )
    for port, count in ((9000, 12), (9100, 3)):
        for _ in range(count):
            each = stack.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
    stack.enter_context(api)
    old.close()

    def settled() -> bool:
        with Client() as client:
            return {each.state for each in client.status().listeners} == {"serving", "stalled", "orphan"}

    _wait_until(settled)


def _shoot(name: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    _export(name, f"$ {' '.join(command)}\n{(done.stdout + done.stderr).rstrip()}")


def _watch() -> None:
    """Take a picture of the last whole frame on a terminal. Rich starts each frame at the top left corner."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, _WIDTH, 0, 0))
    command = ["multibinder", "status", "--watch", "--interval", "0.5"]
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)  # noqa: S603
    os.close(theirs)
    text, end = "", time.monotonic() + 8
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            text += os.read(ours, 65536).decode()
    process.send_signal(signal.SIGINT)
    process.wait()
    os.close(ours)
    frame = text.split("\x1b[H")[-2]
    _export("watch", "\n".join(line.rstrip() for line in frame.replace("\r", "").splitlines()).rstrip())


def _export(name: str, text: str) -> None:
    shown = Text.from_ansi(text)
    if str(_ROOT) in shown.plain:
        sys.exit(f"the picture of {name} would show the path of this checkout")
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=_WIDTH, file=nowhere, force_terminal=True, highlight=False)
        console.print(shown, soft_wrap=False)
        console.save_svg(str(_IMAGES / f"{name}.svg"), title="multibinder", code_format=_FORMAT)
    print(f"docs/images/{name}.svg")
    print(shown.plain)


def _start(stack: contextlib.ExitStack, *command: str) -> None:
    stack.enter_context(_running(*command))


@contextlib.contextmanager
def _running(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"the state for the next picture was not reached within {_PATIENCE_S} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
