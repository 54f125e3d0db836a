// What a policy lacks, in one sentence for each member.
//
// check_...<P>() says it. sound_...<P> is P, or in its place a policy that works: whatever uses it has no errors of its
// own then, and the sentence is all that a compiler says.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include <xquant/concepts.hpp>
#include <xquant/core/policy_members.hpp>
#include <xquant/projection/x.hpp>
#include <xquant/quantizer/requantizable.hpp>
#include <xquant/quantizer/uniform.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

template <class Q>
using sound_quantizer = std::conditional_t<element_policy<Q>, Q, Uniform<4, 128>>;
template <class A>
using sound_axis = std::conditional_t<axis_policy<A>, A, PerToken>;
template <class P>
using sound_projection = std::conditional_t<projection_policy<P>, P, Plain>;
template <class C>
using sound_rule = std::conditional_t<cross_layer_policy<C>, C, Off>;

template <class Q>
constexpr bool check_quantizer() noexcept {
    if constexpr (!element_policy<Q>) {
        static_assert(has_bits<Q>,
                      "xquant: the quantizer needs static constexpr unsigned bits, the bits of a code, 1 to 8");
        static_assert(bits_fit<Q>, "xquant: the quantizer's bits must be 1 to 8");
        static_assert(has_group<Q>,
                      "xquant: the quantizer needs static constexpr unsigned group, the values that share a scale, "
                      "8 to 4096");
        static_assert(group_fits<Q>, "xquant: the quantizer's group must be 8 to 4096");
        static_assert(has_stores_zero<Q>,
                      "xquant: the quantizer needs static constexpr bool stores_zero: whether each group stores a zero "
                      "beside its scale");
        static_assert(zero_is_known<Q>,
                      "xquant: the quantizer stores no zero and needs static constexpr float zero_code, the code of 0");
        static_assert(has_encode<Q>,
                      "xquant: the quantizer needs static GroupScale encode(std::span<const float> x, "
                      "std::span<std::uint8_t> codes) noexcept; with learn, a third parameter const float* levels");
        static_assert(encode_fits<Q>, "xquant: the quantizer's encode must be noexcept and return GroupScale");
        static_assert(has_choose<Q>,
                      "xquant: the quantizer has outliers and needs static void choose(std::span<const float> x, "
                      "std::span<std::uint8_t> indices) noexcept");
        static_assert(outliers_fit<Q>, "xquant: the quantizer's outliers must be 1 to 255, its group at most 256");
        static_assert(!(has_bits<Q> && bits_fit<Q> && has_group<Q> && group_fits<Q> && has_stores_zero<Q> &&
                        zero_is_known<Q> && has_encode<Q> && encode_fits<Q> && has_choose<Q> && outliers_fit<Q>),
                      "xquant: the quantizer is no quantizer_policy; see concepts.hpp");
    }
    return true;
}

template <class A>
constexpr bool check_axis() noexcept {
    static_assert(has_group_shape<A>,
                  "xquant: the axis of a layout needs static constexpr GroupShape group_shape(unsigned group)");
    static_assert(group_shape_fits<A>, "xquant: an axis' group_shape(n) must be constexpr, with tokens * channels = n");
    return true;
}

template <class P>
constexpr bool check_projection() noexcept {
    if constexpr (!is_complete<P>) {
        static_assert(is_complete<P>,
                      "xquant: the projection is declared, not defined; SplitSvd and HeadSvd need #include "
                      "<xquant/projection/svd.hpp>, JointSvd <xquant/projection/joint_svd.hpp>");
    } else {
        static_assert(has_streams<P>,
                      "xquant: the projection needs static constexpr std::size_t streams, the rows that it stores for "
                      "each token and layer, 1 or more");
        static_assert(has_footprint<P>,
                      "xquant: the projection needs static LayerFootprint<streams> footprint(const Layer&)");
        static_assert(footprint_fits<P>, "xquant: the projection's footprint must return LayerFootprint<streams>");
        static_assert(has_prepare<P>, "xquant: the projection needs static LayerPlan prepare(const Layer&)");
        static_assert(
            projection_policy<P> || !(has_streams<P> && has_footprint<P> && footprint_fits<P> && has_prepare<P>),
            "xquant: the projection is no projection_policy; see concepts.hpp");
    }
    return true;
}

template <class C>
constexpr bool check_rule() noexcept {
    static_assert(
        cross_layer_policy<C>,
        "xquant: the cross-layer rule needs static constexpr bool stores_difference: whether layers above the "
        "base store what they add");
    return true;
}

/// What CrossLayer<Delta> asks of a projection. Returns whether it is there.
template <class P>
constexpr bool check_serves_differences() noexcept {
    if constexpr (!has_base<P>) {
        static_assert(has_base<P>,
                      "xquant: CrossLayer<Delta> adds up rows that mean the same in every layer: Projection<Plain>, "
                      "Projection<Rotated>, Projection<JointSvd<...>>, or one of your own with below, base, "
                      "difference_footprint and prepare_difference");
    } else {
        static_assert(has_below<P>,
                      "xquant: for CrossLayer<Delta> the projection needs a type below, the projection of the layers "
                      "below the base layer");
        static_assert(has_difference_footprint<P>,
                      "xquant: for CrossLayer<Delta> the projection needs static LayerFootprint<streams> "
                      "difference_footprint(const Layer&)");
        static_assert(has_prepare_difference<P>,
                      "xquant: for CrossLayer<Delta> the projection needs static LayerPlan prepare_difference(const "
                      "Layer&)");
    }
    return has_base<P> && has_below<P> && has_difference_footprint<P> && has_prepare_difference<P>;
}

/// All policies of a scheme.
template <class Quantizer, class Layout, class Projection>
constexpr bool check_scheme() noexcept {
    check_projection<Projection>();
    [&]<std::size_t... I>(std::index_sequence<I...>) {
        ((check_quantizer<typename quantizer_of<Quantizer, I>::type>(),
          check_quantizer<typename requantizer_of<Quantizer, I>::type>(),
          check_axis<typename Layout::template axis<I>>()),
         ...);
    }
    (std::make_index_sequence<sound_projection<Projection>::streams>{});
    return true;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
