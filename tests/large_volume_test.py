#!/usr/bin/python3
"""A 64 TiB thick volume on five sparse files of 14 TiB: its first and its last byte."""

import time
import unittest

import harness
from harness import run

SIZE = 64 * harness.TIB


class LargeVolumeTest(unittest.TestCase):
    def test_first_and_last_byte_of_64_tib(self):
        with harness.Site() as site:
            site.add_devices(5, "14T")
            started = time.monotonic()
            site.create("big", "64T")
            created = time.monotonic()
            attachment = site.attach("big")
            output = run(["qemu-io", "-f", "raw",
                          "-c", "read -P 0 0 4k", "-c", "write -P 0x5a 0 4k",
                          "-c", f"write -P 0xa5 {SIZE - 4096} 4k", "-c", "flush",
                          "-c", "read -P 0x5a 0 4k", "-c", f"read -P 0xa5 {SIZE - 4096} 4k",
                          "-c", f"read -P 0 {SIZE // 2} 64k", attachment.uri])
            opened = time.monotonic()
            self.assertNotIn("failed", output)
            print(f"created in {created - started:.2f} s, attached and used in "
                  f"{opened - created:.2f} s")
            attachment.detach()
            attachment = site.attach("big")
            run(["qemu-io", "-f", "raw", "-c", f"read -P 0xa5 {SIZE - 4096} 4k", attachment.uri])
            attachment.detach()
            site.braid("volume", "delete", "big")
            freed = {d["name"]: d.get("allocated_bytes", 0) for d in site.devices().values()}
            self.assertEqual({0}, set(freed.values()), freed)


if __name__ == "__main__":
    harness.main()
