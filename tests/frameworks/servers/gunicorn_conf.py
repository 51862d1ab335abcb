"""The configuration of gunicorn, with three workers of the class that WORKER_CLASS names."""

import os

import multibinder

bind = f"fd://{multibinder.bind('127.0.0.1', int(os.environ['PORT']), inheritable=True).detach()}"
workers = 3
threads = 4
worker_class = os.environ["WORKER_CLASS"]


def post_worker_init(worker: object) -> None:
    print("ready", flush=True)
