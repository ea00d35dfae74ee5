#!/usr/bin/env bash
# Every test from nothing, in an environment of its own. Arguments go to pytest.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$("$top/.ci/environment" test,demo)
cd "$top"
exec "$python" -m pytest "$@"
