#!/usr/bin/env bash
# The main job from nothing: an environment of its own, a real model and real text from the package index, QLoRA on them,
# and an adapter folder. Arguments go to `lorakit demo`.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$("$top/.ci/environment" demo)
exec "$python" -m lorakit demo "$top/examples/qlora.lora" "$@"
