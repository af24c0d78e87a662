"""Where a device is on the PCI bus."""
from typing import NamedTuple, Self

from vhostrt.values import read_pci_address


class Address(NamedTuple):
    """Domain, bus, device and function; ordered as they are on the bus."""

    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address in any of the forms of values.read_pci_address; ValueError."""
        domain, bus, rest = read_pci_address(text).split(":")
        device, function = rest.split(".")
        return cls(int(domain, 16), int(bus, 16), int(device, 16), int(function, 16))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function:x}"
