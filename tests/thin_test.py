#!/usr/bin/python3
"""Thin volumes through real programs: space comes at the first write and goes when it is
given back, whatever is killed meanwhile. BRAID_SEED repeats a run."""

import os
import random
import threading
import time
import unittest

import nbd

import harness
from harness import GIB, KIB, MIB, TIB, run
from nbd_driver import ConnectionLost, Driver

SIZE = 48 * MIB


def connect(uri):
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.connect_uri(uri)
    return handle


def data_ranges(handle, first=0, end=None):
    """[(offset, length)] that the server says are not holes."""
    found, at = [], first
    end = handle.get_size() if end is None else end
    while at < end:
        reports = []

        def extent(_context, start, entries, _error):
            reports.extend(zip(entries[::2], entries[1::2]))
            return 0
        handle.block_status(min(end - at, 2 * GIB), at, extent)
        for length, flags in reports:
            if not flags & nbd.STATE_HOLE:
                if found and sum(found[-1]) == at:
                    found[-1] = (found[-1][0], found[-1][1] + length)
                else:
                    found.append((at, length))
            at += length
    return found


class ThinTest(unittest.TestCase):
    def assert_nothing_allocated(self, site):
        pool = site.pool()
        self.assertEqual((0, 0), (pool.get("allocated_bytes", 0), pool.get("reserved_bytes", 0)))
        site.check_pools()

    def test_64_tib_on_a_pool_of_1_gib(self):
        with harness.Site() as site:
            site.add_file("d1", "1G")
            volume = site.create("v", "64T", thin=True)["volume"]
            self.assertEqual((64 * TIB, True), (volume["size_bytes"], volume["thin"]))
            self.assert_nothing_allocated(site)
            self.assertEqual(64 * TIB, site.pool()["promised_bytes"])
            self.assertGreater(site.pool()["commitment_ratio"], 64000)
            attachment = site.attach("v")
            handle = connect(attachment.uri)
            self.assertEqual(64 * TIB, handle.get_size())
            self.assertEqual([], data_ranges(handle, 0, 8 * GIB))
            for offset in (0, 5 * TIB + 12 * KIB, 64 * TIB - 512):
                self.assertEqual(bytes(512), bytes(handle.pread(512, offset)))
                handle.pwrite(b"\xa5" * 512, offset)
                self.assertEqual(b"\xa5" * 512, bytes(handle.pread(512, offset)))
            handle.flush()
            self.assertEqual([(0, 64 * KIB)], data_ranges(handle, 0, 8 * GIB))
            self.assertEqual(3 * 64 * KIB, site.volume("v")["allocated_bytes"])
            self.assertEqual(3 * 64 * KIB, site.volume("v")["mapped_bytes"])
            handle.shutdown()
            attachment.detach()
            # What was reserved goes back with a clean end, what was written stays.
            pool = site.pool()
            self.assertEqual((3 * 64 * KIB, 0),
                             (pool["allocated_bytes"], pool.get("reserved_bytes", 0)))
            attachment = site.attach("v")
            handle = connect(attachment.uri)
            for offset in (0, 5 * TIB + 12 * KIB, 64 * TIB - 512):
                self.assertEqual(b"\xa5" * 512, bytes(handle.pread(512, offset)))
            handle.shutdown()
            attachment.detach()
            site.braid("volume", "delete", "v")
            self.assert_nothing_allocated(site)

    def test_zeros_take_no_space(self):
        with harness.Site() as site:
            site.add_file("d1", "1G")
            site.create("v", "1T", thin=True)
            with site.attach("v") as attachment:
                handle = connect(attachment.uri)
                handle.zero(GIB, 0)
                handle.zero(GIB, 4 * GIB, nbd.CMD_FLAG_NO_HOLE)
                for offset in range(0, 64 * MIB, 8 * MIB):
                    handle.pwrite(bytes(8 * MIB), 8 * GIB + offset)
                handle.flush()
                self.assertEqual(0, site.volume("v").get("allocated_bytes", 0))
                # One byte that is not zero takes its 64 KiB and no more.
                handle.pwrite(bytes(MIB - 1) + b"x", 16 * GIB)
                handle.flush()
                self.assertEqual(64 * KIB, site.volume("v")["allocated_bytes"])
                self.assertEqual([(16 * GIB + MIB - 64 * KIB, 64 * KIB)],
                                 data_ranges(handle, 15 * GIB, 17 * GIB))
                handle.shutdown()

    def test_neighbouring_writes_take_large_extents(self):
        with harness.Site() as site:
            site.add_file("d1", "1G")
            site.create("v", "1T", thin=True)
            with site.attach("v") as attachment:
                handle = connect(attachment.uri)
                for offset in range(0, 64 * MIB, MIB):
                    handle.pwrite(b"n" * MIB, offset)
                handle.flush()
                self.assertEqual(64 * MIB, site.volume("v")["allocated_bytes"])
                # The first row, written in small extents, is folded soon.
                harness.wait_until(
                    lambda: all(row["unit_count"] % 64 == 0 for row in site.volume_map("v")),
                    "the small extents are folded")
                self.assertEqual(b"n" * MIB, bytes(handle.pread(MIB, 2 * MIB)))
                # Scattered ones take small extents.
                for offset in range(100 * GIB, 110 * GIB, GIB):
                    handle.pwrite(b"s" * 4096, offset)
                handle.flush()
                self.assertEqual(64 * MIB + 10 * 64 * KIB, site.volume("v")["allocated_bytes"])
                handle.shutdown()
            site.check_pools()

    def test_space_comes_back(self):
        for layout in ("linear", "striped", "mirrored-2"):
            copies = harness.LAYOUTS[layout][0].get("copies", 1)
            with self.subTest(layout), harness.Site() as site:
                site.create_layout(layout, size="1T", thin=True)
                with site.attach("v") as attachment:
                    handle = connect(attachment.uri)
                    handle.pwrite(b"d" * (24 * MIB), 0)
                    handle.flush()
                    self.assertEqual(24 * MIB * copies, site.volume("v")["allocated_bytes"])
                    handle.trim(8 * MIB, 0)
                    handle.zero(4 * MIB, 8 * MIB)
                    handle.flush()
                    self.assertEqual(12 * MIB * copies, site.volume("v")["allocated_bytes"])
                    self.assertEqual([(12 * MIB, 12 * MIB)], data_ranges(handle, 0, GIB))
                    self.assertEqual(bytes(12 * MIB), bytes(handle.pread(12 * MIB, 0)))
                    # Partial trims of one extent add up until it is free.
                    for offset in range(12 * MIB, 16 * MIB, 12 * KIB):
                        handle.trim(min(12 * KIB, 16 * MIB - offset), offset)
                    handle.flush()
                    self.assertEqual(8 * MIB * copies, site.volume("v")["allocated_bytes"])
                    self.assertEqual(bytes(4 * MIB), bytes(handle.pread(4 * MIB, 12 * MIB)))
                    self.assertEqual(b"d" * (8 * MIB), bytes(handle.pread(8 * MIB, 16 * MIB)))
                    handle.shutdown()
                site.check_pools()
                site.braid("volume", "delete", "v")
                self.assert_nothing_allocated(site)

    def test_nbdcopy_and_qemu_img_see_the_holes(self):
        with harness.Site() as site:
            site.add_file("d1", "1G")
            site.create("v", "10G", thin=True)
            with site.attach("v") as attachment:
                handle = connect(attachment.uri)
                handle.pwrite(b"h" * MIB, 3 * GIB)
                handle.flush()
                handle.shutdown()
                copy = site.dir / "copy"
                run(["nbdcopy", attachment.uri, copy])
                self.assertLess(os.stat(copy).st_blocks * 512, 8 * MIB)
                mapped = [line.split() for line in
                          run(["qemu-img", "map", "-f", "raw", attachment.uri]).splitlines()[1:]]
                self.assertEqual([(3 * GIB, MIB)], [(int(a, 16), int(b, 16)) for a, b, *_ in mapped])

    def test_delete_frees_only_what_is_its_own(self):
        with harness.Site() as site:
            site.add_file("d1", "1G")
            for name in ("one", "two"):
                site.create(name, "1T", thin=True)
                with site.attach(name) as attachment:
                    handle = connect(attachment.uri)
                    handle.pwrite(name.encode() * (8 * MIB // 3), 0)
                    handle.flush()
                    handle.shutdown()
            both = site.pool()["allocated_bytes"]
            site.braid("volume", "delete", "one")
            self.assertEqual(both // 2, site.pool()["allocated_bytes"])
            site.check_pools()
            with site.attach("two") as attachment:
                handle = connect(attachment.uri)
                self.assertEqual(b"two" * 1000, bytes(handle.pread(3000, 0)))
                handle.shutdown()

    def test_reserve_is_kept_for_the_volume(self):
        with harness.Site() as site:
            site.add_file("d1", "128M")
            site.create("sure", "1G", thin=True, reserve="64M")
            site.create("greedy", "1G", thin=True)
            self.assertEqual(64 * MIB, site.pool()["reserved_bytes"])
            with site.attach("greedy") as attachment:
                handle = connect(attachment.uri)
                with self.assertRaises(nbd.Error) as caught:
                    for offset in range(0, 128 * MIB, MIB):
                        handle.pwrite(b"g" * MIB, offset)
                self.assertEqual(28, caught.exception.errnum)  # ENOSPC
                handle.shutdown()
            with site.attach("sure") as attachment:
                handle = connect(attachment.uri)
                for offset in range(0, 64 * MIB, MIB):
                    handle.pwrite(b"s" * MIB, offset)
                handle.flush()
                handle.shutdown()
            site.check_pools()

    def test_resize(self):
        for layout in ("linear", "striped", "mirrored-2"):
            for thin in (True, False):
                with self.subTest(f"{layout}, thin {thin}"), harness.Site() as site:
                    site.create_layout(layout, size="64M", **({"thin": True} if thin else {}))
                    with site.attach("v") as attachment:
                        handle = connect(attachment.uri)
                        for offset in range(0, 64 * MIB, 8 * MIB):
                            handle.pwrite(b"r" * (8 * MIB), offset)
                        handle.flush()
                        site.braid_refuses("volume", "resize", "v", "--size", "96M")
                        handle.shutdown()
                    site.braid("volume", "resize", "v", "--size", "96M")
                    site.check_pools()
                    with site.attach("v") as attachment:
                        handle = connect(attachment.uri)
                        self.assertEqual(96 * MIB, handle.get_size())
                        self.assertEqual(b"r" * (8 * MIB), bytes(handle.pread(8 * MIB, 56 * MIB)))
                        self.assertEqual(bytes(32 * MIB), bytes(handle.pread(32 * MIB, 64 * MIB)))
                        handle.pwrite(b"t" * MIB, 95 * MIB)
                        handle.flush()
                        handle.shutdown()
                    site.braid_refuses("volume", "resize", "v", "--size", "30M")
                    self.assertEqual(96 * MIB, site.volume("v")["size_bytes"])
                    cut = 30 * MIB + 8 * KIB  # in the middle of a unit
                    site.braid("volume", "resize", "v", "--size", str(cut), "--force")
                    site.check_pools()
                    site.braid("volume", "resize", "v", "--size", "96M")
                    with site.attach("v") as attachment:
                        handle = connect(attachment.uri)
                        self.assertEqual(b"r" * MIB, bytes(handle.pread(MIB, cut - MIB)))
                        self.assertEqual(bytes(32 * MIB), bytes(handle.pread(32 * MIB, cut)))
                        self.assertEqual(bytes(32 * MIB), bytes(handle.pread(32 * MIB, 64 * MIB)))
                        handle.shutdown()
                    site.check_pools()

    def test_first_writes_do_not_wait_for_the_store(self):
        """With every commit 200 ms slow: many first writes, one after the other, and each a
        new extent, take far less than a commit each; a flush waits for one."""
        with harness.Site(start=False) as site:
            site.start_braidd("--test-commit-delay-ms", "200")
            site.add_file("d1", "1G")
            site.create("v", "1T", thin=True)
            with site.attach("v") as attachment:
                handle = connect(attachment.uri)
                handle.pwrite(b"w" * 4096, 0)  # waits for the first reservation
                handle.flush()
                writes = 100
                started = time.monotonic()
                for index in range(1, writes + 1):
                    handle.pwrite(b"w" * 4096, index * GIB)
                written = time.monotonic() - started
                handle.flush()
                flushed = time.monotonic() - started
                # 100 commits would be 20 s. Not a test of timing: of what is waited for.
                self.assertLess(written, writes * 0.2 / 4)
                self.assertGreater(flushed, 0.2)
                print(f"{writes} first writes in {written:.3f} s, with the flush {flushed:.3f} s")
                handle.shutdown()


class KilledTest(unittest.TestCase):
    """What was acknowledged is there, flushed or not, whichever of our processes dies."""

    def killed_under_model(self, layout, victims, kills=4):
        generator = random.Random(harness.seed())
        with harness.Site() as site:
            site.create_layout(layout, size=SIZE, device_size="256M", thin=True)
            attachment = site.attach("v")
            driver = Driver(attachment.uri, SIZE, generator)
            for _ in range(kills):
                pid = attachment.server_pid()

                def strike(pid=pid):
                    if "braidd" in victims:
                        site.kill_braidd()
                    if "server" in victims:
                        harness.kill(pid)
                    if "braidd" in victims:
                        time.sleep(0.2)
                        site.start_braidd()
                timer = threading.Timer(generator.uniform(0.3, 1.5), strike)
                timer.start()
                if "server" in victims:
                    with self.assertRaises(ConnectionLost):
                        driver.run(20)
                    timer.join()
                    harness.wait_gone(pid)
                    driver.lost()
                else:
                    driver.run(3)
                    timer.join()
                driver.verify_all()
            driver.run(2)
            driver.verify_all()
            driver.close()
            self.assertEqual("VOLUME_HEALTH_GOOD", site.volume("v")["health"])
            attachment.detach()
            site.check_pools()
            self.assertEqual([], site.extents_with_unequal_copies("v"))
            self.assertEqual(0, site.pool().get("reserved_bytes", 0))

    def test_server_killed_linear(self):
        self.killed_under_model("linear", {"server"})

    def test_server_killed_striped_mirrors(self):
        self.killed_under_model("striped-mirrors", {"server"})

    def test_control_plane_killed(self):
        self.killed_under_model("striped", {"braidd"})

    def test_both_killed(self):
        self.killed_under_model("mirrored-2", {"server", "braidd"})

    def test_first_writes_go_on_without_control_plane(self):
        with harness.Site() as site:
            site.add_file("d1", "1G")
            site.create("v", "1T", thin=True)
            attachment = site.attach("v")
            handle = connect(attachment.uri)
            handle.pwrite(b"1" * 4096, 0)
            handle.flush()
            site.kill_braidd()
            for index in range(1, 20):  # from the reservation
                handle.pwrite(b"2" * 4096, index * GIB)
            self.assertEqual(b"1" * 4096, bytes(handle.pread(4096, 0)))
            cookie = handle.aio_flush()
            time.sleep(0.5)
            self.assertFalse(handle.aio_command_completed(cookie))
            site.start_braidd()

            def flushed():
                handle.poll(100)
                return handle.aio_command_completed(cookie)
            harness.wait_until(flushed, "the flush ends once braidd is back")
            handle.shutdown()
            attachment.detach()
            self.assertEqual(20 * 64 * KIB, site.volume("v")["allocated_bytes"])
            site.check_pools()


if __name__ == "__main__":
    harness.main()
