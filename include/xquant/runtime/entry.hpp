// What the shared object of a level hands to the front library (loader.hpp): a table of functions, behind one
// exported name.
#pragma once

#include <xquant/runtime.hpp>

namespace xquant::runtime::detail {

/// A level's functions. All of it lies in the level's shared object, which is never unloaded.
struct Level {
    const Interface* about;  ///< first, and its revision first in it: what is behind them may be read if both agree
    const char* name;
    const char* backend;
    std::unique_ptr<Cache> (*make_cache)(std::string_view scheme, const Model& model, const Options& options);
    Bytes (*predict)(std::string_view scheme, const Model& model, const Options& options, std::size_t tokens);
    std::vector<SchemeInfo> (*schemes)();
    SchemeInfo (*find_scheme)(std::string_view name);
    Machine (*machine)(const std::string& path, std::size_t threads);
    std::vector<PlannedScheme> (*plan)(const Model& model, const Machine& machine, const PlanRequest& request,
                                       std::span<const std::string> names, ExecutorRef threads);
};

using Entry = const Level* (*)();

/// The name that every level exports.
inline constexpr const char* entry_name = "xquant_runtime_level";

}  // namespace xquant::runtime::detail

extern "C" const xquant::runtime::detail::Level* xquant_runtime_level();
