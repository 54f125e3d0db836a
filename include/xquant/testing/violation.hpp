// What contract tests throw, and their numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <xquant/config.hpp>

#if !XQUANT_HAS_EXCEPTIONS
#error "xquant/testing: contract tests throw contract_violation; compile them with exceptions"
#endif

namespace xquant::testing {

/// A policy breaks its contract.
struct contract_violation : std::logic_error {
    using std::logic_error::logic_error;
};

inline namespace XQUANT_ABI_NS {
namespace detail {

inline void holds(bool rule, const std::string& sentence) {
    if (!rule) throw contract_violation("xquant contract: " + sentence);
}

/// Uniform numbers from integers: the same on every machine.
class Numbers {
public:
    explicit Numbers(std::uint32_t seed) : random_(seed) {}
    /// In [-1, 1), a multiple of 2^-23.
    float signed_unit() {
        return static_cast<float>(static_cast<std::int32_t>(random_() >> 8U) - (1 << 23)) * 0x1p-23F;
    }
    std::size_t below(std::size_t n) { return random_() % n; }
    std::vector<float> row(std::size_t n, float scale, float offset = 0) {
        std::vector<float> out(n);
        for (float& value : out) value = offset + scale * signed_unit();
        return out;
    }

private:
    std::mt19937 random_;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant::testing
