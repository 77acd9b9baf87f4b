#!/usr/bin/python3
"""Stands in for braid-attach in tests of the command: same contract, no volume behind it.

FAKE_ATTACH says what to do instead of attaching: "error", "die" or "hang"."""
import argparse
import json
import os
import socket
import sys

parser = argparse.ArgumentParser()
parser.add_argument("verb", choices=["serve"])
for name in ("volume", "volume-id", "control", "dir", "via", "socket"):
    parser.add_argument("--" + name)
for name in ("connections", "threads", "ready-fd"):
    parser.add_argument("--" + name, type=int)
parser.add_argument("--read-only", action="store_true")
parser.add_argument("--thin", action="store_true")
args = parser.parse_args()


def ready(message):
    os.write(args.ready_fd, json.dumps(message).encode() + b"\n")
    os.close(args.ready_fd)


mode = os.environ.get("FAKE_ATTACH", "")
if mode == "error":
    ready({"error": "the volume is held by node n7"})
    sys.exit(1)
if mode == "die":
    sys.exit("fake: cannot go on")
if mode == "hang":
    os.read(os.pipe()[0], 1)  # nobody writes: waits for SIGTERM

os.mkdir(args.dir)  # not its parent, which the command makes
control = os.path.join(args.dir, "ctl")
listener = socket.socket(socket.AF_UNIX)
listener.bind(control)
listener.listen()
if os.fork() != 0:
    os._exit(0)
os.setsid()
about = {"volume": args.volume, "volume_id": args.volume_id, "via": args.via,
         "uri": "nbd+unix:///?socket=" + (args.socket or "x"),
         "path": "" if args.via == "socket" else "/fake/path", "pid": str(os.getpid()),
         "read_only": args.read_only, "restarts": "3", "from_the_future": 1}
ready(about)
listener.settimeout(20)  # an orphan of a test that died ends by itself
while True:
    peer, _ = listener.accept()
    with peer:
        request = peer.recv(100).decode()
        if request == "status\n":
            peer.sendall(json.dumps(about).encode() + b"\n")
        elif request == "detach\n" and args.read_only:
            peer.sendall(b"error /fake/path is mounted; unmount it, or use --force\n")
        elif request in ("detach\n", "detach force\n"):
            os.unlink(control)
            os.rmdir(args.dir)
            peer.sendall(b"progress flushing\nprogress stopping the server\nok\n")
            break
