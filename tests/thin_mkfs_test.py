#!/usr/bin/python3
"""File systems made on thin volumes of 1 and 64 TiB over a pool of 1 GiB: they succeed, and
take little more than the blocks of 64 KiB that are not zero. Prints the figures
(docs/ALLOCATION.md)."""

import unittest

import harness
from harness import KIB, MIB, run
from thin_test import connect, data_ranges

UNIT = 64 * KIB
MOST = 1.3


def blocks_not_zero(handle, size):
    count = 0
    for offset, length in data_ranges(handle, 0, size):
        for at in range(offset, offset + length, 4 * MIB):
            data = bytes(handle.pread(min(4 * MIB, offset + length - at), at))
            count += sum(1 for unit in range(0, len(data), UNIT)
                         if data[unit:unit + UNIT].strip(b"\0"))
    return count


class MakeFileSystemTest(unittest.TestCase):
    def make(self, what, size, *command):
        with harness.Site() as site:
            site.add_devices(2, "512M")
            site.create("v", size, thin=True)
            attachment = site.attach("v", "fuse")
            run([*command, attachment.path], timeout=600)
            handle = connect(attachment.uri)
            handle.flush()
            written = blocks_not_zero(handle, handle.get_size()) * UNIT
            handle.shutdown()
            allocated = site.volume("v")["allocated_bytes"]
            rows = site.volume_map("v")
            large = sum(row["length_bytes"] for row in rows if row["length_bytes"] >= 4 * MIB)
            print(f"{what}: not zero {written / MIB:.1f} MiB, allocated {allocated / MIB:.1f} MiB, "
                  f"ratio {allocated / written:.2f}, {large / MIB:.0f} MiB of it in pieces of 4 MiB "
                  f"or more")
            self.assertGreater(written, 0)
            self.assertLessEqual(allocated, MOST * written)
            attachment.detach()
            site.check_pools()
            return allocated

    def test_xfs_of_64_tib(self):
        self.make("mkfs.xfs, 64 TiB", "64T", "mkfs.xfs", "-q", "-f")

    def test_ext4_of_64_tib(self):
        self.make("mkfs.ext4, 64 TiB", "64T", "mkfs.ext4", "-q", "-F", "-O", "64bit", "-b", "4096")

    def test_ext4_of_1_tib_without_lazy_init(self):
        self.make("mkfs.ext4, 1 TiB, no lazy init", "1T", "mkfs.ext4", "-q", "-F", "-E",
                  "lazy_itable_init=0,lazy_journal_init=0")

    def test_btrfs_of_64_tib(self):
        self.make("mkfs.btrfs, 64 TiB", "64T", "mkfs.btrfs", "-q", "-f")


if __name__ == "__main__":
    harness.main()
