// What each policy slot of XCache asks of a type, as concepts.
#pragma once

#include <concepts>
#include <cstddef>
#include <span>

#include <xquant/cross_layer/cross_layer.hpp>
#include <xquant/layout/layout.hpp>
#include <xquant/projection/projection.hpp>
#include <xquant/quantizer/group.hpp>
#include <xquant/quantizer/per_stream.hpp>
#include <xquant/quantizer/unquantized.hpp>
#include <xquant/storage/stream.hpp>

namespace xquant {

// clang-format off

/// A quantizer whose levels are found when a cache is constructed, from Layer::calibration. Requires:
///     learn(groups, levels)     groups of calibration rows, as encode will see them -> levels [2^bits], finite
///     encode(x, codes, levels)  in place of encode(x, codes)
template <class Q>
concept learning_policy = requires(std::span<const float> x, std::span<std::uint8_t> codes, const float* known,
                                   std::span<const std::span<const float>> groups, std::span<float> levels) {
    Q::learn(groups, levels);
    { Q::encode(x, codes, known) } noexcept -> std::same_as<GroupScale>;
};

/// A quantizer that leaves some values of each group to be kept in f16. Requires:
///     outliers           how many, 1 to 255; group is then at most 256
///     choose(x, places)  x [n] -> their places in x, one for each entry of `places` (outliers, or n if that is less)
/// What encode sees in their place is another value of the group.
template <class Q>
concept outlier_policy = requires(std::span<const float> x, std::span<std::uint8_t> places) {
    { Q::outliers } -> std::convertible_to<unsigned>;
    { Q::choose(x, places) } noexcept;
    requires Q::outliers >= 1 && Q::outliers <= 255 && Q::group <= 256;
};

/// Turns the values of one group into codes. Requires:
///     bits                   1 to 8, bits of a code
///     group                  8 to 4096, values that share a scale
///     stores_zero            whether each group has a zero beside its scale
///     zero_code              if not: the code that stands for 0 (zero = -zero_code * scale)
///     encode(x, codes)       x [n] -> codes [n] below 2^bits; returns scale and zero, both exact in f16; n <= group
///     scale_of (optional)    Range -> GroupScale: says that encode is encode_affine(x, scale_of(range_of(x)), 2^bits - 1), which
///                            backends have vector code for
///     levels (optional)      array of 2^bits floats: what a code stands for; without it a code stands for itself
/// or is a learning_policy; it may be an outlier_policy.
/// Decoding is always zero + scale * level(code), so a policy of your own runs on every backend's kernels.
template <class Q>
concept quantizer_policy = requires(std::span<const float> x, std::span<std::uint8_t> codes) {
    { Q::bits } -> std::convertible_to<unsigned>;
    { Q::group } -> std::convertible_to<unsigned>;
    { Q::stores_zero } -> std::convertible_to<bool>;
    requires learning_policy<Q> || requires { { Q::encode(x, codes) } noexcept -> std::same_as<GroupScale>; };
    requires !requires { Q::outliers; } || outlier_policy<Q>;
    requires Q::bits >= 1 && Q::bits <= 8;
    requires Q::group >= 8 && Q::group <= 4096;
    requires Q::stores_zero || requires { { Q::zero_code } -> std::convertible_to<float>; };
};

/// Unquantized<T>: rows as they are.
template <class Q>
concept unquantized_policy = requires { typename Q::element; } && std::same_as<Q, Unquantized<typename Q::element>>;

template <class Q>
concept element_policy = quantizer_policy<Q> || unquantized_policy<Q>;

/// The axis of a stream. Requires group_shape(n) -> GroupShape with tokens * channels = n.
template <class A>
concept axis_policy = requires {
    { A::group_shape(128U) } -> std::same_as<GroupShape>;
    requires A::group_shape(128U).tokens * A::group_shape(128U).channels == 128U;
};

/// How rows are made from X and K, V come back. Requires streams, footprint(layer), prepare(layer); see
/// projection/projection.hpp.
template <class P>
concept projection_policy = requires(const Layer& layer) {
    { P::streams } -> std::convertible_to<std::size_t>;
    { P::footprint(layer) } -> std::same_as<LayerFootprint<P::streams>>;
    { P::prepare(layer) } -> std::same_as<LayerPlan>;
    requires P::streams >= 1;
};

/// What a layer stores of its rows. Requires stores_difference.
template <class C>
concept cross_layer_policy = requires {
    { C::stores_difference } -> std::convertible_to<bool>;
};

/// Runs f(0) .. f(n - 1), in any order and on any threads, and returns when all are done.
template <class E>
concept executor = requires(E& e, void (*f)(std::size_t)) { e.parallel_for(std::size_t{}, f); };

// clang-format on

/// The executor that uses the calling thread alone.
struct Serial {
    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        for (std::size_t i = 0; i < n; ++i) f(i);
    }
};

inline namespace XQUANT_ABI_NS {
namespace detail {

/// Encodes a group by a policy of either form.
template <quantizer_policy Q>
GroupScale encode_group(std::span<const float> x, std::span<std::uint8_t> codes, const float* levels) noexcept {
    if constexpr (learning_policy<Q>) {
        return Q::encode(x, codes, levels);
    } else {
        return Q::encode(x, codes);
    }
}

/// The format and encoder of a stream of `width` channels under these policies.
template <element_policy Q, axis_policy Axis>
StreamCodec make_codec(std::size_t width) {
    const auto columns = static_cast<std::uint32_t>(width);
    if constexpr (unquantized_policy<Q>) {
        using T = typename Q::element;
        constexpr CodeKind kind = std::is_same_v<T, float> ? CodeKind::f32
                                  : std::is_same_v<T, f16> ? CodeKind::f16
                                                           : CodeKind::bf16;
        return {{columns, 1, columns, kind, static_cast<std::uint8_t>(8 * sizeof(T)), false, 0, nullptr}, nullptr};
    } else {
        constexpr GroupShape shape = Axis::group_shape(Q::group);
        static_assert(shape.tokens >= 1 && 128 % shape.tokens == 0,
                      "xquant: the tokens of a group must divide 128, the tokens of a page");
        StreamFormat format{
            columns, shape.tokens, shape.channels, CodeKind::planes, static_cast<std::uint8_t>(Q::bits), Q::stores_zero,
            0,       nullptr};
        if constexpr (!Q::stores_zero) format.zero_code = Q::zero_code;
        if constexpr (requires { Q::levels; }) {
            static_assert(std::size(Q::levels) == (1U << Q::bits), "xquant: levels needs 2^bits entries");
            format.levels = std::data(Q::levels);
        }
        StreamCodec codec{format, &encode_group<Q>};
        if constexpr (learning_policy<Q>) codec.learn = &Q::learn;
        if constexpr (requires { Q::scale_rule; }) codec.rule = Q::scale_rule;
        if constexpr (requires(Range range) { Q::scale_of(range); }) codec.scale_of = &Q::scale_of;
        if constexpr (outlier_policy<Q>) {
            codec.choose = &Q::choose;
            codec.format.outliers = static_cast<std::uint8_t>(Q::outliers);
        }
        return codec;
    }
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
