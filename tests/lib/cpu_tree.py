"""A recorded tree of CPUs, made for a test."""
from vhostrt.env.roots import Roots


def cpu_tree(root, cpus) -> Roots:
    """Make a tree of CPUs: id -> (text of core_id or None, node or None); return its roots."""
    top = root / "devices/system"
    for cpu, (core, node) in cpus.items():
        (top / f"cpu/cpu{cpu}/topology").mkdir(parents=True)
        if core is not None:
            (top / f"cpu/cpu{cpu}/topology/core_id").write_text(core)
        if node is not None:
            (top / f"node/node{node}/cpu{cpu}").mkdir(parents=True)
    (top / "cpu/cpufreq").mkdir()
    return Roots(sys=str(root))
