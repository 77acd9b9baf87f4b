#!/usr/bin/python3
"""clang-tidy with the tree's .clang-tidy over our sources, two at a time.

check_tidy.py BUILD_DIR [--sample N] [FILE…]

All sources that BUILD_DIR compiles; with --sample N only those changed since the branch
left main (or since the last commit, on main), and N others chosen by the commit, so that
every source is looked at within some commits.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random

import source_tree


def compiled_sources(build):
    entries = json.loads((build / "compile_commands.json").read_text())
    files = {pathlib.Path(os.path.realpath(pathlib.Path(e["directory"], e["file"]))) for e in entries}
    ours = {source_tree.ROOT / file for file in source_tree.own_files(".cc")}
    return sorted(file.relative_to(source_tree.ROOT) for file in files & ours)


def sample(files, count):
    head = source_tree.run(["git", "rev-parse", "HEAD"]).stdout.strip()
    base = source_tree.run(["git", "merge-base", "HEAD", "main"]).stdout.strip()
    if base == head:
        base = "HEAD~1"
    changed = set(source_tree.run(["git", "diff", "--name-only", base]).stdout.split("\n"))
    first = [file for file in files if str(file) in changed]
    others = [file for file in files if str(file) not in changed]
    random.Random(head).shuffle(others)
    # A commit that touches everything is not looked at whole either.
    random.Random(head).shuffle(first)
    return sorted(first[:count] + others[:max(0, count - len(first))])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    options = parser.parse_args()
    files = options.files or compiled_sources(options.build.resolve())
    if options.sample is not None:
        files = sample(files, options.sample)

    def tidy(file):
        return file, source_tree.run(["clang-tidy", "-p", options.build.resolve(), "--quiet", file])
    problems = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, result in pool.map(tidy, files):
            print(f"{'ok  ' if result.returncode == 0 else 'FAIL'} {file}", flush=True)
            if result.returncode != 0:
                problems.append(result.stdout)
    source_tree.finish(problems, f"clang-tidy of {len(files)} files")


if __name__ == "__main__":
    main()
