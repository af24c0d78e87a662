"""An EAL argument vector read: every option, every refusal that runtime.md 5.2 names."""
import os

import pytest

from tests.lib.recorded import System
from vhostrt.env import eal
from vhostrt.env.options import EnvOptions
from vhostrt.words import HelpAsked

MIB = 2**20
TOKEN = "fc571169-d385-4c55-869d-9d4a1dc20130"
CPUS = 200                              # more than DPDK 17.11 can see


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A machine of 200 CPUs and two nodes; CPU 7 is offline."""
    system = System(tmp_path_factory.mktemp("machine"))
    for cpu in range(CPUS):
        if cpu != 7:
            system.cpu(cpu, cpu // 100)
    return system.roots


def read(roots, *words):
    return eal.parse(["app", *words], roots)


def same(*lcores):
    return {lcore: (lcore,) for lcore in lcores}


TAKEN = [
    (["-c", "0x5"], {"lcores": same(0, 2)}), (["-c5"], {"lcores": same(0, 2)}),
    (["-c 0x5 "], {"lcores": same(0, 2)}), (["-c", " 5"], {"lcores": same(0, 2)}),
    (["--coremask=0X3"], {"lcores": same(0, 1)}),
    (["-c", "8" + "0" * 49], {"lcores": same(199)}),
    (["-l", "0,2-4"], {"lcores": same(0, 2, 3, 4)}), (["-l 3,1"], {"lcores": same(1, 3)}),
    (["-l", "0-6,8-199"], {"lcores": same(*(n for n in range(CPUS) if n != 7))}),
    (["-l", "5@1"], {"lcores": {5: (1,)}}),
    (["--lcores=0@(2-3),1@4"], {"lcores": {0: (2, 3), 1: (4,)}}),
    (["--lcores", "(0,6),1000@199"], {"lcores": {0: (0, 6), 6: (0, 6), 1000: (199,)}}),
    (["-c", "1", "-l", "2"], {"lcores": same(2)}),
    (["-l", "1,2", "--main-lcore", "2"], {"lcores": same(1, 2), "main_lcore": 2}),
    (["-l", "1,2", "--master-lcore=0x1"], {"lcores": same(1, 2), "main_lcore": 1}),
    (["-l", "0-3", "-s", "0xc"], {"lcores": same(0, 1, 2, 3), "service_lcores": (2, 3)}),
    (["-l", "0-3", "-S", "1,3"], {"lcores": same(0, 1, 2, 3), "service_lcores": (1, 3)}),
    (["-m", "64"], {"mem_size": 64 * MIB}), (["-m 64"], {"mem_size": 64 * MIB}),
    (["-m0"], {"mem_size": 0}), (["--memory-size=1"], {"mem_size": MIB}),
    (["--socket-mem", "64,0,2"], {"socket_mem": (64 * MIB, 0, 2 * MIB)}),
    (["--numa-mem=1"], {"socket_mem": (MIB,)}),
    (["--mem-file", "/h/a,/h/b"], {"mem_files": ("/h/a", "/h/b")}),
    (["-n", "4"], {"channels": 4}), (["-n 4"], {"channels": 4}), (["-r", "16"], {"ranks": 16}),
    (["--huge-dir", "/h h"], {"huge_dir": "/h h"}), (["--huge-unlink"], {"huge_unlink": True}),
    (["--huge-unlink=always"], {"huge_unlink": True}), (["--huge-unlink=existing"], {}),
    (["--huge-unlink", "--no-pci"], {"huge_unlink": True, "no_pci": True}),
    (["--no-huge"], {"no_huge": True}), (["--legacy-mem"], {"legacy_mem": True}),
    (["--no-huge", "--legacy-mem", "--iova-mode=va"], {"no_huge": True, "iova_mode": "va"}),
    (["--in-memory"], {"in_memory": True}), (["--iova-mode=PA"], {"iova_mode": "pa"}),
    (["--single-file-segments"], {"single_file_segments": True}),
    (["--base-virtaddr=0x100000000000"], {"base_virtaddr": 0x100000000000}),
    (["--base-virtaddr", "7f0000000000"], {"base_virtaddr": 0x7f0000000000}),
    (["-w", "5e:0.0", "-a0000:5e:00.1,x=1", "--allow=pci:1:2.3", "--pci-whitelist=4:0.0"],
     {"pci_allowed": ("0000:5e:00.0", "0000:5e:00.1,x=1", "0000:01:02.3", "0000:04:00.0")}),
    (["-b", "5e:0.0", "--block", "1:0.0", "--pci-blacklist=2:0.0"],
     {"pci_blocked": ("0000:5e:00.0", "0000:01:00.0", "0000:02:00.0")}),
    (["--vdev", "net_null0,size=1"], {"vdevs": ("net_null0,size=1",)}), (["--no-pci"],
                                                                         {"no_pci": True}),
    (["--vfio-intr=msix"], {"vfio_intr": "msix"}),
    (["--vfio-vf-token", TOKEN.upper()], {"vfio_vf_token": TOKEN}),
    (["--file-prefix=x", "--proc-type=Secondary"], {"file_prefix": "x", "proc_type": "secondary"}),
    (["--proc-type", "AUTO"], {"proc_type": "auto"}), (["--no-shconf"], {"no_shconf": True}),
    (["--log-level=lib.eal:6", "--log-level", "user1,debug", "--log-level=8"],
     {"log_levels": (("lib.eal", 6), ("user1", 8), ("*", 8))}),
    (["--log-level=lib.*:ERROR"], {"log_levels": (("lib.*", 4),)}),
    (["--no-hp"], {"ignored": ("--no-hpet",)}), (["--"], {}), (["-v"], {"ignored": ("-v",)}),
    (["--create-uio-dev", "--vmware-tsc-map", "--no-telemetry", "--telemetry"],
     {"ignored": ("--create-uio-dev", "--vmware-tsc-map", "--no-telemetry", "--telemetry")}),
    (["--match-allocations", "--mbuf-pool-ops-name", "ring_mp_mc"],
     {"ignored": ("--match-allocations", "--mbuf-pool-ops-name=ring_mp_mc")}),
    (["--syslog"], {"ignored": ("--syslog",)}),
    (["--syslog", "daemon", "-d", "/x.so", "-d/y.so", "--socket-limit=1,2"],
     {"ignored": ("--syslog=daemon", "-d /x.so", "-d /y.so", "--socket-limit=1,2")}),
]


@pytest.mark.parametrize("words, fields", TAKEN, ids=lambda x: " ".join(x) if x else "")
def test_taken(words, fields, roots):
    assert read(roots, *words) == EnvOptions(name="app", roots=roots, **fields)


REFUSED = [
    # -c: not hexadecimal, empty, zero, a CPU that is not there, beyond every CPU
    (["-c", "0xg"], "option -c: invalid coremask: '0xg' is not a hexadecimal number"),
    (["-c", ""], "option -c: invalid coremask: '' is not a hexadecimal number"),
    (["-c", "[0-1]"], "option -c: invalid coremask: '[0-1]' is not a hexadecimal number"),
    (["-c", "0x0"], "option -c: invalid coremask: core mask '0x0' names no core"),
    (["-c", "0x81"], "option -c: invalid coremask: lcore 7 unavailable in '0x81': this machine "
                     "has the CPUs 0-6,8-199"),
    (["-c 1" + "0" * 50], "option -c: invalid coremask: lcore 200 unavailable"),
    (["-c", "1" + "0" * 20000], "option -c: invalid coremask: core mask '1000"),
    (["-l", "0-x"], "option -l: invalid core list: 'x' is not a whole number"),
    (["-l", ""], "option -l: invalid core list: '' is not a whole number"),
    (["-l", "3-1"], "option -l: invalid core list: range '3-1' ends before it begins"),
    (["-l", "6-8"], "option -l: invalid core list: lcore 7 unavailable in '6-8'"),
    (["-l", "1023"], "option -l: invalid core list: lcore 1023 unavailable in '1023'"),
    (["--lcores", "0@7"], "option --lcores: invalid parameter for --lcores: core 7 unavailable"),
    (["--lcores", "0@(1"], "option --lcores: invalid parameter for --lcores: parentheses do not"),
    (["--lcores", "0@1,0@2"], "invalid parameter for --lcores: lcore 0 is named twice in '0@1"),
    (["--lcores", "1024@1"], "invalid parameter for --lcores: lcore 1024: the ids are 0 to 1023"),
    (["-l", "0,1", "--master-lcore", "2"], "option --main-lcore: lcore 2 is not enabled: the"),
    (["--main-lcore", "x"], "option --main-lcore: invalid main lcore: 'x' is not a whole number"),
    (["-l", "0-1", "-s", "0x3"], "option -S: all lcores, 0-1, are to run services, and none is"),
    (["-l", "0-3", "-s", "0x1", "--main-lcore=0"], "option -S: lcore 0 is the main lcore, which"),
    (["-l", "0-3", "-s", "0x2", "--main-lcore=1"], "option -S: lcore 1 is the main lcore"),
    (["-l", "0-3", "-s", "x"], "option -s: invalid service coremask: 'x' is not a hexadecimal"),
    (["-l", "0-3", "-S", "x"], "option -S: invalid service core list: 'x' is not a whole number"),
    (["-l", "0-3", "-S", "5"], "option -S: service lcore 5 is not enabled: the lcores are 0-3"),
    (["-m", "64M"], "option -m: invalid memory size: '64M' is not a whole number"),
    (["-m", "-1"], "option -m: invalid memory size: '-1' is not a whole number"),
    (["-m", "9" * 18], "option -m: invalid memory size: '999999999999999999' is not between"),
    (["-n", "0"], "option -n: invalid channel number: '0' is not between 1 and"),
    (["-n", "x"], "option -n: invalid channel number: 'x' is not a whole number"),
    (["-r", "0"], "option -r: invalid rank number: '0' is not between 1 and 16"),
    (["-r", "17"], "option -r: invalid rank number: '17' is not between 1 and 16"),
    (["-b", "1:0.0", "-w", "2:0.0"], "options --block (-b) and --allow (-a, -w) cannot be spec"),
    (["-b", "x"], "option -b: failed to parse device: 'x' is not a PCI address"),
    (["--allow", "net_null0"], "option --allow: failed to parse device: 'net_null0' is not a PCI"),
    (["--vdev="], "option --vdev: failed to parse device: the path is empty"),
    (["--huge-dir="], "option --huge-dir: invalid hugepage directory: the path is empty"),
    (["--file-prefix", "a%d"],
     "option --file-prefix: invalid --file-prefix: Invalid char, '%', in 'a%d'"),
    (["--file-prefix", "a/b"], "Invalid char, '/', in 'a/b'"),
    (["--file-prefix="], "option --file-prefix: invalid --file-prefix: the prefix is empty"),
    (["--socket-mem", "0,0"], "socket_mem: '(0, 0)' asks for no memory at all"),
    (["--socket-mem", "64,x"], "option --socket-mem: invalid parameter for --socket-mem: 'x'"),
    (["--socket-mem", "64,"], "option --socket-mem: invalid parameter for --socket-mem: ''"),
    (["-m", "64", "--socket-mem", "64"],
     "options -m and --socket-mem cannot be specified at the same time"),
    (["--no-huge", "--socket-mem", "64"], "options --no-huge and --socket-mem cannot be"),
    (["--mem-file", "/a,,/b"], "option --mem-file: invalid parameters for --mem-file: there is an "
                               "empty path in '/a,,/b'"),
    (["--mem-file", ""], "option --mem-file: invalid parameters for --mem-file: there is an empty"),
    (["--base-virtaddr", "0xx"], "option --base-virtaddr: invalid parameter for --base-virtaddr: "
                                 "'0xx' is not a hexadecimal number"),
    (["--base-virtaddr", "800000000000"], "'800000000000' is not in the user's half"),
    (["--no-huge", "--huge-unlink"], "options --no-huge and --huge-unlink cannot be specified at"),
    (["--huge-unlink=never"], "option --huge-unlink: invalid mode for --huge-unlink: 'never'"),
    (["--no-huge", "--iova-mode=pa"], "options --no-huge and --iova-mode=pa cannot be specified"),
    (["--legacy-mem", "--in-memory"], "options --in-memory and --legacy-mem cannot be specified"),
    (["--iova-mode", "dc"], "option --iova-mode: invalid parameters for --iova-mode: 'dc'"),
    (["--proc-type", "third"], "option --proc-type: Invalid process type specified: 'third' is"),
    (["--proc-type", "secondary"], "--proc-type=secondary needs the --file-prefix of its primary"),
    (["--vfio-intr", "x"], "option --vfio-intr: invalid parameters for --vfio-intr: 'x' is none"),
    (["--vfio-vf-token", "x"], "option --vfio-vf-token: invalid parameters for --vfio-vf-token"),
    (["--log-level", "lib.eal:9"], "option --log-level: invalid parameters for --log-level: '9'"),
    (["--log-level", "lib.eal:loud"], "'loud' is no level: 1 to 8, or emergency, alert"),
    (["--log-level", ":5"], "':5' names no component before its level"),
    (["--log-level="], "option --log-level: invalid parameters for --log-level: '' is no level"),
    (["--no-huge=1"], "option --no-huge takes no value, and '1' was given"),
    (["-Z"], "there is no option '-Z'"), (["--nope"], "there is no option '--nope'"),
    (["--no-h"], "option '--no-h' may mean --no-huge or --no-hpet"), (["-m"], "option -m needs a"),
    (["--file-prefix"], "option --file-prefix needs a value"), (["word"], "argument 'word'"),
    (["--", "word"], "argument 'word' belongs to no option"),
]


@pytest.mark.parametrize("words, sentence", REFUSED, ids=lambda x: " ".join(x)[:40])
def test_refused(words, sentence, roots):
    with pytest.raises(ValueError) as refused:
        read(roots, *words)
    assert sentence in str(refused.value), refused.value
    assert str(refused.value).isprintable()


def test_no_vector():
    with pytest.raises(ValueError, match="no program name in front"):
        eal.parse([])


def test_without_a_word_about_cores_they_are_those_of_the_affinity():
    assert eal.parse(["app"]).lcores is None
    with pytest.raises(ValueError, match="option --main-lcore: lcore 1023 is not enabled"):
        eal.parse(["app", "--main-lcore=1023"])
    first = min(os.sched_getaffinity(0))
    assert eal.parse(["app", f"--main-lcore={first}"]).main_lcore == first


def test_this_machine_is_looked_at():
    last = max(os.sched_getaffinity(0))
    assert eal.parse(["app", "-l", f"{last}"]).lcores == same(last)
    with pytest.raises(ValueError, match="lcore 1022 unavailable in '1022': this machine has the"):
        eal.parse(["app", "-l", "1022"])


def test_on_top_of_other_options(roots):
    under = EnvOptions(lcores=same(0, 1), mem_size=MIB, pci_allowed=("0000:01:00.0",), roots=roots)
    over = eal.apply(["-l", "5", "-m", "2", "-a", "2:0.0"], under)
    assert (over.lcores, over.mem_size) == (same(5), 2 * MIB)
    assert over.pci_allowed == ("0000:01:00.0", "0000:02:00.0")
    assert under.mem_size == MIB and under.lcores == same(0, 1), "the record below is written to"
    with pytest.raises(ValueError, match="options -m and --socket-mem cannot"):
        eal.apply(["--socket-mem=1"], under)
    assert eal.apply(["-l", "777"], under, check_cpus=False).lcores == same(777)


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_is_told_and_has_a_line_for_each_option(word, roots):
    with pytest.raises(HelpAsked) as asked:
        read(roots, "-m", "1", word, "-Z")
    text = str(asked.value)
    for option in eal.TABLE:
        assert "  " + ", ".join(option.names.split()) in text
    assert all(len(line) <= 96 for line in text.splitlines())
