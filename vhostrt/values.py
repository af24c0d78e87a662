"""Strict readers of the values people type: numbers, sizes, CPU sets, addresses.

Fails: each raises ValueError with a sentence that names the text and why it is refused; no
       reader takes the beginning of its text for the whole, as SPDK v18.04's atoi does.
"""
from collections.abc import Callable

CPU_LAST = 65535                        # above any kernel's NR_CPUS; bounds a list
INT_MAX = 2**31 - 1
UNIX_PATH_MAX = 107                     # sun_path is 108 bytes with its NUL
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
SUFFIXES = {"k": KIB, "m": MIB, "g": GIB, "t": TIB}
HEX = frozenset("0123456789abcdefABCDEF")


def shown(text: str) -> str:
    """Quote text for a message: one line, printable, short."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def read_number(text: str, low: int = 0, high: int = INT_MAX) -> int:
    """Read a decimal whole number; a sign is taken only where low is negative."""
    digits = text[1:] if low < 0 and text[:1] in ("-", "+") else text
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{shown(text)} is not a whole number")
    # More digits than this are out of range, and int() itself refuses some thousands of them.
    if len(digits.lstrip("0")) > 20 or not low <= int(text) <= high:
        raise ValueError(f"{shown(text)} is not between {low} and {high}")
    return int(text)


def read_hex(text: str) -> int:
    """Read a hexadecimal number, with or without 0x."""
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    if not digits or not HEX.issuperset(digits):
        raise ValueError(f"{shown(text)} is not a hexadecimal number")
    return int(digits, 16)


def read_bytes(text: str) -> int:
    """Read a size with an optional suffix k, M, G or T (MiB without one); return bytes."""
    unit = SUFFIXES.get(text[-1:].lower())
    digits = text if unit is None else text[:-1]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 20:
        raise ValueError(f"{shown(text)} is not a size: write a whole number, in MiB or with k, M, "
                         "G or T directly behind it")
    return int(digits) * (unit or MIB)


def read_mib(text: str) -> int:
    """Read a size as read_bytes does, and return it in MiB; it has to be a whole number of them."""
    size, rest = divmod(read_bytes(text), MIB)
    if rest:
        raise ValueError(f"{shown(text)} is not a whole number of MiB")
    if size > INT_MAX:
        raise ValueError(f"{shown(text)} is more than {INT_MAX} MiB")
    return size


def read_range(text: str) -> range:
    """Read `a` or `a-b`, with a <= b."""
    first, dash, last = text.partition("-")
    low = read_number(first, 0, CPU_LAST)
    high = read_number(last, 0, CPU_LAST) if dash else low
    if high < low:
        raise ValueError(f"range {shown(text)} ends before it begins")
    return range(low, high + 1)


def read_list(text: str) -> tuple[int, ...]:
    """Read `a,b-c,...`: ascending, each once."""
    return tuple(sorted({n for part in text.split(",") for n in read_range(part)}))


def read_cpus(text: str) -> tuple[int, ...]:
    """Read a core mask, or a list `[a,b-c]`: CPU numbers, ascending."""
    if text.startswith("["):
        if not text.endswith("]"):
            raise ValueError(f"core list {shown(text)} has no closing bracket")
        return read_list(text[1:-1])
    try:
        mask = read_hex(text)
    except ValueError:
        raise ValueError(f"{shown(text)} is neither a hexadecimal core mask nor a list such as "
                         "[0-3,5]") from None
    if mask == 0:
        raise ValueError(f"core mask {shown(text)} names no core")
    if mask.bit_length() > CPU_LAST + 1:
        raise ValueError(f"core mask {shown(text)} goes beyond core {CPU_LAST}")
    return tuple(n for n, bit in enumerate(reversed(f"{mask:b}")) if bit == "1")


def split_groups(text: str) -> list[str]:
    """Split at the commas that stand outside parentheses."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if depth not in (0, 1):
            break
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise ValueError(f"parentheses do not match in {shown(text)}")
    return parts


def read_group(text: str) -> tuple[int, ...]:
    """Read `a`, `a-b` or `(a,b-c)`."""
    if text.startswith("(") and text.endswith(")"):
        return read_list(text[1:-1])
    return tuple(read_range(text))


def read_lcore_map(text: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Read DPDK's --lcores map `lcores[@cpus],...`: pairs (lcore, its CPUs), ascending.

    An lcore without @ runs on the CPU of its own number; a group in parentheses without @ shares
    the CPUs of the whole group.
    """
    found: dict[int, tuple[int, ...]] = {}
    for part in split_groups(text):
        left, at, right = part.partition("@")
        lcores = read_group(left)
        shared = read_group(right) if at else lcores if left.startswith("(") else None
        for lcore in lcores:
            if lcore in found:
                raise ValueError(f"lcore {lcore} is named twice in {shown(text)}")
            found[lcore] = shared or (lcore,)
    return tuple(sorted(found.items()))


def read_address(text: str) -> int:
    """Read a virtual address: 0x and hexadecimal digits, or decimal; a multiple of 4096."""
    address = read_hex(text) if text[:2] in ("0x", "0X") else read_number(text, 0, 2**64)
    if not 0 < address < 2**47 or address % 4096:
        raise ValueError(f"{shown(text)} is not a page of the user's half of the address space")
    return address


def read_pci_address(text: str) -> str:
    """Read `[domain:]bus:device[.function]` in hexadecimal; return it as dddd:bb:dd.f.

    As SPDK takes it, also with dots throughout: domain.bus.device.function, bus.device.function,
    bus.device.
    """
    head, dot, last = text.rpartition(".")
    if ":" in head and dot:
        parts = [*head.split(":"), last]
    elif ":" in text:
        parts = [*text.split(":"), "0"]
    else:
        parts = text.split(".") if text.count(".") != 1 else [head, last, "0"]
    parts = ["0"] * (4 - len(parts)) + parts if len(parts) > 2 else []
    if len(parts) == 4 and all(part and HEX.issuperset(part) for part in parts):
        domain, bus, device, function = (int(part, 16) for part in parts)
        if domain <= 0xffffffff and bus <= 0xff and device <= 0x1f and function <= 7:
            return f"{domain:04x}:{bus:02x}:{device:02x}.{function:x}"
    raise ValueError(f"{shown(text)} is not a PCI address such as 0000:5e:00.0")


def read_uuid(text: str) -> str:
    """Read a UUID in the form 8-4-4-4-12; return it in lower case."""
    parts = text.split("-")
    if [len(part) for part in parts] != [8, 4, 4, 4, 12] or not HEX.issuperset("".join(parts)):
        raise ValueError(f"{shown(text)} is not a UUID")
    return text.lower()


def read_tpoint_groups(text: str) -> str:
    """Check the form of -e: comma list of group, mask, group:mask or group:name+name."""
    for part in text.split(","):
        group, colon, points = part.partition(":")
        words = [group, *(points.split("+") if colon else ())]
        if not all(word.isascii() and word.replace("_", "").isalnum() for word in words):
            raise ValueError(f"{shown(text)} is not a comma list of trace groups, each a name or a "
                             "mask, with :tracepoints behind it where wanted")
    return text


def read_names(text: str) -> tuple[str, ...]:
    """Read a comma list of identifiers."""
    names = tuple(text.split(","))
    for name in names:
        if not (name.isascii() and name.isidentifier()):
            raise ValueError(f"{shown(name)} is not a name in the list {shown(text)}")
    return names


def read_trace_entries(text: str) -> int:
    """Read 0 or a power of two up to 2^24: 1 GiB of entries."""
    number = read_number(text, 0, 1 << 24)
    if number & (number - 1):
        raise ValueError(f"{shown(text)} is neither 0 nor a power of two")
    return number


def read_path(text: str) -> str:
    """Refuse an empty path."""
    if not text:
        raise ValueError("the path is empty")
    return text


def read_paths(text: str) -> tuple[str, ...]:
    """Read a comma list of paths."""
    paths = tuple(text.split(","))
    if not all(paths):
        raise ValueError(f"there is an empty path in {shown(text)}")
    return paths


def read_rpc_address(text: str) -> str:
    """Read the path of a unix socket (it has a slash), or host[:port]."""
    if not text:
        raise ValueError("the address is empty")
    if "/" in text:
        if len(text.encode("utf-8", "surrogateescape")) > UNIX_PATH_MAX:
            raise ValueError(f"socket path {shown(text)} is longer than {UNIX_PATH_MAX} bytes")
        return text
    port = text.rpartition("]")[2].partition(":")[2]
    if text.endswith(":") or (port and ":" not in port):
        read_number(port, 1, 65535)
    return text


def read_metrics_address(text: str) -> str:
    """Read the path of a unix socket (it has a slash), or host:port."""
    if "/" not in read_rpc_address(text):
        host, colon, port = text.rpartition(":")
        if not (colon and host and port) or ":" in host and not host.startswith("["):
            raise ValueError(f"{shown(text)} is neither host:port nor a path with a slash in it")
        read_number(port, 1, 65535)
    return text


def read_socket_dir(text: str) -> str:
    """Read the directory of the vhost sockets; exactly one slash is added where it has none.

    The empty text stays empty: the current directory, as in the original.
    """
    folder = text if not text or text.endswith("/") else text + "/"
    if len(folder.encode("utf-8", "surrogateescape")) >= UNIX_PATH_MAX:
        raise ValueError(f"{shown(text)} leaves no room for a name in the {UNIX_PATH_MAX} bytes of "
                         "a socket's path")
    return folder


def read_mode(text: str) -> int:
    """Read permissions in octal."""
    if not text.isascii() or not text.isdigit() or set(text) & {"8", "9"} or len(text) > 5:
        raise ValueError(f"{shown(text)} is not a mode in octal such as 0770")
    return int(text, 8)


def read_user_id(text: str) -> int:
    """Read a user's name or number."""
    import pwd
    return known_id(text, "user", lambda: pwd.getpwnam(text).pw_uid)


def read_group_id(text: str) -> int:
    """Read a group's name or number."""
    import grp
    return known_id(text, "group", lambda: grp.getgrnam(text).gr_gid)


def known_id(text: str, what: str, look_up: Callable[[], int]) -> int:
    if text.isascii() and text.isdigit():
        return read_number(text)
    try:
        return look_up()
    except (KeyError, ValueError):
        raise ValueError(f"there is no {what} {shown(text)}") from None


def read_owner(text: str) -> tuple[int, int]:
    """Read `user`, `user:group` or `:group`; return their numbers, -1 for what is left out."""
    user, colon, group = text.partition(":")
    if not (user or group) or colon and not group:
        raise ValueError(f"{shown(text)} is not user, user:group or :group")
    return read_user_id(user) if user else -1, read_group_id(group) if group else -1
