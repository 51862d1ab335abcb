"""A worker of gunicorn with a uvicorn whose protocol is patient."""

from uvicorn_worker import UvicornWorker


class PatientWorker(UvicornWorker):
    CONFIG_KWARGS = {"loop": "auto", "http": "patient_uvicorn:Protocol"}
