"""What a volume may answer, when several operations on it are in flight.

The model knows of every sector which values it may have now. Every write puts a version
of its own into all sectors it covers, so that a value read back tells which write it is
from; version 0 is zeroes. Time is counted in events seen by the client: an operation
begins when it is sent and ends when its answer is seen, so what the model believes of
order is never more than is true.

Allowed to a read of one sector, from its begin to its end:
- what the sector may have held when the read began,
- what any write that was in flight meanwhile puts there.
Not allowed, even then:
- a value that two reads, one after the other, have shown to be replaced: read A ended
  with x, read B began later and ended with y, so x must not come back.

A trim leaves the old value or zeroes. A write whose connection died may have happened or
not, sector by sector. A read beside a write may find a sector half changed: nothing below
promises more while both are in flight.
"""

import os
import struct

SECTOR = 512
_STAMP = struct.Struct("<QQ")
_ZERO = bytes(SECTOR)


def stamp(version, sector):
    """The 512 bytes that `version` leaves in a sector."""
    return _STAMP.pack(version, sector) * (SECTOR // 16) if version else bytes(SECTOR)


def payload(version, first, count):
    return b"".join(stamp(version, sector) for sector in range(first, first + count))


class Wrong(AssertionError):
    """The volume answered what it must not."""


class Operation:
    __slots__ = ("kind", "first", "count", "version", "begun")

    def __init__(self, kind, first, count, version, begun):
        self.kind, self.first, self.count = kind, first, count
        self.version, self.begun = version, begun

    def __repr__(self):
        return (f"{self.kind} of sectors [{self.first}, {self.first + self.count}) "
                f"version {self.version}")


class _Sector:
    __slots__ = ("current", "gone", "flying", "seen", "replaced")

    def __init__(self):
        self.current = [(0, 0)]  # (value, when its write ended): each may be the value now
        self.gone = []           # (value, when it stopped being possible)
        self.flying = set()      # writes begun and not ended
        self.seen = {}           # value -> when a read first ended with it
        self.replaced = {}       # value -> when it was known to be replaced


class Model:
    def __init__(self, size_bytes):
        self.sector_count = size_bytes // SECTOR
        self._sectors = {}
        self._now = 0
        self._next_version = 1
        self._in_flight = set()

    def _tick(self):
        self._now += 1
        return self._now

    def _at(self, sector):
        found = self._sectors.get(sector)
        if found is None:
            found = self._sectors[sector] = _Sector()
        return found

    def begin(self, kind, first, count):
        """kind: read, write, zero or trim."""
        version = 0
        if kind == "write":
            version, self._next_version = self._next_version, self._next_version + 1
        operation = Operation(kind, first, count, version, self._tick())
        self._in_flight.add(operation)
        if kind != "read":
            for sector in range(first, first + count):
                self._at(sector).flying.add(operation)
        return operation

    def end_change(self, operation):
        """A write, zero or trim was acknowledged."""
        now = self._tick()
        self._in_flight.discard(operation)
        horizon = self._horizon(now)
        for number in range(operation.first, operation.first + operation.count):
            sector = self._at(number)
            sector.flying.discard(operation)
            if operation.kind != "trim":
                # What was there before this write began is gone; what other writes put
                # there meanwhile may have come after it.
                kept = [entry for entry in sector.current if entry[1] > operation.begun]
                sector.gone = [entry for entry in sector.gone if entry[1] > horizon]
                sector.gone += [(value, now) for value, ended in sector.current
                                if ended <= operation.begun]
                sector.current = kept
            sector.current.append((operation.version, now))

    def end_failed_change(self, operation):
        """A write, zero or trim whose fate is not known: each sector may have it or not."""
        now = self._tick()
        self._in_flight.discard(operation)
        for number in range(operation.first, operation.first + operation.count):
            sector = self._at(number)
            sector.flying.discard(operation)
            sector.current.append((operation.version, now))

    def end_failed_read(self, operation):
        self._in_flight.discard(operation)

    def _horizon(self, now):
        return min((operation.begun for operation in self._in_flight), default=now)

    def end_read(self, operation, data):
        """Checks what a read gave."""
        now = self._tick()
        self._in_flight.discard(operation)
        for index in range(operation.count):
            number = operation.first + index
            content = data[index * SECTOR:(index + 1) * SECTOR]
            if content == _ZERO and number not in self._sectors:
                continue  # never written: most of a volume
            version = _STAMP.unpack_from(content)[0]
            if content == stamp(version, number):
                self._check(operation, number, version, now)
            elif not self._torn_by_a_change(operation, number, content):
                raise Wrong(f"{operation}: sector {number} holds no version whole, allowed are "
                            f"{sorted(self._allowed(self._at(number), operation.begun))}: "
                            f"{bytes(content).hex()}")

    def end_zero_report(self, operation, first, count):
        """The server says that these sectors, within the operation, read as zeroes."""
        now = self._now
        for number in range(first, first + count):
            if 0 not in self._allowed(self._at(number), operation.begun):
                raise Wrong(f"{operation}: sector {number} is said to be zero at {now}, and may be "
                            f"{self._allowed(self._at(number), operation.begun)}")

    def _torn_by_a_change(self, operation, number, content):
        """A read beside a change may meet the change within the sector: the page cache
        copies in and out without a lock. Then each word is one of the allowed versions'."""
        sector = self._at(number)
        if not sector.flying and all(ended <= operation.begun for _, ended in sector.current):
            return False
        stamps = [stamp(version, number) for version in self._allowed(sector, operation.begun)]
        return all(any(content[at:at + 8] == whole[at:at + 8] for whole in stamps)
                   for at in range(0, SECTOR, 8))

    @staticmethod
    def _allowed(sector, begun):
        return ({value for value, _ in sector.current}
                | {value for value, when in sector.gone if when > begun}
                | {change.version for change in sector.flying})

    def _check(self, operation, number, version, now):
        sector = self._at(number)
        begun = operation.begun
        if version not in self._allowed(sector, begun):
            raise Wrong(f"{operation}: sector {number} holds version {version}, allowed are "
                        f"{sorted(self._allowed(sector, begun))}")
        if sector.replaced.get(version, now) < begun:
            raise Wrong(f"{operation}: sector {number} turned back to version {version}, which "
                        f"an earlier read had shown to be replaced")
        if not sector.flying and all(ended <= begun for _, ended in sector.current):
            # Nothing could change it meanwhile: this is what it is, until the next write.
            sector.gone = [entry for entry in sector.gone if entry[1] > self._horizon(now)]
            sector.gone += [(value, now) for value, _ in sector.current if value != version]
            sector.current = [(version, max(e for v, e in sector.current if v == version))]
        if version:  # zeroes may honestly come back
            for change in sector.flying:
                if change.version == version:
                    # Seen, so it happened: what was there before it began is gone.
                    sector.gone += [(v, now) for v, ended in sector.current
                                    if ended <= change.begun]
                    sector.current = [e for e in sector.current if e[1] > change.begun]
            for other, when in sector.seen.items():
                if other != version and when < begun:
                    sector.replaced.setdefault(other, now)
            sector.seen.setdefault(version, now)
            if len(sector.seen) > 64:
                sector.seen = dict(list(sector.seen.items())[-32:])


def self_test():
    """Histories that a wrong volume would produce must be found wrong."""

    def expect_wrong(steps, what):
        model = Model(1 << 20)
        try:
            steps(model)
        except Wrong:
            return
        raise AssertionError(f"the model does not see {what}")

    def write(model, first=0, count=1):
        operation = model.begin("write", first, count)
        model.end_change(operation)
        return operation.version

    def read(model, version, sector=0):
        model.end_read(model.begin("read", sector, 1), stamp(version, sector))

    def lost(model):
        write(model)
        read(model, 0)

    def stale_copy(model):
        first = write(model)
        write(model)
        read(model, first)

    def turned_back(model):
        old = write(model)
        flying = model.begin("write", 0, 1)
        read(model, flying.version)
        read(model, old)

    def undecided(model):
        one, two = model.begin("write", 0, 1), model.begin("write", 0, 1)
        model.end_change(one)
        model.end_change(two)
        read(model, one.version)
        read(model, two.version)

    def torn(model):
        version = write(model)
        model.end_read(model.begin("read", 0, 1), stamp(version, 0)[:256] + bytes(256))

    def misplaced(model):
        version = write(model, 0, 2)
        model.end_read(model.begin("read", 1, 1), stamp(version, 0))

    def false_hole(model):
        write(model)
        report = model.begin("read", 0, 1)
        model.end_zero_report(report, 0, 1)

    expect_wrong(lost, "a lost write")
    expect_wrong(stale_copy, "a stale copy")
    expect_wrong(turned_back, "a value that turned back during a write")
    expect_wrong(undecided, "two copies that differ after overlapping writes")
    def torn_by_nobody(model):
        version = write(model)
        flying = model.begin("write", 0, 1)
        model.end_read(model.begin("read", 0, 1),
                       stamp(version, 0)[:256] + stamp(flying.version + 1, 0)[256:])

    expect_wrong(torn, "a torn sector")
    expect_wrong(torn_by_nobody, "a sector torn by no write in flight")
    expect_wrong(misplaced, "a sector in another's place")
    expect_wrong(false_hole, "a hole reported over data")

    model = Model(1 << 20)
    old = write(model)
    flying = model.begin("write", 0, 1)
    model.end_read(model.begin("read", 0, 1), stamp(old, 0)[:256] + stamp(flying.version, 0)[256:])
    model = Model(1 << 20)
    one, two = model.begin("write", 0, 1), model.begin("write", 0, 1)
    reader = model.begin("read", 0, 1)
    model.end_change(one)
    model.end_change(two)
    model.end_read(reader, stamp(0, 0))
    read(model, one.version)
    trim = model.begin("trim", 0, 1)
    model.end_change(trim)
    read(model, 0)


if __name__ == "__main__":
    self_test()
    print("volume model: self-test passed", os.path.basename(__file__))
