"""The name that a listener has at the keeper."""

from __future__ import annotations

#: Characters that both FDNAME= (sd_notify(3)) and a file name may have.
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-"


def name_of_cookie(cookie: int) -> str:
    """Return the shortest text for ``cookie`` that can be an FDNAME.

    All names together must fit into one string of the environment (LISTEN_FDNAMES): 128 KiB (MAX_ARG_STRLEN,
    execve(2)). Five characters and a colon are short enough for 20,000 listeners.
    """
    digits = ""
    while cookie:
        cookie, digit = divmod(cookie, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits
