"""Programs whose way with inherited listeners is known: their style, and what they do that an operator must know.

Standard library alone. What each of them does was read in its source, or seen (docs/daemons.md).
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from multibinder.launch.styles.passed import Passed

#: Programs that take listeners in their own style and in no other.
_STYLES = {"nginx": "nginx", "openresty": "nginx", "php-fpm": "php-fpm", "h2o": "server-starter"}
#: Programs that take a listener as an argument alone, and this argument.
_ARGUMENTS = {"uvicorn": "--fd {NAME}", "hypercorn": "-b fd://{NAME}", "daphne": "--fd {NAME}"}
#: Programs that bind their ports themselves, and cannot be given a socket.
_CANNOT = ("granian", "redis-server", "valkey-server", "named", "knotd", "dnsmasq")

#: sd_booted(3) looks for this directory.
_BOOTED = "/run/systemd/system"


def program_of(command: "Sequence[str]") -> str:
    """Return the name of the program that a command starts: of what Python runs, not 'python3', and without version."""
    name = _base_name(command[0])
    if name.rstrip("0123456789.") == "python":
        words = iter(command[1:])
        for word in words:
            if word == "-m":
                return next(words, name).partition(".")[0]
            if not word.startswith("-"):
                return _base_name(word)
            if word == "-c":
                break
    if name.startswith("php-fpm"):
        return "php-fpm"
    return name


def style_of(program: str) -> "str | None":
    """Return the style of a program for which it is certain; None for any other."""
    return _STYLES.get(program)


def argument_of(program: str) -> "str | None":
    """Return the argument by which alone a program takes a listener; None for any other."""
    return _ARGUMENTS.get(program)


def binds_itself(program: str) -> bool:
    """Return whether a program is known to take no listener."""
    return program in _CANNOT


def warning_about(
    command: "Sequence[str]", sockets: "Sequence[Passed]", styles: "Collection[str]", is_named: bool
) -> "str | None":
    """Return what an operator must know before this program gets these sockets; None for most programs.

    ``is_named`` says that the command names a socket by ``{NAME}``. Without ``styles``, it is passed by that alone.
    """
    program = program_of(command)
    has_path = any(isinstance(each.endpoint, str) and each.endpoint.startswith("/") for each in sockets)
    if program in _CANNOT:
        closes = ", and closes what it inherits" if program == "dnsmasq" else ""
        return (
            f"{program} cannot take a listener{closes}: it binds its ports itself, and clients of these wait for ever"
        )
    if program == "apache2":
        return (
            "apache2 takes a listener only by mod_systemd, without which Debian builds it: there it binds its ports "
            "itself, and fails because the binder has them"
        )
    if program == "unbound" and not os.path.isdir(_BOOTED):
        return (
            f"unbound takes no socket where systemd does not run, and fails because the binder has its ports: create "
            f"the directory {_BOOTED}, by which it sees that"
        )
    if program == "php-fpm" and has_path and "php-fpm" in styles:
        return (
            "php-fpm removes the path of a Unix socket when it ends, also under the next copy: name the socket (-b "
            "ADDRESS=www), give --env FPM_SOCKETS=/inherited/www={www}, and write 'listen = /inherited/www'"
        )
    if program == "dovecot" and "systemd" in styles:
        return (
            "dovecot shuts down each listener of LISTEN_FDS that its configuration does not name, for every process: "
            "name each of them there, with the same address"
        )
    if program == "gunicorn" and has_path and any("fd://" in word for word in command):
        return (
            "gunicorn with --bind fd:// removes the path of a Unix socket when it ends: leave --bind out, and the "
            "style systemd tells it of the socket"
        )
    if program in _ARGUMENTS and not is_named and not any(_is_configured(word) for word in command[1:]):
        return (
            f"{program} reads no variable about listeners, and binds by itself: give -b a name (-b ADDRESS=NAME), and "
            f"{program} the argument {_ARGUMENTS[program]}"
        )
    return None


def _is_configured(word: str) -> bool:
    """Return whether an argument names a descriptor, or a file that may do so."""
    return "fd" in word or word in ("-c", "--config") or word.startswith("--config=")


def _base_name(path: str) -> str:
    return path.rpartition("/")[2]
