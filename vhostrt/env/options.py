"""What an environment is asked to be: one record, whoever asks.

The command line of the program, an EAL argument vector and keyword arguments of env.init all
become this.
"""
from dataclasses import dataclass

from vhostrt.env.roots import SYSTEM, Roots


@dataclass(slots=True)
class EnvOptions:
    """The options of the environment.  None, (), "" and False: not said, a default is chosen.

    Owner: who made it; the environment reads it while it starts and keeps it unchanged.
    """

    name: str = "vhostrt"                           # of the program
    # Lcores
    lcores: dict[int, tuple[int, ...]] | None = None    # lcore -> its CPUs; None: our affinity
    main_lcore: int | None = None                   # None: the lowest
    service_lcores: tuple[int, ...] = ()            # of lcores; they run services only
    # Memory
    mem_size: int | None = None                     # bytes; None: as needed
    socket_mem: tuple[int, ...] = ()                # bytes of each NUMA node, instead of mem_size
    no_huge: bool = False                           # ordinary pages
    legacy_mem: bool = False                        # all pages at the start, sorted by address
    in_memory: bool = False                         # no file in a file system
    huge_dir: str | None = None                     # hugetlbfs mount to take pages from
    huge_unlink: bool = False                       # no file is left in it
    single_file_segments: bool = False              # one file of each page size and node
    mem_file_dir: str | None = None                 # -F: directory of reserved files
    mem_files: tuple[str, ...] = ()                 # --mem-file: reserved files, one a node
    base_virtaddr: int | None = None                # address where memory is mapped
    enforce_numa: bool = False                      # never memory of another node
    channels: int | None = None                     # of the memory controller
    ranks: int | None = None
    # Devices
    no_pci: bool = False
    pci_allowed: tuple[str, ...] = ()               # dddd:bb:dd.f, with ,arguments behind it
    pci_blocked: tuple[str, ...] = ()
    vdevs: tuple[str, ...] = ()
    iova_mode: str | None = None                    # "pa" or "va"
    vfio_intr: str | None = None                    # "legacy", "msi" or "msix"
    vfio_vf_token: str | None = None                # UUID
    # Other processes
    shm_id: int | None = None                       # None or negative: private
    file_prefix: str | None = None                  # None: from the shm_id, or the process id
    proc_type: str = "primary"                      # "primary", "secondary" or "auto"
    no_shconf: bool = False                         # nothing that others may attach to
    # The rest
    log_levels: tuple[tuple[str, int], ...] = ()    # (component or pattern, 1 to 8)
    ignored: tuple[str, ...] = ()                   # accepted words that mean nothing here
    roots: Roots = SYSTEM

    @property
    def private(self) -> bool:
        """True when no other process may attach."""
        return self.no_shconf or (self.file_prefix is None
                                  and (self.shm_id is None or self.shm_id < 0))
