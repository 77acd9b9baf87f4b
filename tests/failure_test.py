#!/usr/bin/python3
"""What breaks while a volume is in use, for real: a leg's device, the server process, the
control plane. BRAID_SEED repeats the choice of operations."""

import json
import random
import threading
import time
import unittest

import harness
from harness import run, wait_until
from nbd_driver import ConnectionLost, Driver

SIZE = 48 * harness.MIB


def fio_verify(site, uri, seconds):
    """fio that writes and reads back, all the time; a running process."""
    return site.start(
        ["fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randrw", "--bsrange=512-64k",
         "--blockalign=512", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1",
         "--verify_backlog=256", "--verify_state_save=0", "--size=32m", "--time_based",
         f"--runtime={seconds}", f"--randseed={harness.seed()}", "--output-format=json",
         f"--output={site.dir}/fio.json"], "fio", cwd=site.dir)


def fio_report(test, site, fio, timeout=120):
    test.assertEqual(0, fio.wait(timeout), fio.log.read_text())
    job = json.loads((site.dir / "fio.json").read_text())["jobs"][0]
    test.assertEqual(0, job["error"])
    test.assertGreater(job["write"]["total_ios"], 100)
    return job


class LegFailureTest(unittest.TestCase):
    def mirrored_with_breakable_leg(self, site, copies=2):
        """A mirrored volume with one leg on a file that can break."""
        faulty = site.add_faulty("bad", "256M")
        for number in range(1, copies):
            site.add_file(f"good{number}", "256M")
        site.create("v", SIZE, copies=copies)
        self.assertTrue(any(row["device"] == "bad" for row in site.volume_map("v")))
        return faulty

    def check_degraded(self, site):
        volume = wait_until(
            lambda: (v := site.volume("v"))["health"] == "VOLUME_HEALTH_DEGRADED" and v,
            "the volume is shown degraded")
        self.assertGreater(volume["stale_bytes"], 0)
        for row in site.volume_map("v"):
            self.assertEqual(row["device"] == "bad", row.get("stale", False), row)
        status = site.braid_result("status")
        self.assertEqual(1, status.returncode, status)
        self.assertIn("degraded", status.stdout.lower())

    def test_leg_breaks_under_fio_and_io_goes_on(self):
        with harness.Site() as site:
            faulty = self.mirrored_with_breakable_leg(site)
            attachment = site.attach("v")
            fio = fio_verify(site, attachment.uri, 8)
            time.sleep(3)
            self.assertTrue(fio.running(), fio.log.read_text())
            faulty.break_now()
            self.check_degraded(site)
            self.assertTrue(fio.running(), fio.log.read_text())
            fio_report(self, site, fio)
            self.assertEqual(0, attachment.status().get("restarts", 0))

    def leg_breaks_under_model(self, copies):
        generator = random.Random(harness.seed())
        with harness.Site() as site:
            faulty = self.mirrored_with_breakable_leg(site, copies)
            attachment = site.attach("v")
            driver = Driver(attachment.uri, SIZE, generator)
            driver.run(3)
            faulty.break_now()
            driver.run(3)
            self.check_degraded(site)
            driver.verify_all()
            driver.close()
            attachment.detach()
            # The lost device is gone altogether; the survivors carry the volume.
            faulty.stop()
            faulty.path.unlink()
            attachment = site.attach("v")
            driver.uri = attachment.uri
            driver.connect()
            driver.verify_all()
            driver.run(2)
            driver.verify_all()
            driver.close()
            self.assertEqual("DEVICE_STATE_MISSING", site.devices()["bad"]["state"])

    def test_leg_of_two_breaks_and_survivor_has_every_byte(self):
        self.leg_breaks_under_model(copies=2)

    def test_leg_of_three_breaks_and_survivors_have_every_byte(self):
        self.leg_breaks_under_model(copies=3)

    def test_stale_leg_that_came_back_is_not_read(self):
        generator = random.Random(harness.seed())
        with harness.Site() as site:
            faulty = self.mirrored_with_breakable_leg(site)
            attachment = site.attach("v")
            driver = Driver(attachment.uri, SIZE, generator)
            driver.run(2)
            faulty.break_now()
            driver.run(2)
            self.check_degraded(site)
            driver.close()
            attachment.detach()
            # The device is back, with what it held when it broke.
            faulty.stop()
            faulty.start()
            attachment = site.attach("v")
            driver.uri = attachment.uri
            driver.connect()
            for _ in range(3):
                driver.verify_all()
            driver.close()
            self.check_degraded(site)

    def test_missing_leg_at_attach_degrades_and_serves(self):
        generator = random.Random(harness.seed())
        with harness.Site() as site:
            paths = site.create_layout("mirrored-2", size=SIZE, device_size="256M")
            attachment = site.attach("v")
            driver = Driver(attachment.uri, SIZE, generator)
            driver.run(2)
            driver.close()
            attachment.detach()
            paths[0].rename(site.dir / "elsewhere")
            attachment = site.attach("v")
            driver.uri = attachment.uri
            driver.connect()
            driver.verify_all()
            driver.run(2)
            driver.close()
            self.assertEqual("VOLUME_HEALTH_DEGRADED", site.volume("v")["health"])

    def test_missing_only_copy_refuses_to_attach(self):
        with harness.Site() as site:
            paths = site.create_layout("striped", size=SIZE, device_size="256M")
            paths[1].rename(site.dir / "elsewhere")
            site.braid_refuses("attach", "v", "--via", "socket", "--socket", site.dir / "v.sock")
            (site.dir / "elsewhere").rename(paths[1])
            site.attach("v").detach()


class ServerKilledTest(unittest.TestCase):
    def server_killed_under_model(self, layout):
        """SIGKILL of nbdkit: what was acknowledged is there when it is back."""
        generator = random.Random(harness.seed())
        with harness.Site() as site:
            site.create_layout(layout, size=SIZE, device_size="256M")
            attachment = site.attach("v")
            driver = Driver(attachment.uri, SIZE, generator)
            kills = 3
            for _ in range(kills):
                pid = attachment.server_pid()
                threading.Timer(generator.uniform(0.3, 1.5), harness.kill, (pid,)).start()
                with self.assertRaises(ConnectionLost):
                    driver.run(20)
                harness.wait_gone(pid)
                driver.lost()
                driver.verify_all()
            driver.run(2)
            driver.verify_all()
            driver.close()
            self.assertEqual(kills, attachment.status()["restarts"])
            self.assertEqual("VOLUME_HEALTH_GOOD", site.volume("v")["health"])
            attachment.detach()
            self.assertEqual([], site.extents_with_unequal_copies("v"))

    def test_linear_volume_keeps_what_was_acknowledged(self):
        self.server_killed_under_model("linear")

    def test_striped_volume_keeps_what_was_acknowledged(self):
        self.server_killed_under_model("striped")

    def test_mirrored_volume_keeps_one_truth(self):
        self.server_killed_under_model("mirrored-3")

    def test_striped_mirrors_keep_one_truth(self):
        self.server_killed_under_model("striped-mirrors")

    def test_clean_detach_keeps_all_copies(self):
        with harness.Site() as site:
            site.create_layout("mirrored-3", size=SIZE, device_size="256M")
            for _ in range(3):
                attachment = site.attach("v")
                run(["qemu-io", "-f", "raw", "-c", "write -P 7 0 8M", attachment.uri])
                attachment.detach()
                self.assertEqual("VOLUME_HEALTH_GOOD", site.volume("v")["health"])


class ControlPlaneKilledTest(unittest.TestCase):
    def test_io_goes_on_without_the_control_plane_and_finds_it_again(self):
        with harness.Site() as site:
            site.create_layout("mirrored-2", size=SIZE, device_size="256M")
            attachment = site.attach("v")
            before = (site.braid("volume", "map", "v"), sorted(site.devices()))
            fio = fio_verify(site, attachment.uri, 8)
            time.sleep(2)
            site.kill_braidd()
            time.sleep(3)
            self.assertTrue(fio.running(), fio.log.read_text())
            site.start_braidd()
            fio_report(self, site, fio)
            self.assertEqual(before, (site.braid("volume", "map", "v"), sorted(site.devices())))
            held = site.volume("v")["attachment"]
            self.assertTrue(held["held"] and held["alive"], held)
            attachment.detach()
            self.assertEqual("VOLUME_HEALTH_GOOD", site.volume("v")["health"])
            site.attach("v").detach()

    def test_leg_breaks_without_the_control_plane_then_writes_wait_for_it(self):
        with harness.Site() as site:
            faulty = site.add_faulty("bad", "256M")
            site.add_file("good", "256M")
            site.create("v", SIZE, copies=2)
            attachment = site.attach("v")
            write = ["qemu-io", "-f", "raw", "-c", "write -P 9 0 64k", "-c", "read -P 9 0 64k",
                     attachment.uri]
            run(write)
            site.kill_braidd()
            faulty.break_now()
            writer = site.start(write, "writer")
            time.sleep(2)
            # It must not be acknowledged before the loss of the leg is durable.
            self.assertTrue(writer.running(), writer.log.read_text())
            site.start_braidd()
            self.assertEqual(0, writer.wait(), writer.log.read_text())
            self.assertEqual("VOLUME_HEALTH_DEGRADED", site.volume("v")["health"])

    def test_clean_restart_finds_everything(self):
        with harness.Site() as site:
            site.create_layout("striped-mirrors")
            site.create("w", "64M")
            before = (site.state(), site.braid("volume", "map", "v"))
            site.stop_braidd()
            site.start_braidd()
            self.assertEqual(before, (site.state(), site.braid("volume", "map", "v")))


if __name__ == "__main__":
    harness.main()
