"""One client of a controller: the state machine of the vhost-user protocol.

Messages are handled one at a time, in order; a message that changes a running queue is answered
when the queue's reactor has taken the change.

Owner:   the controller; a session owns its socket, rings, memory view and descriptors.
Threads: the control thread; memory is mapped on a helper thread.
"""
import asyncio
import errno
import itertools
import socket

from vhostrt import log
from vhostrt.notify import notifications
from vhostrt.vhost import memory
from vhostrt.vhost import view as view_module
from vhostrt.vhost.backend import BackendChannel
from vhostrt.vhost.messages import (ADDRESS, CONFIG, CONFIG_MAX, FDS_MAX, FLAG_NEED_REPLY, MEM_REG,
                                    STATE, U64, VRING_INDEX_MASK, VRING_NO_FD,
                                    BackendRequest, Feature, ProtocolError, ProtocolFeature,
                                    Request, Status, bits, name_of)
from vhostrt.vhost.ring import Ring
from vhostrt.vhost.transport import Channel, Message, is_eventfd

PROTOCOL_FEATURES = bits(*ProtocolFeature)
INBAND_NEEDS = bits(ProtocolFeature.REPLY_ACK, ProtocolFeature.BACKEND_REQ)
LIVE_FEATURES = bits(Feature.LOG_ALL)   # may change while rings run
STATUS_MAX = 0xff
MESSAGES_A_TURN = 16                    # handled before the loop serves others
REPLY_OK, REPLY_ERROR = U64.pack(0), U64.pack(1)
BROKEN = {errno.EFAULT: "it names memory that is not there",
          errno.EMSGSIZE: "a descriptor chain of too many pieces",
          errno.ETIMEDOUT: "its call descriptor blocked"}
LOOK_S = 1.0                            # after the start of a ring, when its driver has kicked it
SHARE = ("start QEMU with memory that is shared (-object memory-backend-memfd,id=mem,size=1G,"
         "share=on -numa node,memdev=mem)")
numbers = itertools.count()             # vid: of sessions since the start

notifications.register("vhost_session_connect", "a client has connected; ctx: the session's name")
notifications.register("vhost_session_disconnect",
                       "a client has gone, and what was its has been given back; ctx: the name of "
                       "the session")
notifications.register("vhost_ring_broken", "a driver spoilt its ring, which is not served until "
                       "it resets it; ctx: the session's name")


class Session:
    """controller: the BlkController.  sock: a connected unix stream socket, ours from now on."""

    def __init__(self, controller, sock: socket.socket) -> None:
        self.controller = controller
        self.vid = next(numbers)
        self.channel = Channel(sock)
        self.features = 0               # accepted by SET_FEATURES
        self.features_told = False      # since the last reset
        self.protocol_features = 0
        self.status = 0                 # of the device, as the driver set it
        self.rings: dict[int, Ring] = {}
        self.view: view_module.View | None = None
        self.looking: asyncio.TimerHandle | None = None
        self.say = controller.limit.part()
        self.backend = BackendChannel(self.name, self.say)
        self.task = asyncio.get_running_loop().create_task(self.run())

    @property
    def name(self) -> str:
        """For people: the controller's name, "s", and the session's number."""
        return f"{self.controller.name}s{self.vid}"

    def has(self, feature: int) -> bool:
        """True when the client accepted this bit."""
        return bool(self.features >> feature & 1)

    def speaks(self, feature: int) -> bool:
        """True when the client accepted this protocol feature."""
        return bool(self.protocol_features >> feature & 1)

    # Life

    async def run(self) -> None:
        """Serve the client until it goes or breaks the protocol."""
        log.info("vhost", f"{self.name}: connected")
        notifications.send("vhost_session_connect", self.name, ctrlr=self.controller.name)
        try:
            await self.serve()
        except ProtocolError as error:
            self.say.warning("ended", f"{self.name}: session ended: {error}")
        except ConnectionError as error:
            log.info("vhost", f"{self.name}: connection lost: {error}")
        except Exception as error:      # a defect of ours must not take the others along
            self.say.error("internal", f"{self.name}: session ended by an internal error: "
                                       f"{error!r}")
        finally:
            await self.release()
            notifications.send("vhost_session_disconnect", self.name, ctrlr=self.controller.name)
        log.info("vhost", f"{self.name}: disconnected")

    async def serve(self) -> None:
        for count in itertools.count(1):
            message = await self.channel.receive()
            if message is None:
                return
            try:
                await self.answer(message)
            finally:
                message.close()
            if count % MESSAGES_A_TURN == 0:
                await asyncio.sleep(0)

    async def release(self) -> None:
        """Stop the queues and give everything back."""
        try:
            for ring in self.rings.values():
                await ring.close()
        finally:
            if self.features and self.view is None:
                self.say.warning("memory", f"{self.name}: the client left without telling where "
                                 f"its memory is: {SHARE}")
            if self.looking is not None:
                self.looking.cancel()
            self.view = None
            self.backend.close("the session has ended")
            self.channel.close()
            # Last: who ends the controller or its bdev waits for the queues that still stop.
            self.controller.forget(self)

    async def close(self) -> None:
        """End the session and wait until it has given everything back; the wait may be cancelled.
        """
        self.channel.shutdown()
        await asyncio.wait((self.task,))

    def look_later(self) -> None:
        """A ring has been started: look soon whether anything comes through it."""
        if self.looking is None:
            self.looking = asyncio.get_running_loop().call_later(LOOK_S, self.look)

    def look(self) -> None:
        """Say so when the driver kicks and we see nothing of what it writes: its memory is its own,
        and ours another copy of the same file."""
        self.looking = None
        unseen = [ring.index for ring in self.rings.values() if ring.is_unseen()]
        if unseen and not any(ring.has_requests() for ring in self.rings.values()
                              if ring.queue is not None):
            self.say.warning("memory", f"{self.name}: ring {unseen[0]} is kicked, but nothing that "
                             f"the driver writes can be seen: {SHARE}")

    def broken(self, queue, number: int) -> None:
        """A driver spoilt its ring; it was told by the err descriptor. Called once a queue."""
        what = BROKEN.get(number, "a descriptor chain or an index that cannot be")
        self.say.warning("broken", f"{self.name}: ring {queue.index} is broken ({what}); it is not "
                         "served until the driver resets it")
        notifications.send("vhost_ring_broken", self.name, ctrlr=self.controller.name,
                           ring=queue.index, errno=number)
        if self.status & Status.DRIVER_OK:          # virtio 1.4, 2.1.2
            self.config_changed(f"ring {queue.index}, which needs a reset")

    def config_changed(self, what: str) -> None:
        """Tell the client that the config space or the status is another, or say why it is not
        told of that."""
        why = "it has not asked for that"
        if self.speaks(ProtocolFeature.CONFIG):
            self.backend.send(BackendRequest.CONFIG_CHANGE)
            why = self.backend.why
        if why:
            self.say.warning("untold", f"{self.name}: the client is not told of {what}: {why}")

    # Messages

    async def answer(self, message: Message) -> None:
        """Handle one message and reply when it or the client asks for that."""
        acknowledge = (message.flags & FLAG_NEED_REPLY
                       and self.speaks(ProtocolFeature.REPLY_ACK))
        try:
            entry = HANDLERS.get(message.request)
            if entry is None:
                raise ProtocolError(f"{name_of(message.request)} is not supported")
            handler, size, fds = entry
            if size is not None and len(message.payload) != size:
                raise ProtocolError(f"{name_of(message.request)} has {len(message.payload)} bytes "
                                    f"instead of {size}")
            if len(message.fds) > fds:
                raise ProtocolError(f"{name_of(message.request)} came with {len(message.fds)} "
                                    f"descriptors; it takes {fds}")
            needed = NEEDED.get(message.request)
            if needed is not None and not self.speaks(needed):
                raise ProtocolError(f"{name_of(message.request)} came without protocol feature "
                                    f"{needed.name}, which was not accepted")
            reply = await handler(self, message)
        except ProtocolError as error:
            if not acknowledge or error.fatal or message.request in REPLYING:
                raise
            self.say.warning("refused", f"{self.name}: refused: {error}")
            reply = REPLY_ERROR
        if reply is None and acknowledge:
            reply = REPLY_OK
        if reply is not None:
            await self.channel.reply(message.request, reply)

    def ring(self, index: int) -> Ring:
        """Return a ring by its index, made when first named."""
        if index >= self.controller.rings_max:
            raise ProtocolError(f"ring {index} does not exist: there are "
                                f"{self.controller.rings_max}, so num-queues may be no more")
        if index not in self.rings:
            try:
                self.controller.check_rings()
            except OSError as error:
                raise ProtocolError(f"ring {index}: {error.strerror}") from None
            self.rings[index] = Ring(index, self)
        return self.rings[index]

    async def nothing(self, message: Message) -> None:
        """SET_OWNER, RESET_OWNER: nothing to keep."""

    async def get_features(self, message: Message) -> bytes:
        return U64.pack(self.controller.features | bits(Feature.PROTOCOL_FEATURES))

    async def set_features(self, message: Message) -> None:
        (features,) = U64.unpack(message.payload)
        unknown = features & ~(self.controller.features | bits(Feature.PROTOCOL_FEATURES))
        if unknown:
            raise ProtocolError(f"SET_FEATURES with bits {unknown:#x} that were not offered")
        changed = (features ^ self.features) & ~LIVE_FEATURES
        if changed and any(r.queue is not None for r in self.rings.values()):
            raise ProtocolError(f"SET_FEATURES changes bits {changed:#x} while a ring is running")
        self.features = features
        self.features_told = True
        if not self.has(Feature.PROTOCOL_FEATURES):
            for ring in self.rings.values():
                ring.enabled = True
                await ring.update()

    async def get_protocol_features(self, message: Message) -> bytes:
        return U64.pack(PROTOCOL_FEATURES)

    async def set_protocol_features(self, message: Message) -> None:
        (features,) = U64.unpack(message.payload)
        if features & ~PROTOCOL_FEATURES:
            raise ProtocolError(f"SET_PROTOCOL_FEATURES with bits "
                                f"{features & ~PROTOCOL_FEATURES:#x} that were not offered")
        if features >> ProtocolFeature.INBAND_NOTIFICATIONS & 1 and INBAND_NEEDS & ~features:
            raise ProtocolError("SET_PROTOCOL_FEATURES with INBAND_NOTIFICATIONS needs BACKEND_REQ "
                                "and REPLY_ACK", True)
        self.protocol_features = features

    async def get_queue_num(self, message: Message) -> bytes:
        return U64.pack(self.controller.rings_max)

    # Memory

    async def get_max_mem_slots(self, message: Message) -> bytes:
        return U64.pack(memory.SLOTS_MAX)

    async def set_mem_table(self, message: Message) -> None:
        await self.map(memory.map_table, message)

    async def add_mem_reg(self, message: Message) -> None:
        await self.map(memory.map_region, message)

    async def map(self, way, message: Message) -> None:
        """Map what a message brings beside the data path, on the helper thread, and use it."""
        await self.use_view(await asyncio.get_running_loop().run_in_executor(
            view_module.helper(), way, message, self.view, self.controller.allowance))

    async def rem_mem_reg(self, message: Message) -> None:
        """Rings in the region are stopped first, and go on when they are in memory again."""
        mapping = memory.find_region(message, self.view)
        await asyncio.gather(*(ring.stop() for ring in self.rings.values()
                               if ring.runs_in(mapping.user, mapping.size)))
        await self.use_view(self.view.minus(mapping))

    async def use_view(self, view: view_module.View) -> None:
        """Have every running queue take a view, then drop the old one."""
        await asyncio.gather(*(ring.set_view(view) for ring in self.rings.values()))
        self.view = view
        for ring in self.rings.values():
            await ring.start_if_ready()

    # Rings

    async def set_vring_num(self, message: Message) -> None:
        index, size = STATE.unpack(message.payload)
        self.ring(index).set_size(size)

    async def set_vring_addr(self, message: Message) -> None:
        index, _, desc, used, avail, _ = ADDRESS.unpack(message.payload)
        self.ring(index).set_addresses((desc, avail, used))

    async def set_vring_base(self, message: Message) -> None:
        index, base = STATE.unpack(message.payload)
        self.ring(index).set_base(base)

    async def get_vring_base(self, message: Message) -> bytes:
        index, _ = STATE.unpack(message.payload)
        ring = self.ring(index)
        await ring.reset()
        return STATE.pack(index, ring.next_avail)

    async def set_vring_fd(self, message: Message) -> None:
        """SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR."""
        (word,) = U64.unpack(message.payload)
        ring = self.ring(word & VRING_INDEX_MASK)
        wanted = 0 if word & VRING_NO_FD else 1
        if len(message.fds) != wanted or word & ~(VRING_INDEX_MASK | VRING_NO_FD):
            raise ProtocolError(f"{name_of(message.request)} of {word:#x} came with "
                                f"{len(message.fds)} descriptors")
        if wanted and not is_eventfd(message.fds[0]):
            raise ProtocolError(f"{name_of(message.request)} of ring {ring.index}: the descriptor "
                                "is not an eventfd")
        kind = FD_KINDS[message.request]
        await ring.set_fd(kind, message.take_fds()[0] if wanted else -1)
        if kind == "kick":
            await ring.update()

    async def set_vring_enable(self, message: Message) -> None:
        index, enable = STATE.unpack(message.payload)
        if enable > 1:
            raise ProtocolError(f"SET_VRING_ENABLE of ring {index} with {enable}: 0 or 1")
        ring = self.ring(index)
        ring.enabled = bool(enable)
        await ring.update()

    async def vring_kick(self, message: Message) -> None:
        index, number = STATE.unpack(message.payload)
        if number:
            raise ProtocolError(f"VRING_KICK of ring {index} with {number}: it must be 0")
        await self.ring(index).kick()

    async def set_backend_req_fd(self, message: Message) -> None:
        if len(message.fds) != 1:
            raise ProtocolError("SET_BACKEND_REQ_FD came without a descriptor")
        self.backend.open(message.fds[0], self.speaks(ProtocolFeature.REPLY_ACK))
        message.take_fds()

    # The device

    async def reset_device(self, message: Message) -> None:
        await self.reset()

    async def reset(self) -> None:
        """Disable all rings and forget what the driver set. Memory, descriptors for calls, and what
        belongs to the connection stay."""
        await asyncio.gather(*(ring.renew() for ring in self.rings.values()))
        self.features, self.features_told, self.status = 0, False, 0

    async def set_status(self, message: Message) -> None:
        """Take the status of the driver, who can only add to it; 0 resets the device."""
        (status,) = U64.unpack(message.payload)
        if status > STATUS_MAX:
            raise ProtocolError(f"SET_STATUS with {status:#x}: a status has 8 bits")
        if status == 0:
            await self.reset()
            return
        if not self.features_told:
            status &= ~Status.FEATURES_OK       # how a driver sees that it is not so
        if status & ~self.status & Status.FAILED:
            self.say.warning("failed", f"{self.name}: the driver has given the device up")
        self.status |= status & ~Status.NEEDS_RESET

    async def get_status(self, message: Message) -> bytes:
        broken = any(ring.queue is not None and ring.queue.broken for ring in self.rings.values())
        return U64.pack(self.status | (Status.NEEDS_RESET if broken else 0))

    # The config space

    def config_range(self, message: Message) -> tuple[int, int, bytes]:
        """Return offset, size and data of a config message."""
        if len(message.payload) < CONFIG.size:
            raise ProtocolError(f"{name_of(message.request)} is too short")
        offset, size, _ = CONFIG.unpack_from(message.payload)
        data = message.payload[CONFIG.size:]
        if size > CONFIG_MAX or offset > CONFIG_MAX - size or len(data) != size:
            raise ProtocolError(f"{name_of(message.request)} of {size} bytes at {offset} with "
                                f"{len(data)} bytes: the config space has {CONFIG_MAX}")
        return offset, size, data

    async def get_config(self, message: Message) -> bytes:
        """Any part of the 256 bytes; an impossible range is answered with an empty payload."""
        try:
            offset, size, _ = self.config_range(message)
        except ProtocolError as error:
            self.say.warning("refused", f"{self.name}: refused: {error}")
            return b""
        space = self.controller.config_space().ljust(CONFIG_MAX, b"\0")
        return CONFIG.pack(offset, size, 0) + space[offset:offset + size]

    async def set_config(self, message: Message) -> None:
        offset, size, _ = self.config_range(message)
        raise ProtocolError(f"SET_CONFIG of {size} bytes at {offset}: no field is writable")


FD_KINDS = {Request.SET_VRING_KICK: "kick", Request.SET_VRING_CALL: "call",
            Request.SET_VRING_ERR: "err"}

# Requests that have an answer of their own.
REPLYING = frozenset((Request.GET_FEATURES, Request.GET_VRING_BASE, Request.GET_PROTOCOL_FEATURES,
                      Request.GET_QUEUE_NUM, Request.GET_CONFIG, Request.GET_MAX_MEM_SLOTS,
                      Request.GET_STATUS))

# Requests that mean nothing unless the client accepted a protocol feature.
NEEDED = {
    Request.RESET_DEVICE: ProtocolFeature.RESET_DEVICE,
    Request.VRING_KICK: ProtocolFeature.INBAND_NOTIFICATIONS,
    Request.GET_MAX_MEM_SLOTS: ProtocolFeature.CONFIGURE_MEM_SLOTS,
    Request.ADD_MEM_REG: ProtocolFeature.CONFIGURE_MEM_SLOTS,
    Request.REM_MEM_REG: ProtocolFeature.CONFIGURE_MEM_SLOTS,
    Request.SET_STATUS: ProtocolFeature.STATUS,
    Request.GET_STATUS: ProtocolFeature.STATUS,
}

# request: (handler, bytes of the payload or None for any, descriptors at most)
HANDLERS = {
    Request.GET_FEATURES: (Session.get_features, 0, 0),
    Request.SET_FEATURES: (Session.set_features, U64.size, 0),
    Request.SET_OWNER: (Session.nothing, 0, 0),
    Request.RESET_OWNER: (Session.nothing, 0, 0),
    Request.SET_MEM_TABLE: (Session.set_mem_table, None, FDS_MAX),
    Request.SET_VRING_NUM: (Session.set_vring_num, STATE.size, 0),
    Request.SET_VRING_ADDR: (Session.set_vring_addr, ADDRESS.size, 0),
    Request.SET_VRING_BASE: (Session.set_vring_base, STATE.size, 0),
    Request.GET_VRING_BASE: (Session.get_vring_base, STATE.size, 0),
    Request.SET_VRING_KICK: (Session.set_vring_fd, U64.size, 1),
    Request.SET_VRING_CALL: (Session.set_vring_fd, U64.size, 1),
    Request.SET_VRING_ERR: (Session.set_vring_fd, U64.size, 1),
    Request.GET_PROTOCOL_FEATURES: (Session.get_protocol_features, 0, 0),
    Request.SET_PROTOCOL_FEATURES: (Session.set_protocol_features, U64.size, 0),
    Request.GET_QUEUE_NUM: (Session.get_queue_num, 0, 0),
    Request.SET_VRING_ENABLE: (Session.set_vring_enable, STATE.size, 0),
    Request.SET_BACKEND_REQ_FD: (Session.set_backend_req_fd, 0, 1),
    Request.GET_CONFIG: (Session.get_config, None, 0),
    Request.SET_CONFIG: (Session.set_config, None, 0),
    Request.RESET_DEVICE: (Session.reset_device, 0, 0),
    Request.VRING_KICK: (Session.vring_kick, STATE.size, 0),
    Request.GET_MAX_MEM_SLOTS: (Session.get_max_mem_slots, 0, 0),
    Request.ADD_MEM_REG: (Session.add_mem_reg, MEM_REG.size, 1),
    Request.REM_MEM_REG: (Session.rem_mem_reg, MEM_REG.size, 1),    # one by mistake is allowed
    Request.SET_STATUS: (Session.set_status, U64.size, 0),
    Request.GET_STATUS: (Session.get_status, 0, 0),
}
