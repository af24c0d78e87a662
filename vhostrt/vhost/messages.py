"""The vhost-user wire format: message numbers, feature bits, payload layouts.

Source: vhost-user protocol, back-end side; numbers as the specification gives them.
"""
import struct
from enum import IntEnum

HEADER = struct.Struct("=III")          # request, flags, size of the payload
VERSION = 1
VERSION_MASK = 3
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3
PAYLOAD_MAX = 4096                      # larger than any message that is taken
FDS_MAX = 8                             # memory regions of one table
RINGS_MAX = 256                         # a ring index has eight bits in SET_VRING_KICK
CONFIG_MAX = 256                        # bytes of a config message

U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")            # ring index, number
ADDRESS = struct.Struct("=IIQQQQ")      # ring index, flags, desc, used, avail, log
TABLE = struct.Struct("=II")            # regions, padding
REGION = struct.Struct("=QQQQ")         # guest address, size, user address, offset in the file
MEM_REG = struct.Struct("=QQQQQ")       # padding, and a region
CONFIG = struct.Struct("=III")          # offset, size, flags

VRING_INDEX_MASK = 0xff
VRING_NO_FD = 1 << 8


class Request(IntEnum):
    """Front end to back end."""
    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(IntEnum):
    """Back end to front end, on the channel of SET_BACKEND_REQ_FD."""
    CONFIG_CHANGE = 2
    VRING_CALL = 4
    VRING_ERR = 5


class ProtocolFeature(IntEnum):
    """Bit numbers of GET_PROTOCOL_FEATURES."""
    MQ = 0
    REPLY_ACK = 3
    BACKEND_REQ = 5
    CONFIG = 9
    RESET_DEVICE = 13
    INBAND_NOTIFICATIONS = 14
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16


class Feature(IntEnum):
    """Bit numbers of GET_FEATURES that do not belong to one kind of device."""
    LOG_ALL = 26
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    PROTOCOL_FEATURES = 30
    VERSION_1 = 32


class Status(IntEnum):
    """Bits of the device status that mean something here (virtio 1.4, 2.1)."""
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


class ProtocolError(Exception):
    """What a client sent cannot be done; the text says what and why.

    fatal: the stream cannot be followed any more, so the session ends even if the client asked
    for an answer.
    """

    def __init__(self, text: str, fatal: bool = False) -> None:
        super().__init__(text)
        self.fatal = fatal


def bits(*numbers: int) -> int:
    """Return the word in which exactly these bits are set."""
    return sum(1 << n for n in set(numbers))


def name_of(request: int) -> str:
    """Return the name of a request for people."""
    return Request(request).name if request in Request._value2member_map_ else f"request {request}"
