"""Run a command as another user. Root acts so on another user's instance.

The instance's records name a program to execute, and templates, which are programs as well. If root executed them,
their owner would become root.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from multibinder.launch.owner import Owner

#: The variables of root's environment that a command keeps when root runs it as another user.
_ENVIRONMENT_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR")

#: A command that prints more than this is stopped. Another user decides what it prints.
_OUTPUT_BYTES = 16 * 1024 * 1024


def run_as(
    owner: Owner, command: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command as another user, and return its output and exit code. Raises OSError if it cannot be executed.

    The session is new, so that the command cannot type into root's terminal. Its environment is ``environment``, and of
    root's only the search path, the locale and TMPDIR. Raises TimeoutError after ``timeout_s`` or too much output; the
    command and its children are killed then.
    """
    kept = {key: os.environ[key] for key in _ENVIRONMENT_KEPT if key in os.environ}
    process = subprocess.Popen(  # noqa: S603
        command,
        user=owner.uid,
        group=owner.gid,
        extra_groups=owner.groups,
        env={**kept, **environment},
        cwd="/",
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + timeout_s
        output, errors = _read(process, deadline)
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # A process that hangs in the kernel (NFS) ends later.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return subprocess.CompletedProcess(
        command, process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")
    )


def _read(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes]:
    """Read both outputs to their end. Raises TimeoutError at the deadline or after too many bytes."""
    texts = {stream.fileno(): b"" for stream in (process.stdout, process.stderr) if stream is not None}
    out, err = texts
    poll = select.poll()
    for number in texts:
        poll.register(number, select.POLLIN)
    open_count = len(texts)
    while open_count:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready or sum(map(len, texts.values())) > _OUTPUT_BYTES:
            raise TimeoutError
        for number, _ in ready:
            chunk = os.read(number, 65536)
            texts[number] += chunk
            if not chunk:
                poll.unregister(number)
                open_count -= 1
    return texts[out], texts[err]
