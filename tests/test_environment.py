"""From the command line to the options of the environment."""
import pytest

from vhostrt.environment import options_of, without_effect
from vhostrt.options import UsageError, parse_args

MIB = 2**20


def asked(*words):
    return options_of(parse_args(list(words)))


@pytest.mark.parametrize("words, field, value", [
    ("-m 0x5", "lcores", {0: (0,), 2: (2,)}), ("--lcores 5@(0-1)", "lcores", {5: (0, 1)}),
    ("-m 3 -p 1", "main_lcore", 1), ("-s 64", "mem_size", 64 * MIB), ("-s 0", "mem_size", 0),
    ("-u", "mem_size", None), ("-s 64 --no-huge", "no_huge", True),
    ("--legacy-mem", "legacy_mem", True), ("--in-memory", "in_memory", True),
    ("--huge-dir /h", "huge_dir", "/h"), ("-R", "huge_unlink", True),
    ("-g", "single_file_segments", True), ("-F /h", "mem_file_dir", "/h"),
    ("--mem-file /a,/b", "mem_files", ("/a", "/b")),
    ("--base-virtaddr 0x100000000000", "base_virtaddr", 0x100000000000),
    ("--enforce-numa", "enforce_numa", True), ("-n 4", "channels", 4), ("-u", "no_pci", True),
    ("-A 5e:0.0", "pci_allowed", ("0000:5e:00.0",)),
    ("-B 5e:0.0", "pci_blocked", ("0000:5e:00.0",)), ("--iova-mode pa", "iova_mode", "pa"),
    ("--vfio-vf-token fc571169-d385-4c55-869d-9d4a1dc20130", "vfio_vf_token",
     "fc571169-d385-4c55-869d-9d4a1dc20130"),
    ("-i 3", "shm_id", 3), ("-i 3", "file_prefix", "spdk3"), ("-i 3", "proc_type", "auto"),
    ("-i 3", "no_shconf", False), ("-i -1", "no_shconf", True), ("-u", "no_shconf", True),
    ("-u", "proc_type", "primary"),
])
def test_every_option_reaches_it(words, field, value):
    assert getattr(asked(*words.split()), field) == value


def test_words_for_it_are_said_on_top():
    options = asked("-m", "1", "-s", "64", "-A", "1:0.0", "--env-context",
                    "-c 0x6 -m 32 -a 2:0.0 --main-lcore=2 -r 4")
    assert options.lcores == {1: (1,), 2: (2,)} and options.main_lcore == 2
    assert options.mem_size == 32 * MIB and options.ranks == 4
    assert options.pci_allowed == ("0000:01:00.0", "0000:02:00.0")


def test_a_prefix_alone_makes_no_private_run_a_shared_one():
    options = asked("--env-context", "--file-prefix=x")
    assert options.private and options.file_prefix == "x"


@pytest.mark.parametrize("words, sentence", [
    (["--env-context", "-Z"], "option --env-context: there is no option '-Z'"),
    (["--env-context", "-c 0x0"],
     "option --env-context: option -c: invalid coremask: core mask '0x0' names no core"),
    (["-s", "1", "--env-context", "--socket-mem=1"], "option --env-context: options -m and --sock"),
    (["--env-context", "--main-lcore=1023"], "option --env-context: option --main-lcore: lcore"),
    (["--huge-dir=/h", "--env-context", "--no-huge"], "--env-context: options --no-huge and"),
    (["-B", "1:0.0", "--env-context", "-a 2:0.0"], "option --env-context: options --block (-b)"),
    (["--in-memory", "--huge-dir", "/h"], "options --in-memory and --huge-dir cannot be specified"),
    (["--in-memory", "--legacy-mem"], "options --in-memory and --legacy-mem cannot be specified"),
    (["-F", "/h", "--mem-file", "/h/a"], "options --mem-file and -F cannot be specified"),
])
def test_what_cannot_be_is_a_sentence_about_the_command_line(words, sentence):
    with pytest.raises(UsageError) as refused:
        parse_args(words)
    assert sentence in str(refused.value)


def test_what_was_wrong_before_is_not_blamed_on_the_words_for_the_environment():
    with pytest.raises(UsageError, match="^options --in-memory and --legacy-mem cannot be"):
        parse_args(["--in-memory", "--legacy-mem", "--env-context", "-n 4"])


def test_what_a_configuration_file_may_say_is_waited_for():
    options = parse_args(["-p", "5", "-c", "file", "--env-context", "--main-lcore=6"])
    options.cores = (5, 6)
    assert options_of(options).main_lcore == 6
    for words in ("-Z", "-n 0"):
        with pytest.raises(UsageError, match="^option --env-context: "):
            parse_args(["-c", "file", "--env-context", words])
    assert parse_args(["-c", "file", "--env-context", "-h"]).show == "eal-help"


def test_a_cpu_that_is_not_there_is_left_to_the_start():
    assert asked("--env-context", "-l 1000").lcores == {1000: (1000,)}


def test_words_without_effect_are_named():
    options = parse_args(["-n", "2", "--env-context", "-v --syslog=user --vdev net0 -d /x "
                          "--log-level lib.eal:8 --vfio-intr=msi -r 2 -n 4"])
    assert without_effect(options, options_of(options)) == [
        f"option --env-context: {word} has no effect here"
        for word in ("--syslog=user", "-d /x", "--vdev=net0", "--vfio-intr=msi", "-n 4", "-r 2",
                     "--log-level=lib.eal:8")]
    options = parse_args(["-n", "2", "--env-context=-l 0"])
    assert without_effect(options, options_of(options)) == []
