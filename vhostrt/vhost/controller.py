"""vhost-blk controllers: a bdev served at a unix socket to any number of sessions.

Owner:   this module keeps the controllers from create_blk to delete; a controller owns its socket
         file, its descriptor of the bdev and its sessions.
Threads: the control thread.
Fails:   OSError with the errno of the RPC reply (EEXIST, ENODEV, EADDRINUSE ...), ValueError.
Source:  vhost_create_blk_controller, vhost_delete_controller.
"""
import asyncio
import errno
import os
import struct

from vhostrt import log
from vhostrt.bdev import registry
from vhostrt.event import reactor
from vhostrt.event.scheduler import scheduling
from vhostrt.log_limit import Limit
from vhostrt.notify import notifications
from vhostrt.vhost import access, listener, view
from vhostrt.vhost.coalescing import Coalescing
from vhostrt.vhost.messages import RINGS_MAX, Feature, bits
from vhostrt.vhost.queue_stats import QueueStats, sum_of
from vhostrt.vhost.session import Session

TRANSPORT = "vhost_user_blk"
SECTOR = 512
SEG_MAX = 126                           # a ring of 128 less header and status; more is accepted
SESSIONS_MAX = 64                       # of one controller: each may hold descriptors and memory
SLOTS_MAX = 1 << 18                     # of its rings: 320 bytes are allocated for each
SESSION_RINGS_MAX = 1024                # of them together: each holds up to three descriptors
MEMORY_MAX = 8 << 40                    # bytes of its sessions' memory: we can map 2^47 in all
REGIONS_MAX = 2048                      # of its sessions' memory: there are 32768 in all

# Feature bits of the block device (virtio 1.4, 5.2.3).
F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH, F_MQ = 2, 5, 6, 9, 12
# Up to and with num_queues: capacity, size_max, seg_max, geometry, blk_size, topology,
# writeback, pad, num_queues (virtio 1.4, 5.2.4).
CONFIG = struct.Struct("<QIIHBBIBBHIBxH")

notifications.register("vhost_controller_create", "a controller has been made; ctx: its name")
notifications.register("vhost_controller_delete", "a controller has been removed; ctx: its name")

EVERYBODY = access.Access()
controllers: dict[str, "BlkController"] = {}
socket_directory = ""                   # a prefix of socket names; set by -S


def set_socket_directory(path: str) -> None:
    """Put sockets without a path of their own into this directory ("": where we were started)."""
    global socket_directory
    socket_directory = os.path.join(path, "") if path else ""


class BlkController:
    """One disk at one socket.

    name: str, also the socket's name.  lcores: frozenset of int on whose reactors queues may run.
    path: str, of the socket.  access: access.Access, who may use that.
    """

    def __init__(self, name: str, lcores: frozenset[int], path: str,
                 who: access.Access = EVERYBODY) -> None:
        self.name = name
        self.lcores = lcores
        self.lcores_said = True         # False: all there are, as nobody has said which
        self.path = path
        self.access = who
        self.coalescing = Coalescing()
        self.rings_max = RINGS_MAX
        self.descriptor: registry.Descriptor | None = None
        self.sessions: set[Session] = set()
        self.allowance = view.Allowance(MEMORY_MAX, REGIONS_MAX)
        self.limit = Limit(name)        # of what clients may have logged
        self.listener: listener.Listener | None = None
        self.peers: frozenset[int] | None = None        # users that may connect; None: all
        self.gone: dict[int, QueueStats] = {}   # counted by queues that have stopped, by index

    def use(self, descriptor: registry.Descriptor) -> None:
        """Serve this bdev; the descriptor is ours from now on. What clients see of it stays."""
        bdev = descriptor.bdev
        descriptor.on_resize = self.bdev_resized
        self.descriptor = descriptor
        self.bdev_name = bdev.name
        self.readonly = not descriptor.writable
        self.serial = bdev.name.encode()
        self.num_blocks = bdev.num_blocks
        self.block_size = bdev.block_size
        self.features = self.offered()

    def offered(self) -> int:
        """The feature word, less the bit of the protocol features."""
        features = bits(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.EVENT_IDX,
                        F_SEG_MAX, F_BLK_SIZE, F_FLUSH, F_MQ)
        if self.readonly:
            features |= bits(F_RO)
        return features

    def config_space(self) -> bytes:
        """The config space as the guest sees it; what is not told is zero."""
        capacity = self.num_blocks * (self.block_size // SECTOR)
        return CONFIG.pack(capacity, 0, SEG_MAX, 0, 0, 0, self.block_size, 0, 0, 0, 0, 0,
                           self.rings_max)

    # Queues

    def queues(self) -> list:
        """Return the queues that run now, of all sessions."""
        return [ring.queue for session in self.sessions for ring in session.rings.values()
                if ring.queue is not None]

    def keep_stats(self, queue) -> None:
        """Keep what a queue has counted, which has just stopped and is no more one of ours."""
        self.gone.setdefault(queue.index, QueueStats()).add(queue.stats())

    def stats(self) -> dict[int, QueueStats]:
        """Return what was counted since the controller was made, by index of the queue."""
        found = {index: [stats] for index, stats in self.gone.items()}
        for queue in self.queues():
            found.setdefault(queue.index, []).append(queue.stats())
        return {index: sum_of(parts) for index, parts in sorted(found.items())}

    def check_rings(self) -> None:
        """OSError(ENOSPC): no session can have one more ring, or descriptors may run out."""
        if sum(len(session.rings) for session in self.sessions) >= SESSION_RINGS_MAX:
            raise OSError(errno.ENOSPC, f"the clients of controller {self.name} have "
                                        f"{SESSION_RINGS_MAX} rings at most")

    async def set_coalescing(self, wanted: Coalescing) -> None:
        """Have all its drivers interrupted so, from now on. ValueError."""
        self.coalescing = wanted.check()
        for session in tuple(self.sessions):
            for ring in tuple(session.rings.values()):
                await ring.set_coalescing()

    def place(self, size: int, name: str) -> int:
        """Return the least loaded lcore of our mask, for a ring of `size` and its thread's name.

        OSError(ENOSPC): the rings of this controller would have more than SLOTS_MAX descriptors.
        """
        if size + sum(queue.size for queue in self.queues()) > SLOTS_MAX:
            raise OSError(errno.ENOSPC, f"the rings of controller {self.name} have {SLOTS_MAX} "
                                        "descriptors at most")
        return scheduling.place(self.lcores, name)

    async def open_channel(self, lcore: int):
        """Return a channel to the bdev for one queue, or None when the bdev has been removed."""
        if self.descriptor is None:
            return None
        return await self.descriptor.bdev.open_channel(lcore, self.descriptor.writable)

    async def close_channel(self, channel) -> None:
        """Give a queue's channel back; None is none."""
        if channel is not None:
            await channel.bdev.close_channel(channel)

    async def bdev_removed(self, descriptor: registry.Descriptor) -> None:
        """The bdev is being deleted: every request fails from now on, the sessions stay."""
        log.warning(f"{self.name}: bdev {self.bdev_name} was removed; requests fail from now on")
        self.descriptor = None
        for session in tuple(self.sessions):
            for ring in tuple(session.rings.values()):
                await ring.detach()
        descriptor.close()

    def bdev_resized(self, descriptor: registry.Descriptor) -> None:
        """The bdev has another size: clients see it, and are told where they can be."""
        self.num_blocks = descriptor.bdev.num_blocks
        for session in self.sessions:
            session.config_changed(f"the new size of {self.bdev_name}")

    # The socket

    async def listen(self) -> None:
        """Open the socket; a stale file of a process that is gone is replaced, a live one never.

        OSError: EADDRINUSE, or why it cannot be made there; ValueError.
        """
        peers = self.access.peer_ids()
        self.listener = await listener.listen(self.path, self.access)
        self.peers = peers
        self.resume()

    def accept(self) -> None:
        """Take one client."""
        try:
            sock, _ = self.listener.sock.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                self.limit.error("accept", f"{self.name}: a client cannot be accepted: "
                                           f"{error.strerror}")
                self.pause()
            return
        process, user = access.peer_of(sock)
        if self.peers is not None and user not in self.peers:
            self.limit.warning("peer", f"{self.name}: process {process} of user {user} was turned "
                                       "away: it is not among the peers of this controller")
            sock.close()
            return
        if len(self.sessions) >= SESSIONS_MAX:
            self.limit.warning("full", f"{self.name}: a client was turned away: {SESSIONS_MAX} are "
                                       "connected")
            sock.close()
            return
        self.sessions.add(Session(self, sock))

    def pause(self) -> None:
        """Accept nobody for a second: out of descriptors, the loop would only spin."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.listener.sock.fileno())
        loop.call_later(1.0, self.resume)

    def resume(self) -> None:
        """Accept again, if the controller still is."""
        if self.listener is not None:
            asyncio.get_running_loop().add_reader(self.listener.sock.fileno(), self.accept)

    def forget(self, session: Session) -> None:
        """A session has ended."""
        self.sessions.discard(session)

    async def close(self) -> None:
        """End the sessions, remove the socket and let go of the bdev."""
        if self.listener is not None:
            closing, self.listener = self.listener, None
            asyncio.get_running_loop().remove_reader(closing.sock.fileno())
            closing.close()
        await asyncio.gather(*(session.close() for session in tuple(self.sessions)))
        if self.descriptor is not None:
            self.descriptor.close()
            self.descriptor = None
        self.limit.tell()


def check_lcores(cpumask) -> frozenset[int]:
    """Return the lcores of a mask (iterable of int; None for all), which must have reactors."""
    running = frozenset(reactor.lcores())
    lcores = running if cpumask is None else frozenset(cpumask)
    if not lcores or not lcores <= running:
        raise ValueError(f"cpumask {sorted(lcores)} is not within the cores that have a reactor, "
                         f"{sorted(running)}")
    return lcores


async def create_blk(name: str, bdev_name: str, *, cpumask=None, readonly: bool = False,
                     socket_path: str | None = None,
                     who: access.Access = EVERYBODY) -> BlkController:
    """Serve a bdev at a socket and return its controller.

    cpumask: iterable of lcores (int) for its queues, None for all.  readonly: refuse every write.
    socket_path: str, instead of the socket directory and the name.  who: may use the socket.
    OSError: EEXIST (controller), ENODEV (bdev), EADDRINUSE ...; ValueError: name or cpumask.
    """
    if not name or "/" in name or not name.isprintable():
        raise ValueError(f"controller name {name!r} must be printable and without '/'")
    if name in controllers:
        raise OSError(errno.EEXIST, f"controller {name} already exists")
    lcores = check_lcores(cpumask)
    path = os.path.abspath(socket_path or socket_directory + name)
    controller = BlkController(name, lcores, path, who)
    controller.lcores_said = cpumask is not None
    writable = not readonly and not registry.get(bdev_name).read_only
    controller.use(registry.open(bdev_name, writable, controller.bdev_removed))
    controllers[name] = controller      # before anything is waited for
    try:
        await controller.listen()
        if controllers.get(name) is not controller:
            raise OSError(errno.ENODEV, f"controller {name} was deleted while it was made")
    except BaseException:
        if controllers.get(name) is controller:
            del controllers[name]
        await controller.close()
        raise
    notifications.send("vhost_controller_create", name, bdev=controller.bdev_name, socket=path)
    log.notice(f"{bdev_name} is served at {path}")
    return controller


def config(whole: bool = True) -> list[dict]:
    """Return the calls that make the present controllers again, but those whose bdev is gone.

    whole: say also which cores a controller has that nobody has given any, as SPDK does.
    """
    calls = []
    for each in controllers.values():
        if each.descriptor is None:
            continue
        calls.append({"method": "vhost_create_blk_controller", "params": params_of(each, whole)})
        if each.coalescing != Coalescing():
            calls.append({"method": "vhost_controller_set_coalescing",
                          "params": {"ctrlr": each.name, **each.coalescing.params()}})
    return calls


def params_of(each: BlkController, whole: bool) -> dict:
    params = {"ctrlr": each.name, "dev_name": each.bdev_name}
    if whole or each.lcores_said:
        params["cpumask"] = f"{sum(1 << lcore for lcore in each.lcores):x}"
    params |= {"readonly": each.readonly, "transport": TRANSPORT}
    if each.path != os.path.abspath(socket_directory + each.name):
        params["socket"] = each.path
    return params | each.access.params()


def get(name: str) -> BlkController:
    """Return a controller by name, or raise OSError(ENODEV)."""
    if name not in controllers:
        raise OSError(errno.ENODEV, f"controller {name} does not exist")
    return controllers[name]


async def delete(name: str) -> None:
    """Remove a controller: its socket, its sessions, then itself. OSError(ENODEV)."""
    controller = get(name)
    await controller.close()
    # Of two that delete it the later one may find another of that name.
    if controllers.get(name) is controller:
        del controllers[name]
        notifications.send("vhost_controller_delete", name)


async def delete_all() -> None:
    """Remove every controller."""
    await asyncio.gather(*(delete(name) for name in tuple(controllers)))
