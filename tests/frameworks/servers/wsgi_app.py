"""The application of the servers for WSGI."""

import os
import time
from collections.abc import Callable, Iterable


def app(_: dict[str, object], start_response: Callable[..., object]) -> Iterable[bytes]:
    time.sleep(0.002)
    body = b"%d\n" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
