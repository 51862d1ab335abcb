"""The options of ``run`` as a command line or a file gives them, and the settings that they are together."""

from __future__ import annotations

import math
import re
import signal

from multibinder.launch.errors import UsageError
from multibinder.launch.run.readiness.choice import check_of
from multibinder.launch.run.settings import Hooks, Readiness, ServiceOptions, ServiceSettings

_CANARY = re.compile(r"[1-9][0-9]*|([1-9][0-9]?|100)%")
#: The options of which only one can be given.
_CHECKS = ("ready-notify", "ready-http", "ready-tcp", "ready-line", "ready-after", "ready-einhorn")


def overlaid(below: ServiceOptions, above: ServiceOptions) -> ServiceOptions:
    """Return the options of ``above``, and for those that were not given there, those of ``below``.

    A check of readiness above replaces that below. Variables of both are joined.
    """
    options = {name: value for name in ServiceOptions.__struct_fields__ if (value := getattr(below, name)) is not None}
    more = {name: value for name in ServiceOptions.__struct_fields__ if (value := getattr(above, name)) is not None}
    checks = {name.replace("-", "_") for name in _CHECKS}
    if checks & more.keys():
        options = {name: value for name, value in options.items() if name not in checks}
    if below.env and above.env:
        more["env"] = {**below.env, **above.env}
    return ServiceOptions(**{**options, **more})


def settings_of(options: ServiceOptions) -> ServiceSettings:
    """Return the settings. Raises UsageError for what makes no sense."""
    if not options.command or not options.command[0]:
        raise UsageError("no command is given: write it after '--', or as 'command' in the file")
    return ServiceSettings(
        command=options.command,
        binds=options.bind or [],
        styles=options.style or [],
        environment=options.env or {},
        environment_file=options.env_file,
        directory=options.directory,
        instances=_at_least(1, "instances", options.instances, 1),
        max_overlap=_at_least(0, "max-overlap", options.max_overlap, 1),
        canary=_canary(options),
        canary_for_s=_time("canary-for", options.canary_for, None),
        ready=_readiness(options),
        hooks=Hooks(
            pre_start=options.pre_start,
            post_ready=options.post_ready,
            pre_stop=options.pre_stop,
            timeout_s=_time("hook-timeout", options.hook_timeout, Hooks().timeout_s, above=0) or 0,
        ),
        stop_signal=_signal(options.stop_signal),
        drain_timeout_s=_time("drain-timeout", options.drain_timeout, ServiceSettings([]).drain_timeout_s) or 0,
    )


def _readiness(options: ServiceOptions) -> Readiness:
    given = [name for name in _CHECKS if getattr(options, name.replace("-", "_")) not in (None, False)]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} are two checks of readiness: give one")
    readiness = Readiness(
        timeout_s=_time("ready-timeout", options.ready_timeout, Readiness().timeout_s, above=0) or 0,
        stable_s=_time("stable-for", options.stable_for, Readiness().stable_s) or 0,
        notify=bool(options.ready_notify),
        http=options.ready_http,
        tcp=options.ready_tcp,
        line=options.ready_line,
        after_s=_time("ready-after", options.ready_after, None),
        einhorn=bool(options.ready_einhorn),
    )
    if readiness.after_s is not None and readiness.after_s >= readiness.timeout_s:
        raise UsageError(
            f"ready-after ({readiness.after_s:g} s) is not below ready-timeout ({readiness.timeout_s:g} s)"
        )
    check_of(readiness)
    return readiness


def _canary(options: ServiceOptions) -> str | None:
    if options.canary is None:
        if options.canary_for is not None:
            raise UsageError("canary-for is given without canary: say how many copies are replaced first")
        return None
    if not _CANARY.fullmatch(options.canary):
        raise UsageError(f"canary is {options.canary!r}: give a number of copies, or a percentage such as 10%")
    return options.canary


def _at_least(least: int, name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if value < least:
        raise UsageError(f"{name} is {value}: it must be at least {least}")
    return value


def _time(name: str, value: float | None, default: float | None, above: float = -1) -> float | None:
    if value is None:
        return default
    if not math.isfinite(value) or value < 0 or value <= above:
        raise UsageError(f"{name} is {value:g}: give a number of seconds" + (" above 0" if above == 0 else ""))
    return float(value)


def _signal(value: int | str | None) -> int:
    if value is None:
        return signal.SIGTERM.value
    try:
        if isinstance(value, int) or value.isdigit():
            number = int(value)
            if not 0 < number < signal.NSIG:
                raise ValueError
            return number
        name = value.upper()
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except (KeyError, ValueError):
        raise UsageError(f"stop-signal is {value!r}: that is no signal; give a name such as TERM or QUIT") from None
