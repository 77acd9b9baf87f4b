#!/bin/sh
# Fails when man finds anything wrong with the page $1, or shows nothing of it.
set -eu
warnings=$(LC_ALL=C.UTF-8 man --warnings -l "$1" 2>&1 >/dev/null)
if [ -n "$warnings" ]; then
  echo "$warnings" >&2
  exit 1
fi
LC_ALL=C.UTF-8 man -l "$1" | grep -q 'volume create NAME'
