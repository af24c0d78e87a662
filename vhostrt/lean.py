"""What the start leaves out, for its speed and its memory.

Threads: the main thread, before anything else has imported asyncio.
"""
import sys


def import_asyncio() -> None:
    """Import asyncio without the TLS library, which it takes along unless there is none.

    Nothing here speaks TLS. Where ssl or asyncio is loaded already, it stays as it is; who wants
    ssl later imports it as ever.
    """
    if "ssl" in sys.modules or "asyncio" in sys.modules:
        return
    sys.modules["ssl"] = None           # type: ignore[assignment]  # "there is none"
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]
