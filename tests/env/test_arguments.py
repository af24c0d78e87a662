"""The options of the environment: what cannot be, what follows from them, and their words."""
import os
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lib.recorded import System
from vhostrt.env import arguments, eal
from vhostrt.env.options import EnvOptions

MIB = 2**20
PREFIX = f"spdk_pid{os.getpid()}"
TOKEN = "fc571169-d385-4c55-869d-9d4a1dc20130"
EVERYTHING = EnvOptions(
    name="app", lcores={0: (2, 3), 1: (4,), 9: (9,)}, main_lcore=1, service_lcores=(9,),
    channels=4, ranks=2, mem_size=2048 * MIB, mem_files=("/h/a", "/h/b"), no_pci=True,
    legacy_mem=True, single_file_segments=True, huge_unlink=True, huge_dir="/h",
    pci_allowed=("5e:0.0,x=1",), vdevs=("v0",), vfio_intr="msi", log_levels=(("lib.eal", 6),),
    iova_mode="va", base_virtaddr=0x200000000000, shm_id=3, proc_type="auto", vfio_vf_token=TOKEN,
    ignored=("--no-telemetry",))


def words(**said):
    return arguments.build(EnvOptions(**said))


# Words

def test_every_word_in_its_order():
    assert arguments.build(EVERYTHING) == [
        "app", "--lcores=0@(2-3),1@(4),9@(9)", "-S 9", "-n 4", "-r 2", "-m 2048", "--mem-file",
        "/h/a,/h/b", "--main-lcore=1", "--no-pci", "--legacy-mem", "--single-file-segments",
        "--huge-unlink", "--huge-dir=/h", "--allow=0000:5e:00.0,x=1", "--vdev=v0",
        "--vfio-intr=msi", "--log-level=lib.eal:6", "--iova-mode=va",
        "--base-virtaddr=0x200000000000", "--file-prefix=spdk3", "--proc-type=auto",
        f"--vfio-vf-token={TOKEN}", "--no-telemetry"]
    assert words(no_huge=True, mem_size=64 * MIB, pci_blocked=("1:0.1", "1:0.2"))[1:] == [
        "--no-shconf", "-m 64", "--no-huge", "--legacy-mem", "--iova-mode=va",
        "--block=0000:01:00.1", "--block=0000:01:00.2", f"--file-prefix={PREFIX}"]


def test_the_line_that_the_original_prints():
    """Check 6 of runtime.md: name, cores, -m, --mem-file and its list, prefix, a blank, bracket."""
    vector = words(name="vhost", lcores={4: (4,), 24: (24,)}, mem_size=2048 * MIB,
                   mem_files=("/dev/hugepages/a", "/dev/hugepages/b"), shm_id=0)
    assert arguments.line(vector) == (
        "[ DPDK EAL parameters: vhost -l 4,24 -m 2048 --mem-file /dev/hugepages/a,/dev/hugepages/b "
        "--file-prefix=spdk0 ]")


@pytest.mark.parametrize("lcores, word", [
    ({0: (0,), 1: (1,), 2: (2,), 5: (5,)}, "-l 0-2,5"), ({4: (4,)}, "-l 4"),
    ({5: (0,)}, "--lcores=5@(0)"), ({7: (0, 1, 3), 0: (0,)}, "--lcores=0@(0),7@(0-1,3)"),
    ({n: (n,) for n in range(1024)}, "-l 0-1023"),
])
def test_core_words(lcores, word):
    assert words(lcores=lcores)[2] == word


def test_the_files_of_a_directory_are_one_a_node(tmp_path):
    system = System(tmp_path)
    for cpu, node in ((0, 0), (1, 0), (2, 1)):
        system.cpu(cpu, node)
    options = EnvOptions(mem_file_dir="/dev/hugepages", roots=system.roots)
    vector = arguments.build(options)
    at = vector.index("--mem-file")
    assert vector[at + 1] == ("/dev/hugepages/vhost_spdk_reserved_0,"
                              "/dev/hugepages/vhost_spdk_reserved_1")


def test_nodes_have_sizes_of_their_own():
    assert "--socket-mem=64,0,128" in words(socket_mem=(64 * MIB, 0, 128 * MIB))


# What follows

def test_what_is_private():
    for said in ({}, {"shm_id": -1}, {"no_shconf": True, "file_prefix": "x"}, {"in_memory": True},
                 {"in_memory": True, "shm_id": 1}):
        assert arguments.settle(EnvOptions(**said)).no_shconf
    for said in ({"shm_id": 0}, {"file_prefix": "x"}):
        assert not arguments.settle(EnvOptions(**said)).no_shconf
    assert arguments.settle(EnvOptions(shm_id=7)).file_prefix == "spdk7"
    assert arguments.settle(EnvOptions(shm_id=7, file_prefix="x")).file_prefix == "x"
    assert arguments.settle(EnvOptions()).file_prefix == PREFIX


@pytest.mark.parametrize("said, settled", [
    (0x200000000000, 0x200000000000), (0x200000001000, 0x200001000000), (1, 1 << 24), (None, None)])
def test_the_base_address_is_rounded_up(said, settled):
    assert arguments.settle(EnvOptions(base_virtaddr=said)).base_virtaddr == settled


def test_ordinary_pages_have_no_order_and_no_physical_address():
    settled = arguments.settle(EnvOptions(no_huge=True, legacy_mem=True))
    assert not settled.legacy_mem and settled.iova_mode == "va"


# What cannot be

@pytest.mark.parametrize("said, sentence", [
    ({"name": ""}, "name: '' is no name"),
    ({"lcores": {}}, "no lcore is asked for"),
    ({"lcores": {0: ()}}, "lcore 0 is given no CPU"),
    ({"lcores": {1024: (0,)}}, "lcore 1024: the ids are 0 to 1023"),
    ({"lcores": {-1: (0,)}}, "lcore -1: the ids are 0 to 1023"),
    ({"lcores": [0]}, "lcores: '[0]' is not of the type dict[int, tuple[int, ...]] | None"),
    ({"lcores": {0: [0]}}, "lcores: '{0: [0]}' is not of the type"),
    ({"lcores": {0: (0,)}, "main_lcore": 5},
     "option --main-lcore: lcore 5 is not enabled: the lcores are 0"),
    ({"main_lcore": 1023}, "option --main-lcore: lcore 1023 is not enabled"),
    ({"lcores": {0: (0,), 1: (1,)}, "service_lcores": (2,)},
     "option -S: service lcore 2 is not enabled: the lcores are 0-1"),
    ({"lcores": {0: (0,), 1: (1,)}, "service_lcores": (0,), "main_lcore": 0},
     "option -S: lcore 0 is the main"),
    ({"lcores": {0: (0,), 1: (1,)}, "service_lcores": (0, 1)},
     "option -S: all lcores, 0-1, are to run services"),
    ({"lcores": {0: (0,), 1: (1,)}, "service_lcores": (1,), "main_lcore": 1},
     "option -S: lcore 1 is the main"),
    ({"mem_size": -1}, "mem_size: '-1' is no number of bytes"),
    ({"mem_size": 2**63}, "is no number of bytes"),
    ({"mem_size": MIB + 1}, "mem_size: '1048577' is not a whole number of MiB"),
    ({"mem_size": "64M"}, "mem_size: '64M' is not of the type int | None"),
    ({"socket_mem": (0, 0)}, "socket_mem: '(0, 0)' asks for no memory at all"),
    ({"socket_mem": (MIB, 5)}, "socket_mem: '(1048576, 5)' are not whole MiB each"),
    ({"socket_mem": (MIB, -MIB)}, "are not whole MiB each"),
    ({"no_huge": 1}, "no_huge: '1' is not of the type bool"),
    ({"huge_dir": ""}, "huge_dir: '' is no path"),
    ({"mem_file_dir": ""}, "mem_file_dir: '' is no path"),
    ({"mem_files": ("a", "")}, "has an empty path in it"),
    ({"mem_files": ("a,b",)}, "has a comma in a path"),
    ({"channels": 0}, "channels: '0' is an invalid channel number"),
    ({"ranks": 0}, "ranks: '0' is an invalid rank number: they are 1 to 16"),
    ({"ranks": 17}, "ranks: '17' is an invalid rank number"),
    ({"base_virtaddr": 2**47}, "is not in the user's half of the address space"),
    ({"base_virtaddr": 2**47 - 2**24 + 4096}, "is not in the user's half of the address space"),
    ({"base_virtaddr": -1}, "is not in the user's half of the address space"),
    ({"iova_mode": "dc"}, "iova_mode: 'dc' is none of pa, va"),
    ({"proc_type": "third"}, "proc_type: 'third' is none of primary, secondary, auto"),
    ({"vfio_intr": "x"}, "vfio_intr: 'x' is none of legacy, msi, msix"),
    ({"vfio_vf_token": "x"}, "vfio_vf_token: 'x' is not a UUID"),
    ({"file_prefix": "a%d"}, "file_prefix: 'a%d' is no beginning of file names"),
    ({"file_prefix": "a/b"}, "file_prefix: 'a/b' is no beginning of file names"),
    ({"file_prefix": ""}, "file_prefix: '' is no beginning of file names"),
    ({"log_levels": (("a", 9),)}, "has a level that is not 1 to 8"),
    ({"log_levels": (("a",),)}, "log_levels: \"(('a',),)\" is not of the type tuple[tuple["),
    ({"pci_allowed": ("x",)}, "pci_allowed: 'x' is not a PCI address"),
    ({"pci_blocked": ("1:40.0",)}, "pci_blocked: '1:40.0' is not a PCI address"),
    # Together
    ({"mem_size": MIB, "socket_mem": (MIB,)}, "options -m and --socket-mem cannot be specified at"),
    ({"pci_allowed": ("1:0.0",), "pci_blocked": ("2:0.0",)}, "options --block (-b) and --allow"),
    ({"no_huge": True, "socket_mem": (MIB,)}, "options --no-huge and --socket-mem cannot"),
    ({"no_huge": True, "huge_dir": "/h"}, "options --no-huge and --huge-dir cannot"),
    ({"no_huge": True, "huge_unlink": True}, "options --no-huge and --huge-unlink cannot"),
    ({"no_huge": True, "single_file_segments": True}, "--no-huge and --single-file-segments"),
    ({"no_huge": True, "mem_files": ("a",)}, "options --no-huge and --mem-file cannot"),
    ({"no_huge": True, "mem_file_dir": "a"}, "options --no-huge and -F cannot"),
    ({"no_huge": True, "iova_mode": "pa"}, "options --no-huge and --iova-mode=pa cannot"),
    ({"in_memory": True, "huge_dir": "/h"}, "options --in-memory and --huge-dir cannot"),
    ({"in_memory": True, "mem_files": ("a",)}, "options --in-memory and --mem-file cannot"),
    ({"in_memory": True, "mem_file_dir": "a"}, "options --in-memory and -F cannot"),
    ({"in_memory": True, "legacy_mem": True}, "options --in-memory and --legacy-mem cannot"),
    ({"mem_files": ("a",), "mem_file_dir": "a"}, "options --mem-file and -F cannot"),
    ({"proc_type": "secondary"}, "--proc-type=secondary needs the --file-prefix of its primary"),
    ({"proc_type": "secondary", "shm_id": 1, "no_huge": True}, "--proc-type=secondary needs"),
    ({"proc_type": "secondary", "file_prefix": "x", "in_memory": True}, "--proc-type=secondary"),
])
def test_refused(said, sentence):
    with pytest.raises(ValueError) as refused:
        words(**said)
    assert sentence in str(refused.value) and str(refused.value).isprintable()


# What is printed is what is built, and is read back

def paths(barred=""):
    return st.text(st.characters(codec="utf-8", exclude_characters="\0" + barred), min_size=1)


sizes = st.integers(0, 2**40).map(lambda n: n * MIB)
lcore_maps = st.dictionaries(
    st.integers(0, 1023), st.sets(st.integers(0, 1023), min_size=1).map(sorted).map(tuple),
    min_size=1, max_size=8).map(lambda found: dict(sorted(found.items())))
device = st.builds("{:04x}:{:02x}:{:02x}.{}{}".format, st.integers(0, 2**32 - 1),
                   st.integers(0, 255), st.integers(0, 31), st.integers(0, 7),
                   st.sampled_from(["", ",a=1", ",", ",x,y=%"]))
devices = st.lists(device, max_size=3).map(tuple)
flags = st.booleans()
MEMORY = st.one_of(
    st.fixed_dictionaries({"no_huge": st.just(True), "legacy_mem": flags},
                          optional={"mem_size": sizes}),
    st.fixed_dictionaries({"in_memory": st.just(True)}, optional={
        "single_file_segments": flags, "huge_unlink": flags, "iova_mode": st.just("pa")}),
    st.fixed_dictionaries({"legacy_mem": flags, "huge_unlink": flags}, optional={
        "huge_dir": paths(), "mem_files": st.lists(paths(","), max_size=3).map(tuple),
        "iova_mode": st.sampled_from(["pa", "va"]), "single_file_segments": flags,
        "socket_mem": st.lists(sizes, max_size=4).map(tuple).filter(lambda s: not s or any(s))}))


@st.composite
def options(draw):
    """Options that may be together, of all that an EAL vector can say."""
    said = draw(st.fixed_dictionaries({}, optional={
        "name": paths(), "lcores": lcore_maps, "channels": st.integers(1, 2**31 - 1),
        "ranks": st.integers(1, 16), "vdevs": st.lists(paths(), max_size=2).map(tuple),
        "base_virtaddr": st.integers(0, 2**47 - 2**24), "no_pci": flags, "no_shconf": flags,
        "vfio_intr": st.sampled_from(["legacy", "msi", "msix"]), "vfio_vf_token": st.just(TOKEN),
        "shm_id": st.integers(-1, 9), "file_prefix": paths("%/"),
        "log_levels": st.lists(st.tuples(paths(), st.integers(1, 8)), max_size=2).map(tuple),
        "ignored": st.lists(st.sampled_from(["--no-telemetry", "-d /a b", "--syslog=user", "-v"]),
                            max_size=3).map(tuple)}))
    said |= draw(MEMORY)
    said[draw(st.sampled_from(["pci_allowed", "pci_blocked"]))] = draw(devices)
    lcores = list(said.get("lcores", ()))
    if lcores and draw(flags):
        said["main_lcore"] = main = draw(st.sampled_from(lcores))
        said["service_lcores"] = tuple(sorted(draw(st.sets(st.sampled_from(lcores))) - {main}))
    made = EnvOptions(**said)
    if not (made.private or made.in_memory or made.no_huge):
        made.proc_type = draw(st.sampled_from(["primary", "secondary", "auto"]))
    return made


@given(options())
def test_words_are_read_back(made):
    settled = arguments.settle(made)
    vector = arguments.build(made)
    read = eal.apply(vector[1:], EnvOptions(name=vector[0]), check_cpus=False)
    # The id of SPDK is in the prefix: EAL knows no other word for it.
    assert read == replace(settled, shm_id=None)
    assert arguments.settle(settled) == settled and arguments.build(read) == vector


def test_all_that_an_eal_vector_can_say_is_among_the_examples():
    said_by_spdk = {"enforce_numa", "mem_file_dir", "roots", "shm_id"}
    read = {option.field for option in eal.TABLE} - {"", "help"}
    assert read | said_by_spdk | {"name", "ignored"} == {f.name for f in fields(EnvOptions)}
