#!/usr/bin/python3
"""Fails on an #include, or a dependency in a meson.build, that the table of rooms in
docs/ARCHITECTURE.md does not allow.

The table there is the only place that says what may include what. Each row names folders
and, in its last column, the rooms ("base", "core", "lib" for all of lib/, "all above")
and the libraries ("RocksDB") they may include; remarks in brackets are for people. A room
may always include itself, and Abseil with lib/base. Unit tests (x_test.cc), what they share
(x_fixture.h, x_example.h) and benchmarks (x_benchmark.cc) may further include GoogleTest,
Google Benchmark, lib/testing, and what lib/testing may. The check tests itself first,
on a copy of the tree with forbidden lines planted in it.
"""

import pathlib
import re
import shutil
import sys
import tempfile

import source_tree

# Library -> how its headers' paths begin, and its names in meson.
LIBRARIES = {
    "Abseil": (("absl/",), ("absl_dep",)),
    "ISA-L": (("isa-l/", "isa-l.h"), ("isal_dep",)),
    "liburing": (("liburing",), ("uring_dep",)),
    "RocksDB": (("rocksdb/",), ("rocksdb_dep",)),
    "protobuf": (("google/protobuf/",), ("protobuf_dep",)),
    "gRPC": (("grpc/", "grpcpp/"), ("grpc_dep",)),
    "nbdkit": (("nbdkit-",), ("nbdkit_dep",)),
    "libnbd": (("libnbd.h",), ("libnbd_dep",)),
    "libext2fs": (("ext2fs/",), ("ext2fs_dep",)),
    "libblkid": (("blkid/",), ("blkid_dep",)),
    "libnl": (("netlink/", "linux/nbd-netlink.h"), ("nl_dep", "libnl_dep", "nl_genl_dep")),
    "CLI11": (("CLI/",), ("cli11_dep",)),
    "yaml-cpp": (("yaml-cpp/",), ("yaml_dep", "yaml_cpp_dep")),
    "GoogleTest": (("gtest/", "gmock/"), ("gtest_dep", "gtest_main_dep")),
    "Google Benchmark": (("benchmark/",), ("benchmark_dep",)),
}
# Rooms of pure computation: they do no I/O and start no thread (but may be safe for many).
PURE_ROOMS = ("lib/mapping", "lib/allocator")
IMPURE_HEADERS = re.compile(
    r"^(thread|future|fstream|iostream|cstdio|stdio\.h|fcntl\.h|unistd\.h|pthread\.h"
    r"|netinet/.*|sys/(socket|stat|uio|file|ioctl)\.h)$")
TEST_LIBRARIES = {"GoogleTest", "Google Benchmark"}
TEST_SUFFIXES = ("_test.cc", "_fixture.h", "_fixture.cc", "_example.h", "_benchmark.cc")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


class TableError(Exception):
    pass


def read_table(text):
    """{room: set of rooms and libraries}, in the order of the table; None means anything."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("|") and line.rstrip(" |").endswith("may include"):
            break
    else:
        raise TableError("docs/ARCHITECTURE.md has no table with a last column 'may include'")
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        rows.append(([f.rstrip("/") for f in re.findall(r"`([^`]+)`", cells[0])], cells[-1]))
    rooms = [room for folders, _ in rows for room in folders]
    table = {}
    for folders, allowed in rows:
        above = [room for room in table if room.startswith("lib/")]
        meant = words_to_names(allowed, rooms, above)
        for room in folders:
            table[room] = None if meant is None else meant | {room}
    return table


def words_to_names(cell, rooms, above):
    names = set()
    for word in re.sub(r"\([^)]*\)", "", cell).split(","):
        word = word.strip().replace("gRPC client", "gRPC")
        if word in ("–", "-", "through interfaces", ""):
            continue
        if word == "anything":
            return None
        if word == "all above":
            names.update(above)
        elif word == "lib":
            names.update(room for room in rooms if room.startswith("lib/"))
        elif word in LIBRARIES or word in rooms:
            names.add(word)
        else:
            matches = [room for room in rooms if room.endswith("/" + word)]
            if len(matches) != 1:
                raise TableError(f"docs/ARCHITECTURE.md: '{word}' names no room and no library; "
                                 f"rooms: {', '.join(rooms)}; libraries: {', '.join(LIBRARIES)}")
            names.update(matches)
    if "lib/base" in names:
        names.add("Abseil")
    return names


def room_of(path, table):
    """The longest room that a path lies in."""
    text = str(path)
    found = [room for room in table if text == room or text.startswith(room + "/")]
    return max(found, key=len, default=None)


def what_header_is(path, quoted, file, root, table):
    """The room or library a header belongs to; None for the system's; '?' for unknown."""
    if path.startswith("braid/v1/"):
        return "controlplane/proto"
    for library, (prefixes, _) in LIBRARIES.items():
        if path.startswith(prefixes):
            return library
    room = room_of(path, table)
    if room:
        return room
    if quoted:
        beside = file.parent / path
        return room_of(beside, table) if (root / beside).exists() else "?"
    return None


def allowed_in(file, room, table):
    allowed = table[room]
    if allowed is not None and file.name.endswith(TEST_SUFFIXES):
        allowed = allowed | (table.get("lib/testing") or set()) | TEST_LIBRARIES
    return allowed


def check_sources(root, table):
    problems = []
    for file in source_tree.own_files(".h", ".cc", root=root):
        room = room_of(file, table)
        if room is None:
            problems.append(f"{file}: its folder is not in the table of docs/ARCHITECTURE.md; "
                            "add a row that says what it answers and may include")
            continue
        allowed = allowed_in(file, room, table)
        text = (root / file).read_text()
        for match in INCLUDE.finditer(text):
            path, line = match[2], text.count("\n", 0, match.start()) + 1
            what = what_header_is(path, match[1] == '"', file, root, table)
            if what == "?":
                problems.append(f"{file}:{line}: {path} is no header of this tree; include by the "
                                "path from its root")
            elif what and allowed is not None and what not in allowed:
                problems.append(f"{file}:{line}: {room}/ may not include {what} ({path}); see the "
                                "table of rooms in docs/ARCHITECTURE.md")
            if (room in PURE_ROOMS and not file.name.endswith(TEST_SUFFIXES)
                    and IMPURE_HEADERS.match(path)):
                problems.append(f"{file}:{line}: {room}/ computes only, and {path} is for I/O or "
                                "threads; move that to the caller")
    return problems


def check_meson(root, table):
    """Dependencies of libraries in lib/ and tools/: a link is an include in disguise."""
    owner = {name: library for library, (_, names) in LIBRARIES.items() for name in names}
    owner.update({room.rpartition("/")[2] + "_dep": room for room in table})
    problems = []
    for file in source_tree.own_files("meson.build", root=root):
        room = room_of(file, table)
        if room is None or table[room] is None:
            continue
        allowed = table[room] | (table.get("lib/testing") or set()) | TEST_LIBRARIES
        text = re.sub(r"#.*", "", (root / file).read_text())
        for name in sorted(set(re.findall(r"\b\w+_dep\b", text))):
            what = owner.get(name)
            if what and what not in allowed:
                problems.append(f"{file}: {room}/ may not depend on {what} ({name}); see the table "
                                "of rooms in docs/ARCHITECTURE.md")
    return problems


def check_folders(root, table):
    """Every folder with sources has a row, and every row a folder."""
    problems = [f"docs/ARCHITECTURE.md: {room}/ does not exist; take its row out"
                for room in table if not (root / room).is_dir()]
    for folder in sorted(p for p in (root / "lib").iterdir() if p.is_dir()):
        if f"lib/{folder.name}" not in table:
            problems.append(f"lib/{folder.name}/: not in the table of docs/ARCHITECTURE.md")
    return problems


def check(root):
    table = read_table((root / "docs/ARCHITECTURE.md").read_text())
    return check_folders(root, table) + check_sources(root, table) + check_meson(root, table)


# What is planted, and what the check must then say.
PLANTED = [
    ("lib/mapping/planted.h", '#include "lib/blockdev/block_device.h"\n',
     "lib/mapping/ may not include lib/blockdev"),
    ("lib/base/planted.cc", '#include "controlplane/core/site.h"\n',
     "lib/base/ may not include controlplane/core"),
    ("lib/volume/planted.cc", "#include <rocksdb/db.h>\n", "lib/volume/ may not include RocksDB"),
    ("lib/volume/planted.h", "# include <grpcpp/grpcpp.h>\n", "lib/volume/ may not include gRPC"),
    ("lib/mapping/planted.cc", "#include <thread>\n", "computes only"),
    ("tools/attach/planted.cc", '#include "braid/v1/volume.pb.h"\n',
     "tools/attach/ may not include controlplane/proto"),
    ("lib/planted/planted.h", "\n", "its folder is not in the table"),
    ("lib/format/meson.build", "x = [grpc_dep]\n", "lib/format/ may not depend on gRPC"),
]


def self_test():
    """Each planted line must be found, alone and by name."""
    problems = []
    for path, line, expected in PLANTED:
        with tempfile.TemporaryDirectory(prefix="braid-layers-") as directory:
            root = pathlib.Path(directory)
            for folder in (*source_tree.FOLDERS, "docs"):
                shutil.copytree(source_tree.ROOT / folder, root / folder,
                                ignore=shutil.ignore_patterns("__pycache__", "*.img"))
            before = check(root)
            planted = root / path
            planted.parent.mkdir(parents=True, exist_ok=True)
            with open(planted, "a", encoding="utf-8") as file:
                file.write(line)
            found = [problem for problem in check(root) if problem not in before]
            if not any(expected in problem and str(path) in problem for problem in found):
                problems.append(f"self-test: {line.strip()} in {path} was not found "
                                f"(found: {found})")
    return problems


def main():
    try:
        problems = check(source_tree.ROOT) or self_test()
    except TableError as error:
        problems = [str(error)]
    source_tree.finish(problems, "layers")


if __name__ == "__main__":
    sys.exit(main())
