#!/bin/sh
# As many images have it: a few words of preparation, then the program instead of the shell.
export PREPARED=yes
exec python3 "$@"
