"""The strict readers of typed values, from the viewpoint of who types them."""
import pytest

from vhostrt import values

TAKEN = [
    ("read_number", "0", 0), ("read_number", "007", 7), ("read_number", "2147483647", 2**31 - 1),
    ("read_hex", "0x1F", 31), ("read_hex", "1f", 31),
    ("read_bytes", "1", 2**20), ("read_bytes", "3k", 3072), ("read_bytes", "2G", 2**31),
    ("read_mib", "2048", 2048), ("read_mib", "2g", 2048), ("read_mib", "1024K", 1),
    ("read_mib", "0", 0),
    ("read_cpus", "0x1000010", (4, 24)), ("read_cpus", "3", (0, 1)),
    ("read_cpus", "[0-2,5]", (0, 1, 2, 5)), ("read_cpus", "[5,0-2,1]", (0, 1, 2, 5)),
    ("read_cpus", "0x1" + "0" * 75, (300,)), ("read_cpus", "[4095]", (4095,)),
    ("read_lcore_map", "1,3", ((1, (1,)), (3, (3,)))),
    ("read_lcore_map", "0@(4-5),1@7", ((0, (4, 5)), (1, (7,)))),
    ("read_lcore_map", "(1,2)", ((1, (1, 2)), (2, (1, 2)))),
    ("read_lcore_map", "(3-4)@(0,2),7-8", ((3, (0, 2)), (4, (0, 2)), (7, (7,)), (8, (8,)))),
    ("read_address", "0x200000000000", 0x200000000000), ("read_address", "8192", 8192),
    ("read_pci_address", "0000:5e:00.1", "0000:5e:00.1"),
    ("read_pci_address", "5E:0.1", "0000:5e:00.1"), ("read_pci_address", "5e.1f.7", "0000:5e:1f.7"),
    ("read_pci_address", "1:5e:2", "0001:5e:02.0"), ("read_pci_address", "5e:2", "0000:5e:02.0"),
    ("read_uuid", "FC571169-d385-4c55-869d-9d4a1dc20130", "fc571169-d385-4c55-869d-9d4a1dc20130"),
    ("read_tpoint_groups", "bdev:0x3,0xff,thread:a+b", "bdev:0x3,0xff,thread:a+b"),
    ("read_names", "bdev_get_bdevs,rpc_get_methods", ("bdev_get_bdevs", "rpc_get_methods")),
    ("read_trace_entries", "0", 0), ("read_trace_entries", "4096", 4096),
    ("read_rpc_address", "/tmp/x.sock", "/tmp/x.sock"), ("read_rpc_address", "./x", "./x"),
    ("read_rpc_address", "localhost", "localhost"), ("read_rpc_address", "[::1]:99", "[::1]:99"),
    ("read_metrics_address", "h:9464", "h:9464"), ("read_metrics_address", "[::1]:9", "[::1]:9"),
    ("read_metrics_address", "./m", "./m"),
    ("read_rpc_address", "::1", "::1"), ("read_rpc_address", "h:65535", "h:65535"),
    ("read_socket_dir", "/run/x", "/run/x/"), ("read_socket_dir", "/run/x/", "/run/x/"),
    ("read_socket_dir", "", ""),
    ("read_mode", "0660", 0o660), ("read_mode", "7", 7), ("read_user_id", "root", 0),
    ("read_group_id", "12", 12), ("read_owner", "root:7", (0, 7)), ("read_owner", ":root", (-1, 0)),
    ("read_owner", "5", (5, -1)),
]

REFUSED = [
    ("read_number", ""), ("read_number", "abc"), ("read_number", "1x"), ("read_number", "-1"),
    ("read_number", "+1"), ("read_number", " 1"), ("read_number", "1_0"), ("read_number", "0x1"),
    ("read_number", "2147483648"), ("read_number", "9" * 9000), ("read_number", "\u00b2"),
    ("read_hex", ""), ("read_hex", "0x"), ("read_hex", "0xg"), ("read_hex", "-1"),
    ("read_hex", "1_0"), ("read_hex", "0x0x1"),
    ("read_bytes", ""), ("read_bytes", "G"), ("read_bytes", "2Gxyz"), ("read_bytes", "2048MB"),
    ("read_bytes", "1.5G"), ("read_bytes", "0x10"), ("read_bytes", " 1"), ("read_bytes", "-1"),
    ("read_bytes", "9" * 9000), ("read_bytes", "\u0663"),
    ("read_mib", "512k"), ("read_mib", "1025k"), ("read_mib", "2147483648"),
    ("read_cpus", ""), ("read_cpus", "0x0"), ("read_cpus", "0-3"), ("read_cpus", "[]"),
    ("read_cpus", "[0-3"), ("read_cpus", "[3-0]"), ("read_cpus", "[0,,1]"), ("read_cpus", "[a]"),
    ("read_cpus", "[65536]"), ("read_cpus", "[0-999999999999]"), ("read_cpus", "1" + "0" * 16384),
    ("read_lcore_map", ""), ("read_lcore_map", "1@"), ("read_lcore_map", "(1"),
    ("read_lcore_map", "1)"), ("read_lcore_map", "((1))"), ("read_lcore_map", "1,1"),
    ("read_lcore_map", "1@2@3"), ("read_lcore_map", ")1("),
    ("read_address", "0x1001"), ("read_address", "0"), ("read_address", "0x800000000000"),
    ("read_address", "200000z"), ("read_address", "-4096"),
    ("read_pci_address", ""), ("read_pci_address", "5e"), ("read_pci_address", "0:100:0.0"),
    ("read_pci_address", "0:0:20.0"), ("read_pci_address", "0:0:0.8"),
    ("read_pci_address", "1:2:3:4.5"), ("read_pci_address", "x:0.0"),
    ("read_pci_address", "100000000:0:0.0"), ("read_pci_address", ":0.0"),
    ("read_uuid", ""), ("read_uuid", "fc571169d3854c55869d9d4a1dc20130"),
    ("read_uuid", "gc571169-d385-4c55-869d-9d4a1dc20130"),
    ("read_tpoint_groups", ""), ("read_tpoint_groups", "a,,b"), ("read_tpoint_groups", "a:"),
    ("read_tpoint_groups", "a:b:c"), ("read_tpoint_groups", "a b"), ("read_tpoint_groups", "a:b+"),
    ("read_names", ""), ("read_names", "a,"), ("read_names", "a b"), ("read_names", "1a"),
    ("read_trace_entries", "3"), ("read_trace_entries", "-2"), ("read_trace_entries", "33554432"),
    ("read_rpc_address", ""), ("read_rpc_address", "/" + "x" * 107), ("read_rpc_address", "h:"),
    ("read_metrics_address", ""), ("read_metrics_address", "h"), ("read_metrics_address", ":9464"),
    ("read_metrics_address", "h:"), ("read_metrics_address", "::1"),
    ("read_metrics_address", "h:0"), ("read_metrics_address", "[::1]"),
    ("read_metrics_address", "/" + "x" * 107),
    ("read_rpc_address", "h:x"), ("read_rpc_address", "h:65536"), ("read_rpc_address", "[::1]:0"),
    ("read_socket_dir", "/" + "x" * 106), ("read_path", ""),
    ("read_mode", ""), ("read_mode", "8"), ("read_mode", "-1"), ("read_mode", "0o7"),
    ("read_mode", "777777"), ("read_user_id", "no.such.user"), ("read_user_id", "a\0b"),
    ("read_group_id", ""), ("read_group_id", "99999999999"), ("read_owner", ""),
    ("read_owner", ":"), ("read_owner", "root:"), ("read_owner", "a:b:c"),
]


@pytest.mark.parametrize("reader, text, value", TAKEN)
def test_taken(reader, text, value):
    assert getattr(values, reader)(text) == value


@pytest.mark.parametrize("reader, text", REFUSED, ids=[f"{r}-{t[:20]}" for r, t in REFUSED])
def test_refused_with_one_printable_sentence(reader, text):
    with pytest.raises(ValueError) as refusal:
        getattr(values, reader)(text)
    sentence = str(refusal.value)
    assert sentence.isascii() and sentence.isprintable()
    assert 0 < len(sentence) < 240 and not sentence.startswith(("invalid literal", "Exceeds"))


def test_signed_numbers_only_where_the_bounds_say_so():
    assert values.read_number("-5", -10, 10) == -5
    with pytest.raises(ValueError, match="not between -10 and 10"):
        values.read_number("-11", -10, 10)
