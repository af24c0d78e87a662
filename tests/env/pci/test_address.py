"""vhostrt.env.pci.address: every form that people write, one form that is printed."""
import pytest

from vhostrt.env.pci.address import Address

FORMS = {
    "0000:5e:00.0": (0, 0x5e, 0, 0), "1:5e:2.3": (1, 0x5e, 2, 3), "1.5e.2.3": (1, 0x5e, 2, 3),
    "1:5e:2": (1, 0x5e, 2, 0), "5e:2.3": (0, 0x5e, 2, 3), "5e.2.3": (0, 0x5e, 2, 3),
    "5e:2": (0, 0x5e, 2, 0), "5e.2": (0, 0x5e, 2, 0), "FF:1F.7": (0, 0xff, 0x1f, 7),
    "10000:00:00.0": (0x10000, 0, 0, 0), "ffffffff:ff:1f.7": (0xffffffff, 0xff, 0x1f, 7),
}


@pytest.mark.parametrize(("text", "parts"), FORMS.items())
def test_forms(text, parts):
    address = Address.parse(text)
    assert address == parts
    assert Address.parse(str(address)) == address
    assert address.parse(".".join(f"{part:x}" for part in parts)) == address


def test_printed_as_lspci_does():
    assert str(Address(0, 0xa, 3, 1)) == "0000:0a:03.1"
    assert str(Address(0x10000, 0, 0, 0)) == "10000:00:00.0"


def test_order_is_that_of_the_bus():
    order = ["0000:00:00.0", "0000:00:00.1", "0000:00:01.0", "0000:01:00.0", "0001:00:00.0",
             "10000:00:00.0"]
    assert [str(a) for a in sorted(map(Address.parse, reversed(order)))] == order


REFUSED = ["", "5e", ":", ".", "5e:", "5e.", ":0.0", "5e:2.", "1:2:3:4", "1:2:3:4.5", "1.2.3.4.5",
           "1:2.3.4", "0.0:1.2", "100:0.0", "0:20.0", "0:0.8", "100000000:0:0.0", "x:0.0",
           "0x1:0.0", "-1:0.0", "5e:2 .0", "5e::0", "5e:0.0,a=b", "5e:0.0\n", "\u0660:0.0"]


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text):
    with pytest.raises(ValueError, match="is not a PCI address such as 0000:5e:00.0"):
        Address.parse(text)
