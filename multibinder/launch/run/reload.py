"""Replace the copies of an instance by new ones: start, wait until ready, then tell the old ones to finish."""

from __future__ import annotations

import time
from collections.abc import Sequence

from multibinder.launch.run.copy import Copy
from multibinder.launch.run.errors import StartFailed
from multibinder.launch.run.instance import Instance
from multibinder.launch.run.keeper import Keeper
from multibinder.launch.run.listeners import Listeners, NoListeners
from multibinder.launch.run.places import Place
from multibinder.launch.run.refusal import addresses_of
from multibinder.launch.run.report import ReloadReport
from multibinder.launch.run.settings import Bind, ServiceSettings
from multibinder.launch.run.starter import Starter
from multibinder.launch.run.tasks import Event, Loop, Task


class Reload:
    """One reload to ``settings``. ``run`` does all of it, or stops where the canaries serve beside the old copies.

    In the second case ``finish`` or ``abort`` follows. ``crashed`` is set when a canary has ended before that.
    """

    def __init__(
        self,
        loop: Loop,
        instance: Instance,
        starter: Starter,
        keeper: Keeper,
        listeners: Listeners,
        settings: ServiceSettings,
    ) -> None:
        self._loop = loop
        self._instance = instance
        self._starter = starter
        self._keeper = keeper
        self._listeners = listeners
        self._settings = settings
        self._before = instance.service_settings
        self._generation = instance.next_generation()
        self._began = time.monotonic()
        self._old = [copy.pid for copy in instance.serving]
        self._places = [*instance.places, *map(Place, range(len(instance.places), settings.instances))]
        self._canaries: dict[int, Copy] = {}
        self._replaced: list[Place] = []
        self._warnings: list[str] = []
        self.crashed = Event()

    async def run(self) -> ReloadReport:
        """Reload, and return how it ended. Never raises LaunchError."""
        try:
            self._hold_empty_places()
            canaries = self._number_of_canaries()
            if canaries:
                await self._start_canaries(canaries)
                self._let_go()
                if self._settings.canary_for_s is None:
                    return self._report(True, "canaries serve; 'reload --continue' or '--abort' goes on", canary=True)
                self._say(f"canaries serve; the others follow in {self._settings.canary_for_s:g} s")
                if await self.crashed.wait(self._settings.canary_for_s):
                    return await self.abort("a canary has ended")
            return await self.finish()
        except StartFailed as error:
            return await self._fail(error)

    async def finish(self) -> ReloadReport:
        """Replace all copies that are not replaced yet."""
        try:
            for place in self._places[: self._settings.instances]:
                if (canary := self._canaries.pop(place.index, None)) is not None:
                    await self._swap(place, canary)
            rest = [place for place in self._places[: self._settings.instances] if place not in self._replaced]
            step = max(1, self._settings.max_overlap)
            for start in range(0, len(rest), step):
                await self._replace(rest[start : start + step])
            return await self._succeed()
        except StartFailed as error:
            return await self._fail(error)

    async def abort(self, why: str) -> ReloadReport:
        """End the canaries. The old copies have served all the time."""
        return await self._fail(
            StartFailed(why, [line for copy in self._canaries.values() for line in copy.output.last])
        )

    def _hold_empty_places(self) -> None:
        """End starts with the earlier settings, and let nobody else begin one."""
        for place in self._places:
            if not place.is_ready and place.serving is None:
                place.is_held = True
                if place.starting is not None:
                    place.starting.cancel()
                place.woken.set()

    def _let_go(self) -> None:
        for place in self._places:
            place.is_held = False
            place.woken.set()  # the keeper starts a copy if there is none

    def _number_of_canaries(self) -> int:
        canary = self._settings.canary
        if canary is None or not self._old:
            return 0
        if canary.endswith("%"):
            return max(1, self._settings.instances * int(canary[:-1]) // 100)
        return min(int(canary), self._settings.instances)

    async def _start_canaries(self, number: int) -> None:
        places = self._places[:number]
        for place, copy in zip(places, await self._start([place.index for place in places]), strict=True):
            self._canaries[place.index] = copy
            self._loop.start(self._watch(copy), f"the canary {copy.pid}")

    async def _watch(self, copy: Copy) -> None:
        await copy.ended.wait()
        if copy in self._canaries.values():
            self.crashed.set()

    async def _replace(self, places: Sequence[Place]) -> None:
        """Replace the copies of these places. Raises StartFailed; then each has its old copy, or one like it."""
        if self._settings.max_overlap == 0:
            for place in places:
                await self._stop_then_start(place)
            return
        self._say(f"starting {_copies(len(places))} of generation {self._generation}")
        new = await self._start([place.index for place in places])
        swaps = [
            self._loop.start(self._swap(place, copy), f"the switch to {copy.pid}")
            for place, copy in zip(places, new, strict=True)
        ]
        for swap in swaps:
            await swap.wait()
            swap.result()

    async def _start(self, indexes: Sequence[int]) -> list[Copy]:
        """Start a copy for each index, and return them when all are ready. Raises StartFailed: none is left then."""
        instance = self._instance
        instance.service.extend(self._settings.ready.timeout_s + self._settings.ready.stable_s)
        starts: list[Task[Copy]] = [
            self._loop.start(
                self._starter.start(
                    self._settings, self._generation, index, instance.settings.wait_s, self._settings.ready.stable_s
                ),
                f"the start of generation {self._generation}",
            )
            for index in indexes
        ]
        is_good = False
        try:
            for start in starts:
                await start.wait()
            copies = [start.result() for start in starts]
            is_good = True
            return copies
        finally:
            for start in starts if not is_good else ():
                start.cancel()
                if start.is_done and start.succeeded:
                    self._loop.start(self._end(start.result(), self._settings), "a copy that is not used")

    async def _swap(self, place: Place, new: Copy) -> None:
        """Let a copy serve in a place, and tell the old one to finish."""
        old = place.serving
        place.put(new)
        self._replaced.append(place)
        if place not in self._instance.places:
            self._instance.places.append(place)
            self._keeper.begin(place)
        self._instance.changed()
        if old is not None and not old.ended.is_set:
            self._say(f"copy {new.pid} serves ({new.ready_by}); copy {old.pid} finishes")
            await self._end(old, old.settings)

    async def _stop_then_start(self, place: Place) -> None:
        old = place.serving
        place.is_held = True
        place.serving = None
        try:
            if place.starting is not None:
                place.starting.cancel()
            if old is not None:
                self._say(f"copy {old.pid} finishes; clients wait for the next one")
                await self._end(old, old.settings)
            for copy in [each for each in self._instance.copies if each.index == place.index]:
                await copy.ended.wait()  # one of a start that was ended
            (new,) = await self._start([place.index])
            await self._swap(place, new)
        finally:
            place.is_held = False
            place.woken.set()  # after a failure, the keeper starts one with the earlier settings

    async def _end(self, copy: Copy, settings: ServiceSettings) -> None:
        """Tell a copy to finish, and wait for it."""
        copy.state = "stopping"
        self._instance.changed()
        self._instance.service.extend(settings.drain_timeout_s + settings.hooks.timeout_s)
        try:
            await self._starter.hook(copy, "pre_stop")
        except StartFailed as error:
            self._warn(str(error))
        if not await copy.end(settings.drain_timeout_s):
            self._warn(
                f"copy {copy.pid} did not finish within {settings.drain_timeout_s:g} s, and was killed: connections "
                "that it still had are lost; --drain-timeout gives it more time"
            )

    async def _succeed(self) -> ReloadReport:
        instance = self._instance
        instance.service_settings = self._settings
        for place in instance.places[self._settings.instances :]:
            self._keeper.end(place)
            if place.serving is not None:
                await self._end(place.serving, place.serving.settings)
        del instance.places[self._settings.instances :]
        self._let_go()
        await self._release(self._settings.binds)
        instance.remember_good(self._settings)
        instance.fallback = ""
        instance.succeeded()
        return self._report(True, "")

    async def _fail(self, error: StartFailed) -> ReloadReport:
        """Undo what was done. Places that were replaced get copies of the earlier settings."""
        canaries, self._canaries = list(self._canaries.values()), {}
        for copy in canaries:
            await self._end(copy, copy.settings)
        if self._replaced:
            self._say(f"{_copies(len(self._replaced))} go back to the earlier settings")
        for place in reversed(self._replaced):
            if place.index >= self._before.instances:
                self._keeper.end(place)
                self._instance.places.remove(place)
                if place.serving is not None:
                    await self._end(place.serving, place.serving.settings)
                continue
            await self._go_back(place)
        self._let_go()
        await self._release(self._before.binds)
        self._instance.failed(error)
        return self._report(False, str(error), error.output)

    async def _go_back(self, place: Place) -> None:
        before = self._before
        new = place.serving
        place.settings, place.generation = before, self._generation
        try:
            copy = await self._starter.start(before, self._generation, place.index, self._instance.settings.wait_s)
        except StartFailed as error:
            self._warn(f"place {place.index} stays with the new settings: {error}")
            return
        place.put(copy)
        if new is not None:
            await self._end(new, new.settings)

    async def _release(self, binds: Sequence[Bind]) -> None:
        try:
            await self._listeners.release_unused(binds)
        except NoListeners as error:
            self._warn(f"{error}; the next reload does it")

    def _report(self, ok: bool, message: str, output: Sequence[str] = (), *, canary: bool = False) -> ReloadReport:
        before, after = addresses_of(self._before), addresses_of(self._settings)
        return ReloadReport(
            ok=ok,
            message=message,
            generation=self._generation,
            took_s=time.monotonic() - self._began,
            old=self._old,
            new=[*(copy.pid for copy in self._instance.serving), *(copy.pid for copy in self._canaries.values())],
            output=list(output),
            warnings=self._warnings,
            added=[each for each in after if each not in before] if ok else [],
            kept=[each for each in after if each in before] if ok else before,
            dropped=[each for each in before if each not in after] if ok and not canary else [],
            is_canary=canary,
        )

    def _say(self, text: str) -> None:
        self._instance.say("notice", text)
        self._instance.progress(text)

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self._instance.say("warning", text)


def _copies(number: int) -> str:
    return "a copy" if number == 1 else f"{number} copies"
