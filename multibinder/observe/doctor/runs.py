"""Read the public summaries of the instances of ``multibinder run``, and check them."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.observe.doctor.backlog import listed
from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding, Unchecked
from multibinder.observe.instances import Instance, instances
from multibinder.wire.instance_summary import InstanceSummary


def read_runs(directory: str, unchecked: list[Unchecked]) -> list[Instance]:
    """Return the instances of ``multibinder run`` whose summaries can be read."""
    try:
        found = instances(directory, "run")
    except OSError as error:
        unchecked.append(Unchecked("the instances of 'run'", f"{directory}: {(error.strerror or str(error)).lower()}"))
        return []
    for each in found:
        if each.summary is None:
            unchecked.append(Unchecked(f"instance {each.name} of 'run'", each.why))
    return [each for each in found if each.summary is not None]


def runs(facts: Facts) -> Iterator[Finding]:
    """Report each instance of ``run`` that gave up, is gone, has copies that are not ready, or waits with canaries."""
    for instance in facts.runs:
        if instance.summary is not None and instance.summary.state != "stopped":
            yield from _finding(instance, instance.summary)


def _finding(instance: Instance, summary: InstanceSummary) -> Iterator[Finding]:
    name = instance.name
    where = f"instance {name} of 'multibinder run'"
    show = f"multibinder instances run:{name}"
    if instance.up is False:
        yield _without_run(instance, where)
    elif summary.gave_up:
        yield Finding(
            "run-gave-up",
            "problem",
            f"its command cannot be started, and its ports are closed: {listed(summary.binds)}",
            where,
            "Clients are refused. It goes on trying, and opens the ports again at each try",
            show,
        )
    elif instance.workers is not None and instance.workers < summary.wanted and summary.state == "running":
        yield Finding(
            "run-copies",
            "warning" if instance.workers else "problem",
            f"{instance.workers} of {summary.wanted} copies are ready",
            where,
            "The others crashed, or are not ready yet"
            if instance.workers
            else "Clients wait in the queue: its command ended, or is not ready, and is tried again",
            show,
        )
    elif summary.activity == "canary":
        yield Finding(
            "run-canary",
            "note",
            "canaries serve beside the old copies, and wait for an operator",
            where,
            "Other reloads wait meanwhile",
            f"multibinder reload --continue run:{name}",
        )
    if instance.changed:
        yield Finding(
            "run-config",
            "warning",
            f"changed on disk since it was loaded: {listed([each.path for each in summary.sources])}",
            where,
            "It runs with the old settings. A copy that is started after a crash takes them as well, and the next "
            "start of 'run' takes the new ones",
            f"multibinder reload run:{name}",
        )


def _without_run(instance: Instance, where: str) -> Finding:
    if instance.workers or instance.old_workers:
        return Finding(
            "run-alone",
            "warning",
            "'multibinder run' was killed, and its copies serve on",
            where,
            "A copy that ends is not started again. The next 'run' of this name takes them over",
            f"systemctl start multibinder-run@{instance.name}",
        )
    return Finding(
        "run-dead",
        "problem",
        "'multibinder run' is gone, and so are its copies",
        where,
        "Clients wait in the queue as long as its ports are open",
        f"systemctl start multibinder-run@{instance.name}",
    )
