#!/usr/bin/env bash
# Builds the sdist, then the wheel from the sdist, so that the wheel holds nothing that the sdist lacks.
# Installs the wheel in a new environment and checks that it answers offline, outside the source tree.
# Then does the same with the sdist. PIP_ARGS is passed to pip, as in the Makefile.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-python3}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_ARGS:-} "build>=1.3,<2"
"$work/build/bin/python" -m build --outdir "$work/dist" "$root" >"$work/build.log" || {
    cat "$work/build.log"
    exit 1
}
ls -l "$work/dist"

cd "$work" # so that the source tree is not imported
"$python" -m venv "$work/venv"
only_d3=()
for file in "$work"/dist/*.whl "$work"/dist/*.tar.gz; do
    "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_ARGS:-} \
        -c "$root/constraints.txt" "${only_d3[@]}" "$file"
    only_d3=(--force-reinstall --no-deps)
    reply="$(env -u PYTHONPATH D3_HOME="$work/home" HF_HUB_OFFLINE=1 \
        "$work/venv/bin/d3" generate "What is 27 + 45?" --offline)"
    echo "$(basename "$file"): $reply"
    [[ "$reply" == *72* ]] || {
        echo "error: the reply does not contain 72" >&2
        exit 1
    }
    where="$("$work/venv/bin/python" -c 'import d3cli; print(d3cli.__file__)')"
    [[ "$where" == "$work"/* ]] || {
        echo "error: it runs from $where" >&2
        exit 1
    }
    "$work/venv/bin/d3" --version
done
