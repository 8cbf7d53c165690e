# shellcheck shell=bash disable=SC2154  # read by lib.sh, whose $cache it uses
# Long work, seen: each step says what it does, how long that usually takes and how long it took.

# How many steps the whole will have, for "[2/9]"; a script sets it once it knows what is already there.
steps=0
step_number=0

duration() { if (($1 < 60)); then echo "${1}s"; else echo "$(($1 / 60))m$(($1 % 60))s"; fi; }

# step WHAT USUAL COMMAND...: runs the command with its output in a log file. Must not be called in a condition:
# bash would ignore `set -e` inside the command.
step() {
  local what=$1 usual=$2 start=$SECONDS log status=0 ticker
  shift 2
  step_number=$((step_number + 1))
  log=$cache/log/$(tr -cs '[:alnum:].\n' - <<<"$what").log
  ((steps == 0)) || printf '[%d/%d] ' "$step_number" "$steps" >&2
  printf '%s (usually %s) ... ' "$what" "$usual" >&2
  # Programs end by themselves at Ctrl-C; ours to say is only that nothing is lost.
  trap 'say; say "interrupted; the next run goes on from here"; exit 130' INT
  tick "$log" & ticker=$!
  set +e
  (set -e; "$@") >"$log" 2>&1 </dev/null
  status=$?
  set -e
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  trap 'exit 130' INT
  ((SECONDS - start < 60)) || printf '\n    ' >&2 # on a line of its own, below those of the ticker
  if ((status)); then
    say "failed after $(duration $((SECONDS - start)))"
    tail -n 5 "$log" | sed 's/^/    /' >&2
    die "$what failed; the whole output is in $log"
  fi
  say "done in $(duration $((SECONDS - start)))"
}

# A line a minute, with the last one of the step's log. Waits on a pipe that never has anything: a `sleep` would
# outlive us and hold the caller's stderr open.
tick() {
  local silence seconds=0
  exec {silence}<> <(:)
  while ! read -r -t 1 -u "$silence" && kill -0 $$ 2>/dev/null; do
    ((++seconds % 60)) || printf '\n    %s so far: %.80s' "$(duration "$seconds")" "$(tail -n 1 "$1")" >&2
  done
}
