"""A WSGI application that answers with the PID of its worker."""

import os
from collections.abc import Callable, Iterable


def app(_: dict[str, object], start_response: Callable[..., object]) -> Iterable[bytes]:
    body = b"%d\n" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
