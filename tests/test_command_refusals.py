"""What the live command refuses: the sentence, the exit status, and nothing left behind."""
import os
import resource

import pytest

from tests.lib.command import NOBODY, Place


@pytest.fixture
def place():
    with Place() as one:
        yield one


def refused(place, *words, status=1):
    """Run the command, which ends at once; return the one line that says why."""
    there = place.left()
    done = place.run(*words)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
    assert place.left() <= there | {"lock"}
    if status == 2:
        sentence, hint = done.stderr.splitlines()
        assert hint == "Try 'vhostrt --help'."
        return sentence
    why = [line for line in done.stderr.splitlines()
           if line.startswith("vhostrt: ") or "*ERROR*" in line]
    assert len(why) == 1, done.stderr
    return why[0]


@pytest.mark.parametrize("words, part", [
    (["-m", "0x"], "option -m: '0x'"), (["-m", "[3-1]"], "option -m"), (["-m", "0"], "option -m"),
    (["-m", "0x1", "-p", "1"], "main core 1 is not among the cores 0"),
    (["-s", "-5"], "option -s"), (["-s", "many"], "'many'"),
    (["--idle", "busy"], "'busy' is none of spin, yield, sleep"),
    (["--idle", "spin", "--max-delay-us", "10"], "--max-delay-us belongs to --idle sleep"),
    (["-L", "nonsense"], "unknown flag 'nonsense'"), (["-r", ""], "option -r"),
    (["-r", "/" + "x" * 200], "option -r"), (["-S", "/" + "x" * 200], "option -S"),
    (["--disk"], "option --disk needs a value"), (["--disk", "malloc:0"], "malloc:0"),
    (["--disk", "malloc:1.5G"], "'1.5G'"), (["--disk", "malloc:1M,rw"], "'rw'"),
    (["--disk", ""], "names no file"), (["--disk", "malloc:1M,name="], "'name='"),
    (["--disk", "malloc:1M,name=x", "--disk", "malloc:1M,name=x"], "two disks have the name 'x'"),
    (["--disk", "malloc:1M,socket=x", "--disk", "malloc:1M,socket=x"], "socket 'x'"),
    (["--in-memory", "-F", "/h"], "options --in-memory and -F cannot be specified at the same"),
    (["--env-context", "-Z"], "option --env-context: there is no option '-Z'"),
    (["--no-huge"], "option --no-huge needs -s"), (["--wait-for-rpc", "--no-rpc-server"], "needs"),
])
def test_bad_words(place, words, part):
    assert part in refused(place, *words, status=2)


@pytest.mark.parametrize("words, part", [
    (["-m", "[999]"], "CPU 999 of lcore 999 does not exist or is offline"),
    (["-m", "[0,1022]"], "CPU 1022 "), (["--lcores", "5@900"], "CPU 900 of lcore 5"),
    (["-s", "900G"], "memory of 921600 MiB: "), (["--no-huge", "-s", "900G"], "921600 MiB"),
    (["-F", "/nowhere"], "/nowhere"), (["-F", "/proc"], "/proc"),
    (["--huge-dir", "/nowhere"], "/nowhere"), (["--mem-file", "/nowhere/a"], "/nowhere/a"),
    (["--env-context", "-l 999"], "CPU 999 of lcore 999 does not exist or is offline"),
    (["-f", "/nowhere/pid"], "Couldn't create pid file '/nowhere/pid': No such file or directory"),
    (["--lock-file", "/nowhere/lock"], "cannot open the lock file '/nowhere/lock'"),
    (["-r", "/nowhere/rpc"], "RPC socket '/nowhere/rpc' cannot be made"),
    (["-r", "/proc/rpc"], "'/proc/rpc'"), (["-r", "192.0.2.1:5260"], "192.0.2.1:5260"),
    (["-S", "/nowhere", "--disk", "malloc:1M"], "disk Disk0: "),
    (["--rpcs-allowed", "nonsense"], "nonsense"), (["--disk", "malloc:900T"], "disk Disk0: "),
    (["--disk", "malloc:1M,name=a/b"], "'a/b'"), (["--disk", "malloc:1M,socket=a/b"], "disk Disk0"),
])
def test_what_this_machine_does_not_have(place, words, part):
    assert part in refused(place, *words)


def test_virtual_addresses_for_devices_without_an_iommu(place):
    from vhostrt.env.pci import vfio
    from vhostrt.env.roots import SYSTEM
    if vfio.probe(SYSTEM).iommu:
        with place.start("--iova-mode", "va") as run:
            assert "VFIO support initialized" in run.said()
            run.stop()
    else:
        assert "option --iova-mode va: it needs an IOMMU" in refused(place, "--iova-mode", "va")


def test_what_is_at_the_place_of_a_socket_stays(place):
    for path in (place.rpc, place.sockets / "vhost.0"):
        path.write_text("precious")
        assert str(path) in refused(place, "--disk", "malloc:1M")
        assert path.read_text() == "precious"
        path.unlink()


def test_too_few_open_files():
    with Place(unprivileged=True) as place:
        done = place.run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (63, 63)))
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr == ("vhostrt: at most 63 files can be open, and 64 are needed at least: "
                               "raise the limit (ulimit -n)\n")
        assert place.left() == set()


def test_64_open_files_are_enough():
    with Place(unprivileged=True) as place, \
            place.start("-m", "0x3", "--disk", "malloc:1M", preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_NOFILE, (64, 64))) as run:
        run.stop()


@pytest.mark.parametrize("words", [["-f", "pid"], ["-S", "", "--disk", "malloc:1M"],
                                   ["--lock-file", "lock"], ["-r", "./rpc"], ["-c", "config"]])
def test_a_working_directory_that_is_gone(place, words):
    gone = place.folder / "gone"
    gone.mkdir()
    place.cwd = gone
    place.before = ["sh", "-c", f'rmdir {gone}; exec "$@"', "sh"]
    assert "No such file or directory" in refused(place, *words)


# Configuration files

def test_configuration_that_cannot_be_read(place):
    assert "/nowhere.json" in refused(place, "-c", "/nowhere.json")
    assert str(place.cwd) in refused(place, "-c", str(place.cwd))


@pytest.mark.parametrize("text, part", [
    ('{"subsystems": [', ":1:17: "), ('{"subsystems": 1}', 'a list "subsystems"'),
    ('{"subsystems":[{"subsystem":"bdev","config":[{"method":"no_such"}]}]}', "no_such"),
    ('{"subsystems":[{"subsystem":"bdev","config":[{"method":"bdev_malloc_create"}]}]}',
     "subsystems[0].config[0]"),
    ('{"subsystems":[{"subsystem":"bdev","config":[{"method":"bdev_malloc_create",'
     '"params":{"num_blocks":0,"block_size":512}}]}]}', "num_blocks"),
    ("[Global]\nReactorMask 0xg\n", ":2: ReactorMask: '0xg'"), ("[Nvme]\n", ":1: "),
    ("[Global]\nReactorMask \"0x1\n", ":2: "), ("nonsense\n", ":1: "), ("\0", ""), ("", ""),
])
def test_configuration_that_cannot_be_used(place, text, part):
    file = place.folder / "config"
    file.write_text(text)
    line = refused(place, "-c", str(file))
    assert str(file) in line and part in line


def test_configuration_whose_errors_are_ignored(place):
    file = place.folder / "config"
    file.write_text('{"subsystems":[{"subsystem":"bdev","config":[{"method":"no_such"},'
                    '{"method":"bdev_null_create",'
                    '"params":{"name":"n","num_blocks":8,"block_size":512}}]}]}')
    with place.start("-c", str(file), "--json-ignore-init-errors") as run:
        assert "no_such" in run.said()
        assert [bdev["name"] for bdev in run.rpc("bdev_get_bdevs")] == ["n"]
        run.stop()


# Disks

def test_disks_that_cannot_be_served(place):
    odd, fifo, empty = (place.folder / name for name in ("odd", "fifo", "empty"))
    odd.write_bytes(bytes(1000))
    empty.touch()
    os.mkfifo(fifo)
    for path, part in ((place.folder / "missing", "No such file or directory"),
                       (place.cwd, "directory"), ("/dev/null", "/dev/null"), (fifo, "fifo"),
                       (empty, "is empty"), (odd, "not a whole number of 512-byte blocks"),
                       (place.folder / "odd" / "x", "Not a directory")):
        line = refused(place, "--disk", str(path))
        assert "disk Disk0: " in line and str(path) in line and part in line


def test_one_file_twice(place):
    store, other = place.folder / "disk", place.folder / "link"
    store.write_bytes(bytes(1 << 20))
    os.link(store, other)
    assert f"{other} is locked by" in refused(place, "--disk", str(store), "--disk", str(other))
    with place.start("--disk", f"{store},ro", "--disk", f"{other},ro") as run:
        assert len(run.rpc("vhost_get_controllers")) == 2
        run.stop()


def test_a_disk_that_may_not_be_read():
    with Place(unprivileged=True) as place:
        store = place.folder / "disk"
        store.write_bytes(bytes(1 << 20))
        store.chmod(0)
        if os.geteuid() == 0:
            os.chown(store, NOBODY, NOBODY)
        line = refused(place, "--disk", str(store))
        assert f"{store} cannot be opened" in line and "Permission denied" in line


def test_a_disk_that_may_only_be_read():
    with Place(unprivileged=True) as place:
        store = place.folder / "disk"
        store.write_bytes(bytes(1 << 20))
        store.chmod(0o444)
        if os.geteuid() == 0:
            os.chown(store, NOBODY, NOBODY)
        assert "cannot be opened" in refused(place, "--disk", str(store))
        with place.start("--disk", f"{store},ro") as run:
            run.stop()
