"""The files of an instance are private, replaced atomically, and trusted only if no other user could change them."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from multibinder_haproxy import last_good
from multibinder_haproxy.config.model import Config
from multibinder_haproxy.instance import Instance
from multibinder_haproxy.invocation import LAUNCHER, Invocation
from multibinder_haproxy.records import Loaded
from multibinder_haproxy.reexec.files import write_configuration

from multibinder.launch.errors import LaunchError, NoSuchInstance, NotTrusted
from multibinder.launch.owner import Owner, other_owner
from tests.support import require

STRANGER = 65534


@pytest.fixture
def runtime(run_dir: Path) -> Path:
    return run_dir / "run"


@pytest.fixture
def instance(runtime: Path) -> Instance:
    return Instance(str(runtime), "web")


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def give_away(path: Path) -> None:
    require("root", os.geteuid() == 0, "giving a file to another user needs root")
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)


def invocation_of(instance: Instance) -> Invocation:
    return Invocation("/usr/sbin/haproxy", instance.directory, "web", "w", [], [], [], None, False, 1.0, "/")


def fill(instance: Instance) -> None:
    instance.create()
    config = Config({"web.cfg": "global\n", "conf.d/a.cfg": "# a\n"}, [])
    write_configuration(instance.directory, config.fill({}), ["conf.d"])
    instance.write_loaded(Loaded(1, 0.0, config, 1))
    instance.write_record("instance.json", invocation_of(instance))
    last_good.promote(invocation_of(instance), config)


def launcher() -> Any:
    """Load the file that HAProxy's master executes as a module."""
    spec = importlib.util.spec_from_loader("launcher", importlib.machinery.SourceFileLoader("launcher", LAUNCHER))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_files_and_directories_are_private_under_any_umask(run_dir: Path, no_umask: None) -> None:
    instance = Instance(str(run_dir / "a" / "b"), "web")
    fill(instance)
    directory = Path(instance.directory)
    assert [mode(path) for path in (run_dir / "a", run_dir / "a" / "b", directory)] == [0o755, 0o755, 0o711]
    with instance.locked(1):
        found = {str(path.relative_to(directory)): mode(path) for path in directory.rglob("*")}
    assert found.pop("conf.d") == 0o700
    assert found == dict.fromkeys(
        ["web.cfg", "conf.d/a.cfg", "instance.json", "loaded.json", "last-good.json", "lock"], 0o600
    )


def test_a_reader_sees_either_the_whole_old_file_or_the_whole_new_one(instance: Instance) -> None:
    instance.create()
    texts = {letter * 1_000_000 for letter in "ab"}
    write_configuration(instance.directory, {"web.cfg": b"a" * 1_000_000}, [])
    wrong: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            text = Path(instance.directory, "web.cfg").read_text()
            if text not in texts:
                wrong.append(len(text))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(50):
        for text in texts:
            write_configuration(instance.directory, {"web.cfg": text.encode()}, [])
    done.set()
    reader.join()
    assert wrong == []
    assert os.listdir(instance.directory) == ["web.cfg"]


@pytest.mark.parametrize("readable", [True, False])
def test_a_planted_file_at_the_path_of_a_draft_is_neither_followed_nor_written_to(
    instance: Instance, run_dir: Path, readable: bool
) -> None:
    instance.create()
    victim = run_dir / "victim"
    victim.write_text("precious")
    draft = Path(instance.directory, f".web.cfg.{os.getpid()}.new")
    if readable:
        os.link(victim, draft)
        victim.chmod(0o644)
    else:
        draft.symlink_to(victim)
    write_configuration(instance.directory, {"web.cfg": b"password"}, [])
    assert victim.read_text() == "precious"
    written = Path(instance.directory, "web.cfg")
    assert (written.read_text(), mode(written)) == ("password", 0o600)
    assert not written.is_symlink()


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(NotTrusted) as raised:
        act()
    return str(raised.value)


def assert_refused(instance: Instance, *said: str) -> None:
    """Assert that the instance is neither written nor read, with the same message, and that nothing was written."""
    before = sorted(Path(instance.directory).parent.rglob("*"))
    for act in (instance.create, instance.read_invocation):
        text = refused(act)
        assert [each for each in said if each not in text] == [], text
    assert sorted(Path(instance.directory).parent.rglob("*")) == before


@pytest.mark.parametrize("where", ["grandparent", "parent", "directory"])
def test_a_directory_that_another_user_made_first_is_refused_with_its_owner(run_dir: Path, where: str) -> None:
    instance = Instance(str(run_dir / "1000" / "multibinder-haproxy"), "web")
    fill(instance)
    directory = Path(instance.directory)
    path = {"grandparent": directory.parents[1], "parent": directory.parent, "directory": directory}[where]
    give_away(path)
    assert_refused(instance, f"{path} belongs to ", f"(uid {STRANGER}), who could replace", "--runtime-dir")


def test_no_file_is_made_in_a_directory_of_another_user(run_dir: Path) -> None:
    (run_dir / "1000").mkdir()
    give_away(run_dir / "1000")
    instance = Instance(str(run_dir / "1000" / "multibinder-haproxy"), "web")
    assert "belongs to" in refused(instance.create)
    assert list((run_dir / "1000").iterdir()) == []


@pytest.mark.parametrize("bits", [0o020, 0o002])
def test_a_directory_that_others_may_write_to_is_refused(instance: Instance, runtime: Path, bits: int) -> None:
    fill(instance)
    for path in (runtime.parent, runtime, Path(instance.directory)):
        before = mode(path)
        path.chmod(before | bits)
        assert_refused(instance, f"{path} can be written by others (mode 0", f"'chmod go-w {path}'")
        path.chmod(before)
    instance.create()


def test_the_sticky_bit_excuses_the_parent_but_not_the_directory(instance: Instance, runtime: Path) -> None:
    fill(instance)
    runtime.chmod(0o1777)
    instance.create()
    assert instance.read_invocation().name == "web"
    Path(instance.directory).chmod(0o1777)
    assert_refused(instance, "can be written by others (mode 1777)", "in it; choose another --runtime-dir")


@pytest.mark.parametrize("which", ["parent", "directory"])
def test_a_link_or_a_file_in_place_of_a_directory_is_refused(instance: Instance, runtime: Path, which: str) -> None:
    fill(instance)
    path = runtime if which == "parent" else Path(instance.directory)
    elsewhere = path.rename(path.parent / "elsewhere")
    path.symlink_to(elsewhere)
    assert_refused(instance, f"{path} is a symbolic link", "remove it, or choose another --runtime-dir")
    path.unlink()
    path.write_text("")
    with pytest.raises(LaunchError):
        instance.create()


def test_further_up_our_own_links_are_followed_and_those_of_other_users_are_not(run_dir: Path) -> None:
    real = run_dir / "real"
    fill(Instance(str(real / "run"), "web"))
    link = run_dir / "link"
    link.symlink_to("real")
    instance = Instance(str(link / "run"), "web")
    instance.create()
    assert instance.read_invocation().name == "web"
    give_away(link)
    assert_refused(instance, f"{link} is a symbolic link that ", "made: it is not followed")


def test_nothing_is_made_behind_a_link_in_place_of_the_runtime_directory(run_dir: Path, runtime: Path) -> None:
    elsewhere = run_dir / "elsewhere"
    elsewhere.mkdir()
    runtime.symlink_to(elsewhere)
    assert f"{runtime} is a symbolic link" in refused(Instance(str(runtime), "web").create)
    assert [*elsewhere.iterdir()] == []


def test_a_strangers_link_that_leads_nowhere_is_refused_by_its_owner(run_dir: Path) -> None:
    link = run_dir / "link"
    link.symlink_to("nowhere")
    give_away(link)
    assert f"{link} is a symbolic link that " in refused(Instance(str(link / "run"), "web").create)


def test_the_target_of_a_link_is_checked_as_well(run_dir: Path) -> None:
    (run_dir / "open" / "in").mkdir(parents=True)
    (run_dir / "open").chmod(0o777)
    (run_dir / "link").symlink_to(run_dir / "open" / "in")
    assert f"{run_dir}/open can be written by others" in refused(Instance(str(run_dir / "link" / "run"), "web").create)


READERS: dict[str, Callable[[Instance], object]] = {
    "instance.json": Instance.read_invocation,
    "loaded.json": Instance.read_loaded,
    "last-good.json": lambda instance: last_good.read(invocation_of(instance)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_record_of_another_user_or_a_link_or_no_regular_file_is_not_believed(instance: Instance, name: str) -> None:
    fill(instance)
    path = Path(instance.directory, name)
    real = path.rename(path.with_suffix(".real"))
    path.symlink_to(real)
    assert f"{path} is a symbolic link" in refused(lambda: READERS[name](instance))
    path.unlink()
    os.mkfifo(path)
    assert f"{path} is not a file" in refused(lambda: READERS[name](instance))
    path.unlink()
    real.rename(path)
    assert READERS[name](instance) is not None
    give_away(path)
    said = refused(lambda: READERS[name](instance))
    assert said.startswith(f"{path} belongs to ")
    assert f"(uid {STRANGER}), and not to us: it is not believed" in said


def test_the_record_that_replaces_a_lost_environment_is_trusted_by_the_same_rules(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MULTIBINDER_HAPROXY", raising=False)
    fill(instance)
    arguments = ["-Ws", "-f", f"{instance.directory}/web.cfg"]
    record = Path(instance.directory, "instance.json")
    read_invocation = launcher().read_invocation
    assert read_invocation(arguments) == msgspec.json.decode(record.read_bytes())
    real = record.rename(record.with_suffix(".real"))
    record.symlink_to(real)
    assert read_invocation(arguments) == {}
    record.unlink()
    real.rename(record)
    give_away(record)
    assert read_invocation(arguments) == {}


#: Each record as version 0.1.0 wrote it.
OF_VERSION_0_1_0 = {
    "instance.json": (
        b'{"haproxy":"/usr/sbin/haproxy","directory":"/run/multibinder-haproxy/web","name":"web","wrapper":"/usr/bin/w",'
        b'"arguments":["-Ws","-f","/run/multibinder-haproxy/web/web.cfg"],'
        b'"sources":[{"path":"/etc/haproxy/web.cfg.j2","target":"web.cfg","is_directory":false}],"variables":[],'
        b'"binder":"/run/multibinder/socket","strict":false,"wait_s":10.0,"cwd":"/","fds":{"127.0.0.1:80":3},'
        b'"sandbox":false}'
    ),
    "loaded.json": (
        b'{"generation":2,"at":1.5,"config":{"files":{"web.cfg":"bind fd@{127.0.0.1:80}\\n"},'
        b'"slots":[{"host":"127.0.0.1","port":80}],"warnings":[],"origins":{"files":[{"path":"/etc/haproxy/web.cfg.j2",'
        b'"mtime_ns":1,"size":2,"inode":3,"digest":"d"}],"directories":[{"path":"/d","files":["a"],"suffixes":[".cfg"]}]}},'
        b'"master":7,"old_workers":[8],"fallback":null,"settled":true}'
    ),
    "last-good.json": (
        b'{"config":{"files":{},"slots":[],"warnings":[],"origins":{"files":[],"directories":[]}},"at":1.5}'
    ),
    "last-reload.json": (
        b'{"ok":true,"started_s":1.5,"took_s":0.5,"at":2.5,"message":"","generation":2,"added":[],"kept":["127.0.0.1:80"],'
        b'"dropped":[],"kept_by_others":[],"old_workers":[8],"new_workers":[9],"warnings":[]}'
    ),
}


def has(new: object, old: object) -> bool:
    """Return whether ``new`` has everything that ``old`` has, by the same names. It may have more."""
    if isinstance(new, dict) and isinstance(old, dict):
        return all(key in new and has(new[key], value) for key, value in old.items())
    if isinstance(new, list) and isinstance(old, list):
        return len(new) == len(old) and all(map(has, new, old))
    return new == old


def test_the_records_of_version_0_1_0_are_read_and_written_as_it_did(instance: Instance) -> None:
    """Version 0.1.0 may have started the HAProxy that we reload, or may reload it after a downgrade."""
    instance.create()
    for name, content in OF_VERSION_0_1_0.items():
        Path(instance.directory, name).write_bytes(content)
    loaded, good, report = instance.read_loaded(), last_good.read(invocation_of(instance)), instance.read_report()
    assert loaded is not None
    assert good is not None
    assert report is not None
    invocation = instance.read_invocation()
    assert (invocation.templates[0].target, invocation.fds) == ("web.cfg", {"127.0.0.1:80": 3})
    assert [file.path for file in loaded.config.sources.files] == ["/etc/haproxy/web.cfg.j2"]
    instance.write_record("instance.json", invocation)
    instance.write_loaded(loaded)
    instance.write_report(report)
    for name in ("instance.json", "loaded.json", "last-reload.json"):
        written = msgspec.json.decode(Path(instance.directory, name).read_bytes())
        assert has(written, msgspec.json.decode(OF_VERSION_0_1_0[name]))


def test_an_unknown_instance_is_distinguished_from_one_that_is_not_trusted(instance: Instance) -> None:
    with pytest.raises(NoSuchInstance):
        instance.read_invocation()


def test_for_root_the_owner_of_an_instance_is_the_owner_of_its_directory(instance: Instance, run_dir: Path) -> None:
    fill(instance)
    assert other_owner(instance.directory) is None
    assert other_owner(str(run_dir / "nothing")) is None
    give_away(Path(instance.directory))
    assert other_owner(instance.directory) == Owner(STRANGER, STRANGER)
    link = run_dir / "link"
    link.symlink_to(instance.directory)
    give_away(link)
    assert other_owner(str(link)) is None
