#!/usr/bin/python3
"""Extents passed from volume to volume: not one byte of the former owner can be read.

Every volume fills what it has with a pattern of its own, then goes, in one of several ways:
deleted, trimmed, its server killed in the middle, braidd killed in the middle. The next one
writes one sector here and there and reads everything around it raw: zeros, or its own.
BRAID_LEAK_EXTENTS: extents (64 KiB) to pass on (default 6000; --full of tools/check: 100000).
"""

import contextlib
import os
import random
import unittest

import nbd

import harness
from harness import GIB, KIB, MIB
from thin_test import connect

EXTENTS = int(os.environ.get("BRAID_LEAK_EXTENTS", 6000))
UNIT = 64 * KIB


class NoLeakTest(unittest.TestCase):
    def owner(self, site, generator, number, layout_flags):
        """One volume's life; how many extents it had."""
        name = f"v{number}"
        site.create(name, "256G", thin=True, **layout_flags)
        attachment = site.attach(name)
        handle = connect(attachment.uri)
        letter = bytes([1 + number % 255])
        places = sorted(generator.sample(range(0, 4096), 60))
        for place in places:
            base = place * 16 * MIB
            # Around one sector in the middle of an extent nobody has written to.
            at = generator.randrange(1, 126) * 512
            handle.pwrite(letter * 512, base + at)
            around = bytes(handle.pread(4 * MIB, base))
            self.assertEqual(letter * 512, around[at:at + 512])
            self.assertFalse(around[:at].strip(b"\0"), f"{name} reads what is not its own")
            self.assertFalse(around[at + 512:].strip(b"\0"), f"{name} reads what is not its own")
        # A large extent, written in part, then fill everything for the next one to find.
        handle.pwrite(letter * (3 * MIB + 512), 100 * GIB)
        around = bytes(handle.pread(8 * MIB, 100 * GIB))
        self.assertFalse(around[3 * MIB + 512:].strip(b"\0"))
        for place in places:
            handle.pwrite(letter * UNIT, place * 16 * MIB)
        handle.pwrite(letter * (4 * MIB), 100 * GIB)
        had = len(places) + 64
        way = generator.choice(("delete", "trim", "kill server", "kill braidd", "kill both"))
        if way != "trim" or generator.random() < 0.5:
            handle.flush()
        if way == "trim":
            for place in places:
                handle.trim(UNIT, place * 16 * MIB)
            handle.trim(4 * MIB, 100 * GIB)
        if "kill" in way:
            # Caught writing, so that reserved extents are dirty and unbound ones may be.
            for place in range(8):
                with contextlib.suppress(nbd.Error):
                    handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(letter * MIB)),
                                      (200 + place) * GIB)
            pid = attachment.server_pid()
            if way in ("kill braidd", "kill both"):
                site.kill_braidd()
            if way in ("kill server", "kill both"):
                harness.kill(pid)
                harness.wait_gone(pid)
            if way in ("kill braidd", "kill both"):
                site.start_braidd()
            attachment.server_pid()
        with contextlib.suppress(nbd.Error):
            handle.shutdown()
        attachment.detach()
        site.braid("volume", "delete", name)
        return had

    def passed_on(self, flags, devices):
        generator = random.Random(harness.seed())
        with harness.Site() as site:
            # Little more than what one volume takes, so that everything is used again.
            site.add_devices(devices, "96M")
            passed = number = 0
            while passed < EXTENTS // 2:
                passed += self.owner(site, generator, number, flags)
                number += 1
            site.check_pools()
            print(f"{passed} extents through {number} volumes")

    def test_linear(self):
        self.passed_on({}, 1)

    def test_striped_mirrors(self):
        self.passed_on({"stripes": 2, "copies": 2}, 4)


if __name__ == "__main__":
    harness.main()
