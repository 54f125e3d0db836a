/// Makes caches by the names of the schemes: "f32" (exact), "f16", "svd_head4", "x3_rot:group=32:tail=128" ...
///
/// Every scheme is one of xquant/registry.hpp (schemes_own.cpp adds some of this engine's own) but f32, the exact one
/// (exact_cache.hpp), so that the yardstick owes nothing to the library, and TurboQuant's (turboquant.hpp), which are
/// simulated.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <xquant/calibration.hpp>
#include <xquant/registry.hpp>
#include "compiled/best.hpp"

#include "attention_cache.hpp"
#include "threads.hpp"
#include "turboquant.hpp"

namespace llm {

class Model;
struct Calibration;

/// Where a cache's pages lie and its attention is computed.
enum class Place : unsigned char { processor, cuda, emulated_cuda };

struct SchemeOptions {
    std::size_t sinks = 4;  // first tokens kept exact
    std::size_t tail = 0;   // newest tokens kept exact
    bool strict = false;    // quantize before the layer attends, unfinished groups included
    xquant::WeightType weights = xquant::WeightType::f16;  // what prepared matrices are kept in
    std::size_t rebuilt = 0;                               // bytes of keys that are kept rebuilt, for speed
    Place place = Place::processor;
    ThreadPool* pool = nullptr;
    const Calibration* calibration = nullptr;         // for schemes that need one
    const xquant::Calibration* statistics = nullptr;  // for schemes that need them
};

/// What a scheme takes of a calibration.
using xquant::Needs;

/// Whether a scheme learns from the text that `perplexity` evaluates on, which other commands do not have.
constexpr bool learns_from_text(Needs needs) { return needs == Needs::mean || needs == Needs::calibration; }

struct Scheme {
    std::string text, name;                     // "svd_head4:tail=128", "svd_head4"
    std::optional<std::size_t> tail, sinks;     // instead of the options'
    std::optional<std::size_t> prefix;          // tokens of the sequence that the scheme learns from
    std::optional<std::size_t> group;           // values that share a scale, instead of the scheme's first choice
    std::optional<xquant::WeightType> weights;  // what prepared matrices are kept in, instead of the options'
    bool uniform = false;                       // all layers have as many bits
    std::string recipe;                         // the file that says how many bits each layer has, or empty
    std::string rest;                           // the scheme that tokens are in until AttentionCache::wake, or empty
    Needs needs = Needs::nothing;               // of SchemeOptions::calibration
    std::optional<TurboQuant> turboquant;       // simulated in this form

    std::string library_name() const;  // as xquant::make_cache has it: "svd_head4:group=64"
};

/// NAME[:tail=N][:sinks=N][:group=N][:prefix=N][:rest=NAME][:weights=T][:uniform], or
/// recipe=FILE[:tail=N][:sinks=N][:weights=T]. Throws llm::Error for names that aren't known, listing those that are,
/// and for suffixes that the scheme doesn't take.
Scheme parse_scheme(const std::string& text);

/// Adds the schemes of schemes_own.cpp to the library's. Once.
void register_own_schemes();

std::vector<std::string> scheme_names();  // without suffixes, in table order

/// "processor", "cuda", "emulated_cuda". Throws llm::Error for other names, and for a place that this build does not
/// have.
Place parse_place(const std::string& name);

/// All schemes, a line for each, and the suffixes.
std::string schemes_help();

/// An empty cache for one sequence; model must outlive it.
std::unique_ptr<AttentionCache> make_cache(const Scheme& scheme, const Model& model, const SchemeOptions& options);
std::unique_ptr<AttentionCache> make_cache(const std::string& scheme, const Model& model, const SchemeOptions& options);

}  // namespace llm
