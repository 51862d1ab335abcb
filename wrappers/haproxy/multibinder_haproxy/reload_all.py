"""``reload --all``: every instance that runs, one after the other."""

from __future__ import annotations

from multibinder.launch.errors import LaunchError
from multibinder.launch.instance_files import known_instances
from multibinder.launch.owner import other_owner
from multibinder_haproxy.as_owner import run_as_owner, status_by_owner
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.output import print_error, print_finished, print_report, say
from multibinder_haproxy.reload import reload


def reload_all(runtime_directory: str, timeout_s: float, keep_going: bool) -> int:
    """Reload with progress on stdout, and return the exit code: 1 if a reload failed.

    After a failure the rest is not touched, unless ``keep_going``.
    """
    instances = [Instance(runtime_directory, name) for name in known_instances(runtime_directory)]
    running: list[Instance] = []
    failed: list[str] = []
    for instance in instances:
        try:
            if _runs(instance):
                running.append(instance)
        except LaunchError as error:
            # An instance of another user must not keep the others from their reload.
            print_error(f"{instance.name}: {error}")
            failed.append(instance.name)
    number = 0
    for number, instance in enumerate(running, 1):
        say(f"[{number}/{len(running)}] ", nl=False)
        if not _reload(instance, timeout_s):
            failed.append(instance.name)
            if not keep_going:
                break
    if failed:
        rest = ", ".join(instance.name for instance in running[number:])
        say(f"failed: {', '.join(failed)}{f'; not tried: {rest} (--keep-going)' if rest else ''}", err=True)
    elif not running:
        say(f"No instance runs in {runtime_directory}.", err=True)
    return 1 if failed else 0


def _runs(instance: Instance) -> bool:
    """Return whether an instance runs. Nothing of ours is rendered for this. Raises LaunchError."""
    if other_owner(instance.directory) is None:
        instance.check_known()
        return instance.master_pid() is not None
    return status_by_owner(instance).state != "stopped"


def _reload(instance: Instance, timeout_s: float) -> bool:
    """Reload one instance, print how it ended, and return whether it succeeded."""
    name = instance.name
    try:
        finished = run_as_owner(instance, "reload", "--timeout", str(timeout_s), name, timeout_s=timeout_s)
    except LaunchError as error:
        say(f"{name}: failed")
        print_error(f"{name}: {error}")
        return False
    if finished is not None:
        print_finished(finished)
        return finished.returncode == 0
    try:
        report = reload(instance, timeout_s)
    except (LaunchError, OSError) as error:
        say(f"{name}: failed")
        print_error(f"{name}: {error}")
        return False
    if not report.ok:
        say(f"{name}: failed")
    print_report(name, report)
    return report.ok
