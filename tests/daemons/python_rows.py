"""The daemons in Python."""

from __future__ import annotations

from tests.daemons.row import BARE, Row
from tests.daemons.udp_load import Echo
from tests.support.restarts import Way

_UVICORN = ("uvicorn", "uvloop")
_EXEC = "/usr/bin/multibinder exec -b 127.0.0.1:8000=web --"

ROWS = (
    Row("asyncio", "asyncio", ready="ready"),
    Row("socketserver", "socketserver", ready="ready"),
    Row("a UDP server", "udp", ready="ready", question=Echo()),
    Row("gunicorn", "gunicorn", packages=("gunicorn",), ready="Booting worker", times=3),
    Row(
        "gunicorn, fd://",
        "gunicorn",
        exec_start=f"{_EXEC} /srv/gunicorn/venv/bin/gunicorn --workers 3 --threads 4 --bind fd://{{web}} app:app",
        packages=("gunicorn",),
        ready="Booting worker",
        times=3,
        has_run=False,
    ),
    Row("uvicorn", "uvicorn", packages=_UVICORN, ready="Application startup complete"),
    Row(
        "uvicorn" + BARE,
        "uvicorn",
        exec_start=f"{_EXEC} /srv/uvicorn/venv/bin/uvicorn --fd {{web}} app:app",
        packages=_UVICORN,
        ready="Application startup complete",
    ),
    Row("hypercorn", "hypercorn", packages=("hypercorn",), ready="Running on"),
    Row(
        "hypercorn" + BARE,
        "hypercorn",
        exec_start=f"{_EXEC} /srv/hypercorn/venv/bin/hypercorn -b fd://{{web}} app:app",
        packages=("hypercorn",),
        ready="Running on",
    ),
    Row("daphne", "daphne", packages=("daphne",), ready="ready"),
    Row(
        "daphne" + BARE,
        "daphne",
        exec_start=f"{_EXEC} /srv/daphne/venv/bin/daphne --fd {{web}} app:app",
        packages=("daphne",),
        ready="Listening on",
    ),
    Row("aiohttp", "aiohttp", packages=("aiohttp",), ready="Running on"),
    Row("waitress", "waitress", packages=("waitress",), ready="ready"),
    # It takes no listener; HAProxy before it has it.
    Row(
        "granian",
        "granian",
        packages=("granian",),
        programs=("haproxy",),
        ready="Started worker",
        front="haproxy",
        ways=(Way.STOP_THEN_START,),
        has_run=False,
        has_paths=False,
    ),
    Row("uWSGI", "uwsgi", programs=("uwsgi_python3",), ready="spawned uWSGI worker 2", loses=True),
)
