// What each policy slot of XCache asks of a type, as concepts.
#pragma once

#include <concepts>
#include <cstddef>
#include <span>

#include <xquant/cross_layer.hpp>
#include <xquant/layout.hpp>
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
///     choose(x, indices)  x [n] -> their indices in x, one for each entry of `indices` (outliers, or n if fewer)
/// encode sees another value of the group where an outlier was.
template <class Q>
concept outlier_policy = requires(std::span<const float> x, std::span<std::uint8_t> indices) {
    { Q::outliers } -> std::convertible_to<unsigned>;
    { Q::choose(x, indices) } noexcept;
    requires Q::outliers >= 1 && Q::outliers <= 255 && Q::group <= 256;
};

/// A quantizer by which rows are rounded for the metric of their stream: WithFeedback<...>. Its projection needs
/// metric.
template <class Q>
concept feedback_policy = requires { requires Q::feeds_back; };

/// Turns the values of one group into codes. Requires:
///     bits                1 to 8, bits of a code
///     group               8 to 4096, values that share a scale
///     stores_zero         whether each group has a zero beside its scale
///     zero_code           if not: the code that stands for 0 (zero = -zero_code * scale)
///     encode(x, codes)    x [n] -> codes [n] below 2^bits; returns scale and zero, both exact in f16; n <= group
///     scale_of (optional) Range -> GroupScale: encode is encode_affine(x, scale_of(range_of(x)), 2^bits - 1),
///                         which backends have vector code for
///     levels (optional)   array of 2^bits floats: what a code stands for; without it a code stands for itself
///     exact_constant (optional)  false where a group of equal values does not come back within f16's rounding, as with
///                         scales that are powers of two; then constant_error (above 0, below 1) is the largest
///                         |x - decoded| / |x| of such a group. testing/contract.hpp checks it.
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

// clang-format on

}  // namespace xquant
