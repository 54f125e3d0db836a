# Shared by the scripts in tools/; to be sourced. Messages go to stderr, so that a script's stdout is its result.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model_name=SmolLM2-135M-Instruct.Q4_1.gguf
demo_text=examples/llm/text/essays.txt
# Without this ccache leaves files alone that use a precompiled header.
export CCACHE_SLOPPINESS=${CCACHE_SLOPPINESS:-pch_defines,time_macros}

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}

# The comment block at a script's head is its help.
print_help() { sed -n '2,/^[^#]/{ /^#/!q; s/^# \{0,1\}//; p; }' "$1"; }

# As root, or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo > /dev/null; then
        sudo "$@"
    else
        die "needs root or sudo for: $*"
    fi
}

package_installed() { dpkg-query -W -f='${db:Status-Status}' "$1" 2> /dev/null | grep -qx installed; }

# install_packages test|demo|docs: installs what tools/packages.txt lists for it and this machine lacks.
install_packages() {
    local name users missing=()
    if ! command -v apt-get > /dev/null; then
        say "no apt-get here: the packages of tools/packages.txt are taken for granted"
        return
    fi
    while read -r name users; do
        case "$name" in '' | '#'*) continue ;; esac
        [[ " $users " == *" $1 "* ]] || continue
        package_installed "$name" || missing+=("$name")
    done < "$root/tools/packages.txt"
    if [ ${#missing[@]} = 0 ]; then
        say "packages: all there"
        return
    fi
    say "packages: installing ${missing[*]}"
    as_root apt-get update -qq >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# Jobs for the build: one per core, and 1.5 GiB of memory each.
build_jobs() {
    local cores memory_kib fit
    cores=$(nproc)
    memory_kib=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)
    fit=$((${memory_kib:-4194304} / 1572864))
    [ "$fit" -ge 1 ] || fit=1
    echo $((fit < cores ? fit : cores))
}

# build_with_progress PRESET LOG: builds a preset; on a terminal a line counts the files, elsewhere every tenth one is said.
build_with_progress() {
    cmake --build --preset "$1" --parallel "$(build_jobs)" 2>&1 | tee "$2" | awk -v terminal="$([ -t 2 ] && echo 1 || echo 0)" '
        /^\[[0-9]+\/[0-9]+\]/ {
            split(substr($1, 2), count, /[\/\]]/)
            if (terminal) printf "\r  %s of %s files", count[1], count[2]
            else if (count[1] % 10 == 0 || count[1] == count[2]) printf "  %s of %s files\n", count[1], count[2]
            fflush()
        }
        END { if (terminal) printf "\n" }' >&2
}

# The first Python that has all of the given modules.
python_with() {
    local python
    for python in python3 /usr/bin/python3; do
        if command -v "$python" > /dev/null && "$python" -c "import $1" 2> /dev/null; then
            echo "$python"
            return
        fi
    done
    return 1
}
