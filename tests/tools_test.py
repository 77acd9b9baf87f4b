#!/usr/bin/python3
"""A volume of one layout under programs that no one here wrote. tools_test.py LAYOUT"""

import json
import sys
import unittest

import harness
from harness import run

LAYOUT = sys.argv.pop() if len(sys.argv) > 1 and sys.argv[-1] in harness.LAYOUTS else "linear"
SIZE = 256 * harness.MIB


class ToolsTest(unittest.TestCase):
    """One volume for each test: what one tool left must not help the next."""

    def setUp(self):
        self.site = harness.Site()
        self.failed = True
        try:
            self.site.create_layout(LAYOUT, size=SIZE)
            self.uri = self.site.attach("v").uri
        except BaseException:
            self.site.__exit__(*sys.exc_info())
            raise

    def tearDown(self):
        outcome = self._outcome.result
        bad = any(test is self for test, _ in [*outcome.failures, *outcome.errors])
        self.site.__exit__(harness.Failure if bad else None, None, None)

    def test_nbdinfo_describes_the_export(self):
        info = json.loads(run(["nbdinfo", "--json", self.uri]))["exports"][0]
        self.assertEqual(SIZE, info["export-size"])
        for ability in ("can_cache", "can_fua", "can_multi_conn", "can_trim", "can_zero",
                        "can_flush"):
            self.assertTrue(info[ability], ability)
        self.assertFalse(info["is_read_only"])
        self.assertGreaterEqual(info["block_size_minimum"], 1)
        self.assertLessEqual(info["block_size_minimum"], 512)
        listed = json.loads(run(["nbdinfo", "--list", "--json", self.uri]))["exports"]
        self.assertEqual(1, len(listed))
        total = json.loads(run(["nbdinfo", "--map", "--json", self.uri]))
        self.assertEqual(SIZE, sum(extent["length"] for extent in total))

    def test_new_volume_reads_zero(self):
        run(["qemu-io", "-f", "raw", "-c", f"read -P 0 0 {SIZE}", self.uri])

    def test_nbdcopy_of_a_source_that_checks_itself(self):
        # sparse-random refuses to be written with anything but what it would read.
        for seed in (1, 2):
            source = ["[", "nbdkit", "--exit-with-parent", "sparse-random", str(SIZE), f"seed={seed}",
                      "percent=30", "runlength=100000", "]"]
            allocated = ["--allocated"] if seed == 1 else []
            run(["nbdcopy", *allocated, "--flush", "--", *source, self.uri])
            run(["nbdcopy", "--allocated", "--connections=4", "--", self.uri, *source])

    def test_qemu_io_patterns(self):
        edge = 4 * harness.MIB  # of an extent
        commands = [
            f"write -P 0xa1 0 {3 * edge}",
            f"write -P 0xb2 {edge - 512} 1024",
            f"read -P 0xa1 0 {edge - 512}",
            f"read -P 0xb2 {edge - 512} 1024",
            f"read -P 0xa1 {edge + 512} {2 * edge - 512}",
            f"write -z {edge - 4096} 8192",
            f"read -P 0 {edge - 4096} 8192",
            f"write -z -u {2 * edge} 65536",
            f"read -P 0 {2 * edge} 65536",
            f"write -f -P 0xc3 {SIZE - 512} 512",
            f"read -P 0xc3 {SIZE - 512} 512",
            f"discard {edge} {edge}",
            "flush",
            f"aio_write -P 0xd4 {5 * edge - 65536} 131072",
            "aio_flush",
            f"read -P 0xd4 {5 * edge - 65536} 131072",
        ]
        words = [word for command in commands for word in ("-c", command)]
        output = run(["qemu-io", "-f", "raw", *words, self.uri])
        self.assertNotIn("failed", output)
        beyond = run(["qemu-io", "-f", "raw", "-c", f"write {SIZE} 512", self.uri], check=False)
        self.assertIn("rror", beyond.stdout + beyond.stderr)

    def test_qemu_img_convert_compare_map_bench(self):
        image = self.site.dir / "image"
        run(["nbdcopy", "--", "[", "nbdkit", "--exit-with-parent", "sparse-random", str(SIZE), "seed=3",
             "]", image])
        run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, self.uri])
        compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw", image, self.uri]
        self.assertIn("identical", run(compare))
        extents = json.loads(run(["qemu-img", "map", "--output=json", "-f", "raw", self.uri]))
        self.assertEqual(SIZE, sum(extent["length"] for extent in extents))
        run(["qemu-img", "bench", "-c", "4000", "-d", "16", "-s", "4k", "-f", "raw", self.uri])
        run(["qemu-img", "bench", "-c", "2000", "-d", "16", "-s", "68k", "-f", "raw", "-w",
             "--flush-interval=100", self.uri])
        differ = run(compare, check=False)
        self.assertEqual(1, differ.returncode, differ.stdout)

    def test_fio_verify_at_512_bytes_and_depth_16(self):
        base = ["fio", "--name=verify", "--ioengine=nbd", f"--uri={self.uri}", "--bsrange=512-64k",
                "--blockalign=512", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
                "--size=48m", f"--randseed={harness.seed()}", "--output-format=json"]
        for mode in ("randwrite", "write", "randrw"):
            output = self.site.dir / f"{mode}.json"
            run([*base, f"--rw={mode}", "--do_verify=1", f"--output={output}"], timeout=120,
                cwd=self.site.dir)
            job = json.loads(output.read_text())["jobs"][0]
            self.assertEqual(0, job["error"])
            # It read back what it wrote, or the check would have been of nothing.
            self.assertGreaterEqual(job["read"]["total_ios"], job["write"]["total_ios"])
            self.assertGreater(job["write"]["total_ios"], 500)


if __name__ == "__main__":
    harness.main()
