#!/usr/bin/python3
"""Fails when the documents and the tree have grown apart: a path named in
docs/ARCHITECTURE.md that does not exist, a link in any document that leads nowhere, a
program without a manual page, an API page older than its .proto files.
"""

import re
import subprocess

import source_tree

ROOT = source_tree.ROOT
# Program -> its manual page. That of braid(1) is printed by the program itself, and tested
# beside it (tools/cli).
PROGRAMS = {
    "braidd": "braidd.8",
    "braid-attach": "braid-attach.8",
    "nbdkit-braid-plugin": "nbdkit-braid-plugin.1",
}


def tracked(suffix):
    listed = source_tree.run(["git", "ls-files", "--cached", "--others", "--exclude-standard",
                              f"*{suffix}"])
    if listed.returncode == 0:
        return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]
    return [path for path in ROOT.rglob(f"*{suffix}") if "build" not in path.parts[1]]


def check_architecture():
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    problems = []
    for name in sorted(set(re.findall(r"`([\w.-]+/[\w./-]*)`", text))):
        if not (ROOT / name).exists():
            problems.append(f"docs/ARCHITECTURE.md: {name} does not exist")
    return problems


def anchors(path):
    found = set()
    for heading in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


def check_links():
    problems = []
    for document in tracked(".md"):
        text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            place = (document.parent / path).resolve() if path else document
            where = document.relative_to(ROOT)
            if not place.exists():
                problems.append(f"{where}: the link to {target} leads nowhere")
            elif anchor and place.suffix == ".md" and anchor not in anchors(place):
                problems.append(f"{where}: {target}: no such heading there")
    return problems


def check_manual_pages():
    pages = {path.stem if path.suffix in (".in", ".pod") else path.name: path
             for suffix in (".1", ".8", ".pod") for path in tracked(suffix)}
    problems = []
    for program, page in PROGRAMS.items():
        if page not in pages and page.rpartition(".")[0] not in pages:
            problems.append(f"{program}: no manual page {page} in the tree")
    for path in pages.values():
        if path.suffix in (".1", ".8"):
            result = source_tree.run(["man", "--warnings", "--local-file", path],
                                     env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8",
                                          "MANWIDTH": "100", "MANROFFOPT": "-ww"})
            warnings = [line for line in result.stdout.splitlines() if "warning:" in line]
            if result.returncode != 0 or warnings:
                problems += [f"{path.relative_to(ROOT)}: {w}" for w in warnings or [result.stdout]]
    return problems


def check_api_page():
    result = subprocess.run([ROOT / "tools/gen-api-docs", "--check"], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return [] if result.returncode == 0 else [result.stdout.strip()]


source_tree.finish(check_architecture() + check_links() + check_manual_pages() + check_api_page(),
                   "documents")
