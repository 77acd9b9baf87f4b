"""A site of real programs for one test, and the tools to break it.

    with Site() as site:
        site.add_file("d1", "1G"); site.add_file("d2", "1G")
        site.create("v", "256M", copies=2)
        with site.attach("v") as attachment:
            run(["nbdinfo", attachment.uri])

A Site is one temporary directory, one braidd, and whatever the test starts in it. The
test process makes itself the reaper of its orphans (PR_SET_CHILD_SUBREAPER), so that
also what the programs under test leave behind stays its descendant: it can be ended by
its process id, and found. When the `with` block ends, everything is taken down in the
reverse order; then whatever is still there (a process, mount, loop device, socket or
file outside the directory) is removed, and fails the test unless it has failed already.
When the test fails, the logs of all programs are printed first.

Environment: BRAID_BUILD, the build directory (default: build/ of this tree);
BRAID_TEST_TMP, where the temporary directories go (default /tmp); BRAID_SEED, the seed of
random tests (see seed()).
"""

import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("BRAID_BUILD", ROOT / "build")).resolve()
BRAIDD = BUILD / "controlplane/server/braidd"
BRAID = BUILD / "tools/cli/braid"
BRAID_ATTACH = BUILD / "tools/attach/braid-attach"
PLUGIN = BUILD / "nbdkit-plugin/nbdkit-braid-plugin.so"

# Every wait has this bound unless told otherwise: the development machine has two slow
# cores, and a sanitizer build may run ten times slower still.
PATIENCE_SECONDS = 60

# Each layout with the flags of `volume create` and the devices it needs.
LAYOUTS = {
    "linear": (dict(), 1),
    "striped": (dict(stripes=3), 3),
    "mirrored-2": (dict(copies=2), 2),
    "mirrored-3": (dict(copies=3), 3),
    "mirrored-4": (dict(copies=4), 4),
    "striped-mirrors": (dict(stripes=2, copies=2), 4),
}

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


class Failure(AssertionError):
    """Something the test demanded did not come true."""


def seed():
    """The seed of this run: BRAID_SEED, or a new one; printed so that it can be given."""
    value = int(os.environ.get("BRAID_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"BRAID_SEED={value}", flush=True)
    return value


def run(command, timeout=PATIENCE_SECONDS, check=True, **keywords):
    """Runs a program to its end; its standard output, or with check=False the result."""
    command = [str(word) for word in command]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, timeout=timeout, **keywords)
    if not check:
        return result
    if result.returncode != 0:
        raise Failure(f"{' '.join(command)}\nended with {result.returncode}\n"
                      f"{result.stdout[-4000:]}{result.stderr[-4000:]}")
    return result.stdout


def wait_until(condition, what, timeout=PATIENCE_SECONDS):
    """Polls until condition() is true, and returns what it gave."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f"waited {timeout} s in vain: {what}")
        time.sleep(0.02)


def parse_size(text):
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"(\d+)([KMGTPE]?)", text)
    return int(match[1]) << (10 * " KMGTPE".index(match[2] or " "))


def make_sparse(path, size):
    with open(path, "wb") as file:
        file.truncate(parse_size(size))
    return path


_NUMBER_KEY = re.compile(r"(_bytes|_count|_seconds|_pid|_unit|_to_full|^pid|^epoch|^revision|^restarts)$")


def plain(value, key=""):
    """Protobuf's JSON with its 64-bit numbers, which it writes as strings, as numbers."""
    if isinstance(value, dict):
        return {name: plain(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner, key) for inner in value]
    if isinstance(value, str) and _NUMBER_KEY.search(key) and re.fullmatch(r"-?\d+", value):
        return int(value)
    return value


# --- processes ---------------------------------------------------------------------------


def _become_reaper():
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _process_table():
    """pid -> (parent, state, name) of every process."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                text = pathlib.Path("/proc", entry, "stat").read_text()
                name, _, rest = text.partition(" (")[2].rpartition(") ")
                fields = rest.split()
                table[int(entry)] = (int(fields[1]), fields[0], name)
    return table


def alive(pid):
    """The process runs (a zombie does not)."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(") ")[2].split()[0] not in "ZX"


def descendants(root=None):
    """pid -> name of every live process below `root` (this process)."""
    table = _process_table()
    found, frontier = {}, [root or os.getpid()]
    while frontier:
        parent = frontier.pop()
        for pid, (its_parent, state, name) in table.items():
            if its_parent == parent:
                frontier.append(pid)
                if state not in "ZX":
                    found[pid] = name
    return found


def command_line(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return "?"


def kill(pid, how=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


def wait_gone(pid, timeout=PATIENCE_SECONDS):
    wait_until(lambda: not alive(pid), f"process {pid} ({command_line(pid)}) ends", timeout)


class Process:
    """A program started by the test, its output in a log of the site."""

    def __init__(self, command, log, **keywords):
        self.command = [str(word) for word in command]
        self.log = pathlib.Path(log)
        with open(log, "ab") as output:
            self._popen = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=output,
                                           stderr=output, **keywords)
        self.pid = self._popen.pid

    def running(self):
        return self._popen.poll() is None

    def wait(self, timeout=PATIENCE_SECONDS):
        return self._popen.wait(timeout)

    def kill(self):
        """SIGKILL; returns when it is gone."""
        self._popen.kill()
        self._popen.wait()

    def stop(self, timeout=PATIENCE_SECONDS):
        """SIGTERM, and the exit status; a program that does not heed it fails the test."""
        self._popen.terminate()
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failure(f"did not end on SIGTERM within {timeout} s: {' '.join(self.command)}")


# --- the site ----------------------------------------------------------------------------


class Attachment:
    """One `braid attach`; a context manager that detaches."""

    def __init__(self, site, volume, reply):
        self.site, self.volume = site, volume
        self.uri = reply.get("uri", "")
        self.path = reply.get("path", "")
        self.pid = reply["pid"]

    def status(self):
        """The LocalAttachment message as it is now."""
        listed = self.site.braid("attach", "--list").get("attachments", [])
        mine = [a for a in listed if a["volume"].rpartition("/")[2] == self.volume]
        if len(mine) != 1:
            raise Failure(f"{self.volume} is listed {len(mine)} times among {listed}")
        return mine[0]

    def server_pid(self):
        """Of nbdkit; waits while it is being restarted."""
        def running():
            pid = self.status().get("server_pid", 0)
            return pid if pid and alive(pid) else None
        return wait_until(running, f"the server of {self.volume} runs")

    def detach(self):
        if self in self.site.attachments:
            self.site.attachments.remove(self)
            self.site.braid("detach", self.volume)
            wait_gone(self.pid)

    def __enter__(self):
        return self

    def __exit__(self, exception_type, *_):
        if exception_type is None:
            self.detach()


class FaultyFile:
    """A file that shows another file through nbdfuse and a plain nbdkit, and can break.

    break_now() ends that nbdkit with SIGKILL: from then on every read, write and fsync of
    the file, through descriptors open before as well, fails in the kernel, as on a disk
    that died. (nbdfuse 1.14 ends by an assertion then, and the file gives ENOTCONN.)
    """

    def __init__(self, site, name, size):
        self._site = site
        self.backing = make_sparse(site.dir / f"{name}.backing", size)
        self.path = site.dir / name
        self.path.touch()
        self._socket = site.dir / f"{name}.sock"
        self.broken = False
        self.start()

    def start(self):
        """Serves the file (again)."""
        self._nbdkit = self._site.start(
            ["nbdkit", "-f", "-U", self._socket, "-t", "4", "file", self.backing],
            f"{self.path.name}.nbdkit")
        wait_until(lambda: connects(self._socket), f"nbdkit serves {self.backing}")
        self._nbdfuse = self._site.start(["nbdfuse", self.path, "--unix", self._socket],
                                         f"{self.path.name}.nbdfuse")
        wait_until(lambda: is_mount(self.path), f"nbdfuse shows {self.path}")
        self.broken = False

    def break_now(self):
        self._nbdkit.kill()
        self._socket.unlink()
        self.broken = True

    def stop(self):
        if is_mount(self.path):
            run(["umount", "-l" if self.broken else "-i", self.path])
        if self._nbdfuse.running():
            wait_until(lambda: not self._nbdfuse.running(), "nbdfuse ends", 10)
        if self._nbdkit.running():
            self._nbdkit.stop()


def connects(path):
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
            return True
        except OSError:
            return False


def mounts_below(directory):
    """Mount points at or below a directory, the deepest last."""
    found = []
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == str(directory) or point.startswith(f"{directory}/"):
            found.append(point)
    return found


def is_mount(path):
    return str(path) in mounts_below(path)


def loops_below(directory):
    """Loop devices whose file lies below a directory."""
    found = []
    for entry in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if entry.read_text().strip().startswith(f"{directory}/"):
                found.append(f"/dev/{entry.parts[3]}")
    return found


class Site:
    """See the top of this file. `name` is the site's; `start=False` leaves braidd to the test."""

    def __init__(self, name="s1", start=True):
        _become_reaper()
        self.name = name
        base = os.environ.get("BRAID_TEST_TMP", "/tmp")
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="braid-", dir=base))
        self.data_dir = self.dir / "data"
        self.run_dir = self.dir / "run"
        self.run_dir.mkdir()
        self.socket = self.dir / "braidd.sock"
        self.control = f"unix:{self.socket}"
        self.attachments = []
        self.environment = dict(os.environ, BRAID_CONTROL=self.control,
                                BRAID_RUN_DIR=str(self.run_dir))
        self._stack = contextlib.ExitStack()
        self._before = self._outside()
        self._served = 0
        self.braidd = None
        # Registered before all else, so that it ends last, also after a restart.
        self._stack.callback(
            lambda: self.braidd and self.braidd.running() and self.braidd.stop())
        try:
            if start:
                self.start_braidd()
        except BaseException:
            self._end(failed=True)
            raise

    # Processes.

    def start(self, command, log_name, **keywords):
        """Starts a program that the site stops at its end at the latest."""
        keywords.setdefault("env", self.environment)
        process = Process(command, self.dir / f"{log_name}.log", **keywords)
        self._stack.callback(lambda: process.running() and process.stop())
        return process

    def start_braidd(self, *extra):
        self.braidd = Process(
            [BRAIDD, "--data-dir", self.data_dir, "--site", self.name, "--listen", self.control,
             "--run-dir", self.run_dir, *extra], self.dir / "braidd.log", env=self.environment)

        def ready():
            if not self.braidd.running():
                raise Failure(f"braidd ended with {self.braidd.wait()}")
            return connects(self.socket)
        wait_until(ready, "braidd listens")
        return self.braidd

    def stop_braidd(self):
        status = self.braidd.stop()
        if status != 0:
            raise Failure(f"braidd ended with {status} on SIGTERM")

    def kill_braidd(self):
        self.braidd.kill()

    # The command.

    def braid_result(self, *arguments, json_output=False, timeout=PATIENCE_SECONDS):
        command = [BRAID, "--control", self.control] + (["--json"] if json_output else [])
        return run([*command, *arguments], timeout=timeout, check=False, env=self.environment)

    def braid(self, *arguments, timeout=PATIENCE_SECONDS):
        """Runs `braid --json …`, which must end 0; its answer, {} when there is none."""
        result = self.braid_result(*arguments, json_output=True, timeout=timeout)
        if result.returncode != 0:
            raise Failure(f"braid {' '.join(map(str, arguments))}\nended with {result.returncode}: "
                          f"{result.stdout}{result.stderr}")
        return plain(json.loads(result.stdout)) if result.stdout.strip() else {}

    def braid_text(self, *arguments):
        """The same without --json: what a person reads."""
        result = self.braid_result(*arguments)
        if result.returncode != 0:
            raise Failure(f"braid {' '.join(map(str, arguments))}\nended with {result.returncode}: "
                          f"{result.stdout}{result.stderr}")
        return result.stdout

    def braid_refuses(self, *arguments, status=1):
        """The command must end with `status` and say why, and what to do, in one line."""
        result = self.braid_result(*arguments)
        what = f"braid {' '.join(map(str, arguments))!r}"
        if result.returncode != status:
            raise Failure(f"{what} ended with {result.returncode}, not {status}: "
                          f"{result.stdout}{result.stderr}")
        lines = result.stderr.splitlines()
        if len(lines) != 1 or not lines[0].strip():
            raise Failure(f"{what}: not one line on standard error: {result.stderr!r}")
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in lines[0]):
            raise Failure(f"{what}: control characters reach the terminal: {lines[0]!r}")
        if "; " not in lines[0]:
            raise Failure(f"{what}: does not say what to do about it: {lines[0]!r}")
        return lines[0]

    # Devices.

    def add_file(self, name, size, device_class="ssd", *extra):
        """Registers a new sparse file; its path."""
        path = make_sparse(self.dir / name, size)
        self.add_device(path, name, device_class, *extra)
        return path

    def add_loop(self, name, size, device_class="ssd"):
        """Registers a loop device over a new sparse file; the device's path."""
        loop = self.loop(make_sparse(self.dir / name, size))
        self.add_device(loop, name, device_class)
        return loop

    def add_faulty(self, name, size, device_class="ssd"):
        """Registers a file that the test can break (FaultyFile)."""
        faulty = FaultyFile(self, name, size)
        self._stack.callback(faulty.stop)
        self.add_device(faulty.path, name, device_class)
        return faulty

    def add_device(self, path, name, device_class="ssd", *extra):
        return self.braid("device", "add", path, "--class", device_class, "--name", name, *extra)

    def add_devices(self, count, size):
        return [self.add_file(f"d{i + 1}", size) for i in range(count)]

    def loop(self, path):
        device = run(["losetup", "--find", "--show", path]).strip()
        self._stack.callback(lambda: device in loops_below(self.dir) and run(["losetup", "-d", device]))
        return device

    def mount(self, source, name="mnt", *options):
        """Mounts at a directory of the site; taken down with unmount() or at the end."""
        point = self.dir / name
        point.mkdir(exist_ok=True)
        run(["mount", *options, source, point])
        self._stack.callback(lambda: is_mount(point) and run(["umount", point]))
        return point

    def unmount(self, point):
        run(["umount", point])

    # Volumes.

    def create(self, name, size, **flags):
        """`volume create`; keyword stripe_size=... becomes --stripe-size ..., thin=True --thin"""
        words = []
        for flag, value in flags.items():
            words += ["--" + flag.replace("_", "-")] + ([] if value is True else [str(value)])
        return self.braid("volume", "create", name, "--size", str(size), *words, timeout=300)

    def create_layout(self, layout, name="v", size="256M", device_size="1G", **more):
        """A volume of a layout of LAYOUTS on fresh file devices; their paths."""
        flags, device_count = LAYOUTS[layout]
        paths = self.add_devices(device_count, device_size)
        self.create(name, size, **flags, **more)
        return paths

    def volume(self, name):
        return self.braid("volume", "show", name)["volume"]

    def volume_map(self, name):
        return self.braid("volume", "map", name)["rows"]

    def pool(self, device_class="ssd"):
        """The class's line of the free-space table."""
        pools = {p["device_class"]: p for p in self.braid("pool", "list").get("pools", [])}
        return pools[device_class]

    def check_pools(self):
        """The store's records agree with each other and with what is counted."""
        findings = self.braid("pool", "check").get("findings", [])
        if findings:
            raise Failure("braid pool check: " + "; ".join(findings))
        for pool in self.braid("pool", "list").get("pools", []):
            parts = sum(pool.get(part, 0) for part in ("allocated_bytes", "reserved_bytes",
                                                       "free_bytes"))
            if parts != pool["capacity_bytes"]:
                raise Failure(f"a pool that does not add up: {pool}")

    def devices(self):
        return {d["name"]: d for d in self.braid("device", "list").get("devices", [])}

    def extents_with_unequal_copies(self, volume):
        """(column, unit) where copies differ, as read from the devices themselves."""
        paths = {name: device["path"] for name, device in self.devices().items()}
        copies = {}
        for row in self.volume_map(volume):
            unit_bytes = row["length_bytes"] // row["unit_count"]
            with open(paths[row["device"]], "rb") as device:
                device.seek(row["device_offset_bytes"])
                for unit in range(row["unit_count"]):
                    copies.setdefault((row["column"], row["first_unit"] + unit), set()).add(
                        hashlib.sha256(device.read(unit_bytes)).digest())
        return [where for where, digests in copies.items() if len(digests) > 1]

    def state(self):
        """All that a refused command must leave as it was."""
        state = {what: self.braid(what, "list") for what in ("device", "volume", "pool")}
        for pool in state["pool"].get("pools", []):
            for trend in ("allocation_bytes_per_second", "seconds_to_full"):
                pool.pop(trend, None)  # changes as time passes
        return state

    def attach(self, volume, via="socket", *extra):
        arguments = ["attach", volume, "--via", via]
        if via == "socket":
            arguments += ["--socket", self.dir / f"{volume}.sock"]
        reply = self.braid(*arguments, *extra)
        attachment = Attachment(self, volume, reply)
        self.attachments.append(attachment)
        self._stack.callback(attachment.detach)
        return attachment

    def serve(self, volume, *nbdkit_flags):
        """nbdkit with the plugin, without braid-attach: (URI, process)."""
        self._served += 1
        path = self.dir / f"{volume}.{self._served}.sock"
        process = self.start(["nbdkit", "-f", "-U", path, *nbdkit_flags, PLUGIN,
                              f"volume={volume}", f"control={self.control}"], f"{path.name}.nbdkit")

        def ready():
            if not process.running():
                raise Failure(f"nbdkit ended with {process.wait()}: {process.log.read_text()}")
            return connects(path)
        wait_until(ready, f"nbdkit serves {volume}")
        return f"nbd+unix:///?socket={path}", process

    # The end.

    def __enter__(self):
        return self

    def __exit__(self, exception_type, exception, _):
        self._end(failed=exception_type is not None)

    @staticmethod
    def _outside():
        """What a Braid program could leave outside the site's directory."""
        found = set()
        for directory in ("/run/braid", "/var/lib/braid"):
            for path, _, files in os.walk(directory):
                found.update(os.path.join(path, file) for file in files)
        return found

    def _end(self, failed):
        if failed:
            self._print_logs()
            # What the test left half done may not end in good order; it need not.
            self._sweep()
            return
        problem = None
        try:
            self._stack.close()
        except BaseException as error:  # pylint: disable=broad-except
            problem = error
            self._print_logs()
        left = self._leftovers()
        self._sweep()
        if problem:
            raise problem
        if left:
            raise Failure("left behind: " + "; ".join(left))

    def _leftovers(self):
        # What was just ended may need a moment to be gone.
        deadline = time.monotonic() + 5
        while descendants() and time.monotonic() < deadline:
            time.sleep(0.02)
        left = [f"process {pid} {command_line(pid)}" for pid in descendants()]
        left += [f"mount {point}" for point in mounts_below(self.dir)]
        left += [f"loop device {device}" for device in loops_below(self.dir)]
        left += [f"file {path}" for path in sorted(self._outside() - self._before)]
        left += [f"socket {path}" for path in self.run_dir.rglob("*")
                 if stat.S_ISSOCK(path.lstat().st_mode)]
        return left

    def _sweep(self):
        self._stack.pop_all()
        for pid in descendants():
            kill(pid)
        for point in reversed(mounts_below(self.dir)):
            run(["umount", "-l", point], check=False)
        for device in loops_below(self.dir):
            run(["losetup", "-d", device], check=False)
        for pid, (parent, state, _) in _process_table().items():
            if parent == os.getpid() and state == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        shutil.rmtree(self.dir, ignore_errors=True)

    def _print_logs(self):
        logs = [*self.dir.glob("*.log"), *self.run_dir.rglob("*.log")]
        for log in sorted(logs):
            lines = log.read_text(errors="replace").splitlines()
            print(f"----- {log.name}, its last lines of {len(lines)}", file=sys.stderr)
            print("\n".join(lines[-60:]), file=sys.stderr)
        for pid, name in descendants().items():
            print(f"----- running: {pid} {name}: {command_line(pid)}", file=sys.stderr)
        sys.stderr.flush()


def main():
    """Runs the unittest cases of the calling script."""
    import unittest
    # A test that is stopped from outside (meson's timeout sends SIGTERM) still cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    unittest.main(verbosity=2, failfast=False)
