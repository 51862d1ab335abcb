"""Templates as people write them, with the real HAProxy, and files of other users that could make a rendering wait."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.haproxy.support import HAPROXY, WRAPPER, Haproxy, config, get
from tests.support import PATIENCE_S, can_connect


def test_a_range_of_ports_is_served_on_each_and_shrinks_at_a_reload(haproxy: Haproxy, host: str) -> None:
    haproxy.template.write_text(config(f"{{{{ bind_tcp('{host}', '8000-8010') }}}}"))
    haproxy.start()
    assert {get((host, port)) for port in range(8000, 8011)} == {"ok"}
    haproxy.template.write_text(config(f"{{{{ bind_tcp('{host}:8000-8004') }}}}"))
    haproxy.must_reload()
    assert {get((host, port)) for port in range(8000, 8005)} == {"ok"}
    assert not any(can_connect((host, port)) for port in range(8005, 8011))


def test_a_range_without_a_binder_is_bound_by_haproxy(run_dir: Path, host: str) -> None:
    with Haproxy(run_dir, None) as haproxy:
        haproxy.template.write_text(config(f"{{{{ bind_tcp('{host}', '8000-8002', backlog=100) }}}} name web"))
        haproxy.start()
        assert {get((host, port)) for port in range(8000, 8003)} == {"ok"}


@pytest.mark.parametrize("where", ["template", "include", "vars"])
def test_a_fifo_is_refused_at_once_wherever_a_rendering_would_read_it(
    haproxy: Haproxy, host: str, run_dir: Path, where: str
) -> None:
    fifo = run_dir / ("values.json" if where == "vars" else "part.j2")
    text = config(f"{{{{ bind_tcp('{host}', 8000) }}}}")
    haproxy.template.write_text(text + ("{% include 'part.j2' ignore missing %}" if where == "include" else ""))
    options = ["--vars", str(fifo)] if where == "vars" else []
    fifo.write_text("{}" if where == "vars" else "")
    haproxy.start(*options)
    fifo.unlink()
    os.mkfifo(fifo, 0o666)
    if where == "template":
        haproxy.template.unlink()
        fifo.rename(haproxy.template)
    began = time.monotonic()
    refused = haproxy.command("check", "web")
    assert refused.returncode == 1
    assert "it is not a regular file" in refused.stderr
    os.kill(haproxy.pid, signal.SIGUSR2)
    haproxy.wait_for_log("HAProxy runs with the last good one")
    haproxy.wait_until_settled(2)
    assert time.monotonic() - began < PATIENCE_S / 2
    assert get((host, 8000)) == "ok"


def test_variables_may_come_from_a_pipe_of_the_shell(run_dir: Path) -> None:
    template = run_dir / "web.cfg.j2"
    template.write_text("{{ port }}")
    reader, writer = os.pipe()
    os.write(writer, b'{"port": 80}')
    os.close(writer)
    try:
        command = [str(WRAPPER), "render", "--vars", f"/dev/fd/{reader}", str(template)]
        said = subprocess.run(
            command, pass_fds=[reader], capture_output=True, text=True, check=True, timeout=PATIENCE_S
        )
    finally:
        os.close(reader)
    assert said.stdout == "80"


def test_bind_tcp_in_a_file_that_is_no_template_is_named_with_its_line(
    haproxy: Haproxy, host: str, run_dir: Path
) -> None:
    plain = run_dir / "haproxy.cfg"
    plain.write_text(config(f"{{{{ bind_tcp('{host}', 8000) }}}}"))
    line = plain.read_text().splitlines().index(f"    bind {{{{ bind_tcp('{host}', 8000) }}}}") + 1
    refused = haproxy.command("run", "--name", "web", "--", HAPROXY, "-Ws", "-f", str(plain))
    assert refused.returncode == 1
    assert f"{plain}:{line}: bind_tcp() works in templates only: rename the file to haproxy.cfg.j2" in refused.stderr
