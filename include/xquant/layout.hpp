// Layout<...>: which values share a group. One entry for all streams, or one for each.
//
//     PerToken    a group runs along a row:    128 channels of one token (X, latents of V, V)
//     PerChannel  a group runs along a column: 128 tokens of one channel (latents of K, K: some channels are large
//                                                                         for all tokens, and get a scale of their own)
//
// A layout of your own is a struct with one function, group_shape: how many tokens and channels a group of n values
// spans.
// Source  XQuant section 3.2: X and the value latent per token, the key latent per channel.
#pragma once

#include <cstddef>
#include <tuple>

namespace xquant {

/// A group spans this many tokens and channels. Tokens must divide 128, the tokens of a page.
struct GroupShape {
    unsigned tokens = 1,  ///< neighbouring tokens of a group
        channels = 1;     ///< neighbouring channels of a group
};

/// A group is `group` channels of one token.
struct PerToken {
    /// One token, `group` channels.
    static constexpr GroupShape group_shape(unsigned group) noexcept { return {1, group}; }
};

/// A group is `group` tokens of one channel.
struct PerChannel {
    /// `group` tokens, one channel.
    static constexpr GroupShape group_shape(unsigned group) noexcept { return {group, 1}; }
};

/// Names the slot. @tparam Axes  PerToken, PerChannel or your own: one for all streams, or one for each
template <class... Axes>
struct Layout {
    static_assert(sizeof...(Axes) >= 1, "xquant: Layout<...> names an axis, such as Layout<PerToken>");
    static constexpr std::size_t count = sizeof...(Axes);  ///< axes that are named

    /// The axis of stream I: the only one, or entry I.
    template <std::size_t I>
    using axis = std::tuple_element_t<count == 1 ? 0 : (I < count ? I : 0), std::tuple<Axes...>>;
};

}  // namespace xquant
