#!/usr/bin/python3
"""The first thing a newcomer runs ends 0, and leaves nothing, also when it is stopped."""

import glob
import os
import signal
import subprocess
import time
import unittest

import harness

QUICKSTART = harness.ROOT / "tools/quickstart"


class QuickstartTest(unittest.TestCase):
    def setUp(self):
        # The subreaper and the leftover check, without a braidd of our own.
        self.site = harness.Site(start=False)
        self.addCleanup(self.site.__exit__, None, None, None)
        self.environment = dict(os.environ, BRAID_BUILD=str(harness.BUILD))
        self.before = self.outside()

    @staticmethod
    def outside():
        """Directories, mounts and loop devices of quickstarts."""
        return (sorted(glob.glob("/tmp/braid-quickstart-*")),
                [m for m in harness.mounts_below("/tmp") if "quickstart" in m],
                [d for d in harness.loops_below("/tmp")
                 if "quickstart" in harness.run(["losetup", "-n", "-O", "BACK-FILE", d])])

    def start(self):
        self.log = open(self.site.dir / "quickstart.log", "w+", encoding="utf-8")
        return subprocess.Popen([QUICKSTART], stdin=subprocess.DEVNULL, stdout=self.log,
                                stderr=self.log, env=self.environment, cwd="/")

    def output(self):
        self.log.seek(0)
        return self.log.read()

    def nothing_left(self):
        self.log.close()
        self.assertEqual(self.before, self.outside())

    def test_ends_0_and_leaves_nothing(self):
        process = self.start()
        self.assertEqual(0, process.wait(400), self.output()[-4000:])
        self.assertIn("every byte verified", self.output())
        self.assertIn("degraded", self.output())
        self.nothing_left()

    def test_stopped_in_the_middle_leaves_nothing(self):
        process = self.start()
        harness.wait_until(lambda: "Real files" in self.output() or process.poll() is not None,
                           "files are being copied")
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(143, process.wait(120), self.output()[-4000:])
        self.nothing_left()


if __name__ == "__main__":
    harness.main()
