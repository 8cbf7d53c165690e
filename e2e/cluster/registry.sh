# shellcheck shell=bash
# Published images, where their registry answers.

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# pulled IMAGE: whether its registry gives it. Asking costs at most five seconds; the pull itself may
# take as long as it takes.
pulled() {
  DOCKER_CLI_HINTS=false timeout 5 docker manifest inspect "$1" >/dev/null 2>&1 || return
  say "pulling $1"
  docker pull -q "$1" >/dev/null || { say "its registry answered, but the pull failed: building it here instead"; return 1; }
}
