# Shared by the scripts in tools/; to be sourced. Messages go to stderr, so that a script's stdout is its result.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model_name=SmolLM2-135M-Instruct.Q4_1.gguf
demo_text=examples/llm/text/essays.txt
# Where models and other projects' sources land.
downloads=${XQUANT_DOWNLOADS:-${XDG_CACHE_HOME:-$HOME/.cache}/xquant}
# Without this ccache leaves files alone that use a precompiled header.
export CCACHE_SLOPPINESS=${CCACHE_SLOPPINESS:-pch_defines,time_macros}

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}

# The comment block at a script's head is its help.
print_help() { sed -n '2,/^[^#]/{ /^#/!q; s/^# \{0,1\}//; p; }' "$1"; }

# has_sha256 SUM FILE: whether the file is there and has this sum.
has_sha256() { echo "$1  $2" | sha256sum --check --status 2> /dev/null; }

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

package_installed() { dpkg-query -W -f='${db:Status-Status}' "$1" 2> /dev/null | grep -x installed > /dev/null; }

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

# install_python_package VENV [OPTION OF PIP...]: the Python package of this tree, as pip makes it for a user, into a virtual environment.
install_python_package() {
    [ -x "$1/bin/python" ] || python3 -m venv "$1" || return 1
    # c++: what CMake takes elsewhere. Under another name ccache would have nothing of it.
    CXX=c++ "$1/bin/pip" install --disable-pip-version-check "${@:2}" bindings/python
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

# build_with_progress LOG ARGUMENT...: cmake --build with these arguments; on a terminal a line counts the files, elsewhere every tenth
# one is said.
build_with_progress() {
    local log=$1
    shift
    cmake --build "$@" --parallel "$(build_jobs)" 2>&1 | tee "$log" | awk -v terminal="$([ -t 2 ] && echo 1 || echo 0)" '
        /^\[[0-9]+\/[0-9]+\]/ {
            split(substr($1, 2), count, /[\/\]]/)
            if (terminal) printf "\r  %s of %s files", count[1], count[2]
            else if (count[1] % 10 == 0 || count[1] == count[2]) printf "  %s of %s files\n", count[1], count[2]
            fflush()
        }
        END { if (terminal) printf "\n" }' >&2
}

# How llama.cpp is configured. Without AMX: with it, products with Q4_1 weights crash on processors that have it. Its attention does not
# use it.
no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
# shellcheck disable=SC2034  # for scripts that source this
llama_flags=(-G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON "-DCMAKE_C_FLAGS=$no_amx" "-DCMAKE_CXX_FLAGS=$no_amx"
    -DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF)

# fetch_llama: llama.cpp's source, out of the source archive of the Python package llama-cpp-python. Prints the folder that is made
# for it in the download folder: vendor/llama.cpp in there is the source.
fetch_llama() {
    local package=llama-cpp-python==0.3.36 archive=llama_cpp_python-0.3.36 folder=$downloads/peers
    local file=$folder/$archive.tar.gz sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
    mkdir -p "$folder"
    if ! has_sha256 "$sha256" "$file"; then
        # pip needs the archive's build system just to look at its name, hence the minute that this takes.
        say "llama.cpp: fetching $package with pip"
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-cache-dir --no-binary :all: \
            --dest "$folder" "$package" >&2 || die "pip could not fetch $package"
        has_sha256 "$sha256" "$file" || die "$file is not what it should be (SHA-256 sum)"
    fi
    [ -d "$folder/$archive/vendor/llama.cpp" ] || tar -xzf "$file" -C "$folder" "$archive/vendor/llama.cpp"
    echo "$folder/$archive"
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
