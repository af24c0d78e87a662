"""Addresses of an RPC server, for the server and for its clients.

Fails:    OSError whose text is one sentence with the address in it.
"""
import errno

from vhostrt.values import read_number, shown

RPC_ADDR = "/var/tmp/vhostrt.sock"      # where nothing else is said
PORT = 5260                             # of SPDK, where an address names none


def split_address(address: str, what: str = "RPC") -> tuple[str, int]:
    """Return host and port of `host[:port]` or `[v6][:port]`; OSError when it is neither.

    what: whose address it is, for errors.
    """
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        wrong = not bracket or (rest and colon != ":")
    elif address.count(":") > 1:
        host, colon, port, wrong = address, "", "", False
    else:
        host, colon, port = address.partition(":")
        wrong = False
    try:
        if wrong or not host:
            raise ValueError("it is not host[:port]")
        return host, read_number(port, 0, 65535) if colon else PORT
    except ValueError as e:
        raise OSError(errno.EINVAL, f"{what} address {shown(address)} is not valid: {e}") from None
