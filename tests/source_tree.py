"""What the checks of the tree share: its own files, and how a check ends."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("lib", "controlplane", "nbdkit-plugin", "tools", "bench", "tests")


def own_files(*suffixes, root=ROOT):
    """Files of the tree with these suffixes, by path from its root."""
    found = []
    for folder in FOLDERS:
        for path, directories, files in os.walk(root / folder):
            directories[:] = [d for d in directories if d != "__pycache__"]
            found += [pathlib.Path(path, file).relative_to(root)
                      for file in files if file.endswith(suffixes)]
    return sorted(found)


def run(command, directory=ROOT, **keywords):
    return subprocess.run([str(word) for word in command], text=True, cwd=directory,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **keywords)


def finish(problems, what):
    """Prints the problems; exit status 1 if there are any."""
    for problem in problems:
        print(problem)
    print(f"{what}: {len(problems)} problem(s)")
    sys.exit(1 if problems else 0)
