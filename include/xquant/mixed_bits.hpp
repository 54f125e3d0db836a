// BitRecipe: how many bits the codes of each layer's K and V have, and the caches made by it. More bits go where errors
// cost more.
//
//     Calibration calibration = load_calibration("model.xqcal", model);      // with sensitivities
//     calibration.attach(model);
//     BitRecipe recipe = allocate_bits(BitForm::heads, model, 3.5);          // 3.5 bits on average
//     std::unique_ptr<Cache<>> cache = make_cache(recipe, model);
//
// Schemes head4, joint3 and their kind do this for 4 or 3 bits on average (registry_svd.hpp).
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <xquant/projection/key_value_latent.hpp>
#include <xquant/statistics.hpp>
#include <xquant/xcache.hpp>

namespace xquant {

/// What a BitRecipe stores.
enum class BitForm : unsigned char {
    heads,  ///< KeyValueLatent<EachHead>
    joint   ///< KeyValueLatent<AllHeads>
};

/// Bits of the codes of a layer: 2 to 6, or 16: rows are kept in f16.
struct LayerBits {
    unsigned keys = 4,  ///< of K
        values = 4;     ///< of V
    friend bool operator==(const LayerBits&, const LayerBits&) = default;
};

/// Bits of each layer.
struct BitRecipe {
    BitForm form = BitForm::heads;  ///< what is stored
    std::vector<LayerBits> layers;  ///< [L]
    friend bool operator==(const BitRecipe&, const BitRecipe&) = default;
};

inline namespace XQUANT_ABI_NS {
namespace detail {

/// Whether a recipe may have codes of so many bits.
constexpr bool recipe_has(unsigned bits) noexcept { return (bits >= 2 && bits <= 6) || bits == 16; }

/// A codec of so many bits, 2 to 6 or 16.
template <class Axis, unsigned Group>
StreamCodec codec_of_bits(std::size_t width, unsigned bits) {
    switch (bits) {
        case 2:
            return make_codec<FedBack<2, Group>, Axis>(width);
        case 3:
            return make_codec<FedBack<3, Group>, Axis>(width);
        case 4:
            return make_codec<FedBack<4, Group>, Axis>(width);
        case 5:
            return make_codec<FedBack<5, Group>, Axis>(width);
        case 6:
            return make_codec<FedBack<6, Group>, Axis>(width);
        default:  // 16
            return make_codec<Unquantized<f16>, Axis>(width);
    }
}

/// A projection of K and V whose codes' bits are chosen at run time.
template <class Policy, unsigned Group>
struct MixedBits {
    static std::vector<StreamCodec> codecs(const std::array<std::size_t, 2>& widths, StreamBits bits) {
        return {codec_of_bits<PerChannel, Group>(widths[0], bits[0]),
                codec_of_bits<PerToken, Group>(widths[1], bits[1])};
    }
    static LayerSizes sizes(const Layer& layer, StreamBits bits) {
        check(layer);
        const LayerFootprint<2> footprint = Policy::footprint(layer);
        LayerSizes out;
        out.codecs = codecs(footprint.widths, bits);
        out.row_widths.assign(footprint.widths.begin(), footprint.widths.end());
        out.matrix_floats = footprint.matrix_floats;
        out.vector_floats = footprint.vector_floats;
        for (std::size_t i = 0; i < 2; ++i) {
            if (bits[i] < 16) out.matrix_floats += feedback_floats(footprint.widths[i], footprint.blocks[i]);
        }
        return out;
    }
    static LayerParts prepare(const Layer& layer, StreamBits bits) {
        check(layer);
        LayerParts out{Policy::prepare(layer, {bits[0], bits[1]}), {}, {}};
        out.codecs = codecs({out.plan.streams[0].coded_width(), out.plan.streams[1].coded_width()}, bits);
        for (std::size_t i = 0; i < 2; ++i) {
            if (bits[i] >= 16) out.plan.streams[i].metric = {};
        }
        return out;
    }
    static LayerRecipe recipe(LayerBits bits) noexcept {
        return {sizes, prepare,
                2,     CrossRole::none,
                false, {static_cast<std::uint8_t>(bits.keys), static_cast<std::uint8_t>(bits.values)}};
    }

private:
    static void check(const Layer& layer) {
        expects(takes<Policy>(layer.input), "Layer::input is ", to_string(layer.input),
                ", and this scheme stores what is made from K before RoPE and V: hand over X or keys_before_rope");
        expects(!layer.latent.present(), "Layer::latent is given: K and V come from the model's own latent");
    }
};

template <unsigned Group>
Recipe recipe_of(const BitRecipe& bits, const Model& model) {
    expects(bits.layers.size() == model.layers.size(), "a recipe for ", bits.layers.size(), " layers; the model has ",
            model.layers.size());
    Recipe out;
    for (const LayerBits& layer : bits.layers) {
        for (const unsigned of : {layer.keys, layer.values}) {
            expects(recipe_has(of), "a recipe has codes of ", of, " bits; expected 2 to 6, or 16 for f16");
        }
        out.layers.push_back(bits.form == BitForm::heads ? MixedBits<KeyValueLatent<EachHead>, Group>::recipe(layer)
                                                         : MixedBits<KeyValueLatent<AllHeads>, Group>::recipe(layer));
    }
    return out;
}

/// The mean square of rounding, in units of the range.
constexpr double rounding_of(unsigned bits) noexcept {
    const double steps = static_cast<double>((1U << bits) - 1);
    return 1 / (steps * steps);
}

}  // namespace detail

/// Bits of each layer's K and V, 2 to 6, at most `average` over all stored channels, so that the sum of what the
/// layers' errors cost is least: from 2 bits on, a bit goes where it takes away most per channel. Reads sensitivities
/// in Layer::statistics, measured at 3 bits. Throws value_error where they are not there, shape_error for an average
/// below 2 or above 6. Cost: 10 L^2.
inline BitRecipe allocate_bits(BitForm form, const Model& model, double average) {
    constexpr unsigned fewest = 2, most = 6, measured = 3;
    detail::expects(average >= fewest && average <= most, "allocate_bits: ", average, " bits on average; expected ",
                    fewest, " to ", most);
    struct Stream {
        unsigned* bits;
        double cost, width;
    };
    BitRecipe out{form, std::vector<LayerBits>(model.layers.size(), {fewest, fewest})};
    std::vector<Stream> streams;
    double left = 0;
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        const LayerStatistics* const statistics = model.layers[i].statistics;
        if (statistics == nullptr || !(statistics->key_sensitivity > 0) || !(statistics->value_sensitivity > 0)) {
            detail::raise<value_error>("layer ", i,
                                       ": no sensitivity of K and V stands in Layer::statistics, by which ", average,
                                       " bits could be divided; measure it, or ask for a uniform scheme "
                                       "(head4:uniform)");
        }
        const auto width = static_cast<double>(model.layers[i].shape.kv_width());
        const double unit = 1 / detail::rounding_of(measured);
        streams.push_back({&out.layers[i].keys, static_cast<double>(statistics->key_sensitivity) * unit, width});
        streams.push_back({&out.layers[i].values, static_cast<double>(statistics->value_sensitivity) * unit, width});
        left += 2 * width * (average - fewest);
    }
    for (;;) {
        Stream* best = nullptr;
        double most_gained = 0;
        for (Stream& stream : streams) {
            if (*stream.bits == most || stream.width > left * (1 + 1e-12)) continue;
            const double gained = stream.cost *
                                  (detail::rounding_of(*stream.bits) - detail::rounding_of(*stream.bits + 1)) /
                                  stream.width;
            if (gained > most_gained) {
                most_gained = gained;
                best = &stream;
            }
        }
        if (best == nullptr) return out;
        left -= best->width;
        ++*best->bits;
    }
}

/// "heads 4/4 5/3 ...": the form, then bits of K and of V of each layer.
inline std::string to_string(const BitRecipe& recipe) {
    std::string out = recipe.form == BitForm::heads ? "heads" : "joint";
    for (const LayerBits& layer : recipe.layers) {
        out += " " + std::to_string(layer.keys) + "/" + std::to_string(layer.values);
    }
    return out;
}

/// The recipe that to_string wrote; white space may be any. Throws shape_error for other text.
inline BitRecipe parse_recipe(std::string_view text) {
    BitRecipe out;
    std::size_t word = 0;
    const auto is_space = [](char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; };
    for (std::size_t at = 0; at < text.size();) {
        if (is_space(text[at])) {
            ++at;
            continue;
        }
        std::size_t end = at;
        while (end < text.size() && !is_space(text[end])) ++end;
        const std::string_view part = text.substr(at, end - at);
        at = end;
        if (word++ == 0) {
            detail::expects(part == "heads" || part == "joint", "a recipe begins with heads or joint, not with '", part,
                            "'");
            out.form = part == "heads" ? BitForm::heads : BitForm::joint;
            continue;
        }
        LayerBits bits;
        const std::size_t slash = part.find('/');
        const auto number = [&](std::string_view digits, unsigned& to) {
            const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), to);
            return error == std::errc() && stop == digits.data() + digits.size() && detail::recipe_has(to);
        };
        detail::expects(slash != part.npos && number(part.substr(0, slash), bits.keys) &&
                            number(part.substr(slash + 1), bits.values),
                        "a recipe has '", part, "' for layer ", word - 2,
                        "; expected bits of K and of V like 4/3, each 2 to 6 or 16");
        out.layers.push_back(bits);
    }
    detail::expects(word > 1, "a recipe has no layers");
    return out;
}

/// A cache made by a recipe, in groups of 128. Throws shape_error for a recipe of another number of layers, and as the
/// constructor of XCache.
template <class Backend = backend::best>
[[nodiscard]] std::unique_ptr<Cache<Backend>> make_cache(const BitRecipe& recipe, const Model& model,
                                                         const Options& options = {}) {
    return detail::CacheAccess::make<Backend>(model, options, detail::recipe_of<128>(recipe, model));
}

/// XCache::predict of a recipe.
[[nodiscard]] inline Bytes predict(const BitRecipe& recipe, const Model& model, const Options& options,
                                   std::size_t tokens) {
    return detail::predict_bytes(model, options, tokens, detail::recipe_of<128>(recipe, model));
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
