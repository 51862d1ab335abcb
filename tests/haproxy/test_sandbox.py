"""With ``run --sandbox``, the templates of an instance run no Python, at its start and at every reload."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.haproxy.support import Haproxy, bind_tcp, config, get
from tests.haproxy.versions import HAPROXY


def escape(proof: Path) -> str:
    """Return a template that escapes to Python: it makes a directory with os.mkdir()."""
    return f"# {{{{ cycler.__init__.__globals__.os.mkdir('{proof}') }}}}\n"


@pytest.fixture
def proof(run_dir: Path) -> Path:
    return run_dir / "proof"


def test_a_sandboxed_instance_refuses_an_escape_at_every_reload(haproxy: Haproxy, host: str, proof: Path) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start("--sandbox")
    haproxy.must_reload()
    haproxy.template.write_text(escape(proof) + config(bind_tcp((host, 8000)), bind_tcp((host, 8001))))
    for command in ("check", "reload"):
        refused = haproxy.command(command, "web")
        assert refused.returncode == 1
        assert f"{haproxy.template}:1: the sandbox refuses this: access to attribute '__init__'" in refused.stderr
    assert "the sandbox refuses this" in " ".join(haproxy.status()["problems"])
    os.kill(haproxy.pid, signal.SIGUSR2)
    haproxy.wait_for_log("HAProxy runs with the last good one")
    haproxy.wait_until_settled(3)
    assert get((host, 8000)) == "ok"
    assert not proof.exists()


def test_a_sandboxed_instance_that_starts_again_after_a_crash_runs_the_last_good_configuration(
    haproxy: Haproxy, host: str, proof: Path
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000))))
    haproxy.start("--sandbox")
    haproxy.kill()
    haproxy.template.write_text(escape(proof) + config(bind_tcp((host, 8000))))
    haproxy.start("--sandbox")
    assert get((host, 8000)) == "ok"
    assert "the sandbox refuses this" in haproxy.log()
    assert not proof.exists()


def test_the_sandbox_outlives_a_configuration_that_clears_the_environment(
    haproxy: Haproxy, host: str, proof: Path
) -> None:
    haproxy.template.write_text(config(bind_tcp((host, 8000)), before="    resetenv PATH"))
    haproxy.start("--sandbox")
    haproxy.must_reload()
    haproxy.template.write_text(escape(proof) + config(bind_tcp((host, 8000))))
    os.kill(haproxy.pid, signal.SIGUSR2)
    haproxy.wait_for_log("the sandbox refuses this")
    assert not proof.exists()


def test_render_and_check_of_a_file_accept_the_sandbox_and_without_it_a_template_runs_python(
    haproxy: Haproxy, host: str, proof: Path
) -> None:
    haproxy.template.write_text(escape(proof) + config(bind_tcp((host, 8000))))
    command = ["--", HAPROXY, "-Ws", "-f", str(haproxy.template)]
    for arguments in (["render", "--sandbox", str(haproxy.template)], ["check", "--sandbox", *command]):
        refused = haproxy.command(*arguments)
        assert refused.returncode == 1
        assert "the sandbox refuses this" in refused.stderr
        assert not proof.exists()
    assert haproxy.command("check", *command).returncode == 0
    assert proof.is_dir()


def test_check_of_an_instance_refuses_the_option(haproxy: Haproxy) -> None:
    refused = haproxy.command("check", "--sandbox", "web")
    assert refused.returncode == 2
    assert "a NAME is checked as it was started" in refused.stderr
