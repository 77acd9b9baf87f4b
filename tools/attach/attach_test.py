#!/usr/bin/python3
"""braid-attach as its users meet it: the real program, nbdkit's plugins, nbdfuse.

usage: attach_test.py BRAID_ATTACH [unittest arguments]
"""
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import unittest

import nbd

ATTACH = os.path.abspath(sys.argv.pop(1))
VOLUME_ID = "11111111-2222-4333-8444-555555555555"
SIZE = 8 << 20
PATIENCE_S = 30  # for what must come; nothing here is about how fast


def alive(pid):
    """Whether process `pid` runs; one that only waits to be reaped does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def mounted(path):
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return any(line.split()[4] == path for line in file)


def close_dead(descriptor):
    """Closes a file whose file system is gone, which is an error, as it should be."""
    try:
        os.close(descriptor)
    except OSError:
        pass


class Control:
    """A client of the control socket."""

    def __init__(self, folder):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(100)
        self.socket.connect(os.path.join(folder, "ctl"))
        self.lines = self.socket.makefile(encoding="utf-8", errors="replace")

    def ask(self, command):
        """The answer, and the progress lines before it."""
        self.socket.sendall(command.encode() + b"\n")
        progress = []
        for line in self.lines:
            if not line.startswith("progress "):
                return line.rstrip("\n"), progress
            progress.append(line)
        return None, progress

    def close(self):
        self.lines.close()
        self.socket.close()


class Base(unittest.TestCase):
    """A folder to attach in, and what every test needs."""

    def setUp(self):
        self.root = tempfile.mkdtemp(prefix="braid-attach-test.")
        self.folder = os.path.join(self.root, "here.vol")
        self.disk = os.path.join(self.root, "disk")
        with open(self.disk, "wb") as disk:
            disk.truncate(SIZE)
        self.started = []
        self.addCleanup(self.clean_up)

    def clean_up(self):
        log = os.path.join(self.folder, "log")
        if os.path.exists(log):  # then the test failed before its detach
            with open(log, encoding="utf-8", errors="replace") as file:
                print("\n" + file.read()[-4000:])
        for pid in self.started:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        for path in (os.path.join(self.folder, "fuse"), os.path.join(self.root, "file")):
            if mounted(path):
                subprocess.run(["fusermount3", "-uz", path], check=False)
        shutil.rmtree(self.root, ignore_errors=True)

    def run_serve(self, *flags, plugin=("file",), arguments=None, folder=None):
        arguments = [self.disk] if arguments is None else arguments
        return subprocess.run(
            [ATTACH, "serve", "--volume", "here/vol", "--volume-id", VOLUME_ID, "--dir",
             folder or self.folder, "--plugin", *plugin, *flags, "--", *arguments],
            capture_output=True, text=True, timeout=100, check=False)

    def serve(self, *flags, **options):
        """Attaches; the report."""
        done = self.run_serve(*flags, **options)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        report = json.loads(done.stdout)
        self.started += [int(report["pid"]), int(report["server_pid"])]
        return report

    def refused(self, *flags, **options):
        """Does not attach; the reason."""
        done = self.run_serve(*flags, **options)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertEqual(done.stdout.count("\n"), 1)
        return json.loads(done.stdout)["error"]

    def ask(self, command):
        control = Control(self.folder)
        try:
            return control.ask(command)[0]
        finally:
            control.close()

    def status(self):
        status = json.loads(self.ask("status"))
        if int(status["server_pid"]):
            self.started.append(int(status["server_pid"]))
        return status

    def until(self, condition, what):
        end = time.monotonic() + PATIENCE_S
        while not condition():
            self.assertLess(time.monotonic(), end, "waited in vain: " + what)
            time.sleep(0.01)

    def connect(self):
        handle = nbd.NBD()
        handle.connect_unix(os.path.join(self.folder, "server.sock"))
        return handle

    def detach(self, command="detach"):
        pids = [pid for pid in self.started if alive(pid)]
        self.assertEqual(self.ask(command), "ok")
        # At "ok" the files are gone already.
        self.assertFalse(os.path.lexists(self.folder))
        self.until(lambda: not any(map(alive, pids)), "the processes' end")


class SocketTest(Base):
    def test_socket_serves_and_detach_leaves_nothing(self):
        report = self.serve("--via", "socket")
        self.assertEqual(report["volume"], "here/vol")
        self.assertEqual(report["volume_id"], VOLUME_ID)
        self.assertEqual(report["uri"], f"nbd+unix:///?socket={self.folder}/server.sock")
        self.assertEqual((report["path"], report["restarts"]), ("", "0"))
        self.assertEqual(stat.S_IMODE(os.stat(self.folder).st_mode), 0o700)
        handle = self.connect()
        self.assertEqual(handle.get_size(), SIZE)
        handle.pwrite(b"x" * 512, 4096)
        handle.shutdown()
        self.detach()
        with open(self.disk, "rb") as disk:
            disk.seek(4096)
            self.assertEqual(disk.read(512), b"x" * 512)

    def test_read_only_refuses_writes(self):
        self.assertTrue(self.serve("--via", "socket", "--read-only")["read_only"])
        handle = self.connect()
        self.assertTrue(handle.is_read_only())
        handle.shutdown()
        self.detach()

    def test_killed_server_comes_back_on_the_same_socket(self):
        before = self.serve("--via", "socket")
        socket_file = os.stat(os.path.join(self.folder, "server.sock")).st_ino
        for kill in range(1, 4):
            os.kill(int(self.status()["server_pid"]), signal.SIGKILL)
            # No wait: a client that comes in between waits in the backlog.
            handle = self.connect()
            self.assertEqual(handle.pread(512, 0), bytes(512))
            handle.shutdown()
            self.until(lambda: self.status()["restarts"] == str(kill), "the restart's count")
            self.until(lambda: self.status()["server_pid"] != "0", "the next server")
        after = self.status()
        self.assertEqual(before["pid"], after["pid"])
        self.assertIn("signal 9", after["last_error"])
        self.assertEqual(os.stat(os.path.join(self.folder, "server.sock")).st_ino, socket_file)
        self.detach()

    def test_server_that_cannot_start_again_is_tried_until_it_can(self):
        self.serve("--via", "socket")
        os.rename(self.disk, self.disk + ".away")
        os.kill(int(self.status()["server_pid"]), signal.SIGKILL)
        self.until(lambda: "disk" in self.status()["last_error"], "the server's complaint")
        self.assertEqual(self.status()["server_pid"], "0")
        self.assertIn("nbdkit: error:", self.status()["last_error"])
        os.rename(self.disk + ".away", self.disk)
        self.until(lambda: self.status()["server_pid"] != "0", "the server")
        self.detach()

    def test_second_attach_is_refused_and_names_the_first(self):
        report = self.serve("--via", "socket")
        self.assertEqual(self.refused("--via", "socket"),
                         "here/vol is already attached at " + report["uri"])
        self.assertEqual(self.status()["pid"], report["pid"])
        self.detach()

    def test_server_that_does_not_start_says_why_and_nothing_is_left(self):
        reason = self.refused("--via", "socket", plugin=("memory",), arguments=["12 cows"])
        self.assertTrue(reason.startswith("nbdkit: error: "), reason)
        self.assertIn("cows", reason)
        self.assertFalse(os.path.lexists(self.folder))

    def test_plugin_that_refuses_to_open_says_why(self):
        reason = self.refused("--via", "socket", plugin=("eval",), arguments=[
            "get_size=echo 1M", "open=echo 'EIO the cows are out' >&2; exit 1"])
        self.assertIn("the cows are out", reason)
        self.assertFalse(os.path.lexists(self.folder))

    def test_killed_braid_attach_takes_the_server_along_and_leaves_no_obstacle(self):
        report = self.serve("--via", "socket")
        idle = self.connect()  # nbdkit would not end at SIGTERM now
        os.kill(int(report["pid"]), signal.SIGKILL)
        self.until(lambda: not alive(int(report["server_pid"])), "the server's end")
        del idle
        self.assertTrue(os.path.exists(os.path.join(self.folder, "server.sock")))
        self.serve("--via", "socket")
        self.connect().shutdown()
        self.detach()

    def test_what_is_not_a_socket_is_not_removed(self):
        os.mkdir(self.folder, 0o700)
        path = os.path.join(self.folder, "server.sock")
        with open(path, "w", encoding="ascii") as file:
            file.write("precious")
        self.assertIn("is not a socket", self.refused("--via", "socket"))
        with open(path, encoding="ascii") as file:
            self.assertEqual(file.read(), "precious")

    def test_socket_that_somebody_serves_is_not_taken(self):
        path = os.path.join(self.root, "s")
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)
            other.listen()
            self.assertIn("another process listens", self.refused("--via", "socket", "--socket",
                                                                  path))
            self.assertTrue(os.path.exists(path))
        self.serve("--via", "socket", "--socket", path)  # and a stale one is
        self.detach()
        self.assertFalse(os.path.lexists(path))

    def test_detach_is_refused_while_a_client_is_connected_unless_forced(self):
        self.serve("--via", "socket")
        handle = self.connect()
        answer = self.ask("detach")
        self.assertTrue(answer.startswith("error the socket is in use: connected from process "
                                          f"{os.getpid()} ("), answer)
        self.assertEqual(handle.pread(512, 0), bytes(512))
        self.detach("detach force")

    def test_sigterm_ends_it_cleanly_though_a_client_is_connected(self):
        report = self.serve("--via", "socket")
        handle = self.connect()
        handle.pwrite(b"y" * 512, 0)
        os.kill(int(report["pid"]), signal.SIGTERM)
        self.until(lambda: not alive(int(report["pid"])), "the end")
        self.assertFalse(alive(int(report["server_pid"])))
        self.assertFalse(os.path.lexists(self.folder))

    def test_ready_fd_gets_the_one_line(self):
        reader, writer = os.pipe()
        with os.fdopen(reader, encoding="utf-8") as ready:
            subprocess.run(
                [ATTACH, "serve", "--volume", "here/vol", "--volume-id", VOLUME_ID, "--dir",
                 self.folder, "--plugin", "file", "--via", "socket", "--ready-fd", str(writer),
                 "--", self.disk], pass_fds=[writer], check=True, timeout=60)
            os.close(writer)
            report = json.loads(ready.read())
        self.started += [int(report["pid"]), int(report["server_pid"])]
        self.detach()

    def test_wrong_command_lines_exit_2(self):
        for flags in (["--via", "pigeon"], ["--via", "socket", "--threads", "0"],
                      ["--via", "socket", "--connections", "9999999999999999999"],
                      ["--via", "socket", "--volume-id", "7"], ["--via", "socket", "--volume", ".."],
                      ["--via", "socket", "--mount-path", "/x"], ["--via", "socket", "--cow"]):
            done = self.run_serve(*flags)
            self.assertEqual(done.returncode, 2, flags)
            self.assertTrue(done.stderr.startswith("braid-attach: "), done.stderr)
        self.assertFalse(os.path.lexists(self.folder))

    def test_nbd_without_the_driver_says_what_to_do(self):
        if os.path.isdir("/sys/module/nbd"):
            self.skipTest("this kernel has the NBD client; tests/vm covers it")
        self.assertIn("modprobe nbd", self.refused("--via", "nbd"))
        self.assertFalse(os.path.lexists(self.folder))


class ControlTest(Base):
    def test_hostile_control_clients_do_not_stop_supervision(self):
        self.serve("--via", "socket")
        path = os.path.join(self.folder, "ctl")
        clients = []
        for i in range(200):  # silent, half a line, a line without end, rubbish
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(PATIENCE_S)
            client.connect(path)
            clients.append(client)
            try:
                client.sendall((b"", b"stat", b"x" * 5000, b"\0\xff\n\n\n" * 100)[i % 4])
            except (BrokenPipeError, ConnectionResetError):
                pass
        os.kill(int(self.status()["server_pid"]), signal.SIGKILL)
        self.until(lambda: self.status()["restarts"] == "1", "the restart")
        greedy = socket.socket(socket.AF_UNIX)  # asks and never reads
        greedy.connect(path)
        greedy.settimeout(PATIENCE_S)
        with self.assertRaises((BrokenPipeError, ConnectionResetError)):
            while True:
                greedy.sendall(b"status\n" * 1000)
        self.assertEqual(self.status()["restarts"], "1")
        for client in clients + [greedy]:
            client.close()
        self.assertTrue(self.ask("make coffee").startswith("error unknown command"))
        self.until(lambda: self.status()["server_pid"] != "0", "the server")
        self.detach()

    def test_detach_tells_its_progress(self):
        self.serve("--via", "socket")
        control = Control(self.folder)
        answer, progress = control.ask("detach")
        control.close()
        self.assertEqual(answer, "ok")
        self.assertIn("progress stopping the server\n", progress)

    def test_log_is_bounded(self):
        complaint = "echo 'EIO " + "m" * 400 + "' >&2; exit 1"
        self.serve("--via", "socket", plugin=("eval",), arguments=[
            "get_size=echo 1M", "pread=" + complaint])
        handle = self.connect()
        for _ in range(1500):
            with self.assertRaises(nbd.Error):
                handle.pread(512, 0)
        self.assertIn("log.old", os.listdir(self.folder))
        for name in ("log", "log.old"):
            self.assertLessEqual(os.stat(os.path.join(self.folder, name)).st_size, 256 * 1024)
        handle.shutdown()
        self.detach()


@unittest.skipUnless(os.access("/dev/fuse", os.R_OK | os.W_OK), "/dev/fuse is missing")
class FuseTest(Base):
    def test_file_shows_the_volume(self):
        path = self.serve("--via", "fuse")["path"]
        self.assertEqual(path, os.path.join(self.folder, "fuse/vol"))
        with open(path, "r+b") as file:
            file.seek(1 << 20)
            file.write(b"z" * 4096)
            os.fsync(file.fileno())
        with open(self.disk, "rb") as disk:
            disk.seek(1 << 20)
            self.assertEqual(disk.read(4096), b"z" * 4096)
        self.detach()
        self.assertFalse(mounted(os.path.dirname(path)))

    def test_mount_path_is_made_and_removed(self):
        path = os.path.join(self.root, "file")
        self.assertEqual(self.serve("--via", "fuse", "--mount-path", path)["path"], path)
        self.assertEqual(os.stat(path).st_size, SIZE)
        self.detach()
        self.assertFalse(os.path.lexists(path))

    def test_mount_path_with_content_is_refused_and_kept(self):
        path = os.path.join(self.root, "file")
        with open(path, "w", encoding="ascii") as file:
            file.write("precious")
        self.assertIn("not an empty file", self.refused("--via", "fuse", "--mount-path", path))
        with open(path, encoding="ascii") as file:
            self.assertEqual(file.read(), "precious")

    def test_mount_comes_back_after_the_server_was_killed(self):
        path = self.serve("--via", "fuse")["path"]
        for kill in range(1, 4):
            os.kill(int(self.status()["server_pid"]), signal.SIGKILL)
            self.until(lambda: self.status()["restarts"] == str(kill), "the restart")
            self.until(lambda: self.status()["path"] == path, "the mount")
            with open(path, "rb") as file:
                self.assertEqual(file.read(512), bytes(512))
        self.detach()
        self.assertFalse(mounted(os.path.dirname(path)))

    def test_mount_comes_back_after_it_was_unmounted(self):
        path = self.serve("--via", "fuse")["path"]
        subprocess.run(["fusermount3", "-u", os.path.dirname(path)], check=True)
        self.until(lambda: "nbdfuse" in self.status()["last_error"], "the complaint")
        self.until(lambda: self.status()["path"] == path, "the mount")
        self.assertEqual(os.stat(path).st_size, SIZE)
        self.detach()

    def test_detach_is_refused_while_the_file_is_open_unless_forced(self):
        path = self.serve("--via", "fuse")["path"]
        file = os.open(path, os.O_RDONLY)
        self.addCleanup(close_dead, file)
        answer = self.ask("detach")
        self.assertTrue(answer.startswith(
            f"error {path} is in use: open in process {os.getpid()} ("), answer)
        self.assertEqual(os.read(file, 512), bytes(512))
        self.assertEqual(self.status()["path"], path)
        self.detach("detach force")
        self.assertFalse(mounted(os.path.dirname(path)))

    def test_detach_is_refused_while_a_loop_device_stands_on_it(self):
        path = self.serve("--via", "fuse")["path"]
        made = subprocess.run(["losetup", "--find", "--show", path], capture_output=True,
                              text=True, check=False)
        if made.returncode != 0:
            self.detach()
            self.skipTest("no loop device here: " + made.stderr.strip())
        loop = made.stdout.strip()
        try:
            self.assertIn("the backing file of " + loop, self.ask("detach"))
        finally:
            subprocess.run(["losetup", "--detach", loop], check=True)
        self.until(lambda: "loop" not in self.ask("detach"), "the detach")

    def test_sigterm_leaves_no_mount_though_the_file_is_open(self):
        report = self.serve("--via", "fuse")
        self.addCleanup(close_dead, os.open(report["path"], os.O_RDONLY))
        os.kill(int(report["pid"]), signal.SIGTERM)
        self.until(lambda: not alive(int(report["pid"])), "the end")
        self.assertFalse(mounted(os.path.dirname(report["path"])))
        self.assertFalse(os.path.lexists(self.folder))

    def test_killed_braid_attach_leaves_no_obstacle(self):
        report = self.serve("--via", "fuse")
        os.kill(int(report["pid"]), signal.SIGKILL)
        self.until(lambda: not alive(int(report["server_pid"])), "the server's end")
        path = self.serve("--via", "fuse")["path"]
        self.assertEqual(os.stat(path).st_size, SIZE)
        self.detach()


if __name__ == "__main__":
    unittest.main(verbosity=2)
