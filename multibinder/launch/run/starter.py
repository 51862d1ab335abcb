"""Start one copy, and wait until it is ready."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence

from multibinder.launch.exec import failure
from multibinder.launch.run import environment_file
from multibinder.launch.run.children import Children, Process
from multibinder.launch.run.copy import Copy
from multibinder.launch.run.environment_file import EnvironmentFileError
from multibinder.launch.run.errors import StartFailed
from multibinder.launch.run.hooks import Hook, HookFailed, how_it_ended, run_hook
from multibinder.launch.run.listeners import Listeners, NoListeners
from multibinder.launch.run.output import Output
from multibinder.launch.run.preparation import draft_of, private_listener
from multibinder.launch.run.readiness.choice import check_of
from multibinder.launch.run.settings import ServiceSettings
from multibinder.launch.run.spawn import Inheritance, Started, spawn
from multibinder.launch.run.tasks import Event, Loop
from multibinder.launch.styles.draft import Draft
from multibinder.launch.styles.passed import Passed

#: What a copy may write while nobody reads: ``run`` was killed, and is started again.
_PIPE_BYTES = 1024 * 1024
#: A copy that failed gets this time after its stop signal.
_END_FAILED_S = 5.0


class Surroundings:
    """What all copies of an instance share.

    ``environment`` is that of ``run`` at its start. ``sockets`` are variables with the paths on which copies tell their
    state. ``write`` takes lines of output, ``warn`` sentences.
    """

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str],
        sockets: Mapping[str, str],
        watchdog_s: float | None,
        write: Callable[[bytes], None],
        warn: Callable[[str], None],
    ) -> None:
        self.name = name
        self.environment = environment
        self.sockets = sockets
        self.watchdog_s = watchdog_s
        self.write = write
        self.warn = warn


class Starter:
    """Starts copies. ``on_spawned`` is called with each new one, before it can tell anything."""

    def __init__(
        self,
        loop: Loop,
        children: Children,
        listeners: Listeners,
        inheritance: Inheritance,
        surroundings: Surroundings,
        on_spawned: Callable[[Copy], None],
    ) -> None:
        self._loop = loop
        self._children = children
        self._listeners = listeners
        self._inheritance = inheritance
        self._around = surroundings
        self._on_spawned = on_spawned

    async def start(
        self, settings: ServiceSettings, generation: int, index: int, wait_s: float, stable_s: float = 0.0
    ) -> Copy:
        """Start a copy, and return it when it is ready and has been so for ``stable_s``. Raises StartFailed.

        A copy that is not ready in time, or whose post-ready hook fails, is ended before this returns; so is one of a
        start that is cancelled.
        """
        try:
            return await self._start(settings, generation, index, wait_s, stable_s)
        except OSError as error:
            # At a limit of descriptors or memory, every step may fail.
            raise StartFailed(f"no copy can be started: {error.strerror or error}") from error

    async def _start(
        self, settings: ServiceSettings, generation: int, index: int, wait_s: float, stable_s: float
    ) -> Copy:
        await self._run_hook(settings, "pre_start", _variables(generation, index))
        copy, started, program = await self._spawn(settings, generation, index, wait_s)
        is_good = False
        try:
            await self._until_executed(copy, started, program)
            await self._until_ready(copy, settings, stable_s)
            await self.hook(copy, "post_ready")
            if copy.ended.is_set:
                raise self._has_ended(copy, "after it was ready")
            is_good = True
        finally:
            if not is_good:
                self._loop.start(self._end_failed(copy), f"the end of the copy {copy.pid}")
        copy.state = "ready"
        copy.ready_at = time.monotonic()
        return copy

    async def hook(self, copy: Copy, kind: str) -> None:
        """Run a hook of a copy, if there is one. Raises StartFailed."""
        variables = {**_variables(copy.generation, copy.index), "MULTIBINDER_PID": str(copy.pid)}
        await self._run_hook(copy.settings, kind, variables)

    async def _run_hook(self, settings: ServiceSettings, kind: str, variables: Mapping[str, str]) -> None:
        command = getattr(settings.hooks, kind)
        if command is None:
            return
        hook = Hook(kind.replace("_", "-"), command, settings.hooks.timeout_s)  # type: ignore[arg-type]
        environment = {**self._environment(settings), **variables}

        def start(words: list[str], output: int) -> Process:
            draft = Draft(words, environment, [])
            started = spawn(draft, self._inheritance, output, settings.directory)
            process = self._children.started(started.pid)
            self._loop.start(started.failure(), f"the {hook.kind} hook")
            return process

        try:
            await run_hook(hook, self._loop, start, self._around.name, self._around.write)  # type: ignore[arg-type]
        except HookFailed as error:
            raise StartFailed(str(error), error.output) from error

    def _environment(self, settings: ServiceSettings) -> dict[str, str]:
        """Raises StartFailed."""
        try:
            path = settings.environment_file
            more = environment_file.read(path, self._around.warn) if path is not None else {}
        except EnvironmentFileError as error:
            raise StartFailed(str(error)) from error
        return {**self._around.environment, **more, "MULTIBINDER_NAME": self._around.name}

    async def _spawn(
        self, settings: ServiceSettings, generation: int, index: int, wait_s: float
    ) -> tuple[Copy, Started, str]:
        environment = self._environment(settings) | {
            **self._around.sockets,
            **_variables(generation, index),
        }
        if self._around.watchdog_s is not None:
            environment["WATCHDOG_USEC"] = str(int(self._around.watchdog_s * 1e6))
        try:
            sockets, warnings = await self._listeners.acquire(settings.binds, wait_s)
        except NoListeners as error:
            raise StartFailed(str(error)) from error
        private = private_listener(settings)
        try:
            draft = draft_of(settings, environment, sockets, private)
            for warning in [*warnings, *draft.warnings]:
                self._around.warn(warning)
            address = private.getsockname()[:2] if private is not None else None
            copy, started = self._fork(settings, draft, generation, index, sockets, address)
            return copy, started, draft.command[0]
        finally:
            if private is not None:
                private.close()

    def _fork(
        self,
        settings: ServiceSettings,
        draft: Draft,
        generation: int,
        index: int,
        listeners: Sequence[Passed],
        ready_address: tuple[str, int] | None,
    ) -> tuple[Copy, Started]:
        try:
            reading, writing = _pipe()
        except OSError as error:
            raise StartFailed(f"no copy can be started: {error.strerror}") from error
        try:
            started = spawn(draft, self._inheritance, writing, settings.directory)
        except OSError as error:
            os.close(reading)
            raise StartFailed(f"no process can be started: {error.strerror}") from error
        finally:
            os.close(writing)
        process = self._children.started(started.pid)
        prefix = f"{self._around.name}[g{generation} {started.pid}]: "
        output = Output(reading, prefix, self._around.write, settings.ready.line)
        copy = Copy(process, generation, index, settings, output, listeners, ready_address)
        self._on_spawned(copy)
        return copy, started

    async def _until_executed(self, copy: Copy, started: Started, program: str) -> None:
        """Wait until the kernel has executed the command. Raises StartFailed."""
        error = await started.failure()
        if error is None:
            return
        await copy.ended.wait()
        directory = copy.settings.directory
        if error.filename is None and directory is not None and not os.path.isdir(directory):
            raise StartFailed(f"the working directory {directory}: {(error.strerror or '').lower()}")
        raise StartFailed(failure.sentence(error, program), exit_code=failure.exit_code(error))

    async def _until_ready(self, copy: Copy, settings: ServiceSettings, stable_s: float) -> None:
        """Wait until the copy is ready. Raises StartFailed."""
        check = check_of(settings.ready)
        waiting = self._loop.start(check.wait(copy), f"the check of {copy.pid}")
        over = Event()
        watchers = [
            self._loop.start(_set_after(waiting.wait(), over), "a check"),
            self._loop.start(_set_after(copy.ended.wait(), over), "an end"),
        ]
        deadline = time.monotonic() + settings.ready.timeout_s
        try:
            while not over.is_set:
                deadline = max(deadline, copy.notices.extended_until)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise StartFailed(_not_ready(check.describe(), check.last, settings), copy.output.last)
                await over.wait(min(left_s, 1.0))
            if copy.ended.is_set:
                raise self._has_ended(copy, "before it was ready")
            copy.ready_by = waiting.result()
        finally:
            waiting.cancel()
            for watcher in watchers:
                watcher.cancel()
        if stable_s and await copy.ended.wait(stable_s):
            raise self._has_ended(copy, f"within {stable_s:g} s after it was ready ({copy.ready_by})")

    def _has_ended(self, copy: Copy, when: str) -> StartFailed:
        copy.output.read_waiting()
        status = copy.process.status
        how = how_it_ended(status) if status is not None else "ended"
        left = len(copy.processes() - {copy.pid})
        hint = f"; {left} of its processes run on: does it daemonize? It must stay in the foreground" if left else ""
        return StartFailed(f"the new copy (pid {copy.pid}) {how} {when}{hint}", copy.output.last)

    async def _end_failed(self, copy: Copy) -> None:
        copy.output.read_waiting()
        await copy.end(_END_FAILED_S)


def _variables(generation: int, index: int) -> dict[str, str]:
    return {"MULTIBINDER_GENERATION": str(generation), "MULTIBINDER_INDEX": str(index)}


def _pipe() -> tuple[int, int]:
    """Return the two ends of a pipe for the output of a copy. The copy's end can be read too (fifo(7)).

    So it never gets SIGPIPE: a later ``run`` reads what it has written meanwhile.
    """
    reading, writing = os.pipe()
    try:
        with contextlib.suppress(OSError):  # above the limit of this user (pipe(7))
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        both = os.open(f"/proc/self/fd/{writing}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return reading, both


async def _set_after(waiting: object, over: Event) -> None:
    await waiting  # type: ignore[misc]
    over.set()


def _not_ready(what: str, last: str, settings: ServiceSettings) -> str:
    seen = f"; last: {last}" if last else ""
    return f"the new copy was not ready within {settings.ready.timeout_s:g} s: waited for {what}{seen}"
