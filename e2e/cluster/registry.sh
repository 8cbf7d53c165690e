# shellcheck shell=bash
# Published images, if their registry answers.

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# pulled IMAGE: pulls it, if its registry answers within five seconds. The pull itself has no time limit.
pulled() {
  DOCKER_CLI_HINTS=false timeout 5 docker manifest inspect "$1" >/dev/null 2>&1 || return
  say "pulling $1"
  docker pull -q "$1" >/dev/null || { say "its registry answered, but the pull failed: building it here instead"; return 1; }
}
