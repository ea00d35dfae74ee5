#!/usr/bin/env bash
# Every test from nothing, in an environment of its own, on two cores. Arguments go to pytest: `-n 0` for one process.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$("$top/.ci/environment" test,test-trainers,demo)
cd "$top"
# each of the two has a core to itself
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m pytest -n 2 "$@"
