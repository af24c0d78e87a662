"""--state as its user knows it: what RPC has made is there after any end of the program."""
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import threading

import pytest

from tests.lib.command import Place
from tests.lib.rpc_server import Client
from tests.lib.target import RpcError, rpc_call

ROUNDS = 25                             # of a program that is killed


@pytest.fixture
def place():
    with Place() as one:
        yield one


@pytest.fixture
def file(place):
    return place.cwd / "state.json"


def names(run):
    return [bdev["name"] for bdev in run.rpc("bdev_get_bdevs")]


def add(run, name, **params):
    return run.rpc("bdev_null_create", name=name, **{"num_blocks": 8, "block_size": 512, **params})


def test_everything_is_there_after_the_next_start(place):
    with place.start("--state", "state.json") as run:
        run.rpc("bdev_malloc_create", name="m", num_blocks=2048, block_size=512)
        add(run, "n")
        run.rpc("vhost_create_blk_controller", ctrlr="c", dev_name="m", readonly=True)
        run.rpc("framework_set_scheduler", name="dynamic", period=5000, load_limit=10)
        run.rpc("log_set_flag", flag="vhost")
        run.rpc("trace_enable_tpoint_group", name="bdev")
        run.rpc("bdev_null_delete", name="n")
        saved = run.rpc("save_config")
        run.stop()
    with place.start("--state", "state.json") as run:
        assert run.rpc("save_config") == saved
        assert names(run) == ["m"] and (place.sockets / "c").is_socket()
        run.stop()


def test_what_is_left_to_the_program_is_left_to_it_again(place):
    """A controller that nobody has given cores has all of the next start, too."""
    with place.start("--state", "state.json", "-m", "0x1") as run:
        add(run, "n")
        run.rpc("vhost_create_blk_controller", ctrlr="all", dev_name="n")
        run.rpc("vhost_create_blk_controller", ctrlr="one", dev_name="n", cpumask="0x1")
        run.stop()
    with place.start("--state", "state.json", "--lcores", "0@0,1@0") as run:
        masks = {each["ctrlr"]: each["cpumask"] for each in run.rpc("vhost_get_controllers")}
        assert masks == {"all": "0x3", "one": "0x1"}
        run.stop()


def test_settings_of_the_command_line_are_its_own(place):
    with place.start("--state", "state.json", "-L", "vhost", "-e", "bdev") as run:
        add(run, "n")
        run.stop()
    with place.start("--state", "state.json") as run:
        assert not any(run.rpc("log_get_flags").values())
        assert run.rpc("trace_get_info")["tpoint_group_mask"] == "0x0"
        assert names(run) == ["n"]
        run.stop()


def test_the_file_of_c_is_the_first_state(place, file):
    config = place.cwd / "first.json"
    entry = {"method": "bdev_null_create", "params": {"name": "first", "num_blocks": 8,
                                                      "block_size": 512}}
    config.write_text(json.dumps({"subsystems": [{"subsystem": "bdev", "config": [entry]}]}))
    with place.start("--state", "state.json", "-c", "first.json") as run:
        add(run, "second")
        run.stop()
    with place.start("--state", "state.json", "-c", "first.json") as run:
        assert names(run) == ["first", "second"]
        assert f"first.json is not followed: {file} has the configuration" in run.said()
        run.stop()
    # It is a configuration file itself.
    with place.start("-c", "state.json") as run:
        assert names(run) == ["first", "second"]
        run.stop()


def test_nobody_is_answered_before_the_state_is_restored(place):
    with place.start("--state", "state.json") as run:
        for i in range(50):
            add(run, f"n{i}")
        run.stop()
    for words in ([], ["--wait-for-rpc"]):
        with place.start("--state", "state.json", *words, ready=not words) as run:
            if words:
                run.await_rpc()
                run.rpc("framework_start_init")
            assert len(names(run)) == 50
            run.stop()


def test_settings_made_before_the_start_are_kept_with_it(place):
    with place.start("--state", "state.json", "--wait-for-rpc") as run:
        with Client(str(place.rpc)) as client:          # one connection: answers in order
            assert client.call("log_set_flag", {"flag": "vhost"})["result"] is True
            assert client.call("framework_set_scheduler", {"name": "dynamic"})["result"] is True
            assert client.call("framework_start_init")["result"] is True
            saved = client.call("save_config")["result"]
        run.process.kill()
        run.process.wait()
    with place.start("--state", "state.json") as run:
        assert run.rpc("save_config") == saved
        assert run.rpc("framework_get_scheduler")["scheduler_name"] == "dynamic"
        run.stop()


def refused(place, *words):
    """Return the one line with which the program ends."""
    done = place.run("--state", "state.json", *words)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def test_a_damaged_file_is_refused_and_stays(place, file):
    with place.start("--state", "state.json") as run:
        add(run, "n")
        run.stop()
    whole = file.read_text()
    for text in ("", whole[:100], whole.replace('"n"', '"o"')):
        file.write_text(text)
        status, said = refused(place)
        assert status == 1 and f"state file {file} is damaged: " in said
        assert "remove it to begin with nothing" in said and file.read_text() == text


def test_what_cannot_be_made_again_ends_the_start_and_nothing_is_lost(place, file):
    image = place.cwd / "disk.img"
    image.write_bytes(bytes(4096))
    with place.start("--state", "state.json") as run:
        run.rpc("bdev_aio_create", name="a", filename="disk.img")
        add(run, "n")
        run.stop()
    whole = file.read_text()
    image.rename(place.cwd / "away.img")
    status, said = refused(place)
    assert status == 1 and f"bdev_aio_create: {image} cannot be opened" in said
    assert f"{file}:" in said and ".config[1]: " in said and file.read_text() == whole
    with place.start("-c", "state.json", "--json-ignore-init-errors") as run:
        assert names(run) == ["n"]
        run.stop()
    image.with_name("away.img").rename(image)
    with place.start("--state", "state.json") as run:
        assert names(run) == ["a", "n"]
        run.stop()


@pytest.mark.parametrize("words, why", [
    (["--disk", "malloc:1M"], "option --state keeps disks that RPC or -c has made"),
    (["--json-ignore-init-errors"], "give that file with -c instead"),
])
def test_what_does_not_go_together(place, words, why):
    status, said = refused(place, *words)
    assert status == 2 and why in said


@pytest.mark.parametrize("path, why", [
    ("none/state.json", "no state can be kept in {}/none: No such file or directory; make the dir"),
    (".", "Could not read config file {}: Is a directory"),
])
def test_places_that_cannot_be(place, path, why):
    done = place.run("--state", path)
    assert done.returncode == 1 and why.format(place.cwd) in done.stderr


def test_one_process_has_it(place, file):
    with place.start("--state", "state.json") as run:
        done = place.run("--state", "state.json", "--lock-file", str(place.folder / "other"),
                         "-r", str(place.folder / "other-rpc"))
        assert done.returncode == 1
        assert f"another vhostrt (process {run.process.pid}) holds the lock" in done.stderr
        assert "with --state" in done.stderr
        run.stop()


# A disk that is full

def test_a_limit_on_files_is_told_and_the_disks_go_on(place, file):
    """A write that is cut off, as on a full disk: the kernel takes a part of the text."""
    with place.start("--state", "state.json") as run:
        add(run, "kept")
        before = file.read_bytes()
        _, hard = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(RpcError, match="bdev_null_create was done, but the state file "
                           f"{file} cannot be written: File too large; it has what was before"):
            add(run, "more")
        assert names(run) == ["kept", "more"] and file.read_bytes() == before
        assert not file.with_name("state.json.new").exists()
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        add(run, "last")
        run.process.kill()
        run.process.wait()
    with place.start("--state", "state.json") as run:
        assert names(run) == ["kept", "more", "last"]
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(RpcError, match="File too large"):
            add(run, "very last")
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        run.stop()                      # the end writes what could not be written before
    assert saved_names(file) == ["kept", "more", "last", "very last"]


def may_mount():
    """Return whether a file system of our own can be had in a namespace of our own."""
    done = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"],
                          capture_output=True)
    return done.returncode == 0


FULL = """\
mount -t tmpfs -o size=64k none {folder} && cp {config} {folder}/state.json &&
echo > {folder}/state.json.lock && dd if=/dev/zero of={folder}/fill bs=4k 2>/dev/null; exec "$@"
"""


def test_a_full_file_system(place):
    """Where none can be had, by a limit above; the same words but the system's reason."""
    folder = place.cwd / "full"
    folder.mkdir()
    if not may_mount():
        assert resource.getrlimit(resource.RLIMIT_FSIZE)
        return
    with place.start("--state", "first.json") as run:
        add(run, "kept")
        run.stop()
    script = FULL.format(folder=folder, config=place.cwd / "first.json")
    words = place.words("--state", str(folder / "state.json"))
    process = subprocess.Popen(["unshare", "-rm", "sh", "-c", script, "sh", *words], cwd=place.cwd,
                               env=place.environment, stderr=subprocess.PIPE, text=True)
    try:
        said = threading.Thread(target=lambda: lines.extend(process.stderr))
        lines = []
        said.start()
        await_rpc(place, process)
        with pytest.raises(RpcError, match="No space left on device; it has what was before"):
            rpc_call(place.rpc, "bdev_null_create", name="more", num_blocks=8, block_size=512)
        assert len(rpc_call(place.rpc, "bdev_get_bdevs")) == 2
        inside = f"/proc/{process.pid}/root{folder}"
        assert '"kept"' in open(f"{inside}/state.json").read()
        os.unlink(f"{inside}/fill")
        rpc_call(place.rpc, "bdev_null_create", name="last", num_blocks=8, block_size=512)
        assert '"more"' in open(f"{inside}/state.json").read()
    finally:
        process.terminate()
        assert process.wait(60) == 0, lines
        said.join()


def await_rpc(place, process):
    while True:
        assert process.poll() is None
        try:
            return rpc_call(place.rpc, "spdk_get_version")
        except OSError:
            pass


# Killed at any moment

def changes(name):
    """Yield the changes that a round makes, without end: (method, bdev)."""
    for i in itertools.count():
        yield "bdev_null_create", f"{name}.{i}"
        if i % 3 == 2:
            yield "bdev_null_delete", f"{name}.{i - 1}"


def after(name, count):
    """Return the bdevs that so many changes of a round leave."""
    there = []
    for method, bdev in itertools.islice(changes(name), count):
        if method == "bdev_null_create":
            there.append(bdev)
        else:
            there.remove(bdev)
    return there


def churn(run, name, answered):
    """Make changes until the program is gone; `answered` gets one entry for each answer."""
    for method, bdev in changes(name):
        more = {"num_blocks": 8, "block_size": 512} if method == "bdev_null_create" else {}
        try:
            answered.append(run.rpc(method, name=bdev, **more))
        except (OSError, ValueError):
            return


def saved_names(file):
    root = json.loads(file.read_text())
    return [entry["params"]["name"] for part in root["subsystems"] for entry in part["config"]
            if entry["method"] == "bdev_null_create"]


def test_killed_at_any_moment(place, file):
    """The file is the old or the new one, whole, and has every change that was answered."""
    moment = random.Random(20261125)
    kept = []
    for number in range(ROUNDS):
        with place.start("--state", "state.json") as run:
            assert names(run) == kept, f"round {number}"
            answered = []
            client = threading.Thread(target=churn, args=(run, str(number), answered))
            client.start()
            client.join(moment.uniform(0.0, 0.15))
            run.process.kill()
            run.process.wait()
            client.join()
        found = saved_names(file)
        assert found in [kept + after(str(number), len(answered) + more) for more in (0, 1)]
        kept = found


WRITER = """\
import sys
from vhostrt.config.state import write_file
for i in range(1 << 30):
    write_file(sys.argv[1], f"{i} " * 20000 + "end")
"""


def test_a_writer_killed_many_times_leaves_a_whole_file(tmp_path):
    """Moments are spread over all of a write; what is beside the file is no hindrance."""
    path, moment = tmp_path / "state.json", random.Random(5)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    for _ in range(60):
        process = subprocess.Popen([sys.executable, "-c", WRITER, path], env=environment)
        try:
            while not path.exists():
                assert process.poll() is None
            process.wait(moment.uniform(0.05, 0.12))
        except subprocess.TimeoutExpired:
            pass
        process.kill()
        process.wait()
        words = path.read_text().split(" ")
        assert words[-1] == "end" and len(words) == 20001 and len(set(words[:-1])) == 1
