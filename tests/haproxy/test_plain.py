"""An unmodified haproxy.cfg with the real HAProxy: render, convert, and what status says of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.haproxy.conftest import MakeHaproxy
from tests.haproxy.support import HAPROXY, WRAPPER, Haproxy, config, get
from tests.support import PATIENCE_S


def start_plain(haproxy: Haproxy, file: Path, *options: str, ready: bool = True) -> Haproxy:
    return haproxy.start(*options, arguments=["-Ws", "-f", str(file)], ready=ready)


def wrapper(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(WRAPPER), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env={**os.environ, **environment},
    )


def test_status_does_not_say_changed_after_a_reload_of_an_edited_file(
    haproxy: Haproxy, host: str, run_dir: Path
) -> None:
    file = run_dir / "haproxy.cfg"
    file.write_text(config(f"{host}:8000"))
    start_plain(haproxy, file)
    assert haproxy.status()["config_changed"] is False
    subprocess.run(["sed", "-i", "s/:8000/:8001/", str(file)], check=True, timeout=PATIENCE_S)
    assert haproxy.status()["config_changed"] is True
    haproxy.reload()
    assert get((host, 8001)) == "ok"
    assert haproxy.status()["config_changed"] is False
    assert haproxy.status()["changed"] == []


def test_a_block_is_decided_by_haproxy_and_the_template_serves(
    make_haproxy: MakeHaproxy, host: str, run_dir: Path
) -> None:
    file = run_dir / "haproxy.cfg"
    blocks = f".if version_atleast(99.0)\n    bind {host}:8002\n.else\n    bind {host}:$PORT\n.endif"
    file.write_text(config(f"{host}:8000").replace("    http-request", f"{blocks}\n    http-request"))
    shown = wrapper("render", "--haproxy", HAPROXY, str(file), PORT="8001")
    assert f"+    bind fd@{{{host}:8000}}\n" in shown.stdout
    assert f"+    bind fd@{{{host}:8001}}\n" in shown.stdout
    assert "8002" not in [line for line in shown.stdout.splitlines() if line[0] in "+-"]
    target = run_dir / "web.cfg.j2"
    written = wrapper("convert", "--haproxy", HAPROXY, str(file), "-o", str(target), PORT="8001")
    assert written.returncode == 0, written.stderr
    assert f"{file}:13 ({host}:8002: HAProxy does not read its block here)" in written.stderr
    assert f"bind {{{{ bind_tcp('{host}:' ~ env.PORT) }}}}\n" in target.read_text()
    make_haproxy(environment={"PORT": "8001"}).start()
    assert get((host, 8000)) == get((host, 8001)) == "ok"


def test_convert_writes_the_same_bytes_to_a_pipe(host: str, run_dir: Path) -> None:
    file = run_dir / "haproxy.cfg"
    file.write_bytes(b"\xef\xbb\xbf# \x0c {{\r\nlisten a\r\n bind :8000 # x")
    said = subprocess.run(
        [str(WRAPPER), "convert", str(file)], capture_output=True, check=True, timeout=PATIENCE_S
    ).stdout
    assert said == (
        b"\xef\xbb\xbf# \x0c {% raw %}{{{% endraw %}\r\nlisten a\r\n bind {{ bind_tcp('0.0.0.0', 8000) }} # x"
    )
    refused = wrapper("convert", str(run_dir / "web.cfg.j2"))
    assert refused.returncode == 2
