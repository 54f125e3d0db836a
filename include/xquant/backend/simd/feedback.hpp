// Vector steps of encoding with feedback. They make the bytes of the scalar steps.
//
// Limit   feed_back: FMA; eight products for a load and a store of the target.
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
    alignas(64) std::array<float, R::lanes> low, high;
    const auto range = [&](std::size_t from, std::size_t some) {  // of each lane
        const std::size_t first = (std::min)(R::lanes, some);
        auto least = R::load_first(targets + from, first), most = least;
        for (std::size_t i = 1; i < n; ++i) {
            const auto value = R::load_first(targets + i * tokens + from, first);
            least = R::minimum(least, value);
            most = R::maximum(most, value);
        }
        for (std::size_t k = from + R::lanes; n == 1 && k + R::lanes <= from + some; k += R::lanes) {
            const auto value = R::load(targets + k);
            least = R::minimum(least, value);
            most = R::maximum(most, value);
        }
        R::store(low.data(), least);
        R::store(high.data(), most);
    };
    const auto store = [&](std::size_t t, std::size_t some, Range of) {
        const GroupScale scale = codec.scale_of(of);
        const float inverse = inverse_scale(scale);
        std::fill_n(out.scales + t, some, scale.scale);
        std::fill_n(out.zeros + t, some, scale.zero);
        std::fill_n(out.inverses + t, some, inverse);
    };
    if (block == 1) {
        for (std::size_t t = 0; t < tokens; t += R::lanes) {
            const std::size_t some = (std::min)(R::lanes, tokens - t);
            range(t, some);
            for (std::size_t k = 0; k < some; ++k) store(t + k, 1, {low[k], high[k]});
        }
        return;
    }
    for (std::size_t t = 0; t < tokens; t += block) {
        const std::size_t some = (std::min)(block, tokens - t);
        Range all = range_of({targets + t, 1});
        std::size_t done = 0;
        if (some >= R::lanes) {
            done = some / R::lanes * R::lanes;
            range(t, done);
            all = {range_of(low).low, range_of(high).high};
        }
        if (done < some) {
            const Range rest = range_of({targets + t + done, some - done});
            all = {(std::min)(all.low, rest.low), (std::max)(all.high, rest.high)};
        }
        store(t, some, all);
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

namespace detail {

/// feed_back of Count channels.
template <class R, std::size_t Count>
void feed_back_panel(const FeedbackPanel& panel, std::size_t n, std::size_t tokens, float* targets) noexcept {
    if (tokens == 1) {
        for (std::size_t c = 0; c < n; c += R::lanes) {
            const std::size_t some = (std::min)(R::lanes, n - c);
            auto target = R::load_first(targets + c, some);
            for (std::size_t i = 0; i < Count; ++i) {
                target = R::fma(R::load_first(panel.columns[i] + c, some), R::splat(-panel.errors[i]), target);
            }
            R::store_first(targets + c, target, some);
        }
        return;
    }
    if (tokens == R::lanes) {
        decltype(R::zero()) errors[Count];
        for (std::size_t i = 0; i < Count; ++i) errors[i] = R::sub(R::zero(), R::load(panel.errors + i * tokens));
        for (std::size_t c = 0; c < n; ++c) {
            float* const to = targets + c * tokens;
            auto target = R::load(to);
            for (std::size_t i = 0; i < Count; ++i) target = R::fma(R::splat(panel.columns[i][c]), errors[i], target);
            R::store(to, target);
        }
        return;
    }
    // Targets are passed in the order in which they lie: a column of them would fall into few sets of the caches.
    for (std::size_t c = 0; c < n; ++c) {
        float* const to = targets + c * tokens;
        decltype(R::zero()) factors[Count];
        for (std::size_t i = 0; i < Count; ++i) factors[i] = R::splat(-panel.columns[i][c]);
        std::size_t k = 0;
        for (; k + R::lanes <= tokens; k += R::lanes) {
            auto target = R::load(to + k);
            for (std::size_t i = 0; i < Count; ++i) {
                target = R::fma(R::load(panel.errors + i * tokens + k), factors[i], target);
            }
            R::store(to + k, target);
        }
        if (k == tokens) continue;
        auto target = R::load_first(to + k, tokens - k);
        for (std::size_t i = 0; i < Count; ++i) {
            target = R::fma(R::load_first(panel.errors + i * tokens + k, tokens - k), factors[i], target);
        }
        R::store_first(to + k, target, tokens - k);
    }
}

}  // namespace detail

template <class R>
void feed_back(simd<R>, const FeedbackPanel& panel, std::size_t n, std::size_t tokens, float* targets) noexcept {
    if (panel.count == feedback_panel) {
        detail::feed_back_panel<R, feedback_panel>(panel, n, tokens, targets);
        return;
    }
    for (std::size_t i = 0; i < panel.count; ++i) {
        const FeedbackPanel one{{panel.columns[i]}, panel.errors + i * tokens, 1};
        detail::feed_back_panel<R, 1>(one, n, tokens, targets);
    }
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant::backend
