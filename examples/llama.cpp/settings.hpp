// The settings, out of the environment: they reach every program of llama.cpp and every binding alike.
#pragma once

#include <optional>
#include <string>
#include <xquant/cache_types.hpp>
#include <xquant/model.hpp>

namespace adapter {

/// XQUANT_CACHE, XQUANT_CALIBRATION, XQUANT_SINKS, XQUANT_RECENT, XQUANT_STRICT, XQUANT_BUDGET, XQUANT_WEIGHTS.
struct Settings {
    std::string asked;        ///< the scheme as XQUANT_CACHE names it
    std::string scheme;       ///< as the library names it
    std::string calibration;  ///< the file of the model's statistics; empty: none
    xquant::Options options;
    xquant::LayerInput input;  ///< what the scheme is given: K and V as the graph has them wherever it can store those
    bool reads_w_k;            ///< also where it is given K and V
};

/// None unless XQUANT_CACHE is set. Throws std::runtime_error, which names the variable, its value and what was
/// expected.
std::optional<Settings> settings_from_environment();

}  // namespace adapter
