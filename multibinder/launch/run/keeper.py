"""Keep a copy in each place: start it, and start it again when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable

from multibinder.launch.run.copy import Copy
from multibinder.launch.run.errors import StartFailed
from multibinder.launch.run.hooks import how_it_ended
from multibinder.launch.run.instance import Instance
from multibinder.launch.run.listeners import Listeners, NoListeners
from multibinder.launch.run.places import Place
from multibinder.launch.run.starter import Starter
from multibinder.launch.run.tasks import Cancelled, Loop


class Keeper:
    """Keeps the places of an instance filled. ``cannot_start`` is called with the exit code of a command that cannot be
    executed at all, if no copy was ever ready.
    """

    def __init__(
        self,
        loop: Loop,
        instance: Instance,
        starter: Starter,
        listeners: Listeners,
        cannot_start: Callable[[StartFailed], None],
    ) -> None:
        self._loop = loop
        self._instance = instance
        self._starter = starter
        self._listeners = listeners
        self._cannot_start = cannot_start

    def begin(self, place: Place) -> None:
        """Keep a place filled from now on."""
        place.keeper = self._loop.start(self._keep(place), f"place {place.index}")

    def end(self, place: Place) -> None:
        """Let a place alone. A start that is under way is ended."""
        keeper, place.keeper = place.keeper, None  # it may be in the middle of a start that is cancelled below
        if keeper is not None:
            keeper.cancel()
        if place.starting is not None:
            place.starting.cancel()

    async def _keep(self, place: Place) -> None:
        while place.keeper is not None:
            copy = place.serving
            if copy is None:
                if place.is_held:
                    place.woken.clear()
                    await place.woken.wait()
                    continue
                copy = await self._start(place)
                if copy is None:
                    continue
            await copy.ended.wait()
            if place.serving is not copy:
                continue
            place.serving = None
            if not copy.is_told:
                await self._crashed(place, copy)

    async def _start(self, place: Place) -> Copy | None:
        """Start a copy in a place that is empty; None if that failed, or a reload was faster."""
        instance = self._instance
        settings = place.settings or instance.service_settings
        wait_s = instance.settings.wait_s
        start = self._starter.start(settings, place.generation or instance.generation, place.index, wait_s)
        instance.service.extend(settings.ready.timeout_s + wait_s)
        place.starting = self._loop.start(start, f"a start in place {place.index}")
        task = place.starting
        try:
            await task.wait()
        except Cancelled:
            # This keeper ends, and perhaps the start has just succeeded.
            if task.succeeded:
                self._loop.start(task.result().end(settings.drain_timeout_s), "a copy that no place waits for")
            raise
        if task.was_cancelled:
            place.starting = None
            return None  # a reload has ended this start
        try:
            copy = task.result()
        except Exception as error:
            place.starting = None
            if not isinstance(error, StartFailed):  # nobody expects it, and the place must not stay empty for ever
                error = StartFailed(f"the start failed: {type(error).__name__}: {error}")
            await self._failed(place, error)
            return None
        place.starting = None
        if place.serving is not None or place.is_held:
            await copy.end(settings.drain_timeout_s)
            return None
        place.serving = copy
        place.settings, place.generation = copy.settings, copy.generation
        place.backoff.succeeded()
        self._is_ready(copy)
        return copy

    def _is_ready(self, copy: Copy) -> None:
        instance = self._instance
        instance.has_given_up = False
        instance.say("notice", f"copy {copy.pid} of generation {copy.generation} serves: {copy.ready_by}")
        if all(place.is_ready for place in instance.places):
            if instance.state in ("starting", "waiting"):
                instance.state = "running"
            if not instance.has_been_ready:
                instance.has_been_ready = True
                instance.remember_good(instance.service_settings)
                instance.service.ready(instance.line())
            instance.succeeded()
        instance.changed()

    async def _failed(self, place: Place, error: StartFailed) -> None:
        instance = self._instance
        instance.failed(error)
        if error.exit_code is not None and not instance.has_been_ready:
            self.end(place)
            self._cannot_start(error)
            return
        pause_s = place.backoff.failed()
        again = f"it is tried again in {pause_s:g} s" if pause_s else "it is tried again at once"
        instance.say("error", f"{error}; {again}")
        await self._pause(place, pause_s)

    async def _crashed(self, place: Place, copy: Copy) -> None:
        instance = self._instance
        status = copy.process.status
        how = how_it_ended(status) if status is not None else "ended"
        pause_s = place.backoff.ended(copy)
        instance.restarts_total += 1
        again = f"in {pause_s:g} s" if pause_s else "at once"
        instance.last_failure = f"{time.strftime('%Y-%m-%d %H:%M:%S')}: copy {copy.pid} {how}"
        meanwhile = "" if instance.serving else "clients wait, and "
        instance.say("error", f"copy {copy.pid} {how}; {meanwhile}another one is started {again}")
        if copy.processes() - {copy.pid}:
            # Its other processes would accept clients for ever. They may finish those that they have.
            copy.kill(copy.settings.stop_signal)
            left = copy.wait_or_kill(copy.settings.drain_timeout_s)
            end = self._loop.start(left, f"what copy {copy.pid} has left")
            if copy.settings.max_overlap == 0:
                await end.wait()
        await self._pause(place, pause_s)

    async def _pause(self, place: Place, pause_s: float) -> None:
        instance = self._instance
        if instance.state == "running" and not instance.serving:
            instance.state = "waiting"
        instance.changed()
        await self._give_up_if_due(place)
        instance.service.extend(pause_s + 1)
        place.woken.clear()
        await place.woken.wait(pause_s)

    async def _give_up_if_due(self, place: Place) -> None:
        """Close the ports if no copy could be started for too long: their clients would wait for nothing."""
        instance = self._instance
        since = place.backoff.failing_since
        if instance.serving or since is None:
            return
        if not instance.has_given_up and time.monotonic() - since < instance.settings.give_up_after_s:
            return
        try:
            closed, _ = await self._listeners.release_unused([])
        except NoListeners as error:
            instance.say("warning", str(error))
            return
        if not instance.has_given_up:
            instance.has_given_up = True
            limit_s = instance.settings.give_up_after_s
            instance.say(
                "error",
                f"no copy could be started for {limit_s:g} s: {', '.join(closed) or 'no port'} closed, so that clients "
                "are refused instead of waiting; the command is tried again, with its ports",
            )
            instance.changed()
