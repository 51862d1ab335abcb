"""The list of processes that HAProxy's master gives (management guide, ``show proc``)."""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec

_HEADER = "#<PID>"
#: A cell is one word. A note in brackets belongs to the word before it: ``2 [failed: 1]``. HAProxy 2.4 has cells that
#: are such a note: ``[was: 1]``.
_CELL = re.compile(r"(?:\[[^\]]*\]|\S+)(?: \[[^\]]*\])?")
_FAILED = re.compile(r"\[failed: (\d+)\]")


class Worker(msgspec.Struct, frozen=True):
    """A worker in the list. ``reloads`` counts the reloads since it was started."""

    pid: int
    reloads: int


class Processes(msgspec.Struct, frozen=True):
    """The master and its workers.

    ``failed`` counts the failed reloads since the last success; None before HAProxy 2.6, which does not count them.
    """

    master: int
    version: str
    failed: int | None
    workers: list[Worker]
    old_workers: list[Worker]

    @property
    def serving(self) -> list[int]:
        """Return the workers that accept connections."""
        return [worker.pid for worker in self.workers] or self._serving_on[:1]

    @property
    def draining(self) -> list[int]:
        """Return the older workers, which finish their connections."""
        return [worker.pid for worker in self.old_workers] if self.workers else self._serving_on[1:]

    @property
    def last_load_failed(self) -> bool:
        """Return whether no worker came up at the last reload, so that an older one serves on."""
        return bool(self.failed) or (self.failed is None and not self.workers)

    def new_workers(self, old: Collection[int]) -> list[int]:
        """Return the workers that a load has started, which may still be loading. ``old`` were there before."""
        return [worker.pid for worker in self.workers if worker.pid not in old]

    def gave_up(self, old: Collection[int]) -> bool:
        """Return whether a load has ended without a worker. ``old`` are the workers that were there before.

        HAProxy up to 3.0 may be about to end the old workers and itself then (``exit-on-failure``).
        """
        return not self.new_workers(old) and (self.last_load_failed or not self.workers)

    @property
    def _serving_on(self) -> list[int]:
        """Return the old workers, the youngest first.

        After a failed reload, HAProxy before 2.6 and from 3.1 on lists the worker that serves on as an old one. The
        order of the list differs between versions.
        """
        return [worker.pid for worker in sorted(self.old_workers, key=lambda worker: worker.reloads)]


def parse_processes(text: str) -> Processes | None:
    """Read the answer of ``show proc`` by its header; None if ``text`` is something else."""
    columns: list[str] = []
    section = ""
    master: dict[str, str] | None = None
    workers: dict[str, list[Worker]] = {"# workers": [], "# old workers": []}
    for line in text.splitlines():
        if line.startswith(_HEADER):
            columns = re.findall("<([^>]+)>", line)
        elif line.startswith("#"):
            section = line.strip()
        else:
            row = dict(zip(columns, _CELL.findall(line), strict=False))
            if not {"PID", "type", "reloads", "version"} <= row.keys():
                continue
            if not section and row["type"] == "master":
                master = row
            elif section in workers and row["type"] == "worker":
                workers[section].append(Worker(int(row["PID"]), int(row["reloads"])))
    if master is None:
        return None
    failed = _FAILED.search(master["reloads"])
    return Processes(
        master=int(master["PID"]),
        version=master["version"],
        failed=int(failed[1]) if failed else None,
        workers=workers["# workers"],
        old_workers=workers["# old workers"],
    )
