"""uvicorn with FastAPI, on asyncio's loop or on uvloop's; with workers as well."""

import sys

import uvicorn
from uvicorn.supervisors import Multiprocess

import multibinder

if __name__ == "__main__":
    port, loop, workers = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    http = "auto" if sys.argv[4:] == ["as-it-is"] else "patient_uvicorn:Protocol"
    config = uvicorn.Config("fastapi_app:app", loop=loop, http=http, workers=workers, access_log=False)
    sockets = [multibinder.bind("127.0.0.1", port)]
    if workers == 1:
        uvicorn.Server(config).run(sockets)
    else:
        Multiprocess(config, sockets).run()
