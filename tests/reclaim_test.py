#!/usr/bin/python3
"""Space that a mounted ext4 no longer uses comes back without one discard: fill, delete,
reclaim, in rounds, with files being written and checksummed the whole time.

BRAID_RECLAIM_ROUNDS: default 3; --full of tools/check takes 10."""

import hashlib
import os
import pathlib
import random
import threading
import time
import unittest

import nbd

import harness
from harness import GIB, MIB, run

ROUNDS = int(os.environ.get("BRAID_RECLAIM_ROUNDS", 3))


class Writer(threading.Thread):
    """Writes files, syncs some, reads them back and deletes them, all the time."""

    def __init__(self, point, generator):
        super().__init__()
        self.point, self.random = pathlib.Path(point), generator
        self.stop_now = threading.Event()
        self.files, self.error, self.count = {}, None, 0
        self.point.mkdir()

    def run(self):
        try:
            while not self.stop_now.is_set():
                self.step()
        except BaseException as error:  # pylint: disable=broad-except
            self.error = error

    def step(self):
        name = self.point / f"f{self.count}"
        self.count += 1
        data = self.random.randbytes(self.random.choice((3000, 70000, 900000)))
        with open(name, "wb") as file:
            file.write(data)
            if self.random.random() < 0.3:
                os.fsync(file.fileno())
        self.files[name] = hashlib.sha256(data).digest()
        if len(self.files) > 60:
            old = self.random.choice(list(self.files))
            self.check(old)
            old.unlink()
            del self.files[old]

    def check(self, name):
        if hashlib.sha256(name.read_bytes()).digest() != self.files[name]:
            raise AssertionError(f"{name} is not what was written")


class ReclaimTest(unittest.TestCase):
    def fill(self, directory, generator, total):
        directory.mkdir()
        while total > 0:
            size = min(total, generator.choice((200_000, 4 * MIB, 24 * MIB)))
            (directory / f"{total}").write_bytes(generator.randbytes(size))
            total -= size

    def test_mounted_ext4(self):
        generator = random.Random(harness.seed())
        with harness.Site() as site:
            site.add_devices(2, "2G")
            site.create("v", "8G", thin=True, on_full="wait")
            attachment = site.attach("v", "fuse")
            loop = site.loop(attachment.path)
            run(["mkfs.ext4", "-q", "-E", "nodiscard", loop])
            point = site.mount(loop, "mnt", "-o", "nodiscard")
            writer = Writer(point / "busy", generator)
            writer.start()
            try:
                for number in range(ROUNDS):
                    victim = point / f"victim{number}"
                    self.fill(victim, generator, 600 * MIB)
                    os.sync()
                    full = site.volume("v")["allocated_bytes"]
                    for file in victim.iterdir():
                        file.unlink()
                    victim.rmdir()
                    # A new file system is known once somebody has asked, or after 15 seconds.
                    dry = site.braid("volume", "reclaim", "v", "--dry-run")
                    self.assertGreaterEqual(site.volume("v")["allocated_bytes"], full)
                    # Two commits past the deletion, as a busy file system makes them.
                    for passes in range(1, 6):
                        for _ in range(3):
                            time.sleep(0.3)
                            os.sync()
                        done = site.braid("volume", "reclaim", "v", timeout=120)
                        left = site.volume("v")["allocated_bytes"]
                        if left < full - 500 * MIB:
                            break
                    print(f"round {number}: allocated {full / MIB:.0f} MiB, after {passes} passes "
                          f"{left / MIB:.0f} MiB; dry run {dry}, last {done}")
                    self.assertLess(left, full - 500 * MIB)
                    self.assertIsNone(writer.error)
            finally:
                writer.stop_now.set()
                writer.join()
            self.assertIsNone(writer.error)
            for name in writer.files:
                writer.check(name)
            os.sync()
            time.sleep(0.3)
            os.sync()
            site.unmount(point)
            run(["losetup", "-d", loop])
            # Offline everything that is free comes back; then compare with a full fstrim.
            site.braid("volume", "reclaim", "v", timeout=120)
            reclaimed = site.volume("v")["allocated_bytes"]
            run(["e2fsck", "-fn", attachment.path])
            attachment.detach()
            attachment = site.attach("v", "fuse")
            loop = site.loop(attachment.path)
            site.mount(loop)
            for name in writer.files:
                writer.check(name)
            site.unmount(point)
            run(["losetup", "-d", loop])
            run(["e2fsck", "-fn", attachment.path])
            attachment.detach()
            site.check_pools()
            used = self.allocated_after_fstrim(site)
            print(f"allocated after reclaims {reclaimed / MIB:.1f} MiB; a full discard would "
                  f"leave {used / MIB:.1f} MiB; of what it would free at the fullest, "
                  f"{(full - reclaimed) / max(1, full - used):.3f} was freed")
            self.assertGreaterEqual((full - reclaimed) / (full - used), 0.95)

    def allocated_after_fstrim(self, site):
        """What is left when every free block is discarded, as fstrim does."""
        attachment = site.attach("v", "fuse")
        report = run(["dumpe2fs", attachment.path])
        attachment.detach()
        attachment = site.attach("v")
        handle = nbd.NBD()
        handle.connect_uri(attachment.uri)
        block = int(next(line.split()[-1] for line in report.splitlines()
                         if line.startswith("Block size")))
        free = []
        for line in report.splitlines():
            if line.startswith("  Free blocks:"):
                for part in line.partition(":")[2].split(","):
                    first, _, last = part.strip().partition("-")
                    if first:
                        free.append((int(first), int(last or first)))
        joined = []
        for first, last in free:
            if joined and joined[-1][1] + 1 == first:
                joined[-1] = (joined[-1][0], last)
            else:
                joined.append((first, last))
        for first, last in joined:
            at, end = first * block, (last + 1) * block
            while at < end:
                step = min(end - at, GIB)
                handle.trim(step, at)
                at += step
        handle.flush()
        handle.shutdown()
        used = site.volume("v")["allocated_bytes"]
        attachment.detach()
        return used

    def test_refuses_what_it_does_not_know(self):
        with harness.Site() as site:
            site.add_file("d1", "1G")
            site.create("v", "4G", thin=True)
            site.create("thick", "64M")
            site.braid_refuses("volume", "reclaim", "thick")
            attachment = site.attach("v", "fuse")
            site.braid_refuses("volume", "reclaim", "v")  # nothing in it
            for arguments, word in ((["-O", "^has_journal"], "journal"),
                                    (["-O", "bigalloc"], "bigalloc")):
                run(["mkfs.ext4", "-q", "-F", *arguments, attachment.path])
                before = site.volume("v")["allocated_bytes"]
                said = site.braid_refuses("volume", "reclaim", "v")
                self.assertIn(word, said)
                self.assertEqual(before, site.volume("v")["allocated_bytes"])
            attachment.detach()


if __name__ == "__main__":
    harness.main()
