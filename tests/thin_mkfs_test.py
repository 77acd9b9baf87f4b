#!/usr/bin/python3
"""File systems made on thin volumes of 1 and 64 TiB over a pool of 1 GiB: they succeed, and
take little more than the blocks of 64 KiB that are not zero. Prints the figures
(docs/ALLOCATION.md)."""

import unittest

import harness
from harness import KIB, MIB, run
from thin_test import connect

UNIT = 64 * KIB
MOST = 1.3


def units_not_zero(handle, rows):
    """Of the units that have space, those that are not all zero; what has none reads as zero."""
    count = 0
    for row in rows:
        for unit in range(row["first_unit"], row["first_unit"] + row["unit_count"]):
            count += bytes(handle.pread(UNIT, unit * UNIT)).strip(b"\0") != b""
    return count


class MakeFileSystemTest(unittest.TestCase):
    def make(self, what, size, *command, device_size="512M"):
        with harness.Site() as site:
            site.add_devices(2, device_size)
            site.create("v", size, thin=True)
            attachment = site.attach("v", "fuse")
            run([*command, attachment.path], timeout=600)
            handle = connect(attachment.uri)
            handle.flush()
            rows = site.volume_map("v")
            written = units_not_zero(handle, rows) * UNIT
            handle.shutdown()
            allocated = site.volume("v")["allocated_bytes"]
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
        # Fewer backups of the 32 MiB of descriptors, and bitmaps of more groups side by side.
        self.make("mkfs.ext4 -O sparse_super2 -G 512, 64 TiB", "64T", "mkfs.ext4", "-q", "-F",
                  "-O", "64bit,sparse_super2", "-G", "512")

    def test_ext4_of_64_tib_by_its_defaults(self):
        # It writes 2.8 GiB of blocks of 64 KiB that are not zero: more than a pool of 1 GiB has.
        self.make("mkfs.ext4, 64 TiB", "64T", "mkfs.ext4", "-q", "-F", device_size="2G")

    def test_ext4_of_1_tib_without_lazy_init(self):
        self.make("mkfs.ext4, 1 TiB, no lazy init", "1T", "mkfs.ext4", "-q", "-F", "-E",
                  "lazy_itable_init=0,lazy_journal_init=0")

    def test_btrfs_of_64_tib(self):
        self.make("mkfs.btrfs, 64 TiB", "64T", "mkfs.btrfs", "-q", "-f")


if __name__ == "__main__":
    harness.main()
