"""All RPC methods, in one table: importing this declares them."""
from vhostrt.rpc import bdev, core_locks, framework, log, trace, vhost
from vhostrt.rpc.method import METHODS

__all__ = ["METHODS", "bdev", "core_locks", "framework", "log", "trace", "vhost"]
