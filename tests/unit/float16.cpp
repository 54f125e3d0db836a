/// f16 and bf16: every one of the 65,536 values, and every place where rounding decides.
#include <xquant/types.hpp>

#include <cmath>
#include <cstdint>
#include <limits>

#include "support/catch.hpp"

using namespace xquant;

namespace {

/// Sign, exponent and fraction of a 16-bit float, put together in f64: exact.
double value_of(std::uint32_t bits, int exponent_bits, int fraction_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const std::uint32_t fraction = bits & ((1U << fraction_bits) - 1);
    const auto exponent = static_cast<int>((bits >> fraction_bits) & ((1U << exponent_bits) - 1));
    const double sign = (bits >> 15U) != 0 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) {
        return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                             : std::numeric_limits<double>::quiet_NaN();
    }
    const double whole = exponent == 0 ? 0 : 1 << fraction_bits;
    return sign * std::ldexp(whole + fraction, std::max(exponent, 1) - bias - fraction_bits);
}

struct Half {
    static constexpr int exponent_bits = 5, fraction_bits = 10;
    static constexpr std::uint32_t infinity = 0x7C00;
    static float decode(std::uint32_t bits) { return to_float(f16{static_cast<std::uint16_t>(bits)}); }
    static std::uint32_t encode(float value) { return to_f16(value).bits; }
};
struct Brain {
    static constexpr int exponent_bits = 8, fraction_bits = 7;
    static constexpr std::uint32_t infinity = 0x7F80;
    static float decode(std::uint32_t bits) { return to_float(bf16{static_cast<std::uint16_t>(bits)}); }
    static std::uint32_t encode(float value) { return to_bf16(value).bits; }
};

std::uint32_t bits_of(float value) { return std::bit_cast<std::uint32_t>(value); }

/// All 65,536 values go to f32 exactly, and come back as they were.
template <class Format>
void check_all_values() {
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        const double expected = value_of(bits, Format::exponent_bits, Format::fraction_bits);
        const float found = Format::decode(bits);
        if (std::isnan(expected)) {
            if (!std::isnan(found) || !std::isnan(Format::decode(Format::encode(found)))) FAIL(bits << " is a NaN");
            continue;
        }
        if (static_cast<double>(found) != expected || std::signbit(found) != (bits >> 15U != 0)) {
            FAIL(bits << " is " << expected << ", not " << found);
        }
        if (Format::encode(found) != bits) FAIL(bits << " came back as " << Format::encode(found));
    }
}

/// Between neighbours a < b of one sign the tie goes to the even one, everything else to the nearer one.
template <class Format>
void check_rounding() {
    for (std::uint32_t bits = 0; bits < Format::infinity; ++bits) {
        const std::uint32_t next = bits + 1;  // after the largest value: infinity, as if the exponents went on
        const double low = value_of(bits, Format::exponent_bits, Format::fraction_bits);
        const double high = next == Format::infinity
                                ? 2 * low - value_of(bits - 1, Format::exponent_bits, Format::fraction_bits)
                                : value_of(next, Format::exponent_bits, Format::fraction_bits);
        const auto tie = static_cast<float>((low + high) / 2);
        if (static_cast<double>(tie) != (low + high) / 2) FAIL("the tie above " << low << " is no f32");
        const float below = std::nextafter(tie, 0.0F);
        const float above = std::nextafter(tie, std::numeric_limits<float>::infinity());
        const std::uint32_t even = bits % 2 == 0 ? bits : next;
        if (Format::encode(tie) != even) FAIL("tie above " << low);
        if (Format::encode(-tie) != (even | 0x8000U)) FAIL("tie below " << -low);
        if (Format::encode(below) != bits) FAIL("just below the tie above " << low);
        if (Format::encode(above) != next) FAIL("just above the tie above " << low);
        if (Format::encode(-above) != (next | 0x8000U)) FAIL("just below the tie below " << -low);
    }
}

}  // namespace

TEST_CASE("every f16 and bf16 goes to f32 and back unchanged") {
    check_all_values<Half>();
    check_all_values<Brain>();
    SUCCEED();
}

TEST_CASE("f32 is rounded to the nearest f16 and bf16, ties to even, on both sides of every tie") {
    check_rounding<Half>();
    check_rounding<Brain>();
    SUCCEED();
}

TEST_CASE("what is too large becomes infinity, what is too small 0 with its sign, a NaN stays one") {
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK(to_f16(65519.996F).bits == 0x7BFF);
    CHECK(to_f16(65520.0F).bits == 0x7C00);
    CHECK(to_f16(3e38F).bits == 0x7C00);
    CHECK(to_f16(-infinity).bits == 0xFC00);
    CHECK(to_f16(1e-30F).bits == 0);
    CHECK(to_f16(-1e-45F).bits == 0x8000);
    CHECK(to_f16(0x1p-25F).bits == 0);  // half the smallest subnormal: a tie
    CHECK(to_f16(std::nextafter(0x1p-25F, 1.0F)).bits == 1);
    CHECK(to_bf16(infinity).bits == 0x7F80);
    CHECK(to_bf16(std::numeric_limits<float>::max()).bits == 0x7F80);
    // NaNs whose fraction lies in the bits that are cut off.
    for (const std::uint32_t payload : {1U, 0x1FFFU, 0x7FFFFFU}) {
        for (const std::uint32_t sign : {0U, 0x80000000U}) {
            const auto nan = std::bit_cast<float>(0x7F800000U | payload | sign);
            CHECK(std::isnan(to_float(to_f16(nan))));
            CHECK(std::isnan(to_float(to_bf16(nan))));
            CHECK(to_f16(nan).bits >> 15U == sign >> 31U);
        }
    }
}

TEST_CASE("rows of every type are loaded as they are") {
    const f16 halves[] = {to_f16(1.5F), to_f16(-2.0F)};
    const bf16 brains[] = {to_bf16(3.0F), to_bf16(-0.5F)};
    const float floats[] = {0.1F, -7.0F};
    float out[2];
    load_row(halves, DType::f16, 2, out);
    CHECK((out[0] == 1.5F && out[1] == -2.0F));
    load_row(brains, DType::bf16, 2, out);
    CHECK((out[0] == 3.0F && out[1] == -0.5F));
    load_row(floats, DType::f32, 2, out);
    CHECK((bits_of(out[0]) == bits_of(0.1F) && out[1] == -7.0F));
}
