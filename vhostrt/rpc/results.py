"""What RPC methods answer: the forms of their results, for the schema and the reference page.

A key that is not always there is NotRequired. Imported when somebody asks for the schema.
"""
from typing import Any, NotRequired, TypedDict


class VersionFields(TypedDict):
    major: int
    minor: int
    patch: int
    suffix: str


class Version(TypedDict):
    version: str
    fields: VersionFields


class Subsystem(TypedDict):
    subsystem: str
    depends_on: list[str]


class LwThread(TypedDict):
    name: str
    id: int
    cpumask: str
    elapsed: int


class Reactor(TypedDict):
    lcore: int
    numa_id: int
    tid: int
    busy: int
    idle: int
    in_interrupt: bool
    irq: int
    sys: int
    usr: int
    core_freq: NotRequired[int]
    lw_threads: list[LwThread]


class Reactors(TypedDict):
    tick_rate: int
    pid: int
    reactors: list[Reactor]


class ContextSwitchMonitor(TypedDict):
    enabled: bool


class Scheduler(TypedDict):
    scheduler_name: str
    scheduler_period: int
    isolated_core_mask: str
    scheduling_core: int
    load_limit: NotRequired[int]
    core_limit: NotRequired[int]
    core_busy: NotRequired[int]
    mappings: NotRequired[str]


class ThreadStats(TypedDict):
    name: str
    id: int
    cpumask: str
    busy: int
    idle: int
    active_pollers_count: int
    timed_pollers_count: int
    paused_pollers_count: int


class AllThreadStats(TypedDict):
    tick_rate: int
    threads: list[ThreadStats]


class Poller(TypedDict):
    name: str
    id: int
    state: str
    run_count: int
    busy_count: int
    period_ticks: NotRequired[int]


class ThreadPollers(TypedDict):
    name: str
    id: int
    active_pollers: list[Poller]
    timed_pollers: list[Poller]
    paused_pollers: list[Poller]
    left_out: NotRequired[int]


class AllThreadPollers(TypedDict):
    tick_rate: int
    threads: list[ThreadPollers]


class IoChannel(TypedDict):
    name: str
    ref: int


class ThreadIoChannels(TypedDict):
    name: str
    io_channels: list[IoChannel]


class AllThreadIoChannels(TypedDict):
    tick_rate: int
    threads: list[ThreadIoChannels]


class RateLimits(TypedDict):
    rw_ios_per_sec: int
    rw_mbytes_per_sec: int
    r_mbytes_per_sec: int
    w_mbytes_per_sec: int


class Bdev(TypedDict):
    name: str
    aliases: list[str]
    product_name: str
    block_size: int
    num_blocks: int
    preferred_write_alignment: int
    preferred_write_granularity: int
    optimal_write_size: int
    preferred_unmap_alignment: int
    preferred_unmap_granularity: int
    uuid: str
    numa_id: NotRequired[int]
    assigned_rate_limits: RateLimits
    claimed: bool
    zoned: bool
    supported_io_types: dict[str, bool]
    driver_specific: dict[str, Any]


class Queue(TypedDict):
    index: int
    lcore: int
    thread_id: int
    size: int
    inflight_task_cnt: int
    broken: int
    oldest_request_us: int


class Session(TypedDict):
    vid: int
    id: int
    name: str
    started: bool
    max_queues: int
    inflight_task_cnt: int
    queues: list[Queue]


class Block(TypedDict):
    readonly: bool
    bdev: str | None
    transport: str


class BackendSpecific(TypedDict):
    block: Block


class Statistics(TypedDict):
    inflight: int
    oldest_request_us: int
    requests: dict[str, int]
    bytes: dict[str, int]
    errors: dict[str, int]
    kicks: int
    calls: int
    latency_us: dict[str, dict[str, float]]


class QueueStatistics(Statistics):
    index: int


class Controller(TypedDict):
    ctrlr: str
    cpumask: str
    delay_base_us: int
    iops_threshold: int
    automatic: bool
    socket: str
    mode: NotRequired[str]
    owner: NotRequired[str]
    group: NotRequired[str]
    peers: NotRequired[list[str]]
    sessions: list[Session]
    backend_specific: BackendSpecific
    statistics: Statistics
    queues: list[QueueStatistics]


class Transport(TypedDict):
    name: str


class Notification(TypedDict):
    type: str
    ctx: str
    id: int
    time: float
    details: NotRequired[dict[str, Any]]


class Notifications(TypedDict):
    notifications: list[Notification]
    next_id: int
    lost: int


class DumpFile(TypedDict):
    filename: str


class PciDevice(TypedDict):
    address: str
    config_space: str


class MethodSchema(TypedDict):
    description: str
    aliases: list[str]
    states: list[str]
    params: dict[str, Any]
    result: dict[str, Any]


class Schema(TypedDict):
    version: str
    methods: dict[str, MethodSchema]


# Of the methods whose declaration says less.
RESULTS: dict[str, Any] = {
    "bdev_get_bdevs": list[Bdev],
    "env_dpdk_get_mem_stats": DumpFile,
    "framework_get_pci_devices": list[PciDevice],
    "framework_get_reactors": Reactors,
    "framework_get_scheduler": Scheduler,
    "framework_get_subsystems": list[Subsystem],
    "framework_monitor_context_switch": ContextSwitchMonitor,
    "notify_get_notifications": list[Notification],
    "notify_wait_notifications": Notifications,
    "rpc_get_schema": Schema,
    "spdk_get_version": Version,
    "thread_get_io_channels": AllThreadIoChannels,
    "thread_get_pollers": AllThreadPollers,
    "thread_get_stats": AllThreadStats,
    "vhost_get_controllers": list[Controller],
    "virtio_blk_get_transports": list[Transport],
}
