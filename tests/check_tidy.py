#!/usr/bin/python3
"""clang-tidy with the tree's .clang-tidy over our sources.

check_tidy.py BUILD_DIR [FOLDER_OR_FILE…]

All sources that BUILD_DIR compiles, or those of the folders and files given.

File by file the whole tree takes half an hour: of some 15 s a file, nearly all go into
walking the declarations of gRPC, Abseil and GoogleTest once per check. So sources that
can share a translation unit are put one behind the other into one file and looked at
together, which walks the headers once for all of them; lines are told as those of the
sources. Sources whose names clash (two helpers in unnamed namespaces, two main()) come
into different units. A using or an alias that only another source of the unit uses is
not found; that is the price.

Tests and benchmarks are looked at without the static analyzer: it follows both ways through
every EXPECT, four fifths of the time of a test, and finds nothing there; in a benchmark it
finds a leak in benchmark.h and calls the loop's own variable a dead store.
"""

import argparse
import json
import os
import pathlib
import re
import shlex
import tempfile
import time

import source_tree

CONFIG = f"--config-file={source_tree.ROOT / '.clang-tidy'}"
COMPILE_ONLY = "-*,misc-static-assert"  # clang-tidy wants one check at least
IN_TESTS = "-clang-analyzer-*"
NEEDED_FLAGS = ("-I", "-isystem", "-D", "-std")


class Tidy:
    def __init__(self, build):
        self.build = build.resolve()
        self.commands = {}
        for entry in json.loads((self.build / "compile_commands.json").read_text()):
            path = pathlib.Path(os.path.realpath(pathlib.Path(entry["directory"], entry["file"])))
            if path.is_relative_to(source_tree.ROOT):
                self.commands[path.relative_to(source_tree.ROOT)] = shlex.split(entry["command"])

    def run(self, files, checks):
        """clang-tidy over the files as one: exit status, and output with their lines."""
        flags, text, origin = [], [], []
        for file in files:
            flags += [word for word in self.commands[file]
                      if word.startswith(NEEDED_FLAGS) and word not in flags]
            for number, line in enumerate((source_tree.ROOT / file).read_text().splitlines(), 1):
                text.append(line)
                origin.append(f"{file}:{number}:")
        with tempfile.NamedTemporaryFile("w", dir=self.build, prefix="tidy-", suffix=".cc") as unit:
            unit.write("\n".join(text) + "\n")
            unit.flush()
            result = source_tree.run(["clang-tidy", "--quiet", CONFIG, f"--checks={checks}", unit.name,
                                      "--", "-ferror-limit=0", *flags], directory=self.build)
            output = re.sub(re.escape(unit.name) + r":(\d+):",
                            lambda match: origin[int(match[1]) - 1], result.stdout)
        return result.returncode, output

    def units(self, files):
        """The files in groups that compile as one."""
        while files:
            status, output = self.run(files, COMPILE_ONLY) if len(files) > 1 else (0, "")
            others = []
            if status != 0:
                named = set(re.findall(r"^(\S+\.cc):\d+:\d+: error:", output, re.MULTILINE))
                others = [file for file in files[1:] if str(file) in named]
                # A clash that shows in a header only says nothing of whose it is.
                others = others or files[(len(files) + 1) // 2:]
            group = [file for file in files if file not in others]
            if status == 0 or len(group) == 1:
                yield group
                files = others
            else:
                yield from self.units(group)
                files = others


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("where", nargs="*", type=pathlib.Path)
    options = parser.parse_args()
    tidy = Tidy(options.build)
    files = [file for file in source_tree.own_files(".cc") if file in tidy.commands and
             (not options.where or any(file.is_relative_to(where) for where in options.where))]
    problems = []
    for are_tests in (False, True):
        some = [file for file in files if file.stem.endswith(("_test", "_benchmark")) == are_tests]
        for unit in tidy.units(some):
            started = time.monotonic()
            status, output = tidy.run(unit, IN_TESTS if are_tests else "")
            print(f"{'ok  ' if status == 0 else 'FAIL'} {time.monotonic() - started:4.0f} s "
                  f"{' '.join(str(file) for file in unit)}", flush=True)
            if status != 0:
                problems.append(output)
    if not files:
        problems.append(f"no source of ours in {options.where}")
    source_tree.finish(problems, f"clang-tidy of {len(files)} files")


if __name__ == "__main__":
    main()
