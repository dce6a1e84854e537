#!/usr/bin/env bash
# Runs the tests in surroundings unlike those of a developer's machine, and prints a table of the results.
#
#   scripts/matrix.sh                                 every cell, one after the other
#   scripts/matrix.sh python3.12 small                these two
#   scripts/matrix.sh python3.12+cuda-build+lang-c    these three at once, in one run
#   scripts/matrix.sh --all small                     the slow tests too
#   scripts/matrix.sh small -- tests/decode -x        arguments for pytest: here, a part of the tests
#
# A cell is one kind of surroundings:
#
#   python3.11, python3.12, python3.13    from PATH or from pyenv; other cells use $PYTHON, or python3
#   avx2             torch's and oneDNN's code for AVX2, on a processor that has AVX-512
#   no-avx2          their code for processors without AVX2 (torch's plain code, oneDNN's for SSE4.1)
#   cuda-build       torch with CUDA, as PyPI has it for Linux, without a GPU (3 GB to download)
#   newest           the newest releases that pyproject.toml allows, in place of constraints.txt
#   busy             a spinning process on each core beside the tests
#   small            a control group with one core and 2 GB of memory, without swap; as root or under systemd
#   read-only-home   an unprivileged user whose home lies on a read-only file system; as root
#   lang-c           the C locale, with ASCII as Python's encoding of files, names and streams
#
# Each run has an environment of its own with the last commit installed in it, kept from run to run. It first asks the
# built-in model a question, as a user would, then runs the tests. A cell that this machine cannot make is shown as "not run",
# with the reason. The exit code is 1 if anything failed, 2 if a cell is unknown, else 0.
#
# MATRIX_DIR is where environments, copies of the tree and logs are kept. Default: build/matrix. JOBS is the number of processes
# that run tests; default 2. "small" has one, and a new one for each directory of tests, since what a process keeps would add up.
# PIP_ARGS is passed to pip, as in the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."
MATRIX_DIR="$(mkdir -p "${MATRIX_DIR:-build/matrix}" && cd "${MATRIX_DIR:-build/matrix}" && pwd)"
CELLS=(python3.11 python3.12 python3.13 avx2 no-avx2 cuda-build newest busy small read-only-home lang-c)
SMALL_BYTES=$((2 << 30))

# What the cells of one run decide. Each run has a subshell, so that no cell leaves anything to the next run.
python="${PYTHON:-python3}"
torch=()                     # what to ask pip for, beside d3
constraints=(-c constraints.txt)
kind=""                      # what, beside Python's version, tells environments apart
environment=()               # NAME=VALUE
inside=()                    # the command that runs the tests in the cell
workers=(-n "${JOBS:-2}" --dist worksteal)
at_end=()                    # commands

# Ends the run: its cells cannot be made here.
not_run() {
    echo "$*" >"$folder/not-run"
    exit 0
}

find_python() { # VERSION
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != (${1/./, }))" 2>/dev/null; then
            python="$candidate"
            return
        fi
    done
    not_run "there is no Python $1"
}

cuda_build() {
    [[ "$(uname -sm)" == "Linux x86_64" ]] || not_run "PyPI has a CUDA build for Linux on x86_64 only"
    # "===" compares text: "2.13.0" is PyPI's build, which has CUDA, and not the "2.13.0+cpu" of another index.
    torch=("torch===$(sed -n 's/^torch==//p' constraints.txt)")
    kind+="-cuda"
}

avx2() {
    grep -qs avx512f /proc/cpuinfo || not_run "this processor has no AVX-512: every other cell is this one"
    environment+=(ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2)
}

busy() {
    local core
    for ((core = 0; core < $(nproc); core++)); do
        # It ends by itself too, should this script be killed.
        timeout 6h bash -c 'while :; do :; done' &
        at_end+=("kill $!")
    done
}

# Makes a control group with one core and 2 GB: by systemd, or else by hand, in version 2 or 1 of the kernel's interface.
small() {
    workers=()
    if systemctl is-system-running 2>/dev/null | grep -qE "running|degraded"; then
        inside+=(systemd-run --quiet --scope -p "MemoryMax=$SMALL_BYTES" -p MemorySwapMax=0 -p AllowedCPUs=0)
        return
    fi
    local root=/sys/fs/cgroup group directories
    group="d3-matrix-$$"
    if [[ -e $root/cgroup.controllers ]]; then
        directories=("$root/$group")
        echo "+memory +cpuset" 2>/dev/null >"$root/cgroup.subtree_control" || true
    else
        directories=("$root/memory/$group" "$root/cpuset/$group")
    fi
    mkdir "${directories[@]}" 2>/dev/null || not_run "a control group needs root, or systemd"
    at_end+=("rmdir ${directories[*]}")
    if [[ -e $root/cgroup.controllers ]]; then
        write "$SMALL_BYTES" "${directories[0]}/memory.max"
        write 0 "${directories[0]}/memory.swap.max" "optional"
        write 0 "${directories[0]}/cpuset.cpus"
    else
        write "$SMALL_BYTES" "${directories[0]}/memory.limit_in_bytes"
        write "$SMALL_BYTES" "${directories[0]}/memory.memsw.limit_in_bytes" "optional"
        write "$(cat "$root/cpuset/cpuset.mems")" "${directories[1]}/cpuset.mems"
        write 0 "${directories[1]}/cpuset.cpus"
    fi
    # shellcheck disable=SC2016  # the inner shell expands them
    inside+=(bash -c 'for group in $0; do echo $$ >"$group/cgroup.procs"; done; exec "$@"' "${directories[*]}")
}

write() { # VALUE FILE ["optional"]
    { echo "$1" >"$2"; } 2>/dev/null || [[ -n "${3:-}" ]] || not_run "$2 cannot be written"
}

# As root it would be no test: root may write anywhere but on the read-only file system. Where Python lies in root's own home,
# which others may not enter, that home is replaced, for these processes alone, by one that holds nothing but Python.
read_only_home() {
    [[ $EUID == 0 ]] || not_run "mounting a read-only file system needs root"
    unshare --mount true 2>/dev/null || not_run "this machine lets nobody mount"
    mkdir -p "$folder/home" "$folder/python"
    # shellcheck disable=SC2016
    inside+=(unshare --mount --propagation private bash -c '
        set -e
        folder="$1"
        shift
        mount -t tmpfs -o ro,mode=777 tmpfs "$folder/home"
        if [[ "$PYTHON_HOME" == /root/* ]]; then
            mount --bind "$PYTHON_HOME" "$folder/python"
            mount -t tmpfs -o mode=755 tmpfs /root
            mkdir -p "$PYTHON_HOME"
            mount --bind "$folder/python" "$PYTHON_HOME"
        fi
        exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"' bash "$folder")
    local name
    for name in XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME XDG_STATE_HOME; do
        environment+=("$name=$folder/home/$name")
    done
    environment+=("D3_HOME=$folder/home/d3")
}

add_cell() { # NAME
    case "$1" in
        python*) find_python "${1#python}" ;;
        avx2) avx2 ;;
        no-avx2) environment+=(ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41) ;;
        cuda-build) cuda_build ;;
        newest)
            constraints=()
            kind+="-newest"
            ;;
        busy) busy ;;
        small) small ;;
        read-only-home) read_only_home ;;
        lang-c) environment+=(LANG=C LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0) ;;
    esac
}

# Installs the last commit in an environment of its own.
install() { # DIRECTORY
    local stamp
    rm -rf "$1/tree"
    mkdir -p "$1/tree"
    git archive HEAD | tar -x -C "$1/tree" && cd "$1/tree" || return
    "$python" -m compileall -q . || return # once, and not in each of the processes that the tests start
    stamp="$(cat pyproject.toml constraints.txt | cksum) ${torch[*]}"
    [[ "$(cat "$1/installed" 2>/dev/null)" == "$stamp" ]] && return
    # shellcheck disable=SC2086  # PIP_ARGS are words
    rm -rf "$1/venv" && "$python" -m venv "$1/venv" &&
        "$1/venv/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_ARGS:-} "${constraints[@]}" \
            -e ".[test]" "${torch[@]}" &&
        echo "$stamp" >"$1/installed"
}

# A question to the built-in model, as a user would ask it, and what d3 says of the machine.
d3_answers() { # COMMAND...
    local reply
    reply="$("$@" d3 generate "What is 27 + 45?" --offline </dev/null)" && echo "$reply" && [[ "$reply" == *72* ]] &&
        "$@" d3 doctor </dev/null
}

# Runs the tests in the cells "a+b+c". Writes in $folder: versions, log and code; or else not-run.
run_cells() { # CELLS
    local cell home code=0
    # shellcheck disable=SC2154
    trap 'for command in "${at_end[@]}"; do $command 2>/dev/null || true; done' EXIT
    for cell in ${1//+/ }; do
        add_cell "$cell"
    done
    home="$MATRIX_DIR/$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')$kind"
    mkdir -p "$home"
    exec 8>"$home/lock" # another run would replace the tree while this one reads it
    flock 8
    (install "$home") >"$folder/log" 2>&1 8>&- || not_run "pip failed: see $folder/log"
    cd "$home/tree"
    "$home/venv/bin/python" -c 'import platform, torch; print(platform.python_version(), torch.__version__)' >"$folder/versions"
    [[ "$kind" != *-cuda* ]] || "$home/venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' ||
        not_run "pip did not install a torch with CUDA"
    PYTHON_HOME="$("$home/venv/bin/python" -c 'import sys; print(sys.base_prefix)')"
    export PYTHON_HOME
    # A shell in the background, and nohup, have its commands ignore signals that tests send to d3.
    ! env --default-signal true 2>/dev/null || inside+=(env --default-signal)
    inside+=(env -u PYTHONPATH "HOME=$folder/home" HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 "PATH=$home/venv/bin:$PATH"
        "${environment[@]}")
    d3_answers "${inside[@]}" >>"$folder/log" 2>&1 8>&- && touch "$folder/answers"
    run_tests </dev/null >>"$folder/log" 2>&1 8>&- || code=$?
    echo "$code" >"$folder/code"
}

run_tests() {
    local command=("${inside[@]}" python -m pytest -p no:cacheprovider -ra -m "$marks") directory one code=0
    if ((${#workers[@]} || ${#pytest_arguments[@]})); then
        "${command[@]}" "${workers[@]}" "${pytest_arguments[@]}"
        return
    fi
    for directory in $(find tests -name "test_*.py" -printf "%h\n" | sort -u); do
        echo "-- $directory"
        one=0
        "${command[@]}" "$directory"/test_*.py || one=$?
        ((one == 5 || one <= code)) || code=$one # 5: all tests of this directory are slow
    done
    return "$code"
}

# Prints how many tests "passed" or the like, by pytest's last lines.
count() { # WORD
    grep -E " in [0-9.]+s( \(|$| =)" "$folder/log" | grep -oE "[0-9]+ $1" | awk '{ sum += $1 } END { print sum + 0 }'
}

# Prints a row of the table, and fails if something failed in the cells.
report() { # CELLS SECONDS
    local minutes failed code
    minutes="$(($2 / 60)).$(($2 % 60 / 6))"
    if [[ -e "$folder/not-run" ]]; then
        printf "%-36s not run: %s\n" "$1" "$(cat "$folder/not-run")"
        return
    fi
    code="$(cat "$folder/code" 2>/dev/null || echo "this script ended")"
    failed=$(($(count failed) + $(count "errors?")))
    # shellcheck disable=SC2046,SC2183  # the file holds two words
    printf "%-36s %-8s %-13s %6s %6s %7s %7s" "$1" $(cat "$folder/versions") "$(count passed)" "$failed" "$(count skipped)" "$minutes"
    [[ -e "$folder/answers" ]] || printf "  d3 generate or d3 doctor failed"
    [[ "$code" == [01] ]] || printf "  pytest ended with %s" "$code"
    echo
    grep -E "^(FAILED|ERROR) " "$folder/log" | cut -c 1-160 | sed "s/^/    /" || true
    [[ "$code" == 0 && -e "$folder/answers" ]]
}

marks="not slow and not real"
pytest_arguments=()
chosen=()

read_arguments() {
    while (($#)); do
        case "$1" in
            -h | --help)
                sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
                exit
                ;;
            --all) marks="not real" ;;
            --)
                shift
                pytest_arguments=("$@")
                break
                ;;
            *)
                for cell in ${1//+/ }; do
                    [[ " ${CELLS[*]} " == *" $cell "* ]] || {
                        echo "error: there is no cell $cell; there are: ${CELLS[*]}" >&2
                        exit 2
                    }
                done
                chosen+=("$1")
                ;;
        esac
        shift
    done
    ((${#chosen[@]})) || chosen=("${CELLS[@]}")
}

main() {
    local cells row rows="" failures=0 began
    read_arguments "$@"
    for cells in "${chosen[@]}"; do
        folder="$MATRIX_DIR/runs/$cells"
        rm -rf "$folder"
        mkdir -p "$folder"
        began=$SECONDS
        set +e # "( ) ||" would forget "set -e" within
        (set -e && run_cells "$cells")
        set -e
        row="$(report "$cells" $((SECONDS - began)))" || failures=$((failures + 1))
        echo "$row"
        rows+="$row"$'\n'
    done
    printf "\n%-36s %-8s %-13s %6s %6s %7s %7s\n" cell Python torch passed failed skipped minutes
    printf "%s" "$rows"
    exit $((failures > 0))
}

main "$@"
