"""Compare running programs with the installed version and the files on disk."""

from __future__ import annotations

from collections.abc import Iterator

from multibinder.observe.doctor.backlog import listed
from multibinder.observe.doctor.facts import Facts
from multibinder.observe.doctor.finding import Finding


def version(facts: Facts) -> Iterator[Finding]:
    """Report a binder whose version is not the installed one."""
    if facts.binder is not None and facts.binder.version not in (facts.version, "unknown"):
        yield Finding(
            "version",
            "warning",
            f"the binder runs version {facts.binder.version}, and {facts.version} is installed",
            f"the binder{f' (pid {facts.binder.pid})' if facts.binder.pid else ''}",
            "The fixes of the installed version are not in effect yet. An upgrade in place keeps every socket and "
            "connection",
            "multibinder upgrade",
        )


def units(facts: Facts) -> Iterator[Finding]:
    """Report unit files that are older than the installed version."""
    install = "multibinder systemd install" + (f" --prefix {facts.prefix}" if facts.prefix != "/" else "")
    outdated = [unit.path for unit in facts.units if unit.state == "outdated"]
    if outdated:
        yield Finding(
            "unit",
            "warning",
            f"{len(outdated)} unit file{'s are' if len(outdated) > 1 else ' is'} older than the installed version",
            ", ".join(outdated),
            "They may name commands that are gone, or lack what the binder needs to keep its sockets",
            install + (" && systemctl daemon-reload" if facts.prefix == "/" else ""),
        )


def instances(facts: Facts) -> Iterator[Finding]:
    """Report each HAProxy whose loaded configuration differs from the files on disk."""
    for instance in facts.instances:
        if instance.changed:
            yield Finding(
                "haproxy-config",
                "warning",
                f"changed on disk since the last reload: {listed(instance.changed)}",
                f"HAProxy instance {instance.name}",
                "It runs with the old configuration. The next restart, planned or after a crash, takes the new one "
                "without a check",
                f"multibinder-haproxy check {instance.name} && multibinder-haproxy reload {instance.name}",
            )
