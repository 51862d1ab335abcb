"""``reload``: check, tell HAProxy's master, and wait for the end of the load."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import msgspec

from multibinder.launch.errors import LaunchError, NotRunning
from multibinder_haproxy.check import Checked, check_reload
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.errors import ReloadFailed
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.records import Identity, Loaded, Prepared, ReloadReport, boottime_s
from multibinder_haproxy.reexec import processes as reexec_processes
from multibinder_haproxy.reexec.load import PREPARED_FILE
from multibinder_haproxy.settle import Load, settle_later_loads
from multibinder_haproxy.watch import watched


def reload(instance: Instance, timeout_s: float) -> ReloadReport:
    """Check, reload, wait for the new worker, and release what is no longer bound. ``timeout_s`` is for each wait.

    The report's ``ok`` is False if HAProxy gave up or did not answer in time. Raises LaunchError for a failure before
    anything was touched.

    Several reloads that wait for one another become one. If another reload began after this one was asked for, this one
    waits for it and returns its report.
    """
    asked_at = boottime_s()
    instance.check_known()
    before = instance.read_report()
    with instance.locked(timeout_s) as lock:
        last = instance.read_report()
        # A report that was there already may be of another boot, in which the clock was further on.
        if last is not None and last != before and last.started_s > asked_at:
            return last
        attempt = ReloadAttempt(instance, timeout_s, lock)
        report = attempt.run()
    settle_later_loads(instance, max(report.generation, attempt.generation + 1))
    return report


class ReloadAttempt:
    """One reload of a locked instance, with the records as they were when it began."""

    def __init__(self, instance: Instance, timeout_s: float, lock: int) -> None:
        self._instance = instance
        self._timeout_s = timeout_s
        self._lock = lock
        self._draft = ReloadReport.begin()
        self._invocation = instance.read_invocation()
        self._before = instance.read_loaded()

    def run(self) -> ReloadReport:
        """Reload, and write the report. Raises LaunchError, OSError."""
        try:
            checked = check_reload(self._instance, self._invocation, self._timeout_s, keep_compiled=True)
            with self._prepared(checked.config):
                report = self._perform(checked)
        except (LaunchError, OSError) as error:
            self._summarize(error)
            self._instance.write_report(self._draft.ended(message=str(error)))
            raise
        self._instance.write_report(report)
        return report

    def _perform(self, checked: Checked) -> ReloadReport:
        """Tell HAProxy's master to reload, and wait for the end."""
        master = self._instance.master()
        before = master.processes()
        old = [worker.pid for worker in (*before.workers, *before.old_workers)]
        draft = msgspec.structs.replace(
            self._draft,
            warnings=[*checked.config.warnings, *checked.warnings],
            old_workers=before.serving,
        )
        with watched(master, None, before.master) as watch:
            load = Load(self._instance, watch, draft, self.generation, self._lock)
            try:
                log = master.reload(self._timeout_s, old)
            except ReloadFailed as error:
                return load.fail(error)
            report = load.conclude(old, self._timeout_s)
        if report.ok and report.generation <= self.generation:
            wrapper = self._invocation.wrapper
            raise ReloadFailed(
                "HAProxy reloaded with the files as they were; its log says why (no space left?), unless "
                f"{wrapper} is gone\n{log}".strip()
            )
        return report

    @contextlib.contextmanager
    def _prepared(self, config: Config) -> Iterator[None]:
        """Leave the checked configuration to the re-exec, which renders nothing then. Raises LaunchError."""
        identity = msgspec.convert(reexec_processes.identity_of(os.getpid()), Identity)
        self._instance.write_record(PREPARED_FILE, Prepared(config, identity))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._instance.path(PREPARED_FILE))

    @property
    def generation(self) -> int:
        return self._before.generation if self._before else 0

    def _summarize(self, error: Exception) -> None:
        """Note in the summary a reload that raised: before HAProxy was told of it, or while its end was awaited."""
        after: Loaded | None = self._instance.read_loaded()
        if isinstance(error, NotRunning):
            return  # there was nothing to reload
        if self._before is not None and after is not None and after.generation > self._before.generation:
            self._instance.summary.reload_unseen(error)
        else:
            self._instance.summary.reload_refused(error)
