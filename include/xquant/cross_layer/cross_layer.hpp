// CrossLayer<...>: what a layer stores of its rows. Off: the rows themselves.
#pragma once

namespace xquant {

/// Every layer stands alone.
struct Off {
    static constexpr bool stores_difference = false;
};

template <class Rule>
struct CrossLayer {
    using rule = Rule;
};

}  // namespace xquant
