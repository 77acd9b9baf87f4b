#!/usr/bin/python3
"""Whatever an operator gets wrong: one line that says what and what to do, exit status 1
(2 where the command line itself is wrong), and nothing changed."""

import os
import pathlib
import shutil
import unittest

import harness
from harness import make_sparse, run

LONG = "n" * 300


class BadVolumeTest(unittest.TestCase):
    """All against one site with two devices of 256 MiB and one volume."""

    @classmethod
    def setUpClass(cls):
        cls.site = harness.Site()
        try:
            cls.site.add_devices(2, "256M")
            cls.site.create("taken", "16M")
        except BaseException:
            cls.site.__exit__(RuntimeError, None, None)
            raise

    @classmethod
    def tearDownClass(cls):
        cls.site.__exit__(None, None, None)

    def refused(self, status, *arguments):
        before = self.site.state()
        line = self.site.braid_refuses(*arguments, status=status)
        self.assertEqual(before, self.site.state(), arguments)
        return line

    def test_sizes(self):
        # What is no size is a wrong command line; what is a size but cannot be is refused.
        for size, status in (("0", None), ("-1", 2), ("-4M", 2), ("1000", 1), ("513", 1), ("x", 2),
                             ("", 2), ("9223372036854775808", 2), ("8E", 2), ("16E", 2),
                             ("99999999999999999999999", 2), ("7E", 1), ("1T", 1), ("1Q", 2)):
            with self.subTest(size=size):
                for status_now in ([1, 2] if status is None else [status]):
                    try:
                        self.refused(status_now, "volume", "create", "v", f"--size={size}")
                        break
                    except harness.Failure:
                        if status is not None or status_now == 2:
                            raise

    def test_names(self):
        for name in ("", LONG, "a/b/c", "..", ".", "a\nb", "a\tb", "a\x1b[31mb", "a b", "-dash",
                     "ünder", "a/../b"):
            with self.subTest(name=name):
                before = self.site.state()
                result = self.site.braid_result("volume", "create", "--size", "16M", "--", name)
                self.assertIn(result.returncode, (1, 2), result)
                self.assertEqual(1, len(result.stderr.splitlines()), result.stderr)
                self.assertTrue(result.stderr.rstrip("\n").isprintable(), result.stderr)
                self.assertEqual(before, self.site.state())

    def test_taken_name_and_unknown_names(self):
        self.refused(1, "volume", "create", "taken", "--size", "16M")
        for verb in ("show", "map", "delete"):
            self.refused(1, "volume", verb, "unknown")
        self.refused(1, "attach", "unknown", "--via", "socket")
        self.refused(1, "detach", "taken")
        self.refused(1, "device", "remove", "unknown")
        self.refused(1, "device", "remove", self.device_of_taken())

    def device_of_taken(self):
        return self.site.volume_map("taken")[0]["device"]

    def test_layouts_the_devices_cannot_carry(self):
        self.refused(1, "volume", "create", "v", "--size", "16M", "--copies", "3")
        self.refused(1, "volume", "create", "v", "--size", "16M", "--copies", "5")
        self.refused(1, "volume", "create", "v", "--size", "16M", "--class", "tape")
        self.refused(1, "volume", "create", "v", "--size", "16M", "--stripes", "100")
        # More than there is, though each device could be part of it.
        self.refused(1, "volume", "create", "v", "--size", "400M", "--copies", "2")

    def test_stripe_sizes(self):
        for size in ("100K", "96K", "3M", "513", "1", "1T"):
            with self.subTest(size=size):
                self.refused(1, "volume", "create", "v", "--size", "16M", "--stripes", "2",
                             "--stripe-size", size)

    def test_contradictions(self):
        self.refused(1, "volume", "create", "v", "--size", "16M", "--layout", "linear",
                     "--copies", "2")

    def test_wrong_command_lines(self):
        for arguments in (["volume", "create", "v"], ["volume"], ["frob"], ["volume", "frob"],
                          ["volume", "create", "v", "--size", "16M", "--frob"],
                          ["volume", "create", "v", "--size", "16M", "--copies", "0"],
                          ["volume", "create", "v", "--size", "16M", "--copies", "x"],
                          ["volume", "create", "v", "--size", "16M", "--layout", "raid5"],
                          ["attach", "taken", "--via", "pigeon"], ["device", "add"]):
            with self.subTest(arguments=arguments):
                before = self.site.state()
                result = self.site.braid_result(*arguments)
                self.assertEqual(2, result.returncode, result)
                self.assertTrue(result.stderr.strip())
                self.assertEqual(before, self.site.state())

    def test_dry_run_changes_nothing(self):
        before = self.site.state()
        self.site.braid("volume", "create", "v", "--size", "32M", "--copies", "2", "--dry-run")
        self.site.braid("volume", "delete", "taken", "--dry-run")
        self.assertEqual(before, self.site.state())


class BadDeviceTest(unittest.TestCase):
    def refused(self, site, path, *extra):
        before, contents = site.state(), self.fingerprint(path)
        site.braid_refuses("device", "add", path, "--class", "ssd", *extra)
        self.assertEqual(before, site.state())
        self.assertEqual(contents, self.fingerprint(path), "the device was written to")

    @staticmethod
    def fingerprint(path):
        """The first and last MiB, where labels and superblocks are."""
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            head = file.read(harness.MIB)
            file.seek(max(0, os.path.getsize(path) - harness.MIB))
            return head, file.read()

    def test_devices_that_cannot_be_taken(self):
        with harness.Site() as site:
            good = site.add_file("good", "256M")
            for name, path in (("missing", site.dir / "nothing"), ("directory", site.dir),
                               ("character device", "/dev/null"),
                               ("empty", make_sparse(site.dir / "empty", 0)),
                               ("too small", make_sparse(site.dir / "small", "1M"))):
                with self.subTest(name):
                    self.refused(site, path)
            fresh = make_sparse(site.dir / "fresh", "256M")
            for name in (LONG, "a/b", "a\nb"):
                with self.subTest(name=name):
                    self.refused(site, fresh, f"--name={name}")
            with self.subTest("name taken"):
                self.refused(site, fresh, "--name", "good")

            with self.subTest("the same file again"):
                self.refused(site, good, "--name", "again")
            link = site.dir / "symlink"
            link.symlink_to(good)
            with self.subTest("the same file through a symbolic link"):
                self.refused(site, link, "--name", "again")
            hard = site.dir / "hardlink"
            os.link(good, hard)
            with self.subTest("the same file through a hard link"):
                self.refused(site, hard, "--name", "again")
            loop = site.loop(good)
            with self.subTest("the same file through a loop device"):
                self.refused(site, loop, "--name", "again")

            with self.subTest("holds a file system"):
                image = make_sparse(site.dir / "image", "256M")
                run(["mkfs.ext4", "-q", image])
                self.refused(site, image)
                mounted = site.loop(image)
                point = site.mount(mounted)
                self.refused(site, mounted, "--force")
                site.unmount(point)
                run(["losetup", "-d", mounted])
                # Said loudly enough, it is taken.
                site.add_device(image, "image", "ssd", "--force")

    def test_device_of_another_cluster(self):
        with harness.Site() as other:
            theirs = other.add_file("d1", "256M")
            other.create("v", "64M")
            other.stop_braidd()
            with harness.Site("s2") as site:
                self.refused(site, theirs)

    def test_damaged_labels(self):
        with harness.Site() as other:
            original = other.add_file("d1", "256M")
            other.stop_braidd()
            label = original.read_bytes()[:harness.MIB]
            used = [i for i, byte in enumerate(label) if byte]
            self.assertTrue(used, "no label at the front")
            with harness.Site("s2") as site:
                # A flipped bit at the start, in the middle and at the end of what is there,
                # in every copy of the label.
                for index in (used[0], used[len(used) // 2], used[-1]):
                    with self.subTest(flipped=index):
                        path = site.dir / f"flipped{index}"
                        shutil.copyfile(original, path)
                        with open(path, "r+b") as file:
                            file.seek(index)
                            file.write(bytes([label[index] ^ 1]))
                        self.refused(site, path)
                with self.subTest("truncated"):
                    path = site.dir / "truncated"
                    shutil.copyfile(original, path)
                    os.truncate(path, 64 * harness.MIB)
                    self.refused(site, path)

    def test_label_damaged_behind_the_sites_back(self):
        with harness.Site() as site:
            path = site.add_file("d1", "256M")
            site.create("v", "64M")
            site.stop_braidd()
            with open(path, "r+b") as file:
                first = next(i for i, byte in enumerate(file.read(harness.MIB)) if byte)
                file.seek(0)
                file.write(bytes(2 * harness.MIB))
            self.assertLess(first, 2 * harness.MIB)
            site.start_braidd()
            device = site.devices()["d1"]
            self.assertEqual("DEVICE_STATE_MISSING", device["state"])
            self.assertTrue(device["problem"])
            site.braid_refuses("attach", "v", "--via", "socket", "--socket", site.dir / "s")


class BadSiteTest(unittest.TestCase):
    def test_control_socket_nobody_listens_on(self):
        with harness.Site(start=False) as site:
            for arguments in (["status"], ["volume", "list"], ["attach", "v"]):
                site.braid_refuses(*arguments)
            stale = site.dir / "stale.sock"
            import socket
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(stale))
            site.control = f"unix:{stale}"
            site.braid_refuses("status")
            for wrong in ("unix:", "nonsense", "unix:" + "x" * 200, "host:99999999"):
                site.control = wrong
                result = site.braid_result("status")
                self.assertIn(result.returncode, (1, 2))
                self.assertEqual(1, len(result.stderr.splitlines()), result.stderr)

    def second(self, site, *extra):
        command = [harness.BRAIDD, "--data-dir", site.data_dir, "--site", "s1", "--listen",
                   f"unix:{site.dir}/second.sock", "--run-dir", site.dir / "second", *extra]
        result = run(command, check=False, timeout=20)
        self.assertEqual(1, result.returncode, result)
        return result.stderr.splitlines()[-1]

    def test_data_directory_that_another_braidd_has_open(self):
        with harness.Site() as site:
            self.assertIn("; ", self.second(site))
            self.assertEqual([], site.state()["device"].get("devices", []))

    def test_store_of_another_site_name(self):
        with harness.Site() as site:
            site.stop_braidd()
            result = run([harness.BRAIDD, "--data-dir", site.data_dir, "--site", "other", "--listen",
                          f"unix:{site.dir}/x.sock", "--run-dir", site.run_dir], check=False,
                         timeout=20)
            self.assertEqual(1, result.returncode, result)

    def test_store_from_a_crash_opens(self):
        with harness.Site() as site:
            site.add_file("d1", "1G")
            for number in range(8):
                site.create(f"v{number}", "16M")
            before = site.state()
            site.kill_braidd()
            crashed = site.dir / "crashed"
            shutil.copytree(site.data_dir, crashed)
            site.start_braidd()
            self.assertEqual(before, site.state())
            site.stop_braidd()
            # A log cut short, as by a power loss in the middle of a write.
            logs = sorted(pathlib.Path(crashed).rglob("*.log"), key=os.path.getsize)
            self.assertTrue(logs, list(pathlib.Path(crashed).rglob("*")))
            os.truncate(logs[-1], max(0, logs[-1].stat().st_size - 7))
            site.data_dir = crashed
            site.start_braidd()
            volumes = {v["name"] for v in site.state()["volume"].get("volumes", [])}
            self.assertTrue(volumes <= {v["name"] for v in before["volume"]["volumes"]}, volumes)
            site.create("after", "16M")

    def test_damaged_store_is_refused_by_name(self):
        with harness.Site() as site:
            site.add_file("d1", "1G")
            site.stop_braidd()
            manifests = list(site.data_dir.rglob("MANIFEST-*"))
            self.assertTrue(manifests)
            for manifest in manifests:
                manifest.write_bytes(os.urandom(manifest.stat().st_size))
            line = self.second(site)
            self.assertIn("; ", line)


if __name__ == "__main__":
    harness.main()
