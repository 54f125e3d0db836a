#include "settings.hpp"

#include <xquant/registry_svd.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string_view>

#include "adapter.hpp"

namespace adapter {
namespace {

using namespace xquant;

/// Names of xquant's defaults that the registry does not have.
constexpr std::array<std::pair<std::string_view, std::string_view>, 2> aliases{
    {{"gqa4", "svd_head4"}, {"mha4", "x4_rot"}}};

std::string library_name(std::string_view asked) {
    const std::string_view name = asked.substr(0, asked.find(':'));
    for (const auto& [alias, meant] : aliases) {
        if (name == alias) return std::string(meant) + std::string(asked.substr(name.size()));
    }
    return std::string(asked);
}

std::size_t number(const char* variable, std::size_t otherwise, bool suffix = false) {
    const char* const text = std::getenv(variable);
    if (text == nullptr || *text == 0) return otherwise;
    std::size_t value = 0;
    const char* const end = text + std::strlen(text);
    auto [at, error] = std::from_chars(text, end, value);
    unsigned shift = 0;
    if (suffix && at != end && at + 1 == end) {
        shift = *at == 'K' ? 10U : *at == 'M' ? 20U : *at == 'G' ? 30U : 0U;
        if (shift != 0) ++at;
    }
    if (error != std::errc() || at != end || value > (SIZE_MAX >> shift)) {
        throw std::runtime_error(std::string(variable) + " is '" + text + "'; expected a whole number" +
                                 (suffix ? " of bytes, with K, M or G for 2^10, 2^20 or 2^30 of them" : ""));
    }
    return value << shift;
}

WeightType weight_type(const char* variable, WeightType otherwise) {
    const char* const text = std::getenv(variable);
    if (text == nullptr || *text == 0) return otherwise;
    if (const auto type = find_weight_type(text)) return *type;
    throw std::runtime_error(std::string(variable) + " is '" + text + "'; expected f32, f16, bf16 or q8");
}

}  // namespace

std::string scheme_list() {
    std::string out;
    for (const SchemeInfo& scheme : schemes()) {
        if (scheme.needs == Needs::nothing) out += to_string(scheme) + "\n";
        if (scheme.needs == Needs::statistics && scheme.inputs.size() > 1) {
            out += to_string(scheme) + " (needs XQUANT_CALIBRATION)\n";
        }
    }
    for (const auto& [alias, meant] : aliases) {
        out +=
            std::string(alias) + std::string(17 - alias.size(), ' ') + "another name of " + std::string(meant) + "\n";
    }
    return out;
}

std::optional<Settings> settings_from_environment() {
    const char* const asked = std::getenv("XQUANT_CACHE");
    if (asked == nullptr || *asked == 0) return std::nullopt;
    Settings out;
    out.asked = asked;
    if (out.asked == "list") {
        std::fputs(scheme_list().c_str(), stdout);
        throw std::runtime_error("XQUANT_CACHE is 'list', which prints the schemes and makes no cache");
    }
    out.scheme = library_name(out.asked);
    Options& options = out.options;
    options.sinks = number("XQUANT_SINKS", options.sinks);
    options.recent = number("XQUANT_RECENT", options.recent);
    options.strict = number("XQUANT_STRICT", 0) != 0;
    options.budget = number("XQUANT_BUDGET", 0, true);
    options.weights = weight_type("XQUANT_WEIGHTS", options.weights);
    try {
        const SchemeInfo info = find_scheme(out.scheme);
        const char* const calibration = std::getenv("XQUANT_CALIBRATION");
        if (calibration != nullptr) out.calibration = calibration;
        if (info.needs == Needs::statistics) {
            if (out.calibration.empty()) {
                throw std::runtime_error(
                    "it needs XQUANT_CALIBRATION, a file that `xquant-llm calibrate` writes for this model");
            }
        } else if (info.needs != Needs::nothing) {
            throw std::runtime_error(std::string("it reads ") +
                                     (info.needs == Needs::mean ? "the mean of X over" : "rows of X of") +
                                     " other text, which llama.cpp does not have");
        }
        // K and V, and those after RoPE, need the least of the graph to be known.
        out.input = LayerInput::x;
        for (const LayerInput input : {LayerInput::keys_before_rope, LayerInput::keys_after_rope}) {
            if (std::find(info.inputs.begin(), info.inputs.end(), input) != info.inputs.end()) out.input = input;
        }
        out.reads_w_k = info.reads_w_k || out.input == LayerInput::x;
    } catch (const std::exception& error) {
        throw std::runtime_error("XQUANT_CACHE is '" + out.asked + "': " + error.what() +
                                 ". XQUANT_CACHE=list lists all");
    }
    return out;
}

}  // namespace adapter
