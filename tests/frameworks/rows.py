"""The table of frameworks: how each server of ``servers/`` is started, and when it is ready."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

SERVERS = Path(__file__).parent / "servers"


@dataclass(frozen=True, slots=True)
class Row:
    """A server of the table.

    ``arguments`` follow the interpreter; PORT stands for the port. ``packages`` are the distributions that it needs.
    It is ready when its output has had the text ``ready`` as often as ``times``.
    """

    name: str
    arguments: tuple[str, ...]
    packages: tuple[str, ...] = ()
    ready: str = "ready"
    times: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    is_tls: bool = False

    def command(self, port: int) -> list[str]:
        return [sys.executable, *(word.replace("PORT", str(port)) for word in self.arguments)]


def _program(name: str, script: str, *arguments: str, packages: tuple[str, ...] = (), **how: object) -> Row:
    return Row(name, (str(SERVERS / f"{script}.py"), "PORT", *arguments), packages, **how)  # type: ignore[arg-type]


def _gunicorn(name: str, worker: str, app: str, *packages: str) -> Row:
    arguments = ("-m", "gunicorn", "--config", str(SERVERS / "gunicorn_conf.py"), app)
    variables = {"PORT": "PORT", "WORKER_CLASS": worker}
    ready = "ready" if "." not in worker else _UP
    return Row(name, arguments, ("gunicorn", *packages), ready, times=3, environment=variables)


_UP = "Application startup complete"
_UVICORN = ("uvicorn", "fastapi")
_UVICORN_WORKER = ("uvicorn-worker", "uvicorn", "fastapi")
_AS_IT_IS = "as-it-is"


def _uvicorn(name: str, *arguments: str, times: int = 1) -> Row:
    packages = (*_UVICORN, "uvloop") if "uvloop" in arguments else _UVICORN
    return _program(name, "uvicorn_fastapi", *arguments, packages=packages, ready=_UP, times=times)


#: A row whose name ends so has the line that takes the listener, and no more: its framework loses clients when it
#: stops. The row before it stops in a better way.
BARE = ", bare"

ROWS = (
    _program("multibinder.threading", "our_threads"),
    _program("multibinder.asyncio", "our_asyncio"),
    _program("multibinder.asyncio on uvloop", "our_asyncio", "uvloop", packages=("uvloop",)),
    _program("socketserver", "socketserver_threads"),
    _program("asyncio", "asyncio_streams"),
    _program("asyncio on uvloop", "asyncio_streams", "uvloop", packages=("uvloop",)),
    _program("multiprocessing, fork", "prefork", "fork", times=3),
    _program("multiprocessing, spawn", "prefork", "spawn", times=3),
    _program("TLS, wrap_socket", "tls_threads", is_tls=True),
    _program("aiohttp", "aiohttp_app", packages=("aiohttp",), ready="Running on"),
    _program("aiohttp" + BARE, "aiohttp_app", _AS_IT_IS, packages=("aiohttp",), ready="Running on"),
    _uvicorn("uvicorn", "asyncio", "1"),
    _uvicorn("uvicorn" + BARE, "asyncio", "1", _AS_IT_IS),
    _uvicorn("uvicorn on uvloop", "uvloop", "1"),
    _uvicorn("uvicorn on uvloop" + BARE, "uvloop", "1", _AS_IT_IS),
    _uvicorn("uvicorn, 3 workers", "asyncio", "3", times=3),
    _uvicorn("uvicorn, 3 workers" + BARE, "asyncio", "3", _AS_IT_IS, times=3),
    _program("hypercorn", "hypercorn_fastapi", packages=("hypercorn", "fastapi"), ready="Running on"),
    _program("hypercorn" + BARE, "hypercorn_fastapi", _AS_IT_IS, packages=("hypercorn", "fastapi"), ready="Running on"),
    _gunicorn("gunicorn, sync", "sync", "wsgi_app:app"),
    _gunicorn("gunicorn, gthread", "gthread", "wsgi_app:app"),
    _gunicorn("gunicorn, uvicorn worker", "gunicorn_worker.PatientWorker", "fastapi_app:app", *_UVICORN_WORKER),
    _gunicorn("gunicorn, uvicorn worker" + BARE, "uvicorn_worker.UvicornWorker", "fastapi_app:app", *_UVICORN_WORKER),
    _program("waitress", "waitress_app", packages=("waitress",)),
    _program("waitress" + BARE, "waitress_app", _AS_IT_IS, packages=("waitress",)),
    _program("Tornado", "tornado_app", packages=("tornado",)),
    _program("Tornado" + BARE, "tornado_app", _AS_IT_IS, packages=("tornado",)),
    _program("Twisted", "twisted_site", packages=("twisted",)),
    _program("Twisted" + BARE, "twisted_site", _AS_IT_IS, packages=("twisted",)),
)
