"""LISTEN_FDS and related variables are read in a new process for each test, because descriptors from 3 on are moved."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from tests.support import Json, clean_environment

_PREPARED = """
    import fcntl, json, logging, os, socket, sys
    from multibinder.binder import events, inherit
    from multibinder.kernel.listen_fds import pass_listen_fds, take_listen_fds
    logged = []
    class Keep(logging.Handler):
        def emit(self, record):
            logged.append([record.getMessage(), {k: str(v) for k, v in record.fields.items()}])
    events.logger.addHandler(Keep())
    events.logger.setLevel(logging.DEBUG)
    os.closerange(3, 100)

    def listener(number=None):
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock.detach() if number is None else move(sock.detach(), number)

    def move(descriptor, number):
        if descriptor != number:
            os.dup2(descriptor, number, inheritable=False)
            os.close(descriptor)
        return number

    def unused():
        return max(map(int, os.listdir("/proc/self/fd"))) + 1

    def identity(descriptor):
        return os.fstat(descriptor).st_ino

    def there():
        return sorted(number for number in range(3, 100) if os.path.exists(f"/proc/self/fd/{number}"))
"""


def in_a_process(script: str) -> Json:
    """Run the script in a new process, and return its ``result`` and what it ``logged``."""
    code = textwrap.dedent(_PREPARED) + textwrap.dedent(script) + "\nprint(json.dumps([result, logged]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=clean_environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    result, logged = json.loads(done.stdout)
    return {"result": result, "logged": logged}


def test_passed_descriptors_are_received_with_any_numbers() -> None:
    said = in_a_process("""
        import itertools
        tried = 0
        result = []
        for count in range(1, 5):
            for numbers in itertools.permutations([3, 4, 5, 6, 9, 40], count):
                os.closerange(3, 100)
                for number in numbers:
                    move(listener(60), number)
                pairs = [(f"l{number}", number) for number in numbers]
                expected = {f"l{number}": identity(number) for number in numbers}
                environment = {}
                pass_listen_fds(pairs, environment)
                moved = list(range(3, 3 + count))
                inheritable = all(os.get_inheritable(number) for number in moved)
                names = environment["LISTEN_FDNAMES"].split(":")
                in_order = {name: identity(3 + index) for index, name in enumerate(names)}
                only = there()
                came = inherit.receive(environment)
                got = {name: identity(sock.fileno()) for name, sock in came.listeners}
                private = not any(os.get_inheritable(number) for number in moved)
                same = in_order == got == expected and only == moved
                kept = same and inheritable and private and not environment
                if not kept or names != [name for name, _ in pairs]:
                    result.append([numbers, expected, in_order, got, only])
                for _, sock in came.listeners:
                    sock.detach()
                tried += 1
        assert tried == 6 + 30 + 120 + 360
    """)
    assert said == {"result": [], "logged": []}


def test_each_descriptor_is_recognised_by_its_type() -> None:
    said = in_a_process("""
        control = socket.socket(socket.AF_UNIX)
        control.bind(f"\\0multibinder-test-{os.getpid()}")
        control.listen()
        one, other = socket.socketpair()
        lock = os.open("/proc/self/exe", os.O_RDONLY)
        pairs = [("wrong name", listener()), ("peer", one.detach()), ("anything", control.detach()), ("lock", lock)]
        kinds = {name: identity(number) for name, number in pairs}
        other.detach()
        environment = {}
        pass_listen_fds(pairs, environment)
        came = inherit.receive(environment)
        result = [
            [(name, identity(sock.fileno()) == kinds[name]) for name, sock in came.listeners],
            [identity(sock.fileno()) == kinds["peer"] for sock in came.peers],
            identity(came.control.fileno()) == kinds["anything"],
            identity(came.lock) == kinds["lock"],
        ]
    """)
    assert said == {"result": [[["wrong name", True]], [True], True, True], "logged": []}


def test_unix_listeners_are_told_from_the_control_socket_and_from_clients() -> None:
    said = in_a_process("""
        import tempfile
        from multibinder.binder.kept_name import name_of_cookie
        from multibinder.kernel.socket_options import cookie_of
        directory = tempfile.TemporaryDirectory()

        def at(path, type=socket.SOCK_STREAM):
            sock = socket.socket(socket.AF_UNIX, type)
            sock.bind(f"{directory.name}/{path}")
            if type != socket.SOCK_DGRAM:
                sock.listen()
            return sock

        def receive(*named):
            environment = {}
            pass_listen_fds([(name, sock.detach()) for name, sock in named], environment)
            came = inherit.receive(environment)
            paths = [sock.getsockname().rsplit("/", 1)[-1] for _, sock in came.listeners]
            control = came.control and came.control.getsockname().rsplit("/", 1)[-1]
            for sock in [*(sock for _, sock in came.listeners), *filter(None, [came.control])]:
                sock.close()
            for name in os.listdir(directory.name):
                os.unlink(f"{directory.name}/{name}")
            return [control, paths]

        def kept(sock):
            return name_of_cookie(cookie_of(sock)), sock

        result = [
            receive(("", at("app")), ("control", at("mb")), ("", at("log", socket.SOCK_DGRAM))),
            receive(kept(at("kept")), ("multibinder.socket", at("mb"))),
            receive(("", at("app")), ("", at("packets", socket.SOCK_SEQPACKET))),
            receive(("one", at("mb")), ("two", at("app"))),
            receive(("", socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))),
        ]
    """)
    assert said["result"] == [
        ["mb", ["app", "log"]],
        ["mb", ["kept"]],
        [None, ["app", "packets"]],
        ["mb", ["app"]],
        [None, []],
    ]
    assert [fields["what"] for _, fields in said["logged"]] == ["a socket without an address"]


def test_an_unknown_descriptor_is_closed_and_logged() -> None:
    said = in_a_process("""
        reading, writing = os.pipe()
        pipe = identity(reading)
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM)
        environment = {}
        file = os.open("/proc/self/exe", os.O_RDONLY)
        keep = listener()
        pairs = [("a pipe", reading), ("netlink", netlink.detach()), ("a file", file), ("mine", keep)]
        os.close(writing)
        pass_listen_fds(pairs, environment)
        came = inherit.receive(environment)
        result = [[name for name, _ in came.listeners], there(), [sock.fileno() for _, sock in came.listeners]]
    """)
    assert said["result"] == [["mine"], [6], [6]]
    assert [(name, fields["called"], fields["done"]) for name, fields in said["logged"]] == [
        ("inherited-unknown", "a pipe", "closed"),
        ("inherited-unknown", "netlink", "closed"),
        ("inherited-unknown", "a file", "closed"),
    ]


def test_a_number_that_is_not_open_is_logged_and_the_rest_is_taken() -> None:
    said = in_a_process("""
        listener(3)
        listener(5)
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}
        result = [name for name, _ in inherit.receive(environment).listeners]
    """)
    assert said["result"] == ["a", "c"]
    assert [name for name, _ in said["logged"]] == ["inherited-unknown"]


@pytest.mark.parametrize(
    "variables",
    [
        '{"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "1"}',
        '{"LISTEN_FDS": "1"}',
        '{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}',
        '{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"}',
        '{"LISTEN_PID": str(os.getpid())}',
    ],
)
def test_variables_for_another_process_and_invalid_ones_are_ignored(variables: str) -> None:
    said = in_a_process(f"""
        number = listener(3)
        environment = {variables}
        came = inherit.receive(environment)
        result = [came.listeners, there(), environment]
    """)
    assert said == {"result": [[], [3], {}], "logged": []}


def test_names_are_optional() -> None:
    said = in_a_process("""
        listener(3)
        listener(4)
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "one"}
        result = sorted(name for name, _ in inherit.receive(environment).listeners)
    """)
    assert said == {"result": ["", "one"], "logged": []}


def test_the_same_socket_twice_is_one_listener() -> None:
    said = in_a_process("""
        from tests.support.stores import new_store
        first = listener(3)
        os.dup2(3, 4)
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
        store = new_store()
        for _, sock in inherit.receive(environment).listeners:
            store.restore(sock, None)
        result = [len(store), len(there())]
    """)
    assert said["result"] == [1, 1]
    assert [name for name, _ in said["logged"]] == ["inherited-twice"]


def test_the_newest_records_win() -> None:
    said = in_a_process("""
        from multibinder.binder import records
        from multibinder.binder.record_lines import new_journal
        pairs = []
        for number in (9, 10, 2):
            header = records.Header(records.FORMAT, records.boot_id())
            journal = new_journal(records.encode([header, records.Record("127.0.0.1:1", 7, name=f"from-{number}")]))
            pairs.append((f"records-{number}", journal.descriptor))
        environment = {}
        pass_listen_fds(pairs, environment)
        came = inherit.receive(environment)
        result = [came.records[7].name, came.record_names, len(there())]
    """)
    assert said == {"result": ["from-10", ["records-2", "records-9", "records-10"], 3], "logged": []}
