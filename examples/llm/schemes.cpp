#include "schemes.hpp"

#include <xquant/registry_svd.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "error.hpp"
#include "exact_cache.hpp"
#include "library_cache.hpp"

namespace llm {
namespace {

constexpr std::string_view exact_name = "f32";

/// The library's schemes and this engine's.
std::vector<xquant::SchemeInfo> library_schemes() {
    static const bool added = (register_own_schemes(), true);
    static_cast<void>(added);
    return xquant::schemes();
}

std::size_t number(std::string_view digits, const std::string& scheme) {
    std::size_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size() || value > 0x7fffffff)
        throw Error(fmt::format("scheme '{}': '{}' is not a valid number, 0 to 2147483647", scheme, digits));
    return value;
}

xquant::WeightType weight_type(std::string_view name, const std::string& scheme) {
    if (const auto type = xquant::find_weight_type(name)) return *type;
    throw Error(fmt::format("scheme '{}': weights is '{}'; expected f32, f16, bf16 or q8", scheme, name));
}

/// Throws Error where tokens cannot rest in that scheme.
void add_needs_of_rest(Scheme& scheme) {
    const Scheme rest = parse_scheme(scheme.rest);
    const bool of_library = rest.name != exact_name && !rest.turboquant;
    if (!of_library || scheme.prefix || learns_from_text(rest.needs) || learns_from_text(scheme.needs))
        throw Error(
            fmt::format("scheme '{}': rest=NAME is for schemes of the library that do not learn from the text "
                        "they are evaluated on, and without prefix=N",
                        scheme.text));
    if (rest.needs == Needs::statistics) scheme.needs = rest.needs;
}

}  // namespace

Place parse_place(const std::string& name) {
    if (name == "processor") return Place::processor;
    if (name == "cuda") {
#if defined(XQUANT_LLM_CUDA)
        return Place::cuda;
#else
        throw Error("--backend cuda: this program was built without nvcc");
#endif
    }
    if (name == "emulated_cuda") {
#if defined(XQUANT_LLM_EMULATED_CUDA)
        return Place::emulated_cuda;
#else
        throw Error("--backend emulated_cuda: this program was built without the tests, which have the emulated GPU");
#endif
    }
    throw Error(fmt::format("--backend {}: known are processor, cuda and emulated_cuda", name));
}

std::vector<std::string> scheme_names() {
    std::vector<std::string> names{std::string(exact_name)};
    for (const xquant::SchemeInfo& scheme : library_schemes()) names.push_back(scheme.name);
    for (const std::string& name : turboquant_names()) names.push_back(name);
    return names;
}

std::string schemes_help() {
    std::string help =
        fmt::format("Schemes, and bits of a stored value, scales included:\n  {:<16} 32.00 bits   {}\n", exact_name,
                    "K and V as they are: the exact cache that the others are compared with");
    for (const xquant::SchemeInfo& scheme : library_schemes()) {
        help += fmt::format("  {}{}\n", xquant::to_string(scheme),
                            learns_from_text(scheme.needs)      ? " (perplexity only)"
                            : scheme.needs == Needs::statistics ? " (needs --calibration)"
                                                                : "");
    }
    for (const std::string& name : turboquant_names()) {
        TurboQuant form;
        parse_turboquant(name, form);
        constexpr unsigned dh = 64;
        help += fmt::format("  {:<16} {:5.2f} bits   {}{} (heads of {}; simulated, perplexity only)\n", name,
                            turboquant_bits(form, dh) / (2 * dh),
                            "K and V, each head in a random rotation, levels of a normal distribution",
                            form.residual ? ", a bit of K for the sign of what is left" : "", dh);
    }
    return help +
           "\nrecipe=FILE takes the bits that `allocate` gave each layer.\n"
           "\nA scheme may have suffixes:\n"
           "  :tail=N                            newest tokens that stay exact\n"
           "  :sinks=N                           first tokens that stay exact\n"
           "  :prefix=N                          learns from the sequence's own first tokens, which are f16 until "
           "then,\n                                     in place of --calibration (schemes that need one)\n"
           "  :rest=NAME                         tokens are read and saved in that scheme; a cache that wakes "
           "(perplexity: "
           "before\n                                     what is scored; prefix-store: before the answer) "
           "rebuilds them in this one\n"
           "  :group=N                           32, 64 or 128 values share a scale (f16 and ggml's have no choice)\n"
           "  :uniform                           all layers have as many bits (head*, joint*: more go where errors "
           "cost more)\n"
           "  :weights=T                         prepared matrices are kept in f32, f16 (the default), bf16 or q8\n"
           "like svd_head4:group=64:tail=128\n";
}

Scheme parse_scheme(const std::string& text) {
    Scheme scheme;
    scheme.text = text;
    std::string_view rest = text;
    const auto next = [&] {
        const std::size_t colon = rest.find(':');
        const std::string_view part = rest.substr(0, colon);
        rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
        return part;
    };
    scheme.name = next();
    constexpr std::string_view recipe = "recipe=";
    if (scheme.name.starts_with(recipe)) {
        scheme.recipe = scheme.name.substr(recipe.size());
        scheme.name = "recipe";
        scheme.needs = Needs::statistics;
    }
    while (rest.data() != nullptr) {
        const std::string_view suffix = next();
        if (suffix == "uniform") {
            if (scheme.uniform) throw Error(fmt::format("scheme '{}': uniform stands there twice", text));
            scheme.uniform = true;
            continue;
        }
        const std::size_t equals = suffix.find('=');
        const std::string_view key = suffix.substr(0, equals);
        if (key == "weights" && equals != std::string_view::npos) {
            if (scheme.weights) throw Error(fmt::format("scheme '{}': weights stands there twice", text));
            scheme.weights = weight_type(suffix.substr(equals + 1), text);
            continue;
        }
        if (key == "rest" && equals != std::string_view::npos) {
            if (!scheme.rest.empty()) throw Error(fmt::format("scheme '{}': rest stands there twice", text));
            scheme.rest = suffix.substr(equals + 1);
            continue;
        }
        std::optional<std::size_t>* value = key == "tail"     ? &scheme.tail
                                            : key == "sinks"  ? &scheme.sinks
                                            : key == "group"  ? &scheme.group
                                            : key == "prefix" ? &scheme.prefix
                                                              : nullptr;
        if (value == nullptr || equals == std::string_view::npos)
            throw Error(fmt::format(
                "scheme '{}': '{}' is not tail=N, sinks=N, prefix=N, group=N, rest=NAME, uniform or weights=T", text,
                suffix));
        if (value->has_value()) throw Error(fmt::format("scheme '{}': {} stands there twice", text, key));
        *value = number(suffix.substr(equals + 1), text);
    }
    if (!scheme.recipe.empty()) {
        if (scheme.group || scheme.uniform)
            throw Error(fmt::format("scheme '{}': a recipe has its own bits, in groups of 128", text));
    } else if (TurboQuant form; parse_turboquant(scheme.name, form)) {
        if (scheme.group || scheme.prefix || scheme.uniform || scheme.weights || !scheme.rest.empty())
            throw Error(fmt::format("scheme '{}': {} takes tail=N and sinks=N alone", text, scheme.name));
        scheme.turboquant = form;
    } else if (scheme.name != exact_name) {
        static_cast<void>(library_schemes());
        try {
            scheme.needs = xquant::find_scheme(scheme.library_name()).needs;
        } catch (const xquant::error& unknown) {
            throw Error(unknown.what());
        }
    } else if (scheme.name != text) {
        throw Error(fmt::format("scheme '{}': {} is exact and takes no suffixes", text, exact_name));
    }
    if (!scheme.rest.empty()) add_needs_of_rest(scheme);
    return scheme;
}

std::string Scheme::library_name() const {
    return name + (uniform ? ":uniform" : "") + (group ? fmt::format(":group={}", *group) : "");
}

std::unique_ptr<AttentionCache> make_cache(const Scheme& scheme, const Model& model, const SchemeOptions& options) {
    if (options.rebuilt > 0 && (scheme.name == exact_name || scheme.turboquant))
        throw Error(fmt::format("scheme '{}' keeps no rebuilt keys: --rebuilt is for schemes of X and of latents",
                                scheme.text));
    if (scheme.name == exact_name) return make_exact_cache(model, *options.pool);
    SchemeOptions own = options;
    own.tail = scheme.tail.value_or(options.tail);
    own.sinks = scheme.sinks.value_or(options.sinks);
    own.weights = scheme.weights.value_or(options.weights);
    if (scheme.turboquant) {
        if (!own.strict || own.place != Place::processor)
            throw Error(fmt::format("{} is simulated: perplexity on the processor has it", scheme.name));
        return make_turboquant_cache(*scheme.turboquant, model, *own.pool, own.sinks, own.tail);
    }
    return make_library_sequence(scheme, model, own);
}

std::unique_ptr<AttentionCache> make_cache(const std::string& scheme, const Model& model,
                                           const SchemeOptions& options) {
    return make_cache(parse_scheme(scheme), model, options);
}

}  // namespace llm
