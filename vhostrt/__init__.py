"""A polled-mode vhost-user storage target: it gives virtual machines their disks."""
__version__ = "0.1.0"
