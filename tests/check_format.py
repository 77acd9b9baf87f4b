#!/usr/bin/python3
"""Fails on a C++ or proto file of ours that clang-format would write differently."""

import source_tree

files = source_tree.own_files(".h", ".cc")
result = source_tree.run(["clang-format", "--dry-run", "-Werror", *files])
problems = [line for line in result.stdout.splitlines() if "error:" in line]
if result.returncode != 0 and not problems:
    problems = [result.stdout or f"clang-format ended with {result.returncode}"]
if problems:
    problems.append("to mend: clang-format -i FILE")
source_tree.finish(problems, f"clang-format of {len(files)} files")
