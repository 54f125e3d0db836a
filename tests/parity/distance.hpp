/// How far two answers are apart.
#pragma once

#include <cmath>
#include <vector>

#include "support/catch.hpp"

namespace parity {

/// |found - expected| / |expected|; infinite where a value is not finite.
inline double distance(const std::vector<float>& found, const std::vector<float>& expected) {
    double difference = 0, size = 0;
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
        if (!std::isfinite(found[i])) return HUGE_VAL;
        difference += std::pow(static_cast<double>(found[i]) - static_cast<double>(expected[i]), 2);
        size += std::pow(static_cast<double>(expected[i]), 2);
    }
    return std::sqrt(difference / size);
}

}  // namespace parity
