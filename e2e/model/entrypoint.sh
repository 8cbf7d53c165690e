#!/bin/sh
# As in many images: some preparation, then the program replaces the shell.
export PREPARED=yes
exec python3 "$@"
