"""RPC methods of vhost controllers: making, deleting and listing them."""
import errno

from vhostrt.rpc.method import (Count, Dispatcher, Name, Parameters, Path, method, refuse,
                                refusing, shown)
from vhostrt.values import read_cpus
from vhostrt.vhost import access, controller
from vhostrt.vhost.coalescing import IOPS_DEFAULT, Coalescing
from vhostrt.vhost.controller import TRANSPORT, BlkController
from vhostrt.vhost.queue_stats import sum_of
from vhostrt.vhost.ring import Ring
from vhostrt.vhost.session import Session


class CreateBlk(Parameters):
    """ctrlr: name of the controller and its socket.  dev_name: of the bdev, or its uuid.

    cpumask: cores on which its queues may run, as for -m; all without it.  transport: the one there
    is.  socket: path of the socket, where it is not the controller's name in the directory of the
    sockets.  readonly: refuse writes.  packed_ring, packed_ring_recovery: must be false.
    mode: permissions of the socket, in octal.  owner, group: of the socket, names or numbers.
    peers: users whose processes may connect; all that the permissions let in without it.
    """

    ctrlr: Name
    dev_name: Name
    cpumask: str | None = None
    transport: str = TRANSPORT
    socket: Path | None = None
    readonly: bool = False
    packed_ring: bool = False
    packed_ring_recovery: bool = False
    mode: str | None = None
    owner: str | int | None = None
    group: str | int | None = None
    peers: list[str | int] | None = None


class Delete(Parameters):
    """ctrlr: name of the controller."""

    ctrlr: Name


class SetCoalescing(Parameters):
    """ctrlr: name of the controller.  delay_base_us: microseconds between two interrupts of a queue
    at twice the threshold, 0 for no delay.  iops_threshold: requests a second of a queue above
    which they are delayed.  automatic: decide by what is in flight instead of both.
    """

    ctrlr: Name
    delay_base_us: Count = 0
    iops_threshold: Count = IOPS_DEFAULT
    automatic: bool = False


class Query(Parameters):
    """name: of the only one to describe."""

    name: Name | None = None


class CreateTransport(Parameters):
    """name: of the transport."""

    name: Name


@method("vhost_create_blk_controller", aliases=("construct_vhost_blk_controller",))
async def vhost_create_blk_controller(rpc: Dispatcher, params: CreateBlk) -> bool:
    """Serve a bdev as a vhost-user-blk disk."""
    if params.transport != TRANSPORT:
        raise refuse(f"'transport' must be {TRANSPORT}, not {shown(params.transport)}")
    if params.packed_ring or params.packed_ring_recovery:
        raise refuse("'packed_ring' must be false: packed rings are not there yet")
    with refusing():
        cpumask = None if params.cpumask is None else read_cpus(params.cpumask)
        await controller.create_blk(params.ctrlr, params.dev_name, cpumask=cpumask,
                                    readonly=params.readonly, socket_path=params.socket,
                                    who=access.make(params.mode, params.owner, params.group,
                                                    params.peers))
    return True


@method("vhost_delete_controller", aliases=("remove_vhost_controller",))
async def vhost_delete_controller(rpc: Dispatcher, params: Delete) -> bool:
    """Remove a controller: its socket, its sessions, then itself."""
    await controller.delete(params.ctrlr)
    return True


@method("vhost_controller_set_coalescing", aliases=("set_vhost_controller_coalescing",))
async def vhost_controller_set_coalescing(rpc: Dispatcher, params: SetCoalescing) -> bool:
    """Say when the drivers of a controller are interrupted."""
    with refusing():
        await controller.get(params.ctrlr).set_coalescing(Coalescing(
            params.delay_base_us, params.iops_threshold, params.automatic))
    return True


@method("vhost_get_controllers", aliases=("get_vhost_controllers",))
async def vhost_get_controllers(rpc: Dispatcher, params: Query) -> list[dict]:
    """Return what there is to say of all controllers, or of one."""
    if params.name is not None:
        return [describe(controller.get(params.name))]
    return [describe(each) for each in controller.controllers.values()]


@method("virtio_blk_create_transport")
async def virtio_blk_create_transport(rpc: Dispatcher, params: CreateTransport) -> bool:
    """Have a way to reach blk controllers: the only one is there from the start, an error says."""
    if params.name != TRANSPORT:
        raise refuse(f"'name' must be {TRANSPORT}, not {shown(params.name)}")
    raise OSError(errno.EEXIST, f"the transport {TRANSPORT} is there already")


@method("virtio_blk_get_transports")
async def virtio_blk_get_transports(rpc: Dispatcher, params: Query) -> list[dict]:
    """Return the ways in which a blk controller can be reached."""
    if params.name not in (None, TRANSPORT):
        raise refuse(f"'name' must be {TRANSPORT}, not {shown(params.name)}")
    return [{"name": TRANSPORT}]


def describe(blk: BlkController) -> dict:
    """statistics: of all its queues since it was made; queues: of each, by index, those of clients
    that have gone included."""
    stats = blk.stats()
    return {
        "ctrlr": blk.name, "cpumask": hex(sum(1 << lcore for lcore in blk.lcores)),
        **blk.coalescing.params(), "socket": blk.path, **blk.access.params(),
        "sessions": [describe_session(s) for s in sorted(blk.sessions, key=lambda s: s.vid)],
        "backend_specific": {"block": {
            "readonly": blk.readonly,
            "bdev": None if blk.descriptor is None else blk.bdev_name,     # None: it was removed
            "transport": TRANSPORT}},
        "statistics": in_flight(blk.queues()) | sum_of(stats.values()).describe(),
        "queues": [{"index": index,
                    **in_flight([q for q in blk.queues() if q.index == index]), **each.describe()}
                   for index, each in stats.items()],
    }


def in_flight(queues: list) -> dict[str, int]:
    """Return how many requests of queues are under way, and for how long the oldest has been."""
    return {"inflight": sum(queue.inflight for queue in queues),
            "oldest_request_us": max((queue.oldest_us for queue in queues), default=0)}


def describe_session(session: Session) -> dict:
    running = [ring for _, ring in sorted(session.rings.items()) if ring.queue is not None]
    return {"vid": session.vid, "id": session.vid, "name": session.name, "started": bool(running),
            "max_queues": len(session.rings),
            "inflight_task_cnt": sum(ring.queue.inflight for ring in running),
            "queues": [describe_queue(ring) for ring in running]}


def describe_queue(ring: Ring) -> dict:
    """broken: 0, or the errno of what the driver did to the ring, which is served no more."""
    queue = ring.queue
    return {"index": ring.index, "lcore": queue.lcore, "thread_id": queue.thread.id,
            "size": queue.size, "inflight_task_cnt": queue.inflight, "broken": queue.broken,
            "oldest_request_us": queue.oldest_us}
