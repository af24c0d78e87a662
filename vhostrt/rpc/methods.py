"""All RPC methods of the program, in one table: importing this declares them."""
from vhostrt.rpc import bdev, bdev_stats, common, vhost
from vhostrt.rpc.method import METHODS

__all__ = ["METHODS", "bdev", "bdev_stats", "common", "vhost"]
