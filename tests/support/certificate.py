"""A certificate for a TLS server on this host, which the tests do not verify."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

from tests.support.requirements import require


def server_context(directory: Path) -> ssl.SSLContext:
    """Return the context of a server with a certificate of its own, whose files are in ``directory``."""
    require("openssl", shutil.which("openssl"), "it makes the certificate")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2"
    subprocess.run(
        ["openssl", "req", *options.split(), "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def client_context() -> ssl.SSLContext:
    """Return the context of a client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
