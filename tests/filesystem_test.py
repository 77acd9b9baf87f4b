#!/usr/bin/python3
"""A real file system with real files on a volume, through nbdfuse and a loop device."""

import filecmp
import os
import pathlib
import shutil
import unittest

import harness
from harness import run

# Files of many sizes that every Debian has once the packages are installed.
SOURCE = pathlib.Path("/usr/include")
BYTES_WANTED = 60 * harness.MIB


def copy_files(target):
    """Copies files from SOURCE until BYTES_WANTED; [(original, copy)]."""
    pairs, total = [], 0
    for directory, folders, names in os.walk(SOURCE):
        folders.sort()
        for name in sorted(names):
            original = pathlib.Path(directory, name)
            if original.is_symlink() or total >= BYTES_WANTED:
                continue
            copy = target / original.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original, copy)
            pairs.append((original, copy))
            total += original.stat().st_size
    return pairs, total


class FileSystemTest(unittest.TestCase):
    def on_layout(self, layout):
        with harness.Site() as site:
            site.create_layout(layout, size="512M")
            attachment = site.attach("v", "fuse")
            self.assertEqual(512 * harness.MIB, os.stat(attachment.path).st_size)
            loop = site.loop(attachment.path)
            run(["mkfs.ext4", "-q", loop])
            point = site.mount(loop)
            pairs, total = copy_files(point)
            self.assertGreater(total, 20 * harness.MIB)
            # Half of it goes again, so that the file system writes over old blocks.
            for _, copy in pairs[::2]:
                copy.unlink()
            for original, copy in pairs[::2]:
                shutil.copyfile(original, copy)
            site.unmount(point)
            run(["losetup", "-d", loop])
            run(["e2fsck", "-fn", attachment.path])
            attachment.detach()

            # What was written is there after a new attachment, read through new processes.
            attachment = site.attach("v", "fuse")
            run(["e2fsck", "-fn", attachment.path])
            loop = site.loop(attachment.path)
            site.mount(loop)
            different = [str(copy) for original, copy in pairs
                         if not filecmp.cmp(original, copy, shallow=False)]
            self.assertEqual([], different)
            site.unmount(point)
            run(["losetup", "-d", loop])
            attachment.detach()

    def test_ext4_on_linear_volume(self):
        self.on_layout("linear")

    def test_ext4_on_striped_volume(self):
        self.on_layout("striped")

    def test_ext4_on_mirrored_volume(self):
        self.on_layout("mirrored-2")

    def test_ext4_on_striped_mirrors(self):
        self.on_layout("striped-mirrors")


if __name__ == "__main__":
    harness.main()
