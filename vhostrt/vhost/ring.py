"""One virtqueue of a session, as the vhost-user messages describe it.

Owner:   the session; a ring owns its descriptors except while a queue runs with them.
Threads: the control thread.
Fails:   ProtocolError when a message cannot be applied.
"""
import asyncio
import errno
import functools
import os

from vhostrt import log
from vhostrt.event.thread import Thread
from vhostrt.vhost.blk import BlkQueue
from vhostrt.vhost.messages import (STATE, BackendRequest, Feature, ProtocolError,
                                    ProtocolFeature)
from vhostrt.vhost.transport import close_all

SIZE_MAX = 32768                        # virtio 1.4, 2.7
# What is said by messages with INBAND_NOTIFICATIONS where the client gave no descriptor.
INBAND = {"call": BackendRequest.VRING_CALL, "err": BackendRequest.VRING_ERR}


def kicks_of(fd: int) -> int:
    """Return the count of an eventfd, which stays as it is; 0 without one."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as about:
            return next((int(line.split(":")[1], 16) for line in about
                         if line.startswith("eventfd-count:")), 0)
    except OSError:
        return 0


class Ring:
    """index: int. session: the Session that it belongs to."""

    def __init__(self, index: int, session) -> None:
        self.index = index
        self.session = session
        self.size = 0                   # descriptors; 0 until told
        self.addresses: tuple[int, int, int] | None = None      # desc, avail, used; the client's
        self.next_avail = 0
        self.enabled: bool | None = None            # None: no message has said so
        self.kicked = False             # SET_VRING_KICK came since the ring was stopped last
        self.fds = {"kick": -1, "call": -1, "err": -1}
        self.told: set[str] = set()     # of these, what messages have said, if only "none"
        self.inband: dict[int, str] = {}        # of self.fds, which are our own, for messages
        self.queue: BlkQueue | None = None
        # The session's messages and the removal of the bdev each change the queue in steps.
        self.lock = asyncio.Lock()

    def refuse_running(self, what: str) -> None:
        """Fail for what must not change while the ring is being served."""
        if self.queue is not None:
            raise ProtocolError(f"{what} of ring {self.index} while it is running")

    def set_size(self, size: int) -> None:
        self.refuse_running("SET_VRING_NUM")
        if not 0 < size <= SIZE_MAX or size & (size - 1):
            raise ProtocolError(f"ring {self.index} cannot have {size} descriptors: the size is a "
                                f"power of two up to {SIZE_MAX}")
        self.size = size

    def set_addresses(self, addresses: tuple[int, int, int]) -> None:
        """The same again is no harm: it comes live to change the log flag."""
        if addresses != self.addresses:
            self.refuse_running("SET_VRING_ADDR with other addresses")
            self.addresses = addresses

    def set_base(self, base: int) -> None:
        self.refuse_running("SET_VRING_BASE")
        if base > 0xffff:
            raise ProtocolError(f"ring {self.index} cannot start at index {base}: a split ring "
                                "counts to 65535")
        self.next_avail = base

    async def set_fd(self, kind: str, fd: int) -> None:
        """Take a descriptor ("kick", "call" or "err"; -1 for none), the ring's from now on."""
        async with self.lock:
            if self.queue is None:
                old, self.fds[kind] = self.fds[kind], fd
            else:
                old = await self.queue.set_fd(kind, fd)
                self.fds[kind] = fd     # for who asks; the queue has it
        self.told.add(kind)
        self.drop(old)
        if kind == "kick":
            self.kicked = True

    def drop(self, fd: int) -> None:
        """Close a descriptor that was the ring's; -1 is none."""
        if self.inband.pop(fd, "kick") != "kick":
            asyncio.get_running_loop().remove_reader(fd)
        close_all([fd])

    def say_inband(self, kind: str) -> None:
        """Have a descriptor of our own where the client gave none: what the reactor says there goes
        on as a message."""
        fd = self.fds[kind] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.inband[fd] = kind
        if kind != "kick":
            asyncio.get_running_loop().add_reader(fd, self.tell_client, fd, INBAND[kind])

    def tell_client(self, fd: int, request: BackendRequest) -> None:
        """The reactor has signalled a descriptor of ours."""
        os.eventfd_read(fd)
        self.session.backend.send(request, STATE.pack(self.index, 0))

    async def kick(self) -> None:
        """VRING_KICK: chains have come; the first starts the ring.  ProtocolError when the client
        has given a kick descriptor, which is to be used then."""
        if not self.kicked:
            self.say_inband("kick")
            self.kicked = True
        fd = self.fds["kick"]
        if fd >= 0 and fd not in self.inband:
            raise ProtocolError(f"VRING_KICK of ring {self.index}, which has a kick descriptor")
        if self.queue is None:
            await self.update()
        if fd >= 0:
            os.eventfd_write(fd, 1)

    def is_enabled(self) -> bool:
        """Whether it may run: without protocol features there is no message that enables it."""
        if self.enabled is None:
            return not self.session.has(Feature.PROTOCOL_FEATURES)
        return self.enabled

    async def update(self) -> None:
        """Start the ring when all it needs is there; stop it when it has been disabled."""
        session = self.session
        if not self.is_enabled():
            await self.stop()
        elif self.queue is None and self.kicked:
            if not self.size or self.addresses is None or session.view is None:
                raise ProtocolError(f"ring {self.index} was started before its size, addresses "
                                    "and memory were told")
            try:
                async with self.lock:
                    await self.start()
            except (ValueError, OSError, MemoryError) as error:
                raise ProtocolError(f"ring {self.index} cannot be started: {error}") from None

    async def start(self) -> None:
        """Serve the ring on a reactor of the controller's; with the lock."""
        session = self.session
        controller = session.controller
        if session.speaks(ProtocolFeature.INBAND_NOTIFICATIONS):
            for kind in INBAND.keys() - self.told - set(self.inband.values()):
                self.say_inband(kind)
        name = f"{controller.name}.vq{self.index}"
        lcore = controller.place(self.size, name)
        channel = await controller.open_channel(lcore)
        thread = Thread(name, controller.lcores)
        thread.mover = functools.partial(self.move, thread)
        queue = BlkQueue(self.index, self.size, thread, session.broken, controller.serial)
        await queue.set_coalescing(*controller.coalescing.arguments())
        try:
            await queue.start(lcore, session.view, self.addresses, self.next_avail, self.fds,
                              session.has(Feature.EVENT_IDX), session.has(Feature.INDIRECT_DESC),
                              channel)
        except BaseException:
            thread.mover = None             # which holds the thread
            await controller.close_channel(channel)
            raise
        self.queue = queue
        session.look_later()
        log.info("vhost", f"{controller.name}: ring {self.index} of {self.size} descriptors runs "
                          f"on core {lcore}")

    async def start_if_ready(self) -> None:
        """Start a ring that has waited for memory, if it is there now."""
        if self.queue is None and self.kicked and self.is_enabled() and self.size \
                and self.addresses is not None:
            try:
                await self.update()
            except ProtocolError as error:
                log.info("vhost", f"{self.session.name}: {error}")

    def runs_in(self, user: int, size: int) -> bool:
        """Whether it is served, and a part of it begins in this range of the client's addresses."""
        return self.queue is not None and not self.queue.broken \
            and any(user <= address < user + size for address in self.addresses)

    async def stop(self) -> None:
        """Finish what is in flight and leave the reactor."""
        async with self.lock:
            if self.queue is None:
                return
            queue, channel = self.queue, self.queue.channel
            self.next_avail, self.fds = await queue.stop()
            self.queue = None
            self.session.controller.keep_stats(queue)
            await self.session.controller.close_channel(channel)

    def has_requests(self) -> bool:
        """Whether the running queue has taken any."""
        return any(self.queue.stats().requests().values())

    def is_unseen(self) -> bool:
        """Whether the driver has kicked the running ring, and nothing that it wrote can be seen."""
        if self.queue is None or self.addresses is None or self.has_requests():
            return False
        desc, avail, _ = self.addresses
        view = self.session.view
        return bool(kicks_of(self.fds["kick"])) and view.is_blank(desc, 16 * self.size) \
            and view.is_blank(avail, 4)

    async def move(self, thread: Thread, lcore: int) -> None:
        """Take the thread of the queue to another reactor. What comes for the ring meanwhile waits
        for the lock.

        OSError: the ring goes on where it was, or that thread serves it no more (EIO).
        """
        async with self.lock:
            if self.queue is None or self.queue.thread is not thread:
                raise OSError(errno.EIO, f"the thread {thread.name} serves its ring no more")
            if self.queue.lcore == lcore:
                return
            controller = self.session.controller
            channel = None
            # The bdev may have been removed: then there is no channel to have.
            if self.queue.channel is not None:
                channel = await controller.open_channel(lcore)
            try:
                old = await self.queue.move(lcore, channel)
            except BaseException:
                await controller.close_channel(channel)
                raise
            await controller.close_channel(old)
        log.info("vhost", f"{controller.name}: ring {self.index} runs on core {lcore} now")

    async def set_view(self, view) -> None:
        """Have a running queue take a new memory table."""
        async with self.lock:
            if self.queue is not None:
                await self.queue.set_view(view, self.addresses)

    async def set_coalescing(self) -> None:
        """Have a running queue interrupt its driver as the controller says now."""
        async with self.lock:
            if self.queue is not None:
                await self.queue.set_coalescing(
                    *self.session.controller.coalescing.arguments())

    async def detach(self) -> None:
        """Go on without the bdev: requests fail. Returns when none uses its channel any more."""
        async with self.lock:
            if self.queue is None or self.queue.channel is None:
                return
            channel = await self.queue.set_channel(None)
            while channel.inflight:
                await asyncio.sleep(0.001)
            await self.session.controller.close_channel(channel)

    async def close(self) -> None:
        """Stop and give back every descriptor."""
        await self.stop()
        for kind, fd in self.fds.items():
            self.fds[kind] = -1
            self.drop(fd)

    async def reset(self) -> None:
        """What GET_VRING_BASE leaves: stopped until the next kick descriptor comes."""
        await self.stop()
        fd, self.fds["kick"] = self.fds["kick"], -1
        self.drop(fd)
        self.kicked = False

    async def renew(self) -> None:
        """What a reset of the device leaves: disabled, and as if nothing had been told but the
        descriptors for calls and errors."""
        await self.reset()
        self.enabled = False
        self.size, self.addresses, self.next_avail = 0, None, 0
