"""The reloads of an instance, one at a time, and the canaries that wait for a decision."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from multibinder.launch.errors import LaunchError
from multibinder.launch.run.instance import Instance
from multibinder.launch.run.refusal import refused
from multibinder.launch.run.reload import Reload
from multibinder.launch.run.report import Answer, ReloadReport
from multibinder.launch.run.service import Service
from multibinder.launch.run.settings import ServiceSettings
from multibinder.launch.run.tasks import Cancelled, Loop, Task


class Reloads:
    """Reloads an instance when it is asked to. ``read_settings`` returns today's settings, or raises LaunchError.

    ``begin`` makes a reload to them.
    """

    def __init__(
        self,
        loop: Loop,
        instance: Instance,
        read_settings: Callable[[], Awaitable[ServiceSettings]],
        begin: Callable[[ServiceSettings], Reload],
    ) -> None:
        self._loop = loop
        self._instance = instance
        self._service: Service = instance.service
        self._read_settings = read_settings
        self._begin = begin
        self._running: Task[ReloadReport] | None = None
        self._queued: Task[ReloadReport] | None = None
        self._canary: Reload | None = None

    def cancel(self) -> None:
        """End the reloads, because the instance ends."""
        for reload in (self._running, self._queued):
            if reload is not None:
                reload.cancel()

    async def reload(self) -> ReloadReport:
        """Reload, after a reload that is under way. All that ask meanwhile get the same report."""
        if self._queued is None:
            self._queued = self._loop.start(self._reload_next(), "a reload")
        task = self._queued
        await task.wait()
        try:
            return task.result()
        except Cancelled:
            return refused(self._instance, LaunchError(f"{self._instance.name} is ending: the reload was given up"))

    async def reload_and_say(self) -> None:
        report = await self.reload()
        if not report.ok:
            for line in report.output:
                self._instance.say("error", f"its output: {line}")

    async def _reload_next(self) -> ReloadReport:
        if self._running is not None:
            await self._running.wait()
        self._running, self._queued = self._queued, None
        instance = self._instance
        if self._canary is not None:
            return refused(
                instance,
                LaunchError("canaries serve: 'multibinder reload --continue' or '--abort' decides first"),
            )
        instance.reloads_total += 1
        state, instance.state = instance.state, "reloading"
        self._service.reloading(f"reloading {instance.name}")
        try:
            settings = await self._read_settings()
        except LaunchError as error:
            report = refused(instance, error)
            instance.state = state
            return self._concluded(report)
        reload = self._begin(settings)
        report = await self._whole(reload.run())
        if report.is_canary:
            self._canary = reload
            self._loop.start(self._watch_canary(reload), "the canaries")
        return self._concluded(report)

    async def _whole(self, reload: Awaitable[ReloadReport]) -> ReloadReport:
        """Return the report, also of a reload that failed as nobody expects: those who wait get an answer."""
        try:
            return await reload
        except Exception as error:
            return refused(self._instance, LaunchError(f"the reload failed: {type(error).__name__}: {error}"))

    def _concluded(self, report: ReloadReport) -> ReloadReport:
        instance = self._instance
        if instance.state == "reloading":
            settled = "running" if instance.serving else "waiting"
            instance.state = "canary" if report.is_canary else settled
        if report.ok and report.new:
            instance.has_been_ready = True
        if report.is_canary:
            instance.say("notice", report.message)
        elif report.ok:
            instance.say("notice", f"reloaded in {report.took_s:.2f} s: generation {report.generation}")
        else:
            instance.say("error", f"reload failed: {report.message}")
        instance.reload_failure = "" if report.ok else report.message
        if instance.has_been_ready:
            self._service.ready(instance.line())
        instance.changed()
        return report

    async def decide(self, command: str) -> Answer:
        """Go on with a canary, or end it."""
        if self._canary is None:
            return Answer(error=f"{self._instance.name} has no canary: there is nothing to {command}")
        return Answer(report=await self._end_canary(command == "continue", "the reload was aborted"))

    async def _end_canary(self, go_on: bool, why: str) -> ReloadReport:
        reload, self._canary = self._canary, None
        assert reload is not None  # noqa: S101
        self._instance.state = "reloading"
        self._running = self._loop.start(self._whole(reload.finish() if go_on else reload.abort(why)), "a reload")
        await self._running.wait()
        return self._concluded(self._running.result())

    async def _watch_canary(self, reload: Reload) -> None:
        await reload.crashed.wait()
        if self._canary is reload:
            await self._end_canary(False, "a canary has ended")
