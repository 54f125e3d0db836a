#include "rope.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "weights.hpp"

namespace adapter {
namespace {

/// op_params of GGML_OP_ROPE.
struct Numbers {
    explicit Numbers(const std::vector<std::int32_t>& p)
        : dims(p[1]),
          mode(p[2]),
          trained(p[4]),
          base(number(p[5])),
          scale(number(p[6])),
          extrapolation(number(p[7])),
          attention(number(p[8])),
          fast(number(p[9])),
          slow(number(p[10])),
          offset(p[15]) {}
    static float number(std::int32_t bits) { return std::bit_cast<float>(bits); }

    int dims, mode, trained;
    float base, scale, extrapolation, attention, fast, slow;
    int offset;
};

}  // namespace

std::string foreign_rope(const RopeOperation& rope) {
    if (!rope.present()) return {};
    const Numbers n(rope.parameters);
    if (n.mode != GGML_ROPE_TYPE_NORMAL && n.mode != GGML_ROPE_TYPE_NEOX) return "RoPE of several positions a token";
    if (n.offset != 0) return "RoPE that begins at channel " + std::to_string(n.offset) + " of a head";
    return {};
}

xquant::Rope rope_of(const RopeOperation& rope) {
    xquant::Rope out;
    if (!rope.present()) return out;
    const Numbers n(rope.parameters);
    out.pairing = n.mode == GGML_ROPE_TYPE_NEOX ? xquant::RopePairing::halves : xquant::RopePairing::interleaved;
    out.factor = static_cast<double>(n.attention);
    if (n.extrapolation != 0) out.factor *= 1 + 0.1 * std::log(1 / static_cast<double>(n.scale));
    const std::size_t pairs = static_cast<std::size_t>(n.dims) / 2;
    std::vector<float> factors(pairs, 1.0F);
    if (rope.factors != nullptr) factors = vector_of(rope.factors, 0, pairs);
    // YaRN: frequencies between these two pairs go over from interpolation to extrapolation.
    float ramp[2] = {0, 0};
    ggml_rope_yarn_corr_dims(n.dims, n.trained, n.base, n.fast, n.slow, ramp);
    for (std::size_t j = 0; j < pairs; ++j) {
        const double frequency = std::pow(static_cast<double>(n.base), -2.0 * static_cast<double>(j) / n.dims) /
                                 static_cast<double>(factors[j]);
        const double interpolated = static_cast<double>(n.scale) * frequency;
        const double at = (static_cast<double>(j) - static_cast<double>(ramp[0])) /
                          static_cast<double>(std::max(0.001F, ramp[1] - ramp[0]));
        const double mix = (1 - std::clamp(at, 0.0, 1.0)) * static_cast<double>(n.extrapolation);
        out.inverse_frequencies.push_back(interpolated * (1 - mix) + frequency * mix);
    }
    return out;
}

}  // namespace adapter
