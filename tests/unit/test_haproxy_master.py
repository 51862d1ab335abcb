"""``show proc`` as HAProxy 2.6 and 3.2 print it, recorded."""

from __future__ import annotations

from multibinder_haproxy.master import Processes, Worker, parse_processes

HAPROXY_2_6 = """\
#<PID>          <type>          <reloads>       <uptime>        <version>      
6791            master          2 [failed: 1]   0d00h00m09s     2.6.12-1+deb12u4
# workers
6981            worker          1               0d00h00m05s     2.6.12-1+deb12u4
# old workers
6970            worker          2               0d00h01m05s     2.6.12-1+deb12u4
# programs
6001            exporter        2               0d00h01m05s     -

"""  # noqa: W291
HAPROXY_3_2_AFTER_A_FAILURE = """\
#<PID>          <type>          <reloads>       <uptime>        <version>      
7393            master          2 [failed: 1]   0d00h00m08s     3.2.0-e134140d2
# workers
# old workers
7481            worker          1               0d00h00m04s     3.2.0-e134140d2

"""  # noqa: W291


def test_the_list_of_haproxy_2_6_is_understood() -> None:
    version = "2.6.12-1+deb12u4"
    assert parse_processes(HAPROXY_2_6) == Processes(
        6791, version, 2, 1, [Worker(6981, 1, version)], [Worker(6970, 2, version)]
    )


def test_the_list_of_haproxy_3_2_after_a_failed_reload_is_understood() -> None:
    version = "3.2.0-e134140d2"
    assert parse_processes(HAPROXY_3_2_AFTER_A_FAILURE) == Processes(
        7393, version, 2, 1, [], [Worker(7481, 1, version)]
    )


def test_other_output_is_not_a_list_of_processes() -> None:
    assert parse_processes("") is None
    assert parse_processes("Unknown command\n") is None
