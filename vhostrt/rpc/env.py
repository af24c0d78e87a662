"""RPC methods of the environment: what is in its memory, and its PCI devices."""
import atexit
import os

from vhostrt.env import current
from vhostrt.env.pci import config
from vhostrt.env.runtime_dir import candidates, open_directory
from vhostrt.rpc.method import Dispatcher, method

CONFIG_SPACE = 256                      # bytes that are told of each device


@method("env_dpdk_get_mem_stats")
async def env_dpdk_get_mem_stats(rpc: Dispatcher) -> dict[str, str]:
    """Write down what there is in the environment's memory, and return the name of the file.

    It is in /run/vhostrt, XDG_RUNTIME_DIR/vhostrt or a directory of the user's in the temporary
    one, is replaced by the next call, and goes when the program ends.
    """
    return {"filename": write_new(f"mem_stats.{os.getpid()}.txt", memory_text())}


def memory_text() -> str:
    """Return counts, segments and zones, in lines."""
    from vhostrt.env import memory, zone
    counts = memory.stats()
    nodes = counts.pop("nodes")
    lines = ["memory: " + counts_text(counts)]
    lines += [f"node {node}: {counts_text(of_node)}" for node, of_node in nodes.items()]
    lines += [f"segment {each['address']:#x}: " + counts_text({
        key: value for key, value in each.items() if key != "address"})
        for each in memory.segments()]
    return "\n".join([*lines, "zones:", zone.dump()]) + "\n"


def counts_text(counts: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in counts.items() if value is not None)


def write_new(name: str, text: str) -> str:
    """Write a file in the first directory of this program that can be had; return its path.

    Fails: OSError with what was tried last.
    """
    refusal: OSError | None = None
    for path, anyone in candidates():
        try:
            folder = open_directory(path, anyone, True)
        except OSError as error:
            refusal = OSError(error.errno, f"{path}: {error.strerror}")
            continue
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                         0o600, dir_fd=folder)
        finally:
            os.close(folder)
        with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        written = os.path.join(path, name)
        atexit.unregister(remove)       # of the call before
        atexit.register(remove, written, os.getpid())
        return written
    assert refusal is not None
    raise refusal


def remove(path: str, pid: int) -> None:
    """Remove what this process has written, not its child."""
    try:
        if os.getpid() == pid:
            os.unlink(path)
    except OSError:
        pass                            # somebody has taken it


@method("framework_get_pci_devices", aliases=("get_pci_devices",))
async def framework_get_pci_devices(rpc: Dispatcher) -> list[dict[str, str]]:
    """Return the PCI devices that drivers of this program have taken.

    config_space: what is in its first 256 bytes, in hexadecimal digits.
    """
    environment = current()
    bus = None if environment is None else environment.bus
    return [{"address": str(device.address),
             "config_space": b"".join(
                 config.read(device, at, 4).to_bytes(4, "little")
                 for at in range(0, CONFIG_SPACE, 4)).hex()}
            for device in (bus.devices if bus is not None else ()) if device.driver is not None]
