"""The command vhostrt-pci: list the devices of the PCI bus, and bind them to kernel drivers.

What dpdk-devbind does, for the devices of networks and storage, and the others.

Exit status: 0 done, 1 not or not wholly done, with a sentence why on stderr; 2 bad usage.
"""
import argparse
import json
import os
import sys

from vhostrt import stdio
from vhostrt.env.pci import bind, names, usage
from vhostrt.env.pci.address import Address
from vhostrt.env.pci.device import USER_DRIVERS, Device, list_addresses, read_device
from vhostrt.env.roots import Roots

NAME = "vhostrt-pci"
KINDS = {"network": (0x02,), "storage": (0x01,)}        # base classes; "other" is the rest
TITLES = {"network": "Network", "storage": "Storage", "other": "Other"}
EXAMPLES = f"""examples:
  {NAME}                              what there is, and which drivers it could have
  {NAME} list --json                  the same for programs, with BARs, NUMA nodes and users
  {NAME} bind vfio-pci 0000:5e:00.0   make a device ours: through the IOMMU
  {NAME} bind uio_pci_generic 5e:0.0  the same on a machine without one
  {NAME} bind nvme 5e:0.0             give it back to the kernel
  {NAME} unbind 5e:0.0                no driver at all

The module of a driver has to be loaded (modprobe vfio-pci). ADDR is [domain:]bus:device[.function],
hexadecimal. A device that is mounted, swapped to, up, or claimed by a program is not touched unless
--force is said, a bridge never. Changing anything needs root."""


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    stdio.prepare()
    arguments = parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except (OSError, ValueError) as error:
        return failed(sentence(error))
    finally:
        stdio.settle()


def failed(why: str) -> int:
    print(f"{NAME}: {why}", file=sys.stderr)
    return 1


def sentence(error: Exception) -> str:
    """Return what an error says, with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def say(text: str) -> int:
    """Print on stdout; return the exit status."""
    why = stdio.say(text)
    return failed(f"cannot print on stdout: {why}") if why else 0


# The command line.

def read_address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        NAME, description="List the devices of the PCI bus, and bind them to kernel drivers.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--root", metavar="DIR", default="/", help="look at sys, proc and dev in DIR "
                     "instead of the system's own")
    top.add_argument("--sysfs", metavar="DIR", help="look at DIR instead of /sys, a recorded tree "
                     "for example")
    top.set_defaults(run=show, json=False, all=False)
    commands = top.add_subparsers(title="commands", metavar="COMMAND",
                                  description="without one: list")
    command = commands.add_parser("list", help="list the devices with their drivers, and those "
                                  "that they could have instead",
                                  description="List the devices: what drives each (drv=), and what "
                                  "could instead (unused=).")
    command.add_argument("--json", action="store_true", help="as JSON, with everything known")
    command.add_argument("--all", action="store_true", help="bridges too")
    command.set_defaults(run=show)
    command = commands.add_parser("bind", help="bind devices to a kernel driver",
                                  description="Bind devices to a kernel driver: vfio-pci or "
                                  "uio_pci_generic make them ours, any other gives them back.")
    command.add_argument("driver", metavar="DRIVER", help="vfio-pci, uio_pci_generic, or another")
    add_devices(command)
    command.set_defaults(run=change)
    command = commands.add_parser("unbind", help="take the kernel driver of devices away",
                                  description="Take the kernel driver of devices away.")
    add_devices(command)
    command.set_defaults(run=change, driver=None)
    return top


def add_devices(command: argparse.ArgumentParser) -> None:
    command.add_argument("addresses", metavar="ADDR", nargs="+", type=read_address,
                         help="of a device, such as 0000:5e:00.0")
    command.add_argument("--force", action="store_true", help="also when the device is in use: "
                         "what uses it fails")


def roots_of(arguments: argparse.Namespace) -> Roots:
    sys_, proc, dev = (os.path.join(arguments.root, name) for name in ("sys", "proc", "dev"))
    return Roots(arguments.sysfs or sys_, proc, dev)


# list

def devices_of(roots: Roots) -> list[Device]:
    """Return all devices; one that cannot be read is said on stderr.  OSError: there is no bus."""
    found = []
    for address in list_addresses(roots):
        try:
            found.append(read_device(roots, address))
        except (OSError, ValueError) as error:
            failed(f"PCI device {address} cannot be read: {sentence(error)}")
    return found


def kind_of(device: Device) -> str:
    base = device.class_code >> 16
    return next((kind for kind, bases in KINDS.items() if base in bases), "other")


def row_of(device: Device, name: str, unused: list[str]) -> str:
    """Return the line about a device, in the words of dpdk-devbind."""
    words = [str(device.address), f"'{name}'"]
    interfaces = usage.interfaces(device)
    disks = [disk for disk in usage.blocks(device)]
    words += [f"if={','.join(interfaces)}"] if interfaces else []
    words += [f"blk={','.join(disks)}"] if disks else []
    words += [f"drv={device.kernel_driver}"] if device.kernel_driver else []
    words += [f"unused={','.join(unused)}"]
    words += ["*Active*"] if usage.uses(device) else []
    return " ".join(words)


def section(title: str, rows: list[str]) -> list[str]:
    return ["", title, "=" * len(title), *rows] if rows else []


def as_text(devices: list[Device], listed: dict, aliases: list) -> str:
    """Return the lists of devices, by kind and by who drives them."""
    lines: list[str] = []
    for kind, title in TITLES.items():
        rows: dict[str, list[str]] = {"user": [], "kernel": [], "none": []}
        for device in devices:
            if kind_of(device) == kind:
                driver = device.kernel_driver
                who = "none" if driver is None else "user" if driver in USER_DRIVERS else "kernel"
                rows[who].append(row_of(device, names.name_of(device, listed),
                                        bind.candidates(device, aliases)))
        if not any(rows.values()):
            lines += section(f"No '{title}' devices detected", [""])[:-1]
        lines += section(f"{title} devices using DPDK-compatible driver", rows["user"])
        lines += section(f"{title} devices using kernel driver", rows["kernel"])
        lines += section(f"{title} devices using no driver", rows["none"])
    return "\n".join(lines[1:])


def as_json(devices: list[Device], listed: dict, aliases: list) -> str:
    return json.dumps([{
        "address": str(device.address), "name": names.name_of(device, listed),
        "kind": kind_of(device), "vendor": f"{device.vendor:04x}", "device": f"{device.device:04x}",
        "subsystem_vendor": f"{device.subsystem_vendor:04x}",
        "subsystem_device": f"{device.subsystem_device:04x}", "class": f"{device.class_code:06x}",
        "numa_node": device.numa_node, "max_vfs": device.max_vfs, "driver": device.kernel_driver,
        "unused": bind.candidates(device, aliases), "interfaces": usage.interfaces(device),
        "blocks": usage.blocks(device), "in_use": usage.uses(device),
        "bars": [{"number": number, "start": bar.start, "size": bar.size}
                 for number, bar in enumerate(device.resources) if bar is not None],
    } for device in devices], indent=2)


def show(arguments: argparse.Namespace) -> int:
    roots = roots_of(arguments)
    devices = [device for device in devices_of(roots)
               if arguments.all or not usage.is_bridge(device)]
    # The modules of this system say nothing about a recorded tree.
    own = roots.sys == "/sys"
    aliases = bind.read_aliases(bind.modules_folder()) if own else []
    form = as_json if arguments.json else as_text
    return say(form(devices, names.look_up(devices), aliases))


# bind, unbind

def change(arguments: argparse.Namespace) -> int:
    """Bind or unbind each of the devices; one that cannot be keeps none of the others from it."""
    status = 0
    for address in arguments.addresses:
        try:
            status |= say(change_one(roots_of(arguments), address, arguments))
        except (OSError, ValueError) as error:
            status = failed(sentence(error))
    return status


def change_one(roots: Roots, address: Address, arguments: argparse.Namespace) -> str:
    try:
        device = read_device(roots, address)
    except FileNotFoundError:
        raise OSError(2, f"there is no PCI device {address}") from None
    if arguments.driver is None:
        bind.unbind(device, arguments.force)
        return f"{address} has no driver"
    bind.bind(device, arguments.driver, arguments.force)
    return f"{address} is bound to {arguments.driver}"


if __name__ == "__main__":
    sys.exit(main())
