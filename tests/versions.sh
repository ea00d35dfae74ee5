#!/usr/bin/env bash
# The tests on other versions than those of .ci/constraints.txt, each in an environment of its own under build/versions:
#   tests/versions.sh oldest [PYTEST ARGUMENTS]        the lower bounds of pyproject.toml
#   tests/versions.sh newest [PYTEST ARGUMENTS]        the newest releases that fit together
#   tests/versions.sh transformers==5.17.0,torch==2.11.0 [PYTEST ARGUMENTS]
#   tests/versions.sh oldest,torch==2.13.0 [PYTEST ARGUMENTS]
# Most releases of torch come with CUDA: gigabytes the first time.
# LORAKIT_VERSIONS names another folder than build/versions; PYTHON another interpreter than python3.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
what=${1:?usage: versions.sh oldest|newest|REQUIREMENT[,…] [PYTEST ARGUMENTS]}
shift
home=${LORAKIT_VERSIONS:-$top/build/versions}
venv=$home/$what
mkdir -p "$home"
[ -x "$home/uv/bin/uv" ] || {
    "${PYTHON:-python3}" -m venv "$home/uv"
    "$home/uv/bin/python" -m pip install -qq --disable-pip-version-check uv
}
uv=$home/uv/bin/uv
plugins=("$top"/plugins/lorakit-*/)
resolution=highest
wanted=()
IFS=, read -ra words <<<"$what"
for word in "${words[@]}"; do
    case $word in
    oldest) resolution=lowest-direct ;;
    newest) ;;
    *) wanted+=("$word") ;;
    esac
done
[ -x "$venv/bin/python" ] || "$uv" venv -q --python "${PYTHON:-python3}" "$venv"
"$uv" pip install -q --python "$venv/bin/python" --resolution "$resolution" \
    --editable "$top[test,data,demo]" "${plugins[@]/#/--editable=}" "${wanted[@]}"
cd "$top"
"$uv" pip list -q --python "$venv/bin/python" |
    grep -E '^(accelerate|bitsandbytes|click|datasets|gguf|huggingface-hub|lark|peft|pluggy|rich|safetensors|tokenizers|torch|transformers) '
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
