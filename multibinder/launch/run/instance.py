"""The state of an instance: its places, its copies, and what was said of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from multibinder.launch.direct.slots import address_of
from multibinder.launch.errors import LaunchError
from multibinder.launch.run import records
from multibinder.launch.run.copy import Copy
from multibinder.launch.run.places import Place
from multibinder.launch.run.report import CopyStatus, RunStatus
from multibinder.launch.run.service import Service
from multibinder.launch.run.settings import RunSettings, ServiceSettings

_PROBLEMS = 5


class Instance:
    """What is true of the instance now. ``say`` takes a level (notice, warning, error) and a sentence.

    ``service_settings`` are those with which copies are started after a crash: of the last reload that succeeded.
    ``copies`` are all that live, also those that finish. ``reload_failure`` is why the last reload failed, or empty.
    ``watchers`` are told each progress of a reload.
    """

    def __init__(
        self,
        pid: int,
        settings: RunSettings,
        directory: str,
        service: Service,
        say: Callable[[str, str], None],
    ) -> None:
        self.pid = pid
        self.settings = settings
        self.service_settings = settings.service
        self.directory = directory
        self.service = service
        self.say = say
        self.state = "starting"
        self.generation = 0
        self.places: list[Place] = []
        self.copies: list[Copy] = []
        self.has_been_ready = False
        self.has_given_up = False
        self.restarts_total = 0
        self.reloads_total = 0
        self.failures_total = 0
        self.last_failure = ""
        self.reload_failure = ""
        self.watchers: set[Callable[[str], None]] = set()
        self.on_change: list[Callable[[RunStatus], None]] = []
        self.on_success: list[Callable[[], None]] = []
        self.on_failure: list[Callable[[str], None]] = []
        self.fallback = settings.fallback
        self._has_complained = False

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def serving(self) -> list[Copy]:
        """The copies that serve."""
        return [place.serving for place in self.places if place.serving is not None and place.is_ready]

    def next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def progress(self, text: str) -> None:
        """Tell those who wait for a command what happens now."""
        for watcher in list(self.watchers):
            watcher(text)

    def failed(self, error: LaunchError) -> None:
        """Count a start or reload that failed."""
        self.failures_total += 1
        self.last_failure = f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {error}"
        for each in self.on_failure:
            each(error.phase)

    def succeeded(self) -> None:
        """Tell monitoring that all copies are ready, after a start, a reload, or a start that failed."""
        for each in self.on_success:
            each()

    def changed(self) -> None:
        """Write the records, and tell the service manager. Call it after each change of a copy or of the state."""
        with contextlib.suppress(LaunchError):
            self._write()
        status = self.status()
        self.service.status(self.line())
        for each in self.on_change:
            each(status)

    def remember_good(self, settings: ServiceSettings) -> None:
        """Remember settings with which all copies came up."""
        try:
            records.write_last_good(self.directory, settings)
        except LaunchError as error:
            self.say("warning", str(error))

    def status(self) -> RunStatus:
        copies = [
            CopyStatus(copy.pid, copy.generation, copy.index, copy.state, copy.since, copy.ready_by)
            for copy in self.copies
        ]
        binds = [address_of(slot) for bind in self.service_settings.binds for slot in bind.slots]
        return RunStatus(
            name=self.name,
            pid=self.pid,
            state=self.state,
            generation=self.generation,
            command=self.service_settings.command,
            copies=copies,
            binds=binds,
            restarts_total=self.restarts_total,
            reloads_total=self.reloads_total,
            failures_total=self.failures_total,
            last_failure=self.last_failure,
            wanted=len(self.places),
            gave_up=self.has_given_up,
            problems=self._problems(),
        )

    def line(self) -> str:
        """Return the line that ``systemctl status`` shows."""
        serving = self.serving
        count = f"{len(serving)} of {len(self.places)} copies serve" if len(self.places) != 1 else "serves"
        if not serving:
            count = "no copy serves"
        pids = f" (pid {', '.join(str(copy.pid) for copy in serving)})" if serving else ""
        said = next((copy.notices.status for copy in serving if copy.notices.status), "")
        finishing = sum(copy.state == "stopping" for copy in self.copies)
        parts = [f"{self.state}: generation {self.generation}, {count}{pids}"]
        parts += [f"the last reload failed: {self.reload_failure}"] if self.reload_failure else []
        parts += [f"{finishing} old ones finish"] if finishing else []
        parts += [said] if said else []
        return "; ".join(parts)

    def _problems(self) -> list[str]:
        problems = []
        if self.fallback:
            problems.append(f"it runs with the last good settings, because: {self.fallback}")
        if self.has_given_up:
            problems.append("its ports are closed, because no copy could be started for --give-up-after")
        waiting = [place for place in self.places if not place.is_ready]
        if self.state in ("running", "waiting") and waiting:
            problems.append(f"{len(waiting)} of {len(self.places)} copies are not ready: {self.last_failure}")
        return problems[:_PROBLEMS]

    def _write(self) -> None:
        try:
            records.write_copies(self.directory, self.generation, self.service_settings, self.copies)
            self._has_complained = False
        except LaunchError as error:
            if not self._has_complained:
                self._has_complained = True
                self.say("warning", f"{error}; a later 'run' will not find these copies if this one is killed")
