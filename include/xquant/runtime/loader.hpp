// The front library of the runtime: the functions of runtime.hpp. They find out what the processor can run, load the
// shared object of the best level from the folder in which this library lies, and hand calls on to it.
//
// This is the source of a shared object: include it in one .cpp file that is compiled for any processor, and define
// XQUANT_RUNTIME_LEVELS as the names of the levels that lie beside it, the least first:
//
//     #define XQUANT_RUNTIME_LEVELS "x86-64", "x86-64-v3", "x86-64-v4"
//     #include <xquant/runtime/loader.hpp>
//
// Where levels are linked into one library with this file, and nothing is loaded (bindings/c/archive.cmake), define
// XQUANT_RUNTIME_LINKED as their entries, in that order: xquant_runtime_level_0, xquant_runtime_level_1.
#pragma once

#if !defined(XQUANT_RUNTIME_LINKED)
#include <dlfcn.h>
#include <link.h>
#endif

#include <array>
#include <climits>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>

#include <xquant/runtime/entry.hpp>
#include <xquant/runtime/levels.hpp>
#include <xquant/version.hpp>

#if !defined(XQUANT_RUNTIME_LEVELS)
#error "xquant: define XQUANT_RUNTIME_LEVELS as the names of the levels, such as \"x86-64\", \"x86-64-v3\""
#endif

#if defined(XQUANT_RUNTIME_LINKED)
extern "C" const xquant::runtime::detail::Level* xquant_runtime_level_0();
extern "C" const xquant::runtime::detail::Level* xquant_runtime_level_1();
extern "C" const xquant::runtime::detail::Level* xquant_runtime_level_2();
#endif

namespace xquant::runtime {
namespace {

using xquant::detail::raise;

constexpr std::string_view built[] = {XQUANT_RUNTIME_LEVELS};
constexpr const char* variable = "XQUANT_ISA";

LevelInfo describe(std::string_view name) {
    const detail::KnownLevel* known = detail::known_level(name);
    return {known->name, known->backend, detail::missing_instructions(name)};
}

/// "x86-64 (runs here), x86-64-v4 (this processor lacks avx512f, avx512bw)"
std::string all_levels() {
    std::string text;
    for (const std::string_view name : built) {
        const std::string missing = detail::missing_instructions(name);
        text += (text.empty() ? "" : ", ") + std::string(name);
        text += missing.empty() ? " (runs here)" : " (this processor lacks " + missing + ")";
    }
    return text;
}

bool is_built(std::string_view name) {
    for (const std::string_view one : built) {
        if (one == name) return true;
    }
    return false;
}

/// Throws level_error unless the level that the environment asks for was built and can run.
void check_forced(std::string_view name) {
    const std::string_view why = detail::known_level(name) == nullptr ? ", which is not the name of a level"
                                 : !is_built(name)                    ? ", which this library was compiled without"
                                                                      : "";
    if (!why.empty()) raise<level_error>(variable, " is '", name, "'", why, "; its levels are ", all_levels());
    const std::string missing = detail::missing_instructions(name);
    if (!missing.empty()) {
        raise<level_error>(variable, " is '", name, "', and this processor lacks ", missing, "; the levels are ",
                           all_levels());
    }
}

/// The level to load: the one that the environment asks for, or the best.
std::string_view choose() {
    if (const char* forced = std::getenv(variable); forced != nullptr && *forced != '\0') {
        check_forced(forced);
        return detail::known_level(forced)->name;
    }
    std::string_view best;
    for (const std::string_view name : built) {
        if (detail::missing_instructions(name).empty()) best = name;
    }
    if (best.empty()) raise<level_error>("this processor runs none of the levels: ", all_levels());
    return best;
}

/// Throws level_error unless both sides were compiled with types of equal sizes.
void check_interface(const std::string& other, const detail::Interface& theirs) {
    constexpr detail::Interface ours{};
    struct Part {
        const char* name;
        std::uint32_t detail::Interface::*size;
    };
    constexpr Part parts[] = {
        {"Model", &detail::Interface::model},
        {"Layer", &detail::Interface::layer},
        {"Options", &detail::Interface::options},
        {"Bytes", &detail::Interface::bytes},
        {"Sequence", &detail::Interface::sequence},
        {"StepPart", &detail::Interface::step_part},
        {"QueryPart", &detail::Interface::query_part},
        {"MatrixView", &detail::Interface::matrix_view},
        {"PageChoice", &detail::Interface::page_choice},
        {"Requantized", &detail::Interface::requantized},
        {"PageView", &detail::Interface::page_view},
        {"LoadOptions", &detail::Interface::load_options},
        {"Loaded", &detail::Interface::loaded},
        {"SchemeInfo", &detail::Interface::scheme_info},
        {"SchemeInfo::Form", &detail::Interface::scheme_form},
        {"LevelInfo", &detail::Interface::level_info},
        {"Machine", &detail::Interface::machine},
        {"PlanRequest", &detail::Interface::plan_request},
        {"PlannedScheme", &detail::Interface::planned_scheme},
        {"budget_error", &detail::Interface::budget_error_size},
        {"value_error", &detail::Interface::value_error_size},
        {"std::string", &detail::Interface::string},
    };
    static_assert(sizeof(detail::Interface) == sizeof ours.revision * (1 + std::size(parts)), "a size is not compared");
    if (theirs.revision != ours.revision) {
        raise<level_error>(other, " has revision ", theirs.revision, " of the runtime's interface, this library has ",
                           ours.revision);
    }
    for (const Part& part : parts) {
        if (theirs.*part.size == ours.*part.size) continue;
        raise<level_error>(other, " was compiled with a ", part.name, " of ", theirs.*part.size,
                           " bytes, this library with one of ", ours.*part.size);
    }
}

#if defined(XQUANT_RUNTIME_LINKED)
/// A level that was linked into this library.
const detail::Level* load(std::string_view name) {
    constexpr detail::Entry entries[] = {XQUANT_RUNTIME_LINKED};
    static_assert(std::size(entries) == std::size(built), "xquant: a level has no entry");
    const detail::Level* level = nullptr;
    for (std::size_t i = 0; i < std::size(built); ++i) {
        if (built[i] == name) level = entries[i]();
    }
    check_interface("the level", *level->about);
    return level;
}
#else
const char* last_error() {
    const char* text = ::dlerror();
    return text != nullptr ? text : "no reason was given";
}

/// The folder of this library, as the system's loader found it.
std::string own_folder() {
    ::Dl_info here{};
    if (::dladdr(reinterpret_cast<const void*>(&all_levels), &here) == 0) {
        raise<level_error>("cannot determine the path of the runtime library");
    }
    // The name may be counted from the folder in which the program was started; the origin is not.
    void* self = ::dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    std::array<char, PATH_MAX> origin{};
    const bool known = self != nullptr && ::dlinfo(self, RTLD_DI_ORIGIN, origin.data()) == 0;
    if (!known) raise<level_error>("the runtime does not find the folder of ", here.dli_fname, ": ", last_error());
    ::dlclose(self);
    return origin.data();
}

/// Loads a level's shared object for good.
const detail::Level* load(std::string_view name) {
    const detail::KnownLevel& known = *detail::known_level(name);
    const std::string path =
        xquant::detail::text_of(own_folder(), "/libxquant_runtime-", XQUANT_VERSION_MAJOR, ".", XQUANT_VERSION_MINOR,
                                ".", XQUANT_VERSION_PATCH, "-", known.name, ".so");
    void* const file = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (file == nullptr) raise<level_error>("level ", name, " cannot be loaded: ", last_error());
    xquant::detail::Undo close([file] { ::dlclose(file); });
    const auto entry = reinterpret_cast<detail::Entry>(::dlsym(file, detail::entry_name));
    if (entry == nullptr) raise<level_error>("level ", name, " cannot be loaded: ", last_error());
    const detail::Level* const level = entry();
    check_interface(path, *level->about);
    if (level->name != name || std::string_view(level->backend) != known.backend) {
        raise<level_error>(path, " is level ", level->name, " with backend ", level->backend, "; expected level ", name,
                           " with backend ", known.backend);
    }
    close.release();
    return level;
}
#endif

/// The level that runs. What throws is tried again at the next call.
const detail::Level& loaded() {
    static const detail::Level* const level = load(choose());
    return *level;
}

const detail::Level& loaded_for(const detail::Interface& program) {
    check_interface("the program", program);
    return loaded();
}

}  // namespace

std::unique_ptr<Cache> make_cache(std::string_view scheme, const Model& model, const Options& options,
                                  const detail::Interface& program) {
    return loaded_for(program).make_cache(scheme, model, options);
}

Bytes predict(std::string_view scheme, const Model& model, const Options& options, std::size_t tokens,
              const detail::Interface& program) {
    return loaded_for(program).predict(scheme, model, options, tokens);
}

std::vector<SchemeInfo> schemes(const detail::Interface& program) { return loaded_for(program).schemes(); }

SchemeInfo find_scheme(std::string_view name, const detail::Interface& program) {
    return loaded_for(program).find_scheme(name);
}

Machine machine(const std::string& path, std::size_t threads, const detail::Interface& program) {
    return loaded_for(program).machine(path, threads);
}

std::vector<PlannedScheme> plan(const Model& model, const Machine& machine, const PlanRequest& request,
                                std::span<const std::string> names, ExecutorRef threads,
                                const detail::Interface& program) {
    return loaded_for(program).plan(model, machine, request, names, threads);
}

LevelInfo level(const detail::Interface& program) { return describe(loaded_for(program).name); }

std::vector<LevelInfo> levels(const detail::Interface& program) {
    check_interface("the program", program);
    std::vector<LevelInfo> all;
    for (const std::string_view name : built) all.push_back(describe(name));
    return all;
}

}  // namespace xquant::runtime
