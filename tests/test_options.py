"""The command line, from the viewpoint of who types it."""
import pytest

from vhostrt import log
from vhostrt.disks import Disk
from vhostrt.options import TABLE, Options, UsageError, help_text, parse_args

TAKEN = [
    ("-m 0x3", {"cores": (0, 1)}), ("-m0x3", {"cores": (0, 1)}), ("-m [0-1]", {"cores": (0, 1)}),
    ("--cpumask=3", {"cores": (0, 1)}), ("--cpumask 3", {"cores": (0, 1)}),
    ("--cpu 3", {"cores": (0, 1)}),
    ("-qd", {"print_level": log.WARNING, "limit_coredump": True}),
    ("-qdm0x1 -u", {"print_level": log.WARNING, "limit_coredump": True, "cores": (0,),
                    "no_pci": True}),
    ("-e bdev --num-trace-entries 64", {"tpoint_groups": "bdev", "trace_entries": 64}),
    ("--num-trace-entries 0 --disable-cpumask-locks", {"trace_entries": 0, "core_locks": False}),
    ("-m 1 -m 2", {"cores": (1,)}), ("-u --", {"no_pci": True}),
    ("--lcores 0@1 -p 0", {"lcore_map": ((0, (1,)),), "main_core": 0}),
    ("-m [2,5] --main-core 5", {"cores": (2, 5), "main_core": 5}),
    ("-s 2g", {"mem_size": 2048}), ("--mem-size=0", {"mem_size": 0}),
    ("-S /run/x", {"socket_dir": "/run/x/"}), ("-f /run/pid", {"pid_file": "/run/pid"}),
    ("--lock-file /l", {"lock_file": "/l"}),
    ("-c a", {"config": "a"}), ("--config a", {"config": "a"}), ("--json=a", {"config": "a"}),
    ("--json-ignore-init-errors", {"ignore_init_errors": True}),
    ("-r /s", {"rpc_addr": ("/s",)}), ("-r /s --rpc-socket h:1", {"rpc_addr": ("/s", "h:1")}),
    ("-q", {"print_level": log.WARNING, "rpc_addr": ("/var/tmp/vhostrt.sock",)}),
    ("--rpc-socket-mode 0660 --rpc-socket-owner 1:2", {"rpc_socket_mode": 0o660,
                                                       "rpc_socket_owner": (1, 2)}),
    ("--no-rpc-server", {"rpc_server": False}), ("--wait-for-rpc", {"wait_for_rpc": True}),
    ("--rpcs-allowed a,b", {"rpcs_allowed": ("a", "b")}),
    ("--idle spin", {"idle": "spin"}), ("--idle yield", {"idle": "yield"}),
    ("--idle sleep", {"idle": "sleep", "max_delay_us": None}),
    ("--idle interrupt", {"idle": "interrupt"}),
    ("--interrupt-mode", {"idle": "interrupt"}),
    ("--max-delay-us 7 --interrupt-mode", {"idle": "interrupt", "max_delay_us": 7}),
    ("--max-delay-us 7", {"idle": "sleep", "max_delay_us": 7}),
    ("--max-delay-us 7 --idle sleep", {"idle": "sleep", "max_delay_us": 7}),
    ("-L rpc", {"log_flags": ("rpc",), "print_level": log.DEBUG}),
    ("-t rpc --logflag vhost", {"log_flags": ("rpc", "vhost"), "print_level": log.DEBUG}),
    ("--env-context=-r 2 --no-hpet", {"env_context": ("-r", "2", "--no-hpet")}),
    ("--vfio-vf-token fc571169-d385-4c55-869d-9d4a1dc20130",
     {"vfio_vf_token": "fc571169-d385-4c55-869d-9d4a1dc20130"}),
    ("-A 5e:0.0 -A 5e:0.1", {"pci_allowed": ("0000:5e:00.0", "0000:5e:00.1")}),
    ("-B 5e:0.0", {"pci_blocked": ("0000:5e:00.0",)}), ("-i 3", {"shm_id": 3}),
    ("-i -1", {"shm_id": -1}), ("--iova-mode va", {"iova_mode": "va"}),
    ("--mem-file /a,/b", {"mem_files": ("/a", "/b")}), ("--legacy-mem", {"legacy_mem": True}),
    ("--in-memory", {"in_memory": True}), ("-gR", {"single_file_segments": True,
                                                   "huge_unlink": True}),
    ("--enforce-numa", {"enforce_numa": True}),
    ("--base-virtaddr 0x100000000000", {"base_virtaddr": 0x100000000000}),
    ("-L rpc -q", {"log_flags": ("rpc",), "print_level": log.WARNING}),
    ("--disk malloc:1M --disk x,ro", {"disks": (
        Disk("malloc", 2**20, "", "Disk0", "vhost.0"),
        Disk("file", 0, "x", "Disk1", "vhost.1", True))}),
]

# (words, field, value) of options that are read and kept while their feature is not there.
LATER = [
    ("-n 4", "mem_channels", 4),
    ("--msg-mempool-size 9", "msg_mempool_size", 9),
]

# Words, and what the sentence has to name.
REFUSED = {
    "-Z": "'-Z'", "-W": "'-W'", "--nope": "'--nope'", "--n 1": "may mean", "-m": "-m needs",
    "--cpumask": "--cpumask needs", "-qm": "-m needs", "--no-pci=1": "takes no value",
    "word": "'word'", "-u word": "'word'", "-u -- word": "'word'", "-": "'-'",
    "-s 1.5G": "-s: '1.5G'", "-s 512k": "-s: '512k'", "-s -1": "-s: '-1'", "-i abc": "-i: 'abc'",
    "-n x": "-n: 'x'", "-n 0": "-n: '0'", "-p x": "-p: 'x'", "-p 1 -m 1": "main core 1",
    "-p 1 --lcores 0@1": "main core 1", "-m 0x0": "-m: core mask '0x0'", "-m g": "-m: 'g'",
    "--cpumask=g": "--cpumask: 'g'", "-e a:": "-e: 'a:'", "-L nope": "unknown flag 'nope'",
    "--idle nap": "--idle: 'nap' is none of spin, yield, sleep",
    "--idle interrupted": "is none of spin, yield, sleep, interrupt",
    "--max-delay-us 0": "--max-delay-us: '0'", "--max-delay-us 5 --idle spin": "--idle spin",
    "--lcores 0 -m 1": "-m and --lcores", "-A 1:0.0 -B 1:0.0": "-A and -B",
    "-r /a -r /b -r /a": "-r names an address twice", "--rpc-socket-mode 9": "'9'",
    "--rpc-socket-owner no.such.user": "'no.such.user'",
    "--wait-for-rpc --no-rpc-server": "--no-rpc-server", "--no-huge": "needs -s",
    "--no-huge -s 64 -g": "-g, -R", "--no-huge -s 64 --iova-mode pa": "--iova-mode pa",
    "--iova-mode dc": "none of pa, va", "--num-trace-entries 3": "'3'",
    "--disk malloc:x": "--disk: 'x'", "--disk a,name=x --disk b,name=x": "--disk: two disks",
    "--env-context=-Z": "--env-context: there is no option '-Z'", "--mem-file a,,b": "'a,,b'",
    "--base-virtaddr 0x1": "'0x1'", "--rpcs-allowed a,,b": "''",
}


def parse(line: str) -> Options:
    if line.startswith("--env-context"):
        return parse_args([line])
    return parse_args(line.split())


@pytest.mark.parametrize("line, fields", TAKEN)
def test_taken(line, fields):
    assert parse(line) == Options(**fields)


@pytest.mark.parametrize("line, field, value", LATER)
def test_options_of_later_features_are_kept_and_named(line, field, value):
    options = parse(line)
    assert getattr(options, field) == value
    assert line.split()[0].split("=")[0] in options.no_effect[0]
    assert "not there yet" in options.no_effect[0]


@pytest.mark.parametrize("line", REFUSED)
def test_refused_with_a_sentence_that_names_it(line):
    with pytest.raises(UsageError) as refusal:
        parse(line)
    assert REFUSED[line] in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_help_and_version_end_the_reading():
    assert parse("-h -Z").show == "help"
    assert parse("-uv word").show == "version"
    assert parse("--env-context=-h -Z").show == "eal-help"


def test_the_defaults_name_every_field_of_the_table():
    fields = {option.field for option in TABLE}
    assert fields | {"name", "no_effect"} == set(Options.__dataclass_fields__)


def test_private_runs():
    assert Options().private and Options(shm_id=-1).private and not Options(shm_id=0).private


def test_help_has_a_line_for_each_option_and_fits_the_screen():
    text = help_text()
    assert all(len(line) <= 96 for line in text.splitlines())
    for option in TABLE:
        assert "  " + ", ".join(option.names.split()) in text


def test_help_marks_the_options_without_effect():
    text = " ".join(help_text().split())
    assert text.count("(no effect yet)") == sum(bool(option.later) for option in TABLE) > 0
