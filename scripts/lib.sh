# What every script needs: where we are, the one virtual environment, and a voice.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${FIRSTLIGHT_VENV:-$root/.venv}"
bin="$venv/bin"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/firstlight"

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
fail() {
  printf 'error: %s\n' "$1" >&2
  [ -n "${2:-}" ] && printf 'hint: %s\n' "$2" >&2
  exit 1
}

# What a run of the tests wants of its environment.
test_settings() {
  # Where cores are few, a thread that spins while others run costs seconds: see worker/DESIGN.md.
  export GOMP_SPINCOUNT=5000
  # Pytest rewrites the assertions of every file: half of a start, if it may not keep them.
  unset PYTHONDONTWRITEBYTECODE
}
