#!/usr/bin/env bash
# tools/llama.cpp [--prove [OPTION...]] [--help]: builds llama.cpp, unmodified, and the library that gives it xquant's
# caches (examples/llama.cpp); with --prove, measures both kinds of caches and writes docs/llama.cpp.md.
#
# llama.cpp comes from the source archive of the Python package llama-cpp-python, and is built with the flags of this
# machine, in the download folder (see tools/get-model): some 20 minutes on two cores the first time, seconds after
# that. Beside it, in xquant/:
#
#   libxquant-llama.so       the adapter, for LD_PRELOAD
#   xquant-run               xquant-run PROGRAM ARGUMENT...: a program of llama.cpp with the adapter
#   xquant-llama-compare     logits with llama.cpp's cache and with xquant's, side by side
#
#   xquant-llama-faults      what goes wrong, and what llama.cpp answers then
#
# The last lines say where everything is, and how to call it.
#
#   --prove          measures: divergence, speed and memory, llama.cpp's dummy models of all architectures, its own
#                    tests, a session of llama-server, faults. Takes hours on two cores that do nothing else; a phase
#                    whose results are there is not run again. Fails if a test, a session, a fault or an architecture is
#                    not as it should be
#   --model FILE     the model (SmolLM2-135M)
#   --second-model FILE   one whose divergence is measured, too (Gemma 3 270M; '' for none)
#   --text FILE      text for the divergence (the essays of examples/llm/text, which are short)
#   --quick          one short run of each, to see that all work
#   --out DIR        measurements (build/results/llama.cpp)
#   OPTION           any of tools/llama_cpp_prove.py's
#   --no-page        leaves docs/llama.cpp.md as it is
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

programs=(llama-bench llama-perplexity llama-batched-bench llama-completion llama-parallel llama-lookahead llama-server)
tests=(test-llama-archs test-save-load-state test-state-restore-fragmented test-thread-safety)

# build NAME FOLDER CMAKE_ARGUMENT...: configures once, builds what is missing. build_arguments: those of the build.
build() {
    local name=$1 folder=$2
    shift 2
    if [ ! -e "$folder/build.ninja" ]; then
        say "$name: configuring (log: $folder.configure.log)"
        cmake -B "$folder" "$@" > "$folder.configure.log" 2>&1 ||
            die "cmake failed: $(tail -20 "$folder.configure.log")"
    fi
    say "$name: building (log: $folder.log)"
    build_with_progress "$folder.log" "$folder" "${build_arguments[@]}" ||
        die "$name could not be built: $(tail -20 "$folder.log")"
}

# prove FOLDER OPTION...: measures, and writes the page.
prove() {
    local folder=$1 model='' second=gemma3 text=$demo_text out=build/results/llama.cpp page=true options=()
    shift
    while [ $# -gt 0 ]; do
        case "$1" in
            --model) model=${2:?--model needs a file} && shift ;;
            --second-model) second=${2?--second-model needs a file} && shift ;;
            --text) text=${2:?--text needs a file} && shift ;;
            --out) out=${2:?--out needs a folder} && shift ;;
            --quick)
                page=false out=build/results/llama.cpp-quick
                options+=(--rounds 1 --repetitions 1 --tokens 8 --depths 0,256 --threads 1 --contexts 512x1)
                options+=(--schemes kv4,gqa4 --server-schemes f16 --second-contexts 512x1)
                ;;
            --no-page) page=false ;;
            *) options+=("$1") ;;
        esac
        shift
    done
    [ -r "$text" ] || die "there is no text $text"
    [ -n "$model" ] || model=$(tools/get-model)
    [ "$second" != gemma3 ] || second=$(tools/get-model gemma3)
    [ -r "$model" ] || die "there is no model $model"
    mkdir -p "$out"
    python3 tools/llama_cpp_prove.py --engine "$folder/engine/bin" --adapter "$folder/xquant" --model "$model" \
        --second-model "$second" --text "$text" --out "$out" "${options[@]}"
    $page || return 0
    "$(python_with matplotlib)" tools/llama_cpp_page.py "$out" docs/llama.cpp.md docs/images/llama_cpp.png
    say "docs/llama.cpp.md and docs/images/llama_cpp.png are written"
}

main() {
    local folder source engine ours
    case "${1:-}" in
        -h | --help) print_help "$0" && exit ;;
        '' | --prove) ;;
        *) die "unknown argument $1; see --help" ;;
    esac
    install_packages llama
    folder=$(fetch_llama)
    source=$folder/vendor/llama.cpp engine=$folder/engine ours=$folder/xquant

    build_arguments=(--target "${programs[@]}" "${tests[@]}")
    build llama.cpp "$engine" -S "$source" "${llama_flags[@]}" -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=ON
    build_arguments=()
    build adapter "$ours" -G Ninja -S examples/llama.cpp -DCMAKE_BUILD_TYPE=Release -DLLAMA_CPP_SOURCE="$source" \
        -DLLAMA_CPP_BUILD="$engine"

    say "llama.cpp: $engine/bin"
    say "adapter:   $ours"
    say "schemes:   XQUANT_CACHE=list $ours/xquant-run $engine/bin/llama-bench"
    say "example:   XQUANT_CACHE=svd_head4 $ours/xquant-run $engine/bin/llama-completion -m MODEL -p 'Once upon a time'"
    say "llama.cpp: $SECONDS s"
    [ "${1:-}" != --prove ] || prove "$folder" "${@:2}"
}

main "$@"
