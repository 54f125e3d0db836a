#include "plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <xquant/planner.hpp>
#include <xquant/registry_svd.hpp>

#include "error.hpp"
#include "gguf.hpp"
#include "library_cache.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "schemes.hpp"
#include "statistics.hpp"

namespace llm {
namespace {

namespace xq = xquant;

/// The names in the library's form. Suffixes that are of the whole plan are refused.
std::vector<std::string> library_names(const PlanOptions& o) {
    std::vector<std::string> names;
    for (const std::string& text : o.schemes) {
        const Scheme scheme = parse_scheme(text);
        if (scheme.tail || scheme.sinks || scheme.weights || !scheme.recipe.empty() || scheme.name == "f32")
            throw Error(
                fmt::format("scheme '{}': `plan` takes names with :group=N and :uniform; --tail and --sinks are "
                            "those of all",
                            text));
        names.push_back(scheme.library_name());
    }
    return names;
}

/// "512 B", "12.4 MiB".
std::string bytes_text(double bytes) {
    const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    std::size_t unit = 0;
    while (bytes >= 1024 && unit + 1 < std::size(units)) bytes /= 1024, ++unit;
    return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 1, units[unit]);
}

/// What stands behind a row.
std::string mark_of(const xq::PlannedScheme& scheme) {
    std::string text;
    const auto add = [&text](const std::string& part) { text += (text.empty() ? "" : "; ") + part; };
    if (!scheme.fits) add("does not fit");
    if (!scheme.dominated_by.empty()) add("dominated by " + scheme.dominated_by);
    if (!scheme.divergence) add("KLD unknown: " + scheme.unknown);
    return text;
}

void print(const std::vector<xq::PlannedScheme>& found, const xq::PlanRequest& request) {
    fmt::print("  {:<20}{:>12}{:>12}{:>12}{:>14}{:>12}   {}\n", "scheme", "cache", "weights", "total", "us/step",
               "mean KLD", "");
    for (const xq::PlannedScheme& s : found) {
        if (!s.available()) continue;
        const bool best = s.fits && s.dominated_by.empty() && s.divergence;
        fmt::print("{:<2}{:<20}{:>12}{:>12}{:>12}{:>14.1f}{:>12}   {}\n", best ? "*" : "", s.name,
                   bytes_text(static_cast<double>(s.cache)), bytes_text(static_cast<double>(s.weights)),
                   bytes_text(static_cast<double>(s.bytes())), 1e6 * s.seconds,
                   s.divergence ? fmt::format("{:.5f}", *s.divergence) : "-", mark_of(s));
    }
    for (const xq::PlannedScheme& s : found) {
        if (!s.available()) fmt::print("  {:<20}not available: {}\n", s.name, s.unavailable);
    }
    fmt::print("\n* fits{}, and no other scheme is as good in bytes, time and divergence and better in one of them.\n",
               request.memory > 0 ? " into " + bytes_text(static_cast<double>(request.memory)) : "");
    fmt::print(
        "us/step: in the cache, for one new token of each of {} sequence{} of {} tokens. mean KLD: of rows that are "
        "all "
        "read from\ncodes but {} sinks; newest tokens kept exact make it less.\n",
        request.sequences, request.sequences == 1 ? "" : "s", request.context, request.options.sinks);
}

nlohmann::ordered_json to_json(const std::vector<xq::PlannedScheme>& found, const xq::PlanRequest& request,
                               const PlanOptions& o, const xq::Machine& machine) {
    nlohmann::ordered_json json{{"model", std::filesystem::path(o.model).filename().string()},
                                {"context", request.context},
                                {"sequences", request.sequences},
                                {"memory", request.memory},
                                {"sinks", request.options.sinks},
                                {"tail", request.options.recent},
                                {"threads", machine.threads}};
    json["schemes"] = nlohmann::ordered_json::array();
    for (const xq::PlannedScheme& s : found) {
        nlohmann::ordered_json row{{"name", s.name}};
        if (!s.available()) {
            row["unavailable"] = s.unavailable;
        } else {
            row["cache"] = s.cache;
            row["weights"] = s.weights;
            row["read"] = s.read;
            row["f32"] = s.f32;
            row["int8"] = s.int8;
            row["seconds"] = s.seconds;
            if (s.divergence) row["kld"] = *s.divergence;
            if (!s.divergence) row["unknown"] = s.unknown;
            row["fits"] = s.fits;
            row["dominated_by"] = s.dominated_by;
        }
        json["schemes"].push_back(std::move(row));
    }
    return json;
}

}  // namespace

std::size_t parse_bytes(const std::string& text) {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const std::string unit(end, text.data() + text.size());
    const int shift = unit.empty() ? 0 : unit == "k" || unit == "K" ? 10 : unit == "M" ? 20 : unit == "G" ? 30 : -1;
    if (error != std::errc() || shift < 0 || !(value >= 1))
        throw Error(fmt::format("'{}' is no number of bytes; expected one like 1500, 64k, 200M or 1.5G", text));
    const double bytes = std::ldexp(value, shift);
    if (!(bytes < 0x1p62)) throw Error(fmt::format("'{}' is more bytes than can be counted", text));
    return static_cast<std::size_t>(bytes);
}

void plan(const PlanOptions& o) {
    if (o.schemes.empty()) throw Error("--schemes must name at least one");
    xq::PlanRequest request;
    request.context = o.context;
    request.sequences = o.sequences;
    request.memory = o.memory.empty() ? 0 : parse_bytes(o.memory);
    request.options.sinks = o.sinks;
    request.options.recent = o.tail;
    const std::vector<std::string> names = library_names(o);
    std::ofstream json;
    if (!o.json.empty()) {
        json.open(o.json);
        if (!json) throw Error(fmt::format("{}: can't be written", o.json));
    }
    ThreadPool pool(o.threads);
    const xq::Machine machine = xq::machine_of_file(o.machine, pool.threads());
    const Model model(Gguf::open(o.model));
    xq::Model described = describe(model);
    std::optional<xq::Calibration> statistics;
    if (!o.calibration.empty()) statistics.emplace(read_statistics(o.calibration, model)).attach(described);
    const std::vector<xq::PlannedScheme> found = xq::plan(described, machine, request, names, pool);
    print(found, request);
    if (!json.is_open()) return;
    if (!(json << to_json(found, request, o, machine).dump(2) << "\n" << std::flush))
        throw Error(fmt::format("{}: can't be written", o.json));
    fmt::print("A plot of it: tools/plot_plan.py {} PLAN.png\n", o.json);
}

}  // namespace llm
