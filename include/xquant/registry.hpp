// Caches by name, chosen at run time.
//
//     std::unique_ptr<xquant::Cache<>> cache = xquant::make_cache("kv4", model, {.recent = 64});
//     auto on_gpu = xquant::make_cache<xquant::backend::cuda>("kivi4:group=32", model);
//     for (const xquant::SchemeInfo& scheme : xquant::schemes()) puts(xquant::to_string(scheme).c_str());
//     xquant::register_scheme<MyCache>("mine", "what it stores, in a line");   // MyCache: an XCache of your policies
//
// The schemes are the presets of preset.hpp. #include <xquant/registry_svd.hpp> (it needs Eigen) adds the schemes whose
// latents come from an SVD, such as svd_head4. A scheme serves every backend, since its policies are data by the time a
// backend sees them.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include <xquant/preset.hpp>
#include <xquant/scheme_info.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The schemes of this build. Safe for use by several threads at once.
class Registry {
public:
    using MakeRecipe = Recipe (*)(const Model&, const Options&);

    /// Adds a scheme, or another group of one that is there. Throws state_error if there is one of that name and group,
    /// shape_error for a name that could not be asked for.
    /// `scheme` has one form. Where its bits are divided, `uniform` does not divide them.
    void add(const SchemeInfo& scheme, MakeRecipe recipe, MakeRecipe uniform = nullptr) {
        const std::string& name = scheme.name;
        const SchemeInfo::Form& form = scheme.forms.front();
        expects(!name.empty() && name.find_first_of(": \t\n") == std::string::npos, "register_scheme: the name is '",
                name, "'; expected one word, without ':' or white space");
        const std::lock_guard lock(mutex_);
        const auto known =
            std::find_if(all_.begin(), all_.end(), [&](const Entry& entry) { return entry.info.name == name; });
        if (known == all_.end()) {
            all_.push_back({scheme, {recipe}, {uniform}});
            return;
        }
        Entry& entry = *known;
        for (const SchemeInfo::Form& other : entry.info.forms) {
            if (other.group == form.group) {
                raise<state_error>("register_scheme: there is a scheme '" + name + "' in groups of " +
                                   std::to_string(form.group) + " already");
            }
        }
        entry.info.forms.push_back(form);
        entry.recipes.push_back(recipe);
        entry.uniform.push_back(uniform);
    }

    [[nodiscard]] std::vector<SchemeInfo> list() const {
        const std::lock_guard lock(mutex_);
        std::vector<SchemeInfo> out;
        for (const Entry& entry : all_) out.push_back(entry.info);
        return out;
    }

    struct Found {
        SchemeInfo info;  ///< with the one form that was asked for
        MakeRecipe recipe;
    };

    /// "NAME", "NAME:uniform", and ":group=N" behind either. Throws shape_error with the names that are nearest, or
    /// the groups that there are.
    [[nodiscard]] Found find(std::string_view text) const {
        const std::lock_guard lock(mutex_);
        const std::string_view name = text.substr(0, text.find(':'));
        for (const Entry& entry : all_) {
            if (entry.info.name != name) continue;
            constexpr std::string_view key = ":uniform";
            std::string_view suffix = text.substr(name.size());
            const bool uniform = entry.info.divides_bits && suffix.starts_with(key) &&
                                 (suffix.size() == key.size() || suffix[key.size()] == ':');
            if (uniform) suffix.remove_prefix(key.size());
            const std::size_t form = form_of(entry, text, suffix);
            Found found{entry.info, uniform ? entry.uniform[form] : entry.recipes[form]};
            found.info.name = text;
            found.info.forms = {entry.info.forms[form]};
            return found;
        }
        raise<shape_error>("unknown scheme '" + std::string(text) + "'" + nearest(name) +
                           "; xquant::schemes() lists all " + std::to_string(all_.size()));
    }

private:
    struct Entry {
        SchemeInfo info;
        std::vector<MakeRecipe> recipes;  ///< one for each of info.forms
        std::vector<MakeRecipe> uniform;  ///< likewise; null unless info.divides_bits
    };

    /// Which of a scheme's forms the suffix of a name, ":group=N" or nothing, asks for.
    static std::size_t form_of(const Entry& entry, std::string_view text, std::string_view suffix) {
        constexpr std::string_view key = ":group=";
        if (suffix.empty()) return 0;
        std::string groups;
        for (std::size_t i = 0; i < entry.info.forms.size(); ++i) {
            const std::string group = std::to_string(entry.info.forms[i].group);
            if (suffix.starts_with(key) && suffix.substr(key.size()) == group) return i;
            groups += (i == 0 ? "" : ", ") + group;
        }
        raise<shape_error>("scheme '" + std::string(text) + "': " +
                           (entry.info.forms.front().group == 0
                                ? entry.info.name + " has no groups, and takes no suffix"
                                : "after " + entry.info.name + " there may be " +
                                      (entry.info.divides_bits ? ":uniform and " : "") + ":group=N, with N one of " +
                                      groups));
    }

    /// ", did you mean ...", of at most three names that few letters tell apart.
    [[nodiscard]] std::string nearest(std::string_view name) const {
        std::vector<std::pair<std::size_t, std::string_view>> all;
        for (const Entry& entry : all_) all.emplace_back(distance(name, entry.info.name), entry.info.name);
        std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
        std::string out;
        for (std::size_t i = 0; i < std::min<std::size_t>(3, all.size()); ++i) {
            if (all[i].first > std::max<std::size_t>(2, name.size() / 2)) break;
            out += (i == 0 ? ", did you mean " : ", ") + std::string(all[i].second);
        }
        const bool has_svd = std::any_of(all.begin(), all.end(),
                                         [](const auto& one) { return one.second.find("svd") != one.second.npos; });
        if (name.find("svd") != name.npos && !has_svd)
            out += "; #include <xquant/registry_svd.hpp> adds those of an SVD";
        return out;
    }

    /// Letters to insert, delete or replace (Levenshtein).
    static std::size_t distance(std::string_view a, std::string_view b) {
        std::vector<std::size_t> row(b.size() + 1);
        for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
        for (std::size_t i = 0; i < a.size(); ++i) {
            std::size_t diagonal = row[0]++;
            for (std::size_t j = 0; j < b.size(); ++j) {
                const std::size_t replaced = diagonal + (a[i] == b[j] ? 0U : 1U);
                diagonal = row[j + 1];
                row[j + 1] = (std::min)({replaced, row[j] + 1, row[j + 1] + 1});
            }
        }
        return row[b.size()];
    }

    mutable std::mutex mutex_;
    std::vector<Entry> all_;
};

/// What is known of an XCache.
template <class Cached>
SchemeInfo info_of(const std::string& name, const std::string& summary, Needs needs, bool divides_bits = false) {
    using Stored = typename Cached::scheme;
    return {name,
            summary,
            {{Stored::group(), Stored::bits_per_value()}},
            needs,
            Stored::inputs(),
            divides_bits,
            Stored::reads_w_k()};
}

/// Adds an XCache.
template <class Cached>
void add_scheme(Registry& to, const std::string& name, const std::string& summary, Needs needs = Needs::nothing) {
    to.add(info_of<Cached>(name, summary, needs), &CacheAccess::recipe<Cached>);
}

/// Adds Cached<4>, Cached<3> and Cached<2> as NAME4, NAME3, NAME2, or with a suffix behind the number.
template <unsigned Group, template <unsigned, unsigned> class Cached>
void add_bits(Registry& to, const std::string& name, const char* summary, const std::string& suffix = "",
              Needs needs = Needs::nothing) {
    add_scheme<Cached<4, Group>>(to, name + "4" + suffix, summary, needs);
    add_scheme<Cached<3, Group>>(to, name + "3" + suffix, summary, needs);
    add_scheme<Cached<2, Group>>(to, name + "2" + suffix, summary, needs);
}

#if defined(XQUANT_REGISTRY_COMPILED)
// Compiled in a file of the program (instantiate.hpp).
template <unsigned Group>
void add_grouped_presets(Registry& to);
template <class = void>
void add_plain_presets(Registry& to);
#else
template <unsigned Group>
void add_grouped_presets(Registry& to) {
    add_bits<Group, preset::kivi>(to, "kivi", "K before RoPE per channel, V per token");
    add_bits<Group, preset::plain_x>(to, "x", "X, the input of attention, per token");
    add_bits<Group, preset::rotated_x>(to, "x", "X rotated, per token", "_rot");
    add_bits<Group, preset::rotated_x>(to, "x", "X less its mean, rotated, per token", "_rot_mean", Needs::mean);
    add_bits<Group, preset::cross_layer_x>(to, "cl_x", "what X adds from layer to layer, per token");
    add_bits<Group, preset::cross_layer_rotated_x>(to, "cl_x_rot", "what X rotated adds from layer to layer");
}

/// Presets without groups.
template <class = void>
void add_plain_presets(Registry& to) {
    add_scheme<preset::f16_kv>(to, "f16", "K and V as they are");
    add_scheme<preset::q8_0>(to, "q8_0", "K and V, 8 bits as ggml has them");
    add_scheme<preset::q4_0>(to, "q4_0", "K and V, 4 bits as ggml has them");
    add_scheme<preset::q4_0_hadamard>(to, "q4_0_hadamard", "K and V, each head rotated, 4 bits as ggml has them");
    add_scheme<preset::kv<8>>(to, "kv8", "K after RoPE and V, each head rotated, per token");
    add_scheme<preset::kv<4>>(to, "kv4", "K after RoPE and V, each head rotated, per token");
    add_scheme<preset::nf4>(to, "nf4", "K after RoPE and V in the NF4 levels of QLoRA");
    constexpr const char* kvquant = "K before RoPE and V, learnt levels, 1 of 128 values kept in f16 (KVQuant)";
    add_scheme<preset::kvquant<4>>(to, "kvquant4", kvquant, Needs::calibration);
    add_scheme<preset::kvquant<3>>(to, "kvquant3", kvquant, Needs::calibration);
    add_scheme<preset::kvquant<2>>(to, "kvquant2", kvquant, Needs::calibration);
}
#endif

inline void add_presets(Registry& to) {
    add_plain_presets(to);
    add_grouped_presets<128>(to);
    add_grouped_presets<64>(to);
    add_grouped_presets<32>(to);
}

inline Registry& registry() {
    static Registry all;
    static const bool filled = (add_presets(all), true);
    static_cast<void>(filled);
    return all;
}

}  // namespace detail

/// All schemes: the library's, and the schemes that were registered.
[[nodiscard]] inline std::vector<SchemeInfo> schemes() { return detail::registry().list(); }

/// The scheme of a name, "NAME" or "NAME:group=N". Of its forms, it has the one that the name asks for.
/// Throws shape_error if there is none, with the names that are nearest or the groups that there are.
[[nodiscard]] inline SchemeInfo find_scheme(std::string_view name) { return detail::registry().find(name).info; }

/// A cache of a scheme, "NAME", "NAME:group=N", or of one whose bits are divided "NAME:uniform" too. Throws as
/// find_scheme, and as the constructor of XCache.
template <class Backend = backend::best>
[[nodiscard]] std::unique_ptr<Cache<Backend>> make_cache(std::string_view name, const Model& model,
                                                         const Options& options = {}) {
    const auto found = detail::registry().find(name);
    return detail::CacheAccess::make<Backend>(model, options, found.recipe(model, options));
}

/// XCache::predict of a scheme: the bytes() of its cache with one sequence of `tokens` tokens, workspace left out.
/// Nothing is allocated or prepared. Throws as find_scheme.
[[nodiscard]] inline Bytes predict(std::string_view name, const Model& model, const Options& options,
                                   std::size_t tokens) {
    const auto found = detail::registry().find(name);
    return detail::predict_bytes(model, options, tokens, found.recipe(model, options));
}

/// Adds a scheme of yours: an XCache with your policies, or another group of a scheme that has that name. From here on
/// make_cache, predict and schemes() know it, on every backend. Throws state_error if the name has a scheme with that
/// group already, shape_error for names with ':' or white space.
template <class Cached>
void register_scheme(const std::string& name, const std::string& summary, Needs needs = Needs::nothing) {
    detail::add_scheme<Cached>(detail::registry(), name, summary, needs);
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
