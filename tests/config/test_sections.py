"""What the sections of an INI file become, from the viewpoint of a user who still has one."""
import pytest

from vhostrt.config import ConfigError, ini, sections
from vhostrt.options import Options, parse_args


def refusal(text):
    with pytest.raises(ConfigError) as caught:
        sections.apply(ini.parse(text, "f"), Options(), "f")
    return caught.value.lines


def calls(text):
    """Return (place, method, parameters) of each call that a text becomes."""
    warnings, found = sections.apply(ini.parse(text, "f"), Options(), "f")
    assert warnings == []
    return [(call.place("f"), call.method, call.params) for call in found]


def merged(text, *words):
    options = parse_args(list(words))
    warnings, calls = sections.apply(ini.parse("[global]\n" + text, "f"), options, "f")
    assert calls == []
    return options, warnings


@pytest.mark.parametrize("text, fields", [
    ("ReactorMask 0x3", {"cores": (0, 1)}), ("reactormask [0,2]", {"cores": (0, 2)}),
    ("ReactorMask 0x3  # two", {"cores": (0, 1)}), ("ReactorMask 0x3 #two", {"cores": (0, 1)}),
    ("SharedMemoryID 3", {"shm_id": 3}), ("SharedMemoryID -1", {"shm_id": -1}),
    ("NoPci Yes", {"no_pci": True}), ("NoPci TRUE", {"no_pci": True}),
    ("NoPci n", {}), ('TpointGroupMask "0x2"', {"tpoint_groups": "0x2"}),
    ('Comment "a" b c\nComment d', {}),
])
def test_global_keys(text, fields):
    assert merged(text) == (Options(**fields), [])


@pytest.mark.parametrize("text, words, field, value", [
    ("ReactorMask 0x3", ["-m", "1"], "cores", (0,)),
    ("ReactorMask 0x3", ["--lcores", "5"], "cores", None),
    ("SharedMemoryID 3", ["-i", "0"], "shm_id", 0), ("SharedMemoryID 3", ["-i", "-1"], "shm_id", 3),
    ("NoPci No", ["-u"], "no_pci", True), ("TpointGroupMask 1", ["-e", "2"], "tpoint_groups", "2"),
])
def test_the_command_line_wins(text, words, field, value):
    assert getattr(merged(text, *words)[0], field) == value


def test_the_documented_key_that_nothing_reads():
    options, warnings = merged("InstanceID 3\nSharedMemoryID 4")
    assert options.shm_id == 4
    assert warnings == ["f:2: [global] 'InstanceID' means nothing to vhostrt"]


def test_bad_values_and_other_sections_are_all_named():
    text = ("[Global]\nReactorMask 0x3x\nSharedMemoryID 12abc\nNoPci maybe\nTpointGroupMask a:\n"
            "[Nvme]\nRetryCount 1\n[VhostNvme0]\n[global]\nReactorMask 1\nNoPci\nComment\n"
            "Comment\n[Rpc]\n")
    lines = refusal(text)
    assert [line.split(" ")[0] for line in lines] == [
        "f:2:", "f:3:", "f:4:", "f:5:", "f:10:", "f:11:", "f:6:", "f:8:", "f:14:"]
    assert "ReactorMask: '0x3x'" in lines[0] and "'maybe' is neither Yes nor No" in lines[2]
    assert lines[4] == "f:10: ReactorMask is given twice"
    assert lines[6] == "f:6: the module of section [Nvme] is not there yet"
    assert lines[8].endswith("remove it, and give the address with -r")


@pytest.mark.parametrize("text", ["ReactorMask", "ReactorMask 1 2", "NoPci Yes No"])
def test_one_value_for_a_key(text):
    assert "needs one value" in refusal("[Global]\n" + text)[0]


MALLOC = ("[Malloc]\nNumberOfLuns 2\nLunSizeInMB 128\nBlockSize 4096\n", [
    ("f:1: [Malloc]", "bdev_malloc_create",
     {"name": f"Malloc{n}", "num_blocks": 32768, "block_size": 4096}) for n in range(2)])
SECTIONS = {
    "malloc": MALLOC,
    "its default": ("[Malloc]\nnumberofluns 1\nLunSizeInMB 1\n", [
        ("f:1: [Malloc]", "bdev_malloc_create",
         {"name": "Malloc0", "num_blocks": 2048, "block_size": 512})]),
    "aio": ("[AIO]\n  AIO /dev/sdb AIO0\n  AIO '/a b' AIO1 4096 # blocks\n", [
        ("f:2: [AIO]", "bdev_aio_create", {"name": "AIO0", "filename": "/dev/sdb"}),
        ("f:3: [AIO]", "bdev_aio_create",
         {"name": "AIO1", "filename": "/a b", "block_size": 4096})]),
    "null": ("[Null]\nDev Null0 8\nDev Null1 8 4096\n", [
        ("f:2: [Null]", "bdev_null_create",
         {"name": "Null0", "num_blocks": 16384, "block_size": 512}),
        ("f:3: [Null]", "bdev_null_create",
         {"name": "Null1", "num_blocks": 2048, "block_size": 4096})]),
    "split": ("[Split]\nSplit Malloc0 2\nSplit Malloc1 8 1\n", [
        ("f:2: [Split]", "bdev_split_create", {"base_bdev": "Malloc0", "split_count": 2}),
        ("f:3: [Split]", "bdev_split_create",
         {"base_bdev": "Malloc1", "split_count": 8, "split_size_mb": 1})]),
    "blk": ("[VhostBlk0]\nName vhost.2\nDev Malloc2p0\nReadOnly yes\nCpumask 0x1\n"
            "[vhostblk1]\nName vhost.3\nDev AIO0\n", [
        ("f:1: [VhostBlk0]", "vhost_create_blk_controller",
         {"ctrlr": "vhost.2", "dev_name": "Malloc2p0", "cpumask": "0x1", "readonly": True}),
        ("f:6: [vhostblk1]", "vhost_create_blk_controller",
         {"ctrlr": "vhost.3", "dev_name": "AIO0"})]),
    "scsi": ("[VhostScsi0]\nName vhost.0\nDev 0 Malloc0\nDev 3 AIO0\n", [
        ("f:1: [VhostScsi0]", "vhost_create_scsi_controller", {"ctrlr": "vhost.0"}),
        ("f:3: [VhostScsi0]", "vhost_scsi_controller_add_target",
         {"ctrlr": "vhost.0", "scsi_target_num": 0, "bdev_name": "Malloc0"}),
        ("f:4: [VhostScsi0]", "vhost_scsi_controller_add_target",
         {"ctrlr": "vhost.0", "scsi_target_num": 3, "bdev_name": "AIO0"})]),
    "its target": ("[VhostScsi1]\nName s\nCpumask [0]\nTarget 1 Null0\n", [
        ("f:1: [VhostScsi1]", "vhost_create_scsi_controller", {"ctrlr": "s", "cpumask": "[0]"}),
        ("f:4: [VhostScsi1]", "vhost_scsi_controller_add_target",
         {"ctrlr": "s", "scsi_target_num": 1, "bdev_name": "Null0"})]),
    "bdev": ("[Bdev]\nBdevIoPoolSize 1000\n", [
        ("f:1: [Bdev]", "bdev_set_options", {"bdev_io_pool_size": 1000})]),
}


@pytest.mark.parametrize("text, made", SECTIONS.values(), ids=SECTIONS)
def test_sections(text, made):
    assert calls(text) == made


def test_bdevs_come_first_whatever_the_order_of_the_file():
    text = SECTIONS["blk"][0] + SECTIONS["split"][0] + SECTIONS["aio"][0] + MALLOC[0]
    methods = [method for _, method, _ in calls(text)]
    assert methods == (["bdev_malloc_create"] * 2 + ["bdev_aio_create"] * 2
                       + ["bdev_split_create"] * 2 + ["vhost_create_blk_controller"] * 2)


def test_what_means_nothing_is_said():
    text = "[Ioat]\nDisable Yes\n" + MALLOC[0] + "Cluster 3\n"
    warnings, found = sections.apply(ini.parse(text, "f"), Options(), "f")
    assert warnings == ["f:1: [Ioat] means nothing to vhostrt: it uses no copy engine",
                        "f:7: [Malloc] 'Cluster' means nothing to vhostrt"]
    assert len(found) == 2


WRONG = [
    ("[Malloc]\nLunSizeInMB 1", "f:1: [Malloc] needs NumberOfLuns"),
    ("[Malloc]\nNumberOfLuns 0\nLunSizeInMB 1", "f:2: NumberOfLuns: '0' is not between"),
    ("[Malloc]\nNumberOfLuns 1\nLunSizeInMB 1.5", "f:3: LunSizeInMB: '1.5' is not a whole"),
    ("[Malloc]\nNumberOfLuns 1\nNumberOfLuns 2\nLunSizeInMB 1", "f:3: NumberOfLuns is given"),
    ("[Malloc]\nNumberOfLuns 1\nLunSizeInMB 1\nBlockSize 1", "f:4: BlockSize: '1' is not"),
    ("[AIO]\nAIO /dev/sdb", "f:2: AIO needs file name [block_size], and has 1 values"),
    ("[AIO]\nAIO a b c d", "f:2: AIO needs file"), ("[AIO]\nAIO a b c", "f:2: AIO: 'c' is not"),
    ("[Null]\nDev Null0", "f:2: Dev needs name size_in_MB"),
    ("[Null]\nDev Null0 x", "f:2: Dev: 'x' is not"),
    ("[Split]\nSplit M", "f:2: Split needs bdev count"),
    ("[Split]\nSplit M 0", "f:2: Split: '0' is not"),
    ("[VhostBlk0]\nDev M", "f:1: [VhostBlk0] needs Name"),
    ("[VhostBlk0]\nName a", "f:1: [VhostBlk0] needs Dev"),
    ("[VhostBlk0]\nName a\nDev M\nReadOnly maybe", "f:4: ReadOnly: 'maybe' is neither"),
    ("[VhostBlk0]\nName a\nDev M\nCpumask zz", "f:4: Cpumask: 'zz' is neither"),
    ("[VhostBlk]\nName a\nDev M", "f:1: [VhostBlk] needs a number behind its name, as [VhostBlk0]"),
    ("[VhostScsi0]\nName a\nDev 0", "f:3: Dev needs number bdev"),
    ("[VhostScsi0]\nName a\nDev 0 M N", "f:3: Dev needs number bdev"),
    ("[VhostScsi0]\nName a\nDev x M", "f:3: Dev: 'x' is not"),
    ("[VhostScsi0]\nName a\nDev 0 M\nTarget 1 N", "f:3: [VhostScsi0] has both Dev and Target"),
    ("[Nvme]\nRetryCount 4", "f:1: the module of section [Nvme] is not there yet"),
    ("[Rpc]\nEnable Yes", "f:1: [Rpc] is not read since SPDK v18.04"),
]


@pytest.mark.parametrize("text, start", WRONG, ids=range(len(WRONG)))
def test_refused_with_file_and_line(text, start):
    line, = refusal(text)
    assert line.startswith(start)
