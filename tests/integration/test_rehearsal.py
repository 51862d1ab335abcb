"""A rehearsal succeeds only by the word of the new code itself."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multibinder.binder import upgrade
from multibinder.binder.loop import Loop
from multibinder.binder.upgrade import Rehearsal
from tests.support import children, descriptors_unchanged

SAYS_THE_WORD = "print('multibinder-rehearsed', os.environ['MULTIBINDER_REHEARSAL'], '9.8.7')"


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def new_code(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(run_dir))
    return run_dir / "new_code.py"


def rehearsed(loop: Loop, new_code: Path, statements: str) -> tuple[str | None, str]:
    """Rehearse a module whose ``rehearse`` has these statements, and return what is told."""
    body = "".join(f"    {line}\n" for line in statements.splitlines())
    new_code.write_text(f"import os, signal, sys, time\ndef rehearse():\n{body}")
    told: list[tuple[str | None, str]] = []

    def tell(version: str | None, why: str) -> None:
        told.append((version, why))
        loop.stop()

    before = children(os.getpid())
    with descriptors_unchanged():
        Rehearsal(loop, [sys.executable, "-P", "-m", "new_code", "{}"], tell)
        loop.run(lambda: None)
        assert children(os.getpid()) == before
    [answer] = told
    return answer


LATE = f"it did not start within {upgrade.REHEARSAL_S} s"


def test_the_word_with_our_nonce_is_believed(loop: Loop, new_code: Path) -> None:
    assert rehearsed(loop, new_code, f"print('a warning', file=sys.stderr)\n{SAYS_THE_WORD}") == ("9.8.7", "")


@pytest.mark.parametrize("version", ["0.1.0", "1.0.0rc1", "2.0.dev3+local.1"])
def test_the_version_alone_is_believed_of_an_older_version(loop: Loop, new_code: Path, version: str) -> None:
    assert rehearsed(loop, new_code, f"print({version!r})") == (version, "")


@pytest.mark.parametrize(
    ("statements", "why"),
    [
        ("print('multibinder-rehearsed', '0' * 32, '9.8.7')", "9.8.7"),
        ("pass", "without saying that it can start"),
        ("sys.exit(0)", "without saying that it can start"),
        ("print('0.1.0'); print('0.2.0')", "0.2.0"),
        ("print('hello')", "hello"),
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        (f"{SAYS_THE_WORD}; sys.stdout.flush(); os._exit(3)", "9.8.7"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
    ],
)
def test_anything_else_is_a_refusal_with_a_reason(loop: Loop, new_code: Path, statements: str, why: str) -> None:
    version, reason = rehearsed(loop, new_code, statements)
    assert version is None
    assert why in reason


@pytest.mark.parametrize(
    ("statements", "version"),
    [(SAYS_THE_WORD, "9.8.7"), ("raise RuntimeError('broken')", None), ("print('0.1.0')", None)],
)
def test_without_an_exit_status_only_the_word_is_believed(
    loop: Loop, new_code: Path, statements: str, version: str | None
) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert rehearsed(loop, new_code, statements)[0] == version
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_rehearsal_that_hangs_is_killed(loop: Loop, new_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "KILL_S", 0.5)
    new_code.write_text("import signal, time\nsignal.alarm(0)\ntime.sleep(600)\n")
    before = children(os.getpid())  # an earlier test may have left the resource tracker of multiprocessing
    told: list[tuple[str | None, str]] = []

    def tell(version: str | None, why: str) -> None:
        told.append((version, why))
        loop.stop()

    rehearsal = Rehearsal(loop, [sys.executable, "-P", "-m", "new_code", "{}"], tell)
    loop.run(lambda: None)
    assert told == [(None, LATE)]
    rehearsal.stop()
    assert children(os.getpid()) == before
