# shellcheck shell=bash disable=SC2154  # read by lib.sh, whose $cache it uses
# Progress of long work: each step prints what it does, its usual duration and its actual duration.

# The number of steps, for "[2/9]"; a script sets it when it knows which parts exist.
steps=0
step_number=0

duration() { if (($1 < 60)); then echo "${1}s"; else echo "$(($1 / 60))m$(($1 % 60))s"; fi; }

# step WHAT USUAL COMMAND...: runs the command with its output in a log file. Must not be called in a condition:
# bash would ignore `set -e` inside the command.
step() {
  local what=$1 usual=$2 start=$SECONDS log status=0 ticker line
  shift 2
  step_number=$((step_number + 1))
  log=$cache/log/$(tr -cs '[:alnum:].\n' - <<<"$what").log
  line="$what (usually $usual) ... "
  ((steps == 0)) || line="[$step_number/$steps] $line"
  printf '%s' "$line" >&2
  # Programs end at Ctrl-C; this only prints that nothing is lost.
  trap 'say; say "interrupted; the next run continues from here"; exit 130' INT
  tick "$log" "$line" & ticker=$!
  set +e
  (set -e; "$@") >"$log" 2>&1 </dev/null
  status=$?
  set -e
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  trap 'exit 130' INT
  if on_terminal; then
    printf '\r%s\e[K' "$line" >&2
  elif ((SECONDS - start >= 60)); then
    printf '\n    ' >&2 # on a new line, below those of the ticker
  fi
  if ((status)); then
    say "failed after $(duration $((SECONDS - start)))"
    tail -n 5 "$log" | sed 's/^/    /' >&2
    die "$what failed; the full output is in $log"
  fi
  say "done in $(duration $((SECONDS - start)))"
}

on_terminal() { [[ -t 2 && ${TERM:-dumb} != dumb ]]; }

# tick LOG LINE: on a terminal, updates the line every second with the duration so far and the last line of the step's log;
# elsewhere, prints a line every minute. Waits on an empty pipe: a `sleep` would outlive this script and keep the caller's
# stderr open.
tick() {
  local silence seconds=0 last width
  exec {silence}<> <(:)
  width=$(tput cols 2>/dev/null) || width=80
  while ! read -r -t 1 -u "$silence" && kill -0 $$ 2>/dev/null; do
    ((++seconds))
    last=$(tail -n 1 "$1" 2>/dev/null | tr -cd '[:print:]')
    if on_terminal; then
      last="$2$(duration "$seconds")  $last"
      printf '\r%s\e[K' "${last:0:width-1}" >&2
    elif ((seconds % 60 == 0)); then
      printf '\n    %s so far: %.80s' "$(duration "$seconds")" "$last" >&2
    fi
  done
}
