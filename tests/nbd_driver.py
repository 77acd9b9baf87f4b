"""Random operations on a volume through several NBD connections, checked by a Model."""

import errno
import select
import time

import nbd

from volume_model import Model, SECTOR, payload

# In-flight requests of one connection; with several connections enough that operations
# overlap in the server all the time.
DEPTH = 6
MIX = (("read", 40), ("write", 35), ("zero", 8), ("trim", 5), ("flush", 4), ("status", 4),
       ("cache", 4))


class ConnectionLost(Exception):
    pass


class Driver:
    """`unit_bytes`: offsets gather around its multiples (stripe units, extents)."""

    def __init__(self, uri, size_bytes, generator, connections=3, units=(64 << 10, 4 << 20),
                 max_sectors=256, hot_sectors=64, mix=MIX):
        self.uri, self.size_bytes, self.random = uri, size_bytes, generator
        self.model = Model(size_bytes)
        self.units, self.max_sectors = units, max_sectors
        self.mix = list(mix)
        self.hot = [generator.randrange(0, self.model.sector_count - hot_sectors)
                    for _ in range(2)]
        # One hot window lies across an extent's edge, where splits are.
        self.hot.append(units[-1] // SECTOR - hot_sectors // 2)
        self.hot_sectors = hot_sectors
        self.connection_count = connections
        self.handles, self.in_flight = [], {}
        self.counts = {}
        self.connect()

    def connect(self):
        self.handles = []
        for _ in range(self.connection_count):
            handle = nbd.NBD()
            handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            handle.connect_uri(self.uri)
            self.handles.append(handle)
        self.in_flight = {index: {} for index in range(len(self.handles))}
        for handle in self.handles:
            if handle.get_size() != self.size_bytes:
                raise AssertionError(f"the server says {handle.get_size()} bytes, not "
                                     f"{self.size_bytes}")
            # Not every device can; the model must not ask for what was not offered.
            offered = {"trim": handle.can_trim(), "cache": handle.can_cache()}
            self.mix = [(name, w) for name, w in self.mix if offered.get(name, True)]
            if len(self.handles) > 1 and not handle.can_multi_conn():
                raise AssertionError("the server does not promise multi-conn")

    def pick_range(self):
        """A range of sectors: hot (so that operations meet), at an edge, or anywhere."""
        rng, total = self.random, self.model.sector_count
        count = min(1 << rng.randrange(0, 9), self.max_sectors)
        count = rng.randint(1, count)
        where = rng.random()
        if where < 0.5:
            count = min(count, self.hot_sectors)
            first = rng.choice(self.hot) + rng.randrange(0, self.hot_sectors - count + 1)
        elif where < 0.75:
            unit = rng.choice(self.units) // SECTOR
            first = rng.randrange(0, total // unit + 1) * unit - rng.randint(0, count)
        else:
            first = rng.randrange(0, total)
        first = max(0, min(first, total - count))
        return first, count

    def submit(self, index):
        handle = self.handles[index]
        kind = self.random.choices(*zip(*self.mix))[0]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        fua = nbd.CMD_FLAG_FUA if self.random.random() < 0.1 else 0
        if kind == "flush":
            cookie = handle.aio_flush()
            self.in_flight[index][cookie] = (kind, None, None)
            return
        first, count = self.pick_range()
        offset, length = first * SECTOR, count * SECTOR
        if kind == "cache":
            self.in_flight[index][handle.aio_cache(length, offset)] = (kind, None, None)
            return
        operation = self.model.begin("read" if kind == "status" else kind, first, count)
        try:
            cookie, buffer = self._send(handle, kind, operation, offset, length, fua)
        except nbd.Error:
            self._forget(kind, operation)
            raise
        self.in_flight[index][cookie] = (kind, operation, buffer)

    def _send(self, handle, kind, operation, offset, length, fua):
        """(cookie, what the answer will be in)"""
        if kind == "read":
            buffer = nbd.Buffer(length)
            return handle.aio_pread(buffer, offset), buffer
        if kind == "write":
            data = payload(operation.version, operation.first, operation.count)
            buffer = nbd.Buffer.from_bytearray(bytearray(data))
            return handle.aio_pwrite(buffer, offset, flags=fua), buffer
        if kind == "zero":
            hole = nbd.CMD_FLAG_NO_HOLE if self.random.random() < 0.5 else 0
            return handle.aio_zero(length, offset, flags=fua | hole), None
        if kind == "trim":
            return handle.aio_trim(length, offset, flags=fua), None
        reports = []

        def extent(_context, start, entries, _error):
            reports.append((start, list(entries)))
            return 0
        return handle.aio_block_status(length, offset, extent), reports

    def _forget(self, kind, operation):
        """The fate of an operation will never be known."""
        if kind in ("write", "zero", "trim"):
            self.model.end_failed_change(operation)
        elif operation is not None:
            self.model.end_failed_read(operation)

    def finish(self, kind, operation, buffer):
        if kind == "read":
            self.model.end_read(operation, bytes(buffer.to_bytearray()))
        elif kind in ("write", "zero", "trim"):
            self.model.end_change(operation)
        elif kind == "status":
            self.check_status(operation, buffer)
            self.model.end_failed_read(operation)

    def check_status(self, operation, reports):
        if not reports:
            raise AssertionError(f"{operation}: block status without an extent")
        for start, entries in reports:
            for length, flags in zip(entries[::2], entries[1::2]):
                if flags & nbd.STATE_ZERO:
                    # Whole sectors of the range asked for; the answer may go beyond it.
                    first = -(-start // SECTOR)
                    end = min((start + length) // SECTOR, operation.first + operation.count)
                    self.model.end_zero_report(operation, first, max(0, end - first))
                start += length

    def reap(self, timeout_seconds=30):
        """Waits for events and takes what has ended; ConnectionLost when a server died."""
        poll, by_fd = select.poll(), {}
        for index, handle in enumerate(self.handles):
            if not self.in_flight[index]:
                continue
            if handle.aio_is_dead() or handle.aio_is_closed():
                raise ConnectionLost("the server closed the connection")
            direction = handle.aio_get_direction()
            events = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | (
                select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0)
            poll.register(handle.aio_get_fd(), events)
            by_fd[handle.aio_get_fd()] = index
        ready = poll.poll(timeout_seconds * 1000)
        if not ready:
            raise AssertionError(f"no answer within {timeout_seconds} s; in flight: "
                                 f"{[list(f.values()) for f in self.in_flight.values()]}")
        try:
            for fd, events in ready:
                handle = self.handles[by_fd[fd]]
                if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and (
                        handle.aio_get_direction() & nbd.AIO_DIRECTION_READ):
                    handle.aio_notify_read()
                elif events & select.POLLOUT:
                    handle.aio_notify_write()
        except nbd.Error as error:
            raise ConnectionLost(str(error)) from error
        for fd, _ in ready:
            self._take_ended(by_fd[fd])

    def _take_ended(self, index):
        handle = self.handles[index]
        for cookie in list(self.in_flight[index]):
            try:
                if not handle.aio_command_completed(cookie):
                    continue
            except nbd.Error as error:
                if handle.aio_is_dead() or handle.aio_is_closed() or error.errnum in (
                        errno.ENOTCONN, errno.ESHUTDOWN):
                    raise ConnectionLost(str(error)) from error
                raise AssertionError(f"{self.in_flight[index][cookie][:2]} failed: {error}") from error
            self.finish(*self.in_flight[index].pop(cookie))
        if handle.aio_is_dead() or handle.aio_is_closed():
            raise ConnectionLost("the server closed the connection")

    def step(self):
        """Keeps every connection full, and takes one round of answers."""
        try:
            for index in range(len(self.handles)):
                depth = self.random.randint(1, DEPTH)
                while len(self.in_flight[index]) < depth:
                    self.submit(index)
        except nbd.Error as error:
            if any(handle.aio_is_dead() or handle.aio_is_closed() for handle in self.handles):
                raise ConnectionLost(str(error)) from error
            raise
        self.reap()

    def run(self, seconds, until=lambda: False):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not until():
            self.step()
        self.drain()

    def drain(self):
        while any(self.in_flight.values()):
            self.reap()

    def lost(self, reconnect_seconds=60):
        """After ConnectionLost: nothing is known of what was in flight; connects again."""
        for flying in self.in_flight.values():
            for kind, operation, _ in flying.values():
                self._forget(kind, operation)
        self.handles = []
        deadline = time.monotonic() + reconnect_seconds
        while True:
            try:
                return self.connect()
            except nbd.Error:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def verify_all(self):
        """Reads every sector on each connection in turn, in large pieces."""
        step = (1 << 20) // SECTOR
        for handle in self.handles:
            for first in range(0, self.model.sector_count, step):
                count = min(step, self.model.sector_count - first)
                operation = self.model.begin("read", first, count)
                self.model.end_read(operation, bytes(handle.pread(count * SECTOR, first * SECTOR)))

    def close(self):
        for handle in self.handles:
            handle.shutdown()
        self.handles = []

    def summary(self):
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))
