#!/bin/bash
# In the guest of run-in-vm: a volume at /dev/nbdN, a file system on it, its server killed under
# it, and nothing left after the detach.
# usage: attach_nbd_guest.sh BRAID_ATTACH [PLUGIN ARGUMENT...]
# Without a plugin: nbdkit's file plugin on a file in the guest's memory.
set -euo pipefail
ATTACH=$1; shift
DIR=/run/attach VOLUME_ID=11111111-2222-4333-8444-555555555555
fail() { echo "FAIL: $*"; cat "$DIR/log" 2>/dev/null; dmesg | tail -20; exit 1; }
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
say() { echo "== [$(cut -d' ' -f1 /proc/uptime)] $*"; }

# One command to the control socket; prints the line that is no progress.
ctl() {
  /usr/bin/python3 - "$DIR/ctl" "$1" <<'PYTHON'
import socket
import sys
control = socket.socket(socket.AF_UNIX)
control.settimeout(100)
control.connect(sys.argv[1])
control.sendall(sys.argv[2].encode() + b"\n")
for line in control.makefile():
    if not line.startswith("progress "):
        print(line, end="")
        break
PYTHON
}
field() { ctl status | jq -r ".$1"; }
# attach N: by N connections. The short timeouts are for the test: requests in flight when a
# server dies are sent again only when the request timeout has passed.
attach() {
  "$ATTACH" serve --volume here/vol --volume-id "$VOLUME_ID" --control none --dir "$DIR" \
    --via nbd --connections "$1" --request-timeout 3 --plugin "$PLUGIN" -- "${ARGUMENTS[@]}"
}

modprobe nbd max_part=0 nbds_max=4
mount -t tmpfs -o size=900m scratch /mnt
mkdir /mnt/fs /mnt/source
if [ $# -gt 0 ]; then
  PLUGIN=$1; shift; ARGUMENTS=("$@")
else
  truncate -s 512M /mnt/disk
  PLUGIN=file ARGUMENTS=(/mnt/disk)
fi
for i in 1 2 3 4 5 6 7 8; do head -c 3M /dev/urandom >/mnt/source/$i; done

for connections in 1 2; do
  say "attach with $connections connection(s)"
  REPORT=$(attach "$connections")
  echo "$REPORT"
  DEVICE=$(jq -r .path <<<"$REPORT")
  [[ $DEVICE =~ ^/dev/nbd[0-9]+$ ]]
  NAME=${DEVICE#/dev/}
  [ "$(cat "/sys/block/$NAME/backend")" = "braid:$VOLUME_ID" ]
  if attach 1; then fail "attached twice"; fi

  say "file system"
  mkfs.ext4 -q -F "$DEVICE"
  mount "$DEVICE" /mnt/fs
  cp -r /mnt/source /mnt/fs/first
  sync -f /mnt/fs
  ANSWER=$(ctl detach)
  [[ $ANSWER == "error $DEVICE is in use: mounted at /mnt/fs;"* ]] || fail "detach: $ANSWER"

  say "server killed under the file system, three times, with writes under way"
  for round in 1 2 3; do
    before=$(field restarts)
    cp -r /mnt/source "/mnt/fs/round$round" & copying=$!
    sleep 0.3
    kill -9 "$(field server_pid)"
    wait "$copying"
    sync -f /mnt/fs
    [ "$(field restarts)" -gt "$before" ]
    say "round $round: $(field last_error)"
  done
  echo 3 >/proc/sys/vm/drop_caches
  for copy in first round1 round2 round3; do diff -r /mnt/source "/mnt/fs/$copy"; done
  umount /mnt/fs
  e2fsck -fn "$DEVICE"

  say "braid-attach killed under a mounted file system; the next one adopts the device"
  mount "$DEVICE" /mnt/fs
  SERVER=$(field server_pid)
  kill -9 "$(field pid)"
  for i in $(seq 100); do kill -0 "$SERVER" 2>/dev/null || break; sleep 0.1; done
  if kill -0 "$SERVER" 2>/dev/null; then fail "the server outlives braid-attach"; fi
  [ "$(attach "$connections" | jq -r .path)" = "$DEVICE" ]
  cp -r /mnt/source /mnt/fs/adopted
  sync -f /mnt/fs
  echo 3 >/proc/sys/vm/drop_caches
  diff -r /mnt/source /mnt/fs/adopted
  umount /mnt/fs
  e2fsck -fn "$DEVICE"

  say "detach"
  [ "$(ctl detach)" = ok ]
  [ ! -e "/sys/block/$NAME/pid" ]
  [ "$(blockdev --getsize64 "$DEVICE")" = 0 ]
  [ ! -e "$DIR" ]
done

say "read-only"
"$ATTACH" serve --volume here/vol --volume-id "$VOLUME_ID" --control none --dir "$DIR" \
  --via nbd --read-only --plugin "$PLUGIN" -- "${ARGUMENTS[@]}"
[ "$(blockdev --getro "$DEVICE")" = 1 ]
mount -o ro "$DEVICE" /mnt/fs
diff -r /mnt/source /mnt/fs/adopted

say "detach by force while mounted"
[ "$(ctl "detach force")" = ok ]
[ ! -e "$DIR" ]
umount /mnt/fs
for i in $(seq 100); do [ -e "/sys/block/$NAME/pid" ] || break; sleep 0.1; done
[ ! -e "/sys/block/$NAME/pid" ]
if pgrep -x nbdkit || pgrep -x braid-attach; then fail "processes left"; fi
if dmesg | grep -E 'Oops|BUG:|blocked for more'; then fail "the kernel complains"; fi
say "PASS"
