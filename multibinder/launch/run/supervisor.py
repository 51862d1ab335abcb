"""The process of ``run``: start the copies, and do what signals and commands ask for."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from msgspec.structs import replace

from multibinder.launch.errors import LaunchError
from multibinder.launch.run import records, takeover
from multibinder.launch.run.children import Children
from multibinder.launch.run.config_reader import read_settings
from multibinder.launch.run.control import ControlServer
from multibinder.launch.run.copy import Copy
from multibinder.launch.run.copy_watch import CopyWatch
from multibinder.launch.run.einhorn import EinhornServer
from multibinder.launch.run.errors import StartFailed
from multibinder.launch.run.files import RunInstance
from multibinder.launch.run.instance import Instance
from multibinder.launch.run.keeper import Keeper
from multibinder.launch.run.listeners import Listeners, NoListeners
from multibinder.launch.run.notify import NotifyServer
from multibinder.launch.run.places import Place
from multibinder.launch.run.reload import Reload
from multibinder.launch.run.reloads import Reloads
from multibinder.launch.run.report import Answer, Request
from multibinder.launch.run.service import Service
from multibinder.launch.run.settings import RunSettings, ServiceSettings
from multibinder.launch.run.signals import PASSED_ON, RELOAD, STOP, Signals
from multibinder.launch.run.sink import Sink
from multibinder.launch.run.spawn import Inheritance
from multibinder.launch.run.starter import Starter, Surroundings
from multibinder.launch.run.tasks import Event, Loop
from multibinder.launch.switch_record import adopted_from_the_living

_STDERR = 2
#: A client that reads its answer does so in this time.
_ANSWER_S = 2.0


class Supervisor:
    """Runs one instance from its start to its end. ``say`` takes a level and a sentence for the log."""

    def __init__(
        self,
        settings: RunSettings,
        files: RunInstance,
        environment: dict[str, str],
        inheritance: Inheritance,
        say: Callable[[str, str], None],
        before_reading: Callable[[], None],
    ) -> None:
        """``before_reading`` is called before ``--config`` is read.

        ``environment`` is that of the copies. What is the service manager's is taken out of it. Raises OSError.
        """
        self._settings = settings
        self._files = files
        self._inheritance = inheritance
        self._environment = environment
        self._say = say
        self._before_reading = before_reading
        self._loop = Loop(lambda name, error: say("error", f"{name}: {type(error).__name__}: {error}"))
        self._children = Children(self._loop)
        self._sink = Sink(_STDERR, settings.name)
        self._service = Service(environment)
        self.instance = Instance(os.getpid(), settings, files.directory, self._service, say)
        self._copies = CopyWatch(self._loop, self.instance, self._service.watchdog_s)
        owner = settings.owner or f"run@{settings.name}"
        self._listeners = Listeners(settings.socket, owner, lambda: bool(adopted_from_the_living(files)))
        self._notify = NotifyServer(files.path("notify.sock"), self._copies.notices)
        self._einhorn = EinhornServer(files.path("einhorn.sock"), self._loop, self._copies.acknowledgements)
        self._control = ControlServer(files.control_path, self._loop, self._command)
        sockets = {"NOTIFY_SOCKET": self._notify.path, "EINHORN_SOCK_PATH": self._einhorn.path}
        self._around = Surroundings(
            settings.name, environment, sockets, self._service.watchdog_s, self._sink.write,
            lambda text: say("warning", text),
        )  # fmt: skip
        self._starter = Starter(
            self._loop, self._children, self._listeners, inheritance, self._around, self._copies.add
        )
        self._keeper = Keeper(self._loop, self.instance, self._starter, self._listeners, self._cannot_start)
        self._signals = Signals({*STOP, *RELOAD, *PASSED_ON, signal.SIGCHLD})
        self._stop_asked = Event()
        self._stopped = Event()
        self._kill_asked = False
        self._keep_listeners = settings.keep_listeners
        self._closed: list[str] = []
        self._exit_code = 0
        self._reloads = Reloads(self._loop, self.instance, self._read_settings, self._reload_to)

    def run(self) -> int:
        """Run until the instance ends, and return the exit code."""
        try:
            return self._loop.run(self._main())
        finally:
            for each in (self._control, self._einhorn, self._notify, self._listeners, self._service, self._sink):
                each.close()

    async def _main(self) -> int:
        for coroutine, name in (
            (self._read_signals(), "the signals"),
            (self._notify.serve(), "notify.sock"),
            (self._einhorn.serve(), "einhorn.sock"),
            (self._control.serve(), "control.sock"),
            (self._sink.write_waiting(), "the log"),
            (self._service.send_waiting(), "the service manager"),
            (self._service.feed(self._copies.may_feed), "the watchdog"),
        ):
            self._loop.start(coroutine, name)
        self._children.reap()
        await self._begin()
        await self._stop_asked.wait()
        await self._end()
        await self._control.finish(_ANSWER_S)
        return self._exit_code

    async def _begin(self) -> None:
        """Take over what an earlier ``run`` has left, and fill the places."""
        instance = self.instance
        try:
            record = records.read_copies(self._files.directory)
        except LaunchError as error:
            record = None
            self._say("warning", f"{error}; copies of an earlier run are looked for without it")
        record = record or records.CopiesRecord(records.boot_id(), 0, self._settings.service, [])
        # Those of the record win their places. Nobody knows with which settings the others were started.
        unrecorded = takeover.unrecorded(record, self._notify.path)
        record = replace(record, copies=[*unrecorded, *record.copies])
        instance.generation = max([record.generation, *(each.generation for each in unrecorded)])
        instance.places = [Place(index) for index in range(self._settings.service.instances)]
        differs = False
        copies = takeover.take_over(record, self._children, self._around)
        for copy in copies:
            self._copies.add(copy)
        # Of two in one place, the later one is a canary, and nobody has decided for it.
        latest_first = sorted(copies, key=lambda copy: copy.generation, reverse=True)
        ready = {copy.index: copy for copy in latest_first if copy.state == "ready"}
        if ready:
            instance.service_settings = record.settings
            instance.places = [Place(index) for index in range(record.settings.instances)]
            # A reload that was under way may have replaced some of them.
            is_mixed = bool(unrecorded) or len({copy.generation for copy in ready.values()}) > 1
            differs = is_mixed or record.settings != self._settings.service
        ends = []
        for copy in copies:
            if ready.get(copy.index) is copy and copy.index < len(instance.places):
                instance.places[copy.index].put(copy)
                self._say("notice", f"copy {copy.pid} of an earlier 'run' serves on, and is taken over")
            else:
                # The earlier 'run' was starting it, or had told it to finish.
                ends.append(self._loop.start(copy.end(copy.settings.drain_timeout_s), f"the end of {copy.pid}"))
        if instance.service_settings.max_overlap == 0:
            for end in ends:
                await end.wait()
        if not instance.serving:
            instance.next_generation()
        for place in instance.places:
            self._keeper.begin(place)
        if instance.serving:
            await self._acquire_again()
            instance.has_been_ready = True
            instance.state = "running"
            self._service.ready(instance.line())
        instance.changed()
        if differs:
            self._say(
                "notice", "the settings are others than those of the copies that serve, or may be: they are replaced"
            )
            self._loop.start(self._reloads.reload(), "the reload of copies that were taken over")

    async def _acquire_again(self) -> None:
        """Hold the listeners of the copies that were taken over."""
        binds = self.instance.service_settings.binds
        for copy in self.instance.serving:
            self._listeners.recover(copy.pid, binds)
        try:
            await self._listeners.acquire(binds, 0)
        except NoListeners as error:
            self._say("warning", f"{error}; the listeners are asked for again when a copy is started")

    async def _read_signals(self) -> None:
        while True:
            for number in await self._signals.next():
                if number == signal.SIGCHLD:
                    self._children.reap()
                elif number in STOP:
                    self._ask_to_stop(f"stopped by {signal.Signals(number).name}")
                elif number in RELOAD:
                    self._loop.start(self._reloads.reload_and_say(), "a reload")
                else:
                    for copy in self.instance.serving:
                        copy.send(number)

    def _ask_to_stop(self, why: str) -> None:
        if self._stop_asked.is_set:
            if not self._kill_asked:
                self._kill_asked = True
                self._exit_code = self._exit_code or 1
                self._say("warning", f"{why} again: the copies are killed")
            for copy in self.instance.copies:
                copy.kill(signal.SIGKILL)
            return
        self._say("notice", why)
        self._stop_asked.set()

    def _cannot_start(self, error: StartFailed) -> None:
        self._say("error", str(error))
        self._exit_code = error.exit_code or 1
        self._keep_listeners = False
        self._stop_asked.set()

    async def _end(self) -> None:
        """End all copies, and close the ports unless they are to stay."""
        instance = self.instance
        instance.state = "stopping"
        self._service.stopping(f"ending {len(instance.copies)} copies")
        self._reloads.cancel()
        for place in instance.places:
            self._keeper.end(place)
        instance.changed()
        ends = [self._loop.start(self._end_copy(copy), f"the end of {copy.pid}") for copy in list(instance.copies)]
        for end in ends:
            await end.wait()
        if not self._keep_listeners:
            try:
                self._closed, _ = await self._listeners.release_unused([])
            except NoListeners as error:
                self._say("error", f"{error}; 'multibinder release' closes them")
                self._exit_code = self._exit_code or 1
        instance.changed()
        self._stopped.set()

    async def _end_copy(self, copy: Copy) -> None:
        limit_s = copy.settings.drain_timeout_s
        self._service.extend(limit_s + copy.settings.hooks.timeout_s)
        if copy.state != "stopping":
            try:
                await self._starter.hook(copy, "pre_stop")
            except StartFailed as error:
                self._say("warning", str(error))
        if not await copy.end(limit_s):
            self._exit_code = self._exit_code or 1
            if not self._kill_asked:
                self._say(
                    "warning",
                    f"copy {copy.pid} did not finish within {limit_s:g} s, and was killed: connections that it still "
                    "had are lost; --drain-timeout gives it more time",
                )

    async def _command(self, request: Request, progress: Callable[[str], None]) -> Answer:
        """Carry out what a command asks for."""
        if request.command == "status":
            return Answer(status=self.instance.status())
        if request.command == "stop":
            self._keep_listeners = self._keep_listeners or request.keep_listeners
            if not request.keep_listeners:
                self._keep_listeners = False
            self._ask_to_stop("stopped by the command 'stop'")
            await self._stopped.wait()
            return Answer(closed=self._closed)
        if self._stop_asked.is_set:
            return Answer(error=f"{self._settings.name} is ending: there is nothing to reload")
        self.instance.watchers.add(progress)
        try:
            if request.command == "reload":
                return Answer(report=await self._reloads.reload())
            return await self._reloads.decide(request.command)
        finally:
            self.instance.watchers.discard(progress)

    async def _read_settings(self) -> ServiceSettings:
        self._before_reading()
        return await read_settings(self._settings, self._loop, self._children, self._inheritance, self._environment)

    def _reload_to(self, settings: ServiceSettings) -> Reload:
        return Reload(self._loop, self.instance, self._starter, self._keeper, self._listeners, settings)
