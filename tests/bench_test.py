#!/usr/bin/python3
"""tools/bench works: one short pair of each measurement, and JSON as promised. How fast it
is, is not asked here: this machine has other work."""

import json
import unittest

import harness


class BenchTest(unittest.TestCase):
    def test_quick_run_writes_the_promised_json(self):
        with harness.Site(start=False) as site:
            output = site.dir / "bench.json"
            harness.run([harness.ROOT / "tools/bench", "--quick", "--json", output], timeout=240)
            rows = json.loads(output.read_text())
            for row in rows:
                self.assertLessEqual({"name", "unit", "value", "peer", "peer_value", "ratio"},
                                     set(row))
                self.assertGreater(row["value"], 0, row)
                self.assertGreater(row["ratio"], 0, row)
            names = " ".join(row["name"] for row in rows)
            for part in ("map: random look-up", "nbd: 4 KiB random write, depth 32",
                         "nbd: 1 MiB sequential read", "thin: first 4 KiB random writes",
                         "thin: first 1 MiB sequential writes", "open a 64 TiB volume"):
                self.assertIn(part, names)
            self.assertEqual(len(rows), len({(row["name"], row["peer"]) for row in rows}))


if __name__ == "__main__":
    harness.main()
