"""The memory of the environment on a machine of two NUMA nodes, in a real Linux guest."""
from tests.e2e.python import COMMAND, python_files

MODULES = ["tests.e2e.numa", "ctypes",
           *(f"vhostrt.env.{name}" for name in ("memory", "modes", "zone", "allocation",
                                                "overview", "lcore", "options"))]
STEPS = {
    "mount": "mkdir /huge\nmount -t hugetlbfs none /huge",
    "memory": f"{COMMAND} -m tests.e2e.numa /huge",
}


def test_two_nodes(boot):
    with boot(steps=STEPS, files=python_files(MODULES), memory=1024, nodes=2) as guest:
        guest.wait(240)
