"""The files of one HAProxy instance.

::

    RUNTIME/NAME/           as multibinder.launch.instance_files describes it, and:
        instance.json       the Invocation, with the master's descriptors
        loaded.json         the configuration that HAProxy was last given (Loaded)
        last-good.json      the last configuration with which a worker came up (LastGood)
        last-reload.json    the report of the last reload (ReloadReport)
        web.cfg …           the rendered files that HAProxy reads
        master.sock         HAProxy's master CLI, unless its arguments have one
"""

from __future__ import annotations

import os
import time

from multibinder.kernel.process import start_ticks_of
from multibinder.launch.instance_files import InstanceFiles
from multibinder.launch.log import InstanceLog
from multibinder.launch.summary import LoadedConfiguration, SummaryWriter
from multibinder.wire.instance_summary import SourceDirectory, SourceFile
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.invocation import LAST_RELOAD_FILE, Invocation
from multibinder_haproxy.master import Master
from multibinder_haproxy.records import LastGood, Loaded, ReloadReport
from multibinder_haproxy.reexec import processes
from multibinder_haproxy.reexec.load import LAST_GOOD_FILE, LOADED_FILE

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

    def master(self) -> Master:
        """Return the CLI of HAProxy's master. Raises NoSuchInstance, NotTrusted."""
        return Master(self.read_invocation().master_socket, self.master_pid)

    def master_pid(self) -> int | None:
        """Return the PID of HAProxy's master; None if there is none."""
        if (pid := processes.master_of(self.directory)) is not None:
            return pid
        # A master that version 0.1 started has no lock. Its name on the command line may not be found either.
        recorded = self.summary.read_or_new().master
        return recorded.pid if recorded and recorded.start_ticks == start_ticks_of(recorded.pid) != 0 else None

    def read_loaded(self) -> Loaded | None:
        return self.read_record(LOADED_FILE, Loaded)

    def read_last_good(self) -> LastGood | None:
        return self.read_record(LAST_GOOD_FILE, LastGood)

    def read_report(self) -> ReloadReport | None:
        return self.read_record(LAST_RELOAD_FILE, ReloadReport)

    def write_loaded(self, loaded: Loaded) -> None:
        self.write_record(LOADED_FILE, loaded)

    def write_last_good(self, config: Config) -> None:
        self.write_record(LAST_GOOD_FILE, LastGood(config, time.time()))

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
