"""The console script, and the program that HAProxy's master executes in place of itself.

HAProxy's master re-executes argv[0] to reload (SIGUSR2, or ``reload`` on its CLI); ``run`` put this program's name
there. After each load HAProxy up to 3.0 re-executes itself a second time, to free the memory of the configuration, with
HAPROXY_MWORKER_WAIT_ONLY set. Then this program only has to execute HAProxy, and quickly: this module and haproxy_exec
import nothing but the standard library.
"""

import contextlib
import json
import os
import select
import sys

from multibinder_haproxy.haproxy_exec import exec_haproxy

#: The same as invocation.VARIABLE, whose module imports too much.
_VARIABLE = "MULTIBINDER_HAPROXY"


def main() -> None:
    """Become HAProxy again if HAProxy's master executed us, or run one of our own commands."""
    _open_std_descriptors()
    arguments = sys.argv[1:]
    # HAProxy's arguments begin with an option, our own commands do not.
    if "HAPROXY_MWORKER_REEXEC" in os.environ and arguments and arguments[0].startswith("-"):
        invocation = _read_invocation(arguments)
        if invocation is not None:
            if "HAPROXY_MWORKER_WAIT_ONLY" not in os.environ:
                _resume(invocation, arguments)
            exec_haproxy(json.loads(invocation)["haproxy"], [sys.argv[0], *arguments])
    from multibinder_haproxy.cli import main as command_line

    command_line()


def _resume(invocation: str, arguments: list[str]) -> None:
    """Load the configuration anew and become HAProxy. Returns only if that fails.

    After any failure the caller executes HAProxy, because the old workers need their master. Even the import can fail,
    while an upgrade replaces our package.
    """
    try:
        from multibinder_haproxy.resume import resume

        resume(invocation, arguments)
    except Exception as error:
        what = f"reload: {type(error).__name__}: {error}"
        _warn(f"multibinder-haproxy error: {what}; HAProxy goes on with the files as they are\n")


def _warn(line: str) -> None:
    """Write a line to stderr if that does not block: a pipe that poll(2) reports as writable takes 4,096 bytes."""
    try:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if any(events & select.POLLOUT for _, events in poll.poll(0)):
            os.write(2, line.encode(errors="backslashreplace")[:4096])
    except OSError:
        pass


def _open_std_descriptors() -> None:
    """Open /dev/null for each standard descriptor that is closed, as kernel/std_descriptors.py does.

    Otherwise the first listener would become HAProxy's stderr.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                # open(2) returns the lowest free number, which is this one.
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _read_invocation(arguments: list[str]) -> str | None:
    """Return the invocation as JSON, from the environment or the instance's directory; None if there is none.

    HAProxy up to 3.0 applies a configuration's ``resetenv`` to its master. Then the environment lacks it, and
    instance.json lies beside the rendered file that -f names.
    """
    if _VARIABLE in os.environ:
        return os.environ[_VARIABLE]
    for flag, value in zip(arguments, arguments[1:], strict=False):  # noqa: RUF007 (fast start)
        if flag in ("-f", "--"):
            try:
                path = os.path.join(os.path.dirname(value), "instance.json")
                with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8") as file:
                    # The record names programs to execute: another user's is not believed, as in launch/trust.py.
                    if os.fstat(file.fileno()).st_uid in (0, os.geteuid()):
                        return file.read()
            except OSError:
                continue
    return None
