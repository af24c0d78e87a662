"""All RPC methods: importing this declares them in vhostrt.rpc.method.METHODS."""
from vhostrt.rpc import bdev, framework, log, vhost

__all__ = ["bdev", "framework", "log", "vhost"]
