"""multiprocessing: the parent has the listener, and its children accept."""

import multiprocessing
import os
import signal
import socket
import sys
import time

import multibinder


def work(listener: multibinder.SharedListener) -> None:
    signal.signal(signal.SIGTERM, lambda *_: listener.shutdown(socket.SHUT_RDWR))
    print("ready", flush=True)
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # shut down, here alone: the other processes accept
        with client:
            client.settimeout(10)
            client.recv(4096)
            time.sleep(0.002)
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\n%d\n" % os.getpid())


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    listener = multibinder.bind("127.0.0.1", int(sys.argv[1]))
    workers = [context.Process(target=work, args=(listener,)) for _ in range(3)]
    for worker in workers:
        worker.start()

    def stop(*_: object) -> None:
        for worker in workers:
            worker.terminate()

    signal.signal(signal.SIGTERM, stop)
    for worker in workers:
        worker.join()
