"""A polled-mode vhost-user storage target: it gives virtual machines their disks."""
__version__ = "0.1.0"


def get_include() -> str:
    """Return the directory to give to Cython and to the C compiler to cimport vhostrt modules."""
    from pathlib import Path

    package = Path(__file__).parent
    source = package.parent / "pyx"             # of an editable install; else they are beside us
    return str(source if (source / "vhostrt").is_dir() else package.parent)
