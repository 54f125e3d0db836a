// Vector steps of encoding with feedback. They make the bytes of the scalar steps.
//
// Limit   feed_back: for each product a load of the target, a load of the error and a store.
#pragma once

#include <xquant/backend/feedback.hpp>
#include <xquant/backend/simd/codec.hpp>

namespace xquant::backend {
inline namespace XQUANT_ABI_NS {

template <class R>
void find_scales(simd<R>, const StreamCodec& codec, const float* targets, std::size_t n, std::size_t tokens,
                 const TokenScalesOf& out) noexcept {
    const std::size_t block = codec.format.group_tokens;
    if (codec.scale_of == nullptr || (block > 1 && n > 1)) {
        find_scales(scalar{}, codec, targets, n, tokens, out);
        return;
    }
    alignas(64) std::array<float, tile_tokens + R::lanes> low, high;
    for (std::size_t k = 0; k < tokens; k += R::lanes) {
        const std::size_t some = (std::min)(R::lanes, tokens - k);
        auto least = R::load_first(targets + k, some), most = least;
        for (std::size_t i = 1; i < n; ++i) {
            const auto value = R::load_first(targets + i * tokens + k, some);
            least = R::minimum(least, value);
            most = R::maximum(most, value);
        }
        R::store(low.data() + k, least);
        R::store(high.data() + k, most);
    }
    for (std::size_t t = 0; t < tokens; t += block) {
        const std::size_t some = (std::min)(block, tokens - t);
        // Braces within braces here are what nvcc 13.0 makes no valid code of.
        const Range lows = range_of({low.data() + t, some}), highs = range_of({high.data() + t, some});
        const GroupScale scale = codec.scale_of({lows.low, highs.high});
        std::fill_n(out.scales + t, some, scale.scale);
        std::fill_n(out.zeros + t, some, scale.zero);
        std::fill_n(out.inverses + t, some, inverse_scale(scale));
    }
}

template <class R>
void round_channel(simd<R>, const StreamFormat& format, const float* targets, const float* values, std::size_t tokens,
                   const TokenScalesOf& by, std::uint8_t* codes, float* errors) noexcept {
    if (format.levels != nullptr || tokens % R::lanes != 0) {
        round_channel(scalar{}, format, targets, values, tokens, by, codes, errors);
        return;
    }
    const auto bottom = R::zero(), top = R::splat(static_cast<float>((1U << format.bits) - 1U));
    for (std::size_t k = 0; k < tokens; k += R::lanes) {
        const auto zero = R::load(by.zeros + k);
        const auto scaled = R::mul(R::sub(R::load(targets + k), zero), R::load(by.inverses + k));
        const auto code = R::round(R::minimum(R::maximum(scaled, bottom), top));
        R::store_u8(codes + k, code);
        R::store(errors + k, R::sub(R::fma(R::load(by.scales + k), R::to_f32(code), zero), R::load(values + k)));
    }
}

template <class R>
void feed_back(simd<R>, const float* column, std::size_t n, const float* errors, std::size_t tokens,
               float* targets) noexcept {
    if (tokens == 1) {
        const auto error = R::splat(-errors[0]);
        for (std::size_t c = 0; c < n; c += R::lanes) {
            const std::size_t some = (std::min)(R::lanes, n - c);
            R::store_first(targets + c,
                           R::fma(R::load_first(column + c, some), error, R::load_first(targets + c, some)), some);
        }
        return;
    }
    for (std::size_t k = 0; k < tokens; k += R::lanes) {
        const std::size_t some = (std::min)(R::lanes, tokens - k);
        const auto error = R::load_first(errors + k, some);
        for (std::size_t c = 0; c < n; ++c) {
            float* const to = targets + c * tokens + k;
            R::store_first(to, R::fma(R::splat(-column[c]), error, R::load_first(to, some)), some);
        }
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
