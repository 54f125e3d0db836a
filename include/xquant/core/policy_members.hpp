// Whether a policy has a member, for check_policies.hpp.
//
// Variables, not concepts: compilers explain at length why a concept does not hold.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include <xquant/concepts.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

// clang-format off

using GroupValues = std::span<const float>;
using GroupCodes = std::span<std::uint8_t>;

template <class Q>
inline constexpr bool has_bits = requires { { Q::bits } -> std::convertible_to<unsigned>; };
template <class Q>
inline constexpr bool bits_fit = !has_bits<Q> || requires { requires Q::bits >= 1 && Q::bits <= 8; };
template <class Q>
inline constexpr bool has_group = requires { { Q::group } -> std::convertible_to<unsigned>; };
template <class Q>
inline constexpr bool group_fits = !has_group<Q> || requires { requires Q::group >= 8 && Q::group <= 4096; };
template <class Q>
inline constexpr bool has_stores_zero = requires { { Q::stores_zero } -> std::convertible_to<bool>; };
template <class Q>
inline constexpr bool zero_is_known = !has_stores_zero<Q> || requires { requires Q::stores_zero; } ||
                                      requires { { Q::zero_code } -> std::convertible_to<float>; };
template <class Q>
inline constexpr bool learns_levels = requires(std::span<const GroupValues> groups, std::span<float> levels) {
    Q::learn(groups, levels);
};
template <class Q>
inline constexpr bool has_encode = learns_levels<Q>
    ? requires(GroupValues x, GroupCodes codes, const float* levels) { Q::encode(x, codes, levels); }
    : requires(GroupValues x, GroupCodes codes) { Q::encode(x, codes); };
template <class Q>
inline constexpr bool encode_fits = !has_encode<Q> || learning_policy<Q> || requires(GroupValues x, GroupCodes codes) {
    { Q::encode(x, codes) } noexcept -> std::same_as<GroupScale>;
};
template <class Q>
inline constexpr bool has_outliers = requires { Q::outliers; };
template <class Q>
inline constexpr bool has_choose = !has_outliers<Q> || requires(GroupValues x, GroupCodes indices) {
    { Q::choose(x, indices) } noexcept;
};
template <class Q>
inline constexpr bool outliers_fit = !has_outliers<Q> || !has_choose<Q> || !has_group<Q> || outlier_policy<Q>;

template <class P>
inline constexpr bool is_complete = requires { sizeof(P); };
template <class P>
inline constexpr bool has_streams = requires {
    { P::streams } -> std::convertible_to<std::size_t>;
    requires P::streams >= 1;
};
template <class P>
inline constexpr bool has_footprint = requires(const Layer& layer) { P::footprint(layer).widths; };
template <class P>
inline constexpr bool footprint_fits = !has_footprint<P> || !has_streams<P> || requires(const Layer& layer) {
    { P::footprint(layer) } -> std::same_as<LayerFootprint<P::streams>>;
};
template <class P>
inline constexpr bool has_prepare = requires(const Layer& layer) { { P::prepare(layer) } -> std::same_as<LayerPlan>; };

template <class P>
inline constexpr bool has_base = requires { typename P::base; };
template <class P>
inline constexpr bool has_below = requires { typename P::below; };
template <class P>
inline constexpr bool has_difference_footprint = requires(const Layer& layer) {
    P::difference_footprint(layer).widths;
};
template <class P>
inline constexpr bool has_prepare_difference = requires(const Layer& layer) {
    { P::prepare_difference(layer) } -> std::same_as<LayerPlan>;
};

template <class A>
inline constexpr bool has_group_shape = requires { { A::group_shape(128U) } -> std::same_as<GroupShape>; };
template <class A>
inline constexpr bool group_shape_fits = !has_group_shape<A> || axis_policy<A>;

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
