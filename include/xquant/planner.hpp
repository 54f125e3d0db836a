// plan: which schemes fit a model into a machine's memory, how long a token takes in their caches, and what they do to
// its predictions, before a cache is made.
//
//     const Machine machine = measure_machine(threads);       // once; save_machine, load_machine keep it in a file
//     calibration.attach(model);                              // with sensitivities, or divergences are unknown
//     const std::vector<PlannedScheme> found =
//         plan(model, machine, {.context = 32768, .sequences = 8, .memory = std::size_t{8} << 30U});
//     for (const PlannedScheme& scheme : found) {
//         if (scheme.fits && scheme.dominated_by.empty()) ...
//     }
//
// Bytes are those of `predict`. Time is that of the cache for one new token of every sequence: the greater of what
// memory needs and what kernels need (planner/work.hpp). Divergence is of second order (planner/divergence.hpp).
// docs/planner.md has all three beside what was measured.
//
// Needs Eigen. Schemes are those that are registered: include <xquant/registry_svd.hpp> for head4 and its kind.
// Cost    of a scheme: to prepare its projection for each layer, as a cache does, and n^3 for a stream of n channels
//         that heads read together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <xquant/executor.hpp>
#include <xquant/plan_types.hpp>
#include <xquant/planner/divergence.hpp>
#include <xquant/planner/measure.hpp>
#include <xquant/planner/work.hpp>
#include <xquant/registry.hpp>

namespace xquant {

inline namespace XQUANT_ABI_NS {

/// Says of each scheme whether it fits into `memory` bytes (0: no limit), and which other one dominates it: one with
/// no more bytes, seconds and divergence, and less of one of them. Schemes that are not available, or whose divergence
/// or time is not known, neither dominate nor are dominated. Of equal ones, none dominates.
inline void mark_plan(std::vector<PlannedScheme>& schemes, std::size_t memory) {
    const auto known = [](const PlannedScheme& scheme) {
        return scheme.available() && scheme.divergence.has_value() && scheme.seconds > 0;
    };
    for (PlannedScheme& scheme : schemes) {
        scheme.fits = scheme.available() && (memory == 0 || scheme.bytes() <= memory);
        scheme.dominated_by.clear();
        const PlannedScheme* best = nullptr;
        for (const PlannedScheme& other : schemes) {
            if (!known(scheme) || !known(other)) continue;
            const bool no_worse = other.bytes() <= scheme.bytes() && other.seconds <= scheme.seconds &&
                                  *other.divergence <= *scheme.divergence;
            const bool better = other.bytes() < scheme.bytes() || other.seconds < scheme.seconds ||
                                *other.divergence < *scheme.divergence;
            if (!no_worse || !better) continue;
            // Of several, the one of least divergence is named, and of those the one of fewest bytes.
            if (best == nullptr || *other.divergence < *best->divergence ||
                (*other.divergence == *best->divergence && other.bytes() < best->bytes())) {
                best = &other;
            }
        }
        if (best != nullptr) scheme.dominated_by = best->name;
    }
}

namespace detail {

/// Why a scheme cannot serve this model, as far as that is seen before anything is prepared; or empty.
inline std::string missing_for(const SchemeInfo& info, bool divides, const Model& model) {
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        const Layer& layer = model.layers[i];
        const std::string of = " of layer " + std::to_string(i);
        if (info.needs == Needs::mean && layer.mean == nullptr) return "needs the mean" + of + " (Layer::mean)";
        if (info.needs == Needs::calibration && layer.calibration.empty()) {
            return "needs rows" + of + " to learn its levels from (Layer::calibration)";
        }
        if (info.needs != Needs::statistics) continue;
        if (layer.statistics == nullptr) return "needs statistics" + of + " (a calibration)";
        if (divides && (!(layer.statistics->key_sensitivity > 0) || !(layer.statistics->value_sensitivity > 0))) {
            return "needs sensitivities" + of + "; " + info.name + ":uniform does not";
        }
    }
    return "";
}

/// Runs f, and says what it throws of this library's errors; without exceptions, errors end the program.
template <class F>
std::string complaint_of(F&& f) {
#if XQUANT_HAS_EXCEPTIONS
    try {
        f();
    } catch (const error& raised) {
        constexpr std::string_view name = "xquant: ";
        std::string_view what = raised.what();
        if (what.starts_with(name)) what.remove_prefix(name.size());
        return std::string(what);
    }
#else
    f();
#endif
    return "";
}

/// A scheme while layer after layer is looked at.
struct PlanDraft {
    PlannedScheme out;
    Recipe recipe;
    TokenWork work;
    double divergence = 0;
};

/// Bytes of a scheme, for all sequences.
inline void plan_bytes(PlanDraft& draft, const Model& model, const PlanRequest& request) {
    const Bytes none = predict_bytes(model, request.options, 0, draft.recipe);
    const Bytes one = predict_bytes(model, request.options, request.context, draft.recipe);
    const std::size_t accumulator = predict_accumulator(model, draft.recipe, request.context);
    const std::size_t each = one.stored() - none.stored() + accumulator;
    const std::size_t most = (static_cast<std::size_t>(-1) >> 2U) - none.stored() - one.weights;
    expects(each == 0 || request.sequences <= most / each, "plan: ", request.sequences, " sequences of ",
            request.context, " tokens are more bytes than can be counted");
    draft.out.cache = none.stored() + request.sequences * each;
    draft.out.weights = one.weights;
    draft.out.read = static_cast<double>(request.sequences * (one.codes + one.scales + one.tail + one.sinks)) +
                     static_cast<double>(one.weights);
}

/// One layer of a scheme. `measured` is what errors of the codes cost that sensitivities were measured with.
inline void plan_layer(PlanDraft& draft, const Layer& layer, std::size_t index, const ErrorCosts& measured,
                       const Machine& machine, const PlanRequest& request) {
    const LayerRecipe& recipe = draft.recipe.layers[index];
    const LayerParts parts = recipe.prepare(layer, recipe.bits);
    const std::size_t reach = layer.reach();
    const std::size_t seen = reach > 0 ? (std::min)(reach, request.context) : request.context;
    const std::size_t exact =
        (std::min)(seen, request.options.recent + (reach > 0 ? std::size_t{0} : request.options.sinks));
    const bool accumulates = draft.recipe.accumulator != nullptr;
    StreamCodec sums;
    if (accumulates) sums = draft.recipe.accumulator(layer.shape.width);
    draft.work += layer_work(parts, layer.shape, recipe.role, accumulates ? &sums : nullptr,
                             static_cast<double>(seen - exact), static_cast<double>(exact), machine);
    std::string& unknown = draft.out.unknown;
    if (!unknown.empty()) return;
    if (accumulates) unknown = "layers store differences, whose errors add up";
    const bool rounds = std::any_of(parts.codecs.begin(), parts.codecs.end(),
                                    [](const StreamCodec& codec) { return codec.format.quantized(); });
    if (!rounds || !unknown.empty()) return;
    unknown = measured.unknown;
    if (!unknown.empty()) return;
    const ErrorCosts own = error_costs(parts, layer);
    unknown = own.unknown;
    if (!unknown.empty()) return;
    draft.divergence += static_cast<double>(layer.statistics->key_sensitivity) * own.keys / measured.keys +
                        static_cast<double>(layer.statistics->value_sensitivity) * own.values / measured.values;
}

/// Costs of the codes that a layer's sensitivities were measured with.
inline ErrorCosts costs_of_measured(const Layer& layer) {
    ErrorCosts out;
    if (layer.statistics == nullptr) {
        out.unknown = "no statistics of the model's layers (a calibration)";
    } else if (!(layer.statistics->key_sensitivity > 0) || !(layer.statistics->value_sensitivity > 0)) {
        out.unknown = "the calibration has no sensitivities of layers";
    } else {
        const std::string complaint = complaint_of([&] { out = measured_costs(layer); });
        if (!complaint.empty()) out.unknown = complaint;
    }
    if (out.unknown.empty() && (!(out.keys > 0) || !(out.values > 0))) out.unknown = "errors cost nothing";
    return out;
}

}  // namespace detail

/// What schemes would take, how long a token takes and what they cost in predictions. `names` as make_cache takes them,
/// in the order of the answer; none: all that are registered. What cannot be made of this model is in the answer, with
/// the reason. `run` looks at several schemes at once.
///
/// Throws shape_error for a request, a model or a name that cannot be, value_error for a machine or a layer's numbers.
[[nodiscard]] inline std::vector<PlannedScheme> plan(const Model& model, const Machine& machine,
                                                     const PlanRequest& request,
                                                     std::span<const std::string> names = {},
                                                     ExecutorRef run = Serial{}) {
    detail::check_machine(machine);
    detail::check_options(request.options);
    detail::expects(!model.layers.empty(), "plan: the model has no layers");
    detail::expects(request.context >= 1 && request.context <= largest_position, "plan: a context of ", request.context,
                    " tokens; expected 1 to 2^48");
    detail::expects(request.sequences >= 1, "plan: ", request.sequences, " sequences; expected 1 or more");
    std::vector<std::string> all(names.begin(), names.end());
    if (all.empty()) {
        for (const SchemeInfo& scheme : schemes()) all.push_back(scheme.name);
    }
    std::vector<detail::PlanDraft> drafts;
    for (const std::string& name : all) {
        const auto found = detail::registry().find(name);
        detail::PlanDraft& draft = drafts.emplace_back();
        draft.out.name = name;
        const bool divides = found.info.divides_bits && name.find(":uniform") == name.npos;
        draft.out.unavailable = detail::missing_for(found.info, divides, model);
        if (!draft.out.available()) continue;
        draft.out.unavailable = detail::complaint_of([&] {
            draft.recipe = found.recipe(model, request.options);
            detail::plan_bytes(draft, model, request);
        });
    }
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        const Layer layer = detail::with_mean_of_rows(model, detail::loaded_layer(model, i));
        detail::check_layer(layer, i);
        const detail::ErrorCosts measured = detail::costs_of_measured(layer);
        const auto look = [&](std::size_t s) {
            detail::PlanDraft& draft = drafts[s];
            if (!draft.out.available()) return;
            draft.out.unavailable =
                detail::complaint_of([&] { detail::plan_layer(draft, layer, i, measured, machine, request); });
        };
        run.parallel_for(drafts.size(), look);
    }
    std::vector<PlannedScheme> out;
    for (detail::PlanDraft& draft : drafts) {
        PlannedScheme& scheme = out.emplace_back(std::move(draft.out));
        if (!scheme.available()) {
            scheme.unknown.clear();
            continue;
        }
        const auto sequences = static_cast<double>(request.sequences), threads = static_cast<double>(machine.threads);
        const TokenWork work = sequences * draft.work;
        scheme.read += work.extra_bytes;
        scheme.f32 = work.f32;
        scheme.int8 = work.int8;
        // Matrices are read before rows are.
        const double matrices = static_cast<double>(scheme.weights) / machine.memory;
        scheme.seconds = (std::max)(scheme.read / machine.memory, matrices + work.core / threads);
        if (scheme.unknown.empty()) scheme.divergence = draft.divergence;
    }
    mark_plan(out, request.memory);
    return out;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
