"""The client of ``control.sock``, by which the commands ask the ``run`` of an instance."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

import msgspec

from multibinder.launch import lock
from multibinder.launch.errors import LaunchError, NotAnswering, NotRunning
from multibinder.launch.run.files import MASTER_LOCK, RunInstance
from multibinder.launch.run.report import Answer, Progress, Request

#: A ``run`` that answers nothing at all for so long hangs, or is stopped (SIGSTOP).
_ALIVE_S = 5.0
_PAUSE_S = 0.01
#: An answer has the last lines of a copy's output, which are limited.
_LARGEST = 4 << 20

_message = msgspec.json.Decoder(Progress | Answer)


def ask(instance: RunInstance, request: Request, timeout_s: float, progress: Callable[[str], None]) -> Answer:
    """Ask for something, pass each progress on, and return the answer.

    Raises NoSuchInstance, NotRunning, NotAnswering, and LaunchError for what ``run`` refuses. After ``timeout_s`` the
    command is still under way.
    """
    instance.check_known()
    if request.command != "status":
        # A long command is silent for a while. One that is answered at once tells whether anybody is there.
        _exchange(instance, Request("status"), _ALIVE_S, lambda _: None)
    answer = _exchange(instance, request, timeout_s, progress)
    if answer.error:
        raise LaunchError(answer.error)
    return answer


def wait_for_end(instance: RunInstance, timeout_s: float) -> bool:
    """Wait until ``run``, which has answered a stop, has ended: only then another one can start. Raises OSError."""
    deadline = time.monotonic() + timeout_s
    while is_running(instance):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def is_running(instance: RunInstance) -> bool:
    """Return whether there is a ``run`` of the instance, which has its lock. Raises OSError."""
    path = instance.path(MASTER_LOCK)
    return os.path.exists(path) and lock.is_locked(path)


def _exchange(instance: RunInstance, request: Request, timeout_s: float, progress: Callable[[str], None]) -> Answer:
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.settimeout(timeout_s)
            sock.connect(instance.control_path)
            sock.sendall(msgspec.json.encode(request) + b"\n")
            for line in _lines(sock, deadline):
                message = _message.decode(line)
                if isinstance(message, Answer):
                    return message
                progress(message.text)
        except (TimeoutError, BlockingIOError):
            raise NotAnswering(_silence(instance, request, timeout_s)) from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise _absent(instance) from None
        except PermissionError:
            raise LaunchError(
                f"{instance.control_path}: permission denied; run this as the user of {instance.name}, or as root"
            ) from None
        except (ConnectionResetError, BrokenPipeError):
            pass
        except (msgspec.DecodeError, ValueError) as error:
            raise NotAnswering(
                f"the 'multibinder run' of {instance.name} answers what this version does not understand: {error}; "
                "start it again with this version"
            ) from None
        except OSError as error:
            raise LaunchError(f"{instance.control_path}: {(error.strerror or str(error)).lower()}") from error
    raise LaunchError(
        f"the 'multibinder run' of {instance.name} ended, or closed the connection, before the {request.command} was "
        "done; its log says why"
    )


def _lines(sock: socket.socket, deadline: float) -> Iterator[bytes]:
    """Yield each line. Raises TimeoutError at the deadline, also if data comes all the time."""
    buffered = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        chunk = sock.recv(65536)
        if not chunk:
            return
        *lines, buffered = (buffered + chunk).split(b"\n")
        yield from lines
        if len(buffered) > _LARGEST:
            raise ValueError(f"a line of more than {_LARGEST} bytes")


def _absent(instance: RunInstance) -> LaunchError:
    try:
        runs = is_running(instance)
    except OSError:
        runs = False
    if runs:
        return NotAnswering(
            f"the 'multibinder run' of {instance.name} runs, and nobody listens at {instance.control_path}: it starts "
            "or ends at this moment, or the file was removed; try again"
        )
    return NotRunning(f"{instance.name} does not run; 'multibinder run --name {instance.name} ...' starts it")


def _silence(instance: RunInstance, request: Request, timeout_s: float) -> str:
    if request.command == "status":
        return (
            f"the 'multibinder run' of {instance.name} does not answer within {timeout_s:g} s: it hangs, or is stopped "
            "(SIGSTOP); its copies serve on"
        )
    return (
        f"the {request.command} of {instance.name} is not done after {timeout_s:g} s, and goes on; "
        "'multibinder instances' shows its state, and --timeout waits longer"
    )
