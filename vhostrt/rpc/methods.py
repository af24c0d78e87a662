"""All RPC methods, in one table: importing this declares them."""
from vhostrt.rpc import bdev, framework, log, vhost
from vhostrt.rpc.method import METHODS

__all__ = ["METHODS", "bdev", "framework", "log", "vhost"]
