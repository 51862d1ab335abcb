"""``multibinder exporter``: Prometheus metrics by HTTP, or written to a file."""

from __future__ import annotations

import click
from prometheus_client.exposition import generate_latest

from multibinder import MultibinderError, TcpAddress, __version__
from multibinder.cli.exporter_server import MetricsServer
from multibinder.cli.options import AddressType, socket_option
from multibinder.cli.wording import reason_of
from multibinder.kernel.files import replace
from multibinder.kernel.line_writer import write_now
from multibinder.kernel.process import printable
from multibinder.observe.metrics.scrape import Scrape

#: Less than Prometheus's default for a scrape (scrape_timeout: 10s), so that it still receives 'multibinder_up 0'.
_TIMEOUT_S = 8.0


class ExporterError(MultibinderError):
    """The exporter cannot serve; the message says why, and what to do."""


@click.command("exporter", short_help="Serve Prometheus metrics of the binder and of instances.")
@click.option("--listen", type=AddressType(TcpAddress.parse), default="127.0.0.1:9847", show_default=True,
              metavar="HOST:PORT", help="The address to serve /metrics at.")  # fmt: skip
@socket_option()
@click.option("--runtime-dir", default="/run/multibinder-haproxy", show_default=True, metavar="DIR",
              help="The runtime directory of the HAProxy instances.")  # fmt: skip
@click.option("--run-dir", default="/run/multibinder-run", show_default=True, metavar="DIR",
              help="The directory of the instances of 'multibinder run'.")  # fmt: skip
@click.option("--textfile", metavar="FILE",
              help="Write the metrics to this file once, and exit. A timer does so for node_exporter's textfile "
              "collector.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=_TIMEOUT_S, show_default=True, metavar="SECONDS",
              help="The time that the binder has to answer. It should be less than Prometheus's "
              "scrape_timeout.")  # fmt: skip
@click.pass_context
def exporter_command(
    ctx: click.Context,
    listen: TcpAddress,
    socket_path: str,
    runtime_dir: str,
    run_dir: str,
    textfile: str | None,
    timeout: float,
) -> None:
    """Serve Prometheus metrics of the binder, its listeners, and the instances of this host: those of
    HAProxy and of 'multibinder run'.

    The exporter needs no privilege, but must be able to connect to the control socket: it runs in the socket's group
    (multibinder). Without a policy, every program that can connect may bind and release any address. A policy rule
    limits the exporter to what it needs:

    \b
      [[rule]]
      unit = "multibinder-exporter.service"
      allow = ["status"]

    If the binder does not answer, 'multibinder_up' is 0, and the metrics of the instances are served nevertheless.
    docs/metrics.md explains each metric.

    \b
    Example:
      multibinder exporter --listen '[::1]:9847'
      multibinder exporter --textfile /var/lib/prometheus/node-exporter/multibinder.prom
    """
    directories = {"haproxy": runtime_dir, "run": run_dir}
    registry = Scrape(socket_path, directories, __version__, timeout, _log_change).registry()
    if textfile is None:
        try:
            server = MetricsServer(listen, registry, _log)
        except OSError as error:
            raise ExporterError(f"cannot listen on {listen}: {reason_of(error)}") from error
        with server:
            server.run()
        return
    if ctx.get_parameter_source("listen") is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("give either --listen or --textfile")
    if not textfile.endswith(".prom"):
        raise click.BadParameter(f"{textfile!r}: node_exporter reads files named *.prom only", param_hint="--textfile")
    _write(textfile, generate_latest(registry))


def _log_change(source: str, complaint: str) -> None:
    """Log that a source of metrics fails, or that it works again."""
    _log(complaint or f"{'the binder answers' if source == 'binder' else 'all instances can be read'} again")


def _log(sentence: str) -> None:
    # A terminal or pipe that is not read must not stop the answers to scrapes.
    write_now(2, f"multibinder exporter: {printable(sentence)}\n".encode(errors="replace"))


def _write(path: str, text: bytes) -> None:
    """Replace the file atomically. Its mode is 0644, because node_exporter runs as another user."""
    try:
        replace(path, text, 0o644)
    except OSError as error:
        raise ExporterError(f"{path}: cannot write: {reason_of(error)}") from error
