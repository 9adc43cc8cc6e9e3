# What scripts/test and scripts/nightly share; they source it, in the root of the repository.
# shellcheck shell=bash

program=scripts/$(basename "$0")
jobs=$(nproc)
took=""

fail() {
  echo "$program: error: $*" >&2
  exit 1
}

# stage NAME COMMAND...: says what runs, and how long the stage before it took.
stage() {
  local name=$1 status=0 start=$SECONDS
  shift
  [[ -n $took ]] && echo "   $took"
  echo "== $name"
  "$@" || status=$?
  ((status == 0)) || fail "stage '$name' failed with exit code $status after $((SECONDS - start)) s"
  took="took $((SECONDS - start)) s"
}

# The names of PRESET's tests that have a label matching REGEX. They are the names of their targets
# too: sluice_test() sees to that.
labelled() {
  ctest --test-dir "build/$1" -L "$2" --show-only=json-v1 |
    .venv/bin/python -c 'import json, sys; print(*(t["name"] for t in json.load(sys.stdin)["tests"]))'
}

# fuzzing SECONDS: each target for so long, all at a time. What fails stays in
# build/fuzz/tests/fuzz/failures.
fuzzing() {
  local log=build/fuzz.log
  cmake --preset fuzz -DSLUICE_FUZZ_SECONDS="$1" >"$log" 2>&1 </dev/null ||
    { tail -n 30 "$log" >&2 && return 1; }
  # shellcheck disable=SC2046  # one word for each target
  nice -n 10 cmake --build --preset fuzz -j "$jobs" --target $(labelled fuzz '^fuzz$') >>"$log" 2>&1 </dev/null ||
    { tail -n 30 "$log" >&2 && return 1; }
  ctest --test-dir build/fuzz -L '^fuzz$' --output-on-failure -j 8 --no-tests=error
}
