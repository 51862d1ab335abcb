"""The files of one HAProxy instance.

::

    RUNTIME/NAME/           as multibinder.launch.instance_files describes it, and:
        instance.json       the Invocation, with the master's descriptors
        loaded.json         the configuration that HAProxy was last given (Loaded)
        last-good.json      the last configuration with which a worker came up (last_good.py)
        condemned.json      a configuration with which no worker came up (last_good.py)
        last-reload.json    the report of the last reload (ReloadReport)
        compiled-templates  the code of Jinja2's templates, for the next rendering
        web.cfg …           the rendered files that HAProxy reads
        master.sock         HAProxy's master CLI, unless its arguments have one
"""

from __future__ import annotations

import os

import msgspec

from multibinder.kernel import process
from multibinder.launch import instance_files
from multibinder.launch.errors import NoSuchInstance, NotAnswering, NotRunning
from multibinder.launch.instance_files import InstanceFiles
from multibinder.launch.log import InstanceLog
from multibinder.launch.summary import LoadedConfiguration, SummaryWriter
from multibinder.wire.instance_summary import SourceDirectory, SourceFile
from multibinder_haproxy.invocation import LAST_RELOAD_FILE, Invocation
from multibinder_haproxy.master import Master, environment_of
from multibinder_haproxy.records import Loaded, ReloadReport
from multibinder_haproxy.reexec import environment, processes
from multibinder_haproxy.reexec.settling import LOADED_FILE

PROGRAM = "multibinder-haproxy"


class Instance(InstanceFiles):
    """The directory of one instance, with its records, its ``summary`` and its ``log``."""

    def __init__(self, runtime_directory: str, name: str) -> None:
        super().__init__(runtime_directory, name, f"{PROGRAM} run --name {name} -- haproxy -Ws -f FILE.j2")
        self.log = InstanceLog(PROGRAM, name)
        self.summary = SummaryWriter(self.directory, name, self.log, self._loaded_for_summary)

    @classmethod
    def at(cls, directory: str) -> Instance:
        return cls(os.path.dirname(directory), os.path.basename(directory))

    def read_invocation(self) -> Invocation:
        """Read the record of how the instance was started. Raises NoSuchInstance, NotTrusted."""
        return self.read_invocation_as(Invocation)

    def _read_invocation(self) -> bytes:
        try:
            return super()._read_invocation()
        except NoSuchInstance:
            if not self._was_removed() or (pid := self.master_pid()) is None:
                raise
            raise NotAnswering(
                f"HAProxy's master (pid {pid}) runs, but its directory {self.directory} was removed, so that it cannot "
                f"be asked; 'kill -USR2 {pid}' makes the directory again, and 'kill -USR1 {pid}' stops it"
            ) from None

    def _was_removed(self) -> bool:
        try:
            os.lstat(self.path(instance_files.INVOCATION_FILE))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            pass
        return False

    def master(self) -> Master:
        """Return the CLI of HAProxy's master. Raises NoSuchInstance, NotTrusted."""
        return Master(self.read_invocation().master_socket, self.master_pid)

    def master_pid(self) -> int | None:
        """Return the PID of HAProxy's master; None if there is none."""
        if (pid := processes.master_of(self.directory)) is not None:
            return pid
        # Another lock file may be in place of the one that the master has.
        loaded = self.read_loaded()
        if loaded is not None and loaded.identity is not None:
            return loaded.identity.pid if processes.is_alive(msgspec.to_builtins(loaded.identity)) else None
        # A master that version 0.1 started has no lock.
        recorded = self.summary.read_or_new().master
        if recorded is None or not recorded.start_ticks:
            return None
        found = process.stat_or_none(recorded.pid)
        lives = found is not None and not found.has_ended and found.start_ticks == recorded.start_ticks
        return recorded.pid if lives else None

    def environment(self) -> dict[str, str]:
        """Return the environment of ``run``, which templates see at every load. Raises NotRunning if it is unknown."""
        if (recorded := environment.read(self.directory)) is not None:
            return recorded
        # Version 0.1 started the master, and wrote no record of it.
        pid = self.master_pid()
        if pid is None:
            raise NotRunning(f"{self.name} does not run, and there is no record of its environment")
        return environment_of(pid)

    @property
    def loaded_path(self) -> str:
        return self.path(LOADED_FILE)

    def read_loaded(self) -> Loaded | None:
        return self.read_record(LOADED_FILE, Loaded)

    def read_report(self) -> ReloadReport | None:
        return self.read_record(LAST_RELOAD_FILE, ReloadReport)

    def write_loaded(self, loaded: Loaded) -> None:
        self.write_record(LOADED_FILE, loaded)

    def write_report(self, report: ReloadReport) -> None:
        self.write_record(LAST_RELOAD_FILE, report)

    def _loaded_for_summary(self) -> LoadedConfiguration | None:
        loaded = self.read_loaded()
        if loaded is None:
            return None
        sources = loaded.config.sources
        return LoadedConfiguration(
            generation=loaded.generation,
            fallback=loaded.fallback is not None,
            loaded_at=loaded.at,
            binds=[slot.key for slot in loaded.config.slots],
            sources=[SourceFile(each.path, each.mtime_ns, each.size, each.inode) for each in sources.files],
            directories=[SourceDirectory(each.path, each.files, each.suffixes) for each in sources.directories],
        )
