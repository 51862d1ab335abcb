"""The report of a reload that was refused before anything was touched."""

from __future__ import annotations

from multibinder.launch.direct.slots import address_of
from multibinder.launch.errors import LaunchError
from multibinder.launch.run.instance import Instance
from multibinder.launch.run.report import ReloadReport
from multibinder.launch.run.settings import ServiceSettings


def refused(instance: Instance, error: LaunchError) -> ReloadReport:
    """Return the report of a reload that was refused before anything was touched."""
    instance.failed(error)
    return ReloadReport(
        ok=False,
        message=str(error),
        generation=instance.generation,
        took_s=0.0,
        old=[copy.pid for copy in instance.serving],
        new=[copy.pid for copy in instance.serving],
        kept=addresses_of(instance.service_settings),
    )


def addresses_of(settings: ServiceSettings) -> list[str]:
    """Return the addresses of all binds, each once."""
    return list(dict.fromkeys(address_of(slot) for bind in settings.binds for slot in bind.slots))
