#!/usr/bin/python3
"""A pool that runs full, again and again: what is acknowledged stays, what does not fit gets
a clean "no space" or waits, and goes on as soon as there is space.

BRAID_FULL_ROUNDS: how often the pool runs full under fio (default 10; --full of
tools/check takes 1000)."""

import errno
import json
import os
import random
import threading
import time
import unittest

import nbd

import harness
from harness import GIB, KIB, MIB
from thin_test import connect

STRIDE = GIB // 4  # between writes that each want an extent of their own
ROUNDS = int(os.environ.get("BRAID_FULL_ROUNDS", 10))


def fill(handle, first=0, step=MIB, letter=b"f"):
    """Writes until there is no space; the offset of the write that failed."""
    offset = first
    while True:
        try:
            handle.pwrite(letter * step, offset)
        except nbd.Error as error:
            if error.errnum != errno.ENOSPC:
                raise
            return offset
        offset += step


class FailTest(unittest.TestCase):
    def test_full_pool_says_so_and_goes_on_when_extended(self):
        with harness.Site() as site:
            site.add_file("d1", "64M")
            site.create("v", "1T", thin=True, on_full="fail")
            self.assertEqual("POOL_STATE_GOOD", site.pool()["state"])
            with site.attach("v") as attachment:
                handle = connect(attachment.uri)
                end = fill(handle)
                self.assertGreater(end, 40 * MIB)
                # Nothing of the refused write is there; overwrites and reads go on.
                self.assertEqual(bytes(MIB), bytes(handle.pread(MIB, end)))
                handle.pwrite(b"o" * MIB, 0)
                handle.flush()
                self.assertEqual(b"o" * MIB, bytes(handle.pread(MIB, 0)))
                harness.wait_until(lambda: site.pool()["state"] == "POOL_STATE_FULL",
                                   "the pool says that it is full")
                status = site.braid_result("status", json_output=True)
                self.assertEqual(1, status.returncode, status.stdout)
                site_status = json.loads(status.stdout)
                self.assertEqual("SITE_HEALTH_CRITICAL", site_status["health"])
                self.assertTrue(site_status["events"])
                # A trim gives space back, which the next write may take.
                handle.trim(8 * MIB, 8 * MIB)
                handle.flush()

                def fits():
                    try:
                        handle.pwrite(b"a" * MIB, end)
                        return True
                    except nbd.Error as error:
                        if error.errnum != errno.ENOSPC:
                            raise
                        return False
                harness.wait_until(fits, "a write finds what was trimmed", 5)
                end = fill(handle, end + MIB)
                site.add_file("d2", "256M")
                harness.wait_until(lambda: self.writes(handle, end), "the pool is extended", 5)
                handle.flush()
                harness.wait_until(lambda: site.pool()["state"] != "POOL_STATE_FULL",
                                   "the pool is not full any more")
                handle.shutdown()
            site.check_pools()

    @staticmethod
    def writes(handle, offset):
        try:
            handle.pwrite(b"e" * MIB, offset)
            return True
        except nbd.Error as error:
            if error.errnum != errno.ENOSPC:
                raise
            return False

    def test_half_a_request_is_never_written(self):
        """Requests larger than what is left: all of one is there, or nothing."""
        with harness.Site() as site:
            site.add_devices(2, "64M")
            site.create("v", "1T", copies=2, thin=True)
            with site.attach("v") as attachment:
                handle = connect(attachment.uri)
                generator = random.Random(harness.seed())
                written, refused = [], []
                while len(refused) < 40:
                    length = generator.randrange(1, 5 * MIB // 512) * 512
                    offset = generator.randrange(0, 64 * GIB // 512) * 512
                    if any(o < offset + length and offset < o + n for o, n in written):
                        continue
                    try:
                        handle.pwrite(b"h" * length, offset)
                        written.append((offset, length))
                    except nbd.Error as error:
                        self.assertEqual(errno.ENOSPC, error.errnum)
                        refused.append((offset, length))
                for offset, length in refused:
                    here = [(o, n) for o, n in written if o < offset + length and offset < o + n]
                    if not here:
                        self.assertEqual(bytes(length), bytes(handle.pread(length, offset)))
                for offset, length in written:
                    self.assertEqual(b"h" * length, bytes(handle.pread(length, offset)))
                handle.flush()
                handle.shutdown()
            site.check_pools()


class WaitTest(unittest.TestCase):
    def test_128_held_writes_hold_up_nothing_else(self):
        with harness.Site() as site:
            site.add_file("d1", "64M")
            site.create("v", "1T", thin=True, on_full="wait")
            with site.attach("v") as attachment:
                handle = connect(attachment.uri)
                blocks = 0
                held = []
                # Fill until writes do not come back, all on one connection.
                while len(held) < 128:
                    buffer = nbd.Buffer.from_bytearray(bytearray(b"w" * (64 * KIB)))
                    held.append((handle.aio_pwrite(buffer, blocks * STRIDE), blocks))
                    blocks += 1
                    deadline = time.monotonic() + 0.3
                    if len(held) >= 64:
                        while time.monotonic() < deadline and handle.aio_in_flight() > 0:
                            handle.poll(20)
                    held = [(c, b) for c, b in held if not handle.aio_command_completed(c)]
                self.assertEqual(128, handle.aio_in_flight())
                other = connect(attachment.uri)
                # Reads, also of what is being waited for, overwrites, flushes of them.
                self.assertEqual(b"w" * 4096, bytes(other.pread(4096, 0)))
                self.assertEqual(bytes(4096), bytes(other.pread(4096, (blocks - 1) * STRIDE)))
                other.pwrite(b"O" * 4096, 0)
                other.flush()
                self.assertEqual(b"O" * 4096, bytes(other.pread(4096, 0)))
                allocated = site.volume("v")["allocated_bytes"]
                self.assertGreater(allocated, 32 * MIB)
                for block in range(1, 141):
                    other.trim(64 * KIB, block * STRIDE)

                def all_done():
                    handle.poll(100)
                    return handle.aio_in_flight() == 0
                harness.wait_until(all_done, "trimmed space lets held writes go on")
                for cookie, _ in held:
                    self.assertTrue(handle.aio_command_completed(cookie))
                handle.flush()
                for _, block in held:
                    self.assertEqual(b"w" * 4096, bytes(handle.pread(4096, block * STRIDE)))
                other.shutdown()
                handle.shutdown()
            site.check_pools()

    def test_wait_ends_with_no_space_after_its_timeout(self):
        with harness.Site() as site:
            site.add_file("d1", "64M")
            site.create("v", "1T", thin=True, on_full="wait", full_timeout=2)
            with site.attach("v") as attachment:
                handle = connect(attachment.uri)
                started = time.monotonic()
                fill(handle)
                self.assertGreater(time.monotonic() - started, 1.9)
                handle.shutdown()

    def test_detach_ends_held_writes(self):
        with harness.Site() as site:
            site.add_file("d1", "64M")
            site.create("v", "1T", thin=True, on_full="wait")
            attachment = site.attach("v")
            handle = connect(attachment.uri)
            cookies = [handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"w" * MIB)), i * MIB)
                       for i in range(100)]
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                handle.poll(50)
            self.assertGreater(handle.aio_in_flight(), 0)
            del cookies
            site.attachments.remove(attachment)
            site.braid("detach", "v", "--force")
            harness.wait_gone(attachment.pid)
            # What the held writes wanted is not there, what was acknowledged is.
            with site.attach("v") as again:
                handle = connect(again.uri)
                self.assertEqual(b"w" * MIB, bytes(handle.pread(MIB, 0)))
                self.assertEqual(bytes(MIB), bytes(handle.pread(MIB, 99 * MIB)))
                handle.shutdown()
            site.check_pools()


class FioTest(unittest.TestCase):
    def test_pool_full_under_fio_verify(self):
        """Each round: the pool is full while fio writes and verifies; a device is added; fio
        ends without an error. The space is given back by deleting the volume."""
        generator = random.Random(harness.seed())
        resumed = []
        with harness.Site() as site:
            site.add_file("d0", "64M")
            for number in range(ROUNDS):
                site.create("v", "1T", thin=True, on_full="wait")
                attachment = site.attach("v")
                job = site.start(
                    ["fio", "--name=full", "--ioengine=nbd", f"--uri={attachment.uri}",
                     "--rw=randwrite", f"--bs={generator.choice(['4k', '64k', '512k'])}",
                     "--iodepth=16", "--size=96m", "--verify=crc32c", "--do_verify=1",
                     f"--randseed={generator.randrange(1 << 30)}", "--verify_fatal=1",
                     "--fsync=64"], f"fio{number}", cwd=site.dir)
                harness.wait_until(
                    lambda: site.pool()["state"] == "POOL_STATE_FULL" or not job.running(),
                    "the pool runs full")
                self.assertTrue(job.running(), job.log.read_text())
                before = site.volume("v")["allocated_bytes"]
                started = time.monotonic()
                site.add_file("more", "256M")
                harness.wait_until(lambda: site.volume("v")["allocated_bytes"] > before
                                   or not job.running(), "writes go on")
                resumed.append(time.monotonic() - started)
                self.assertEqual(0, job.wait(), job.log.read_text())
                attachment.detach()
                site.check_pools()
                site.braid("volume", "delete", "v")
                site.braid("device", "remove", "more")
                (site.dir / "more").unlink()
            self.assertEqual(0, site.pool().get("allocated_bytes", 0))
        resumed.sort()
        print(f"{ROUNDS} rounds; writes went on after {resumed[len(resumed) // 2]:.2f} s "
              f"(median), {resumed[-1]:.2f} s (worst)")


class TwoHoldersTest(unittest.TestCase):
    def test_two_volumes_share_a_full_pool(self):
        """Two attached volumes fill a pool together; what one trims the other may write."""
        with harness.Site() as site:
            site.add_file("d1", "128M")
            for name in ("a", "b"):
                site.create(name, "1T", thin=True)
            with site.attach("a") as first, site.attach("b") as second:
                one, two = connect(first.uri), connect(second.uri)
                ends = {}
                threads = [threading.Thread(target=lambda n=n, h=h: ends.update({n: fill(h)}))
                           for n, h in (("a", one), ("b", two))]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                # Little is left unused in anybody's hands.
                self.assertGreater(ends["a"] + ends["b"], 96 * MIB)
                one.trim(ends["a"], 0)
                one.flush()
                harness.wait_until(lambda: FailTest.writes(two, ends["b"]),
                                   "b gets what a gave back", 10)
                two.flush()
                self.assertEqual(b"f" * MIB, bytes(two.pread(MIB, 0)))
                one.shutdown()
                two.shutdown()
            site.check_pools()


if __name__ == "__main__":
    harness.main()
