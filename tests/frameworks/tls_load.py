"""Make an open-loop load of TLS connections at a fixed rate: what ``tests.support.load.Load`` does without TLS."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

from tests.support.load import REQUEST, Phase, Result
from tests.support.requirements import require


def certificate(path: Path) -> None:
    """Write a self-signed certificate and its key to a file."""
    require("openssl", shutil.which("openssl"), "a certificate is made by openssl")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    written = ["-keyout", f"{path}", "-out", f"{path}.crt"]
    command = ["openssl", "req", "-x509", *curve, "-nodes", "-days", "2", "-subj", "/CN=localhost", *written]
    subprocess.run(command, check=True, capture_output=True)
    with path.open("a") as file:
        file.write(Path(f"{path}.crt").read_text())


class TlsLoad:
    """Connections of a thread of this process, while the block runs."""

    def __init__(self, target: tuple[str, int], *, rate: float, timeout_s: float) -> None:
        self._target, self._rate, self._timeout_s = target, rate, timeout_s
        self._began = time.monotonic()
        self._tried = self._ok = 0
        self._causes: Counter[str] = Counter()
        self._bodies: Counter[str] = Counter()
        self._longest_wait_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE

    def stop(self) -> Result:
        """Stop, wait until every connection has an outcome, and return the result."""
        self._stopping.set()
        self._thread.join()
        failed = self._tried - self._ok
        # fmt: off
        total = Phase(
            "all", self._tried, self._ok, 0, 0, 0, 0, failed, 0, self._longest_wait_s, 0.0, 0.0, 0.0,
            dict(self._causes), dict(self._bodies),
        )
        # fmt: on
        return Result(total, (total,), time.monotonic() - self._began, 0.0)

    async def _run(self) -> None:
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as clients:
            while not self._stopping.is_set():
                due = self._began + self._tried / self._rate
                await asyncio.sleep(due - time.monotonic())
                self._tried += 1
                clients.create_task(self._ask(due))

    async def _ask(self, due: float) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_connection(*self._target, ssl=self._context)
                writer.write(REQUEST)
                answer = await reader.read()
                writer.close()
            if not answer.startswith(b"HTTP/1.0 200 OK\r\n"):
                raise EOFError(f"answered {answer[:20]!r}")
            self._bodies[answer.partition(b"\r\n\r\n")[2].decode()] += 1
            self._ok += 1
        except (OSError, EOFError) as error:
            self._causes[type(error).__name__] += 1
        self._longest_wait_s = max(self._longest_wait_s, time.monotonic() - due)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
