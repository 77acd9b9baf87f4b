#!/usr/bin/python3
"""Random operations on a volume of one layout, over several connections with operations
that overlap, against a model. model_test.py LAYOUT; BRAID_SEED repeats a run;
BRAID_MODEL_SECONDS sets how long each case works."""

import os
import random
import sys
import unittest

import harness
import volume_model
from nbd_driver import Driver

SECONDS = float(os.environ.get("BRAID_MODEL_SECONDS", 4))
SIZE = 48 * harness.MIB
LAYOUT = sys.argv.pop() if len(sys.argv) > 1 and sys.argv[-1] in harness.LAYOUTS else "linear"


class ModelTest(unittest.TestCase):
    def drive(self, via_attach, nbdkit_flags=(), thin=False, **options):
        generator = random.Random(harness.seed())
        with harness.Site() as site:
            site.create_layout(LAYOUT, size=SIZE, device_size="256M",
                               **({"thin": True} if thin else {}))
            if via_attach:
                uri = site.attach("v").uri
            else:
                uri, server = site.serve("v", *nbdkit_flags)
            driver = Driver(uri, SIZE, generator, **options)
            driver.run(SECONDS)
            driver.verify_all()
            driver.close()
            print(f"{LAYOUT}: {driver.summary()}")
            if via_attach:
                site.attachments[0].detach()
                attachment = site.attach("v")
                driver.uri = attachment.uri
            else:
                server.stop()
                driver.uri, server = site.serve("v", *nbdkit_flags)
            driver.connect()
            driver.verify_all()
            driver.close()
            self.assertEqual("VOLUME_HEALTH_GOOD", site.volume("v")["health"])

    def test_all_operations_over_three_connections(self):
        self.drive(via_attach=True)

    def test_all_operations_with_sixteen_threads(self):
        self.drive(via_attach=False, nbdkit_flags=("-t", "16"), connections=2)

    def test_thin_with_128_threads(self):
        self.drive(via_attach=False, nbdkit_flags=("-t", "128"), thin=True, connections=2)

    def test_thin_attached(self):
        self.drive(via_attach=True, thin=True)

    def test_value_once_read_never_turns_back(self):
        self.drive(via_attach=False, nbdkit_flags=("-t", "8"), connections=4, hot_sectors=8,
                   max_sectors=8, mix=(("read", 70), ("write", 30)))

    def test_model_finds_wrong_histories(self):
        volume_model.self_test()


if __name__ == "__main__":
    harness.main()
