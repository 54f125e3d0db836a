#include "schemes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "error.hpp"
#include "exact_cache.hpp"
#include "library_cache.hpp"
#include "library_schemes.hpp"

namespace llm {
namespace {

constexpr std::string_view exact_name = "f32";

const std::vector<LibraryScheme>& library_schemes() {
    static const std::vector<LibraryScheme> all = [] {
        std::vector<LibraryScheme> list;
        add_key_value_and_x_schemes(list);
        add_svd_schemes(list);
        add_rank_schemes(list);
        return list;
    }();
    return all;
}

/// What --help says, a line for each family; {4,3,2} are bits.
constexpr std::pair<std::string_view, std::string_view> families[] = {
    {"f32", "K and V in f32: the exact cache that the others are compared with"},
    {"f16", "K and V in f16"},
    {"q8_0", "K and V in ggml's 8 bits"},
    {"q4_0", "K and V in ggml's 4 bits"},
    {"q4_0_hadamard", "the same with every head rotated"},
    {"kv{8,4}", "K after RoPE and V, every head rotated, in groups of 64 along a token"},
    {"kivi{4,3,2}", "K before RoPE per channel, V per token"},
    {"kvquant{4,3,2}", "the same with learnt levels, 1 of 128 values kept in f16, as KVQuant (perplexity only)"},
    {"nf4", "K after RoPE and V in the NF4 levels of QLoRA, groups of 64"},
    {"x{4,3,2}", "X, the input of attention, per token"},
    {"x{4,3,2}_rot", "X rotated"},
    {"x{4,3,2}_rot_mean", "X less its mean over a calibration text, rotated (perplexity only)"},
    {"svd_joint{4,3,2}", "latents of W_k per channel and of W_v per token"},
    {"svd_head{4,3,2}", "a latent of each key head per channel, V rotated per token"},
    {"svd_joint4_e{999,995,990,950,900}",
     "the same, cut to the rank that holds this share of W's energy, in thousandths"},
    {"svd_head4_e{999,995,990,950,900}", "the same for svd_head4"},
    {"cl_x{4,3,2}", "differences of X from layer to layer"},
    {"cl_x_rot{4,3,2}", "the same with X rotated"},
    {"cl_svd{4,3,2}", "differences of latents of [W_k W_v] from layer to layer"},
    {"cl_svd_rot{4,3,2}", "the same with the latents rotated"},
};

std::size_t number(std::string_view digits, const std::string& scheme) {
    std::size_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size() || value > 0x7fffffff)
        throw Error(fmt::format("scheme '{}': '{}' is no number that can be meant", scheme, digits));
    return value;
}

/// The scheme's entry for its group, or an error that says which groups there are.
const LibraryScheme& find(const Scheme& scheme) {
    std::vector<std::size_t> groups;
    for (const LibraryScheme& known : library_schemes()) {
        if (known.name != scheme.name) continue;
        if (known.group == scheme.group.value_or(known.group)) return known;
        groups.push_back(known.group);
    }
    if (groups.empty())
        throw Error(fmt::format("unknown scheme '{}'; known are {}", scheme.name, fmt::join(scheme_names(), ", ")));
    if (groups.front() == 0)
        throw Error(fmt::format("scheme '{}': {} has no groups to choose", scheme.text, scheme.name));
    throw Error(fmt::format("scheme '{}': the groups can have {} values", scheme.text, fmt::join(groups, ", ")));
}

}  // namespace

Place parse_place(const std::string& name) {
    if (name == "processor") return Place::processor;
    if (name == "emulated_cuda") return Place::emulated_cuda;
    if (name != "cuda") throw Error(fmt::format("--backend {}: known are processor, cuda and emulated_cuda", name));
#if !defined(XQUANT_LLM_CUDA)
    throw Error("--backend cuda: this program was built without nvcc");
#else
    return Place::cuda;
#endif
}

std::vector<std::string> scheme_names() {
    std::vector<std::string> names{std::string(exact_name)};
    for (const LibraryScheme& scheme : library_schemes())
        if (std::find(names.begin(), names.end(), scheme.name) == names.end()) names.emplace_back(scheme.name);
    return names;
}

std::string schemes_help() {
    std::string help = "Schemes:\n";
    for (const auto& [names, what] : families) help += fmt::format("  {:<35}{}\n", names, what);
    return help +
           "\nA scheme may have suffixes:\n"
           "  :tail=N                            newest tokens that stay exact\n"
           "  :sinks=N                           first tokens that stay exact\n"
           "  :group=N                           32, 64 or 128 values share a scale (f16 and ggml's have no choice)\n"
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
    while (rest.data() != nullptr) {
        const std::string_view suffix = next();
        const std::size_t equals = suffix.find('=');
        const std::string_view key = suffix.substr(0, equals);
        std::optional<std::size_t>* value = key == "tail"    ? &scheme.tail
                                            : key == "sinks" ? &scheme.sinks
                                            : key == "group" ? &scheme.group
                                                             : nullptr;
        if (value == nullptr || equals == std::string_view::npos)
            throw Error(fmt::format("scheme '{}': '{}' is not tail=N, sinks=N or group=N", text, suffix));
        if (value->has_value()) throw Error(fmt::format("scheme '{}': {} stands there twice", text, key));
        *value = number(suffix.substr(equals + 1), text);
    }
    if (scheme.name != exact_name)
        scheme.needs = find(scheme).needs;
    else if (scheme.name != text)
        throw Error(fmt::format("scheme '{}': {} is exact and takes no suffixes", text, exact_name));
    return scheme;
}

std::unique_ptr<AttentionCache> make_cache(const Scheme& scheme, const Model& model, const SchemeOptions& options) {
    if (scheme.name == exact_name) return make_exact_cache(model, *options.pool);
    SchemeOptions own = options;
    own.tail = scheme.tail.value_or(options.tail);
    own.sinks = scheme.sinks.value_or(options.sinks);
    return make_library_sequence(find(scheme), model, own);
}

std::unique_ptr<AttentionCache> make_cache(const std::string& scheme, const Model& model,
                                           const SchemeOptions& options) {
    return make_cache(parse_scheme(scheme), model, options);
}

}  // namespace llm
