"""The RPC methods that every application has, and those that its subsystems bring."""
from collections.abc import Iterable
from importlib import import_module

from vhostrt.rpc import (config, core_locks, env, framework, log, notify, scheduler, thread,
                         trace)
from vhostrt.rpc.method import METHODS, Method
from vhostrt.subsystem import Subsystem

MODULES = (framework, config, env, log, core_locks, notify, scheduler, thread, trace)


def table_of(subsystems: Iterable[Subsystem]) -> dict[str, Method]:
    """Return the methods of an application with these subsystems, by name and alias."""
    modules = {module.__name__ for module in MODULES}
    for subsystem in subsystems:
        modules |= {import_module(name).__name__ for name in subsystem.rpc}
    return {name: known for name, known in METHODS.items() if known.function.__module__ in modules}
