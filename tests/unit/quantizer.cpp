/// Quantizers: errors bounded from both sides, order kept inside a group, and what cannot be stored is refused.
#include <xquant/quantizer/codebook.hpp>
#include <xquant/quantizer/ggml.hpp>
#include <xquant/quantizer/non_uniform.hpp>
#include <xquant/quantizer/outliers.hpp>
#include <xquant/quantizer/uniform.hpp>
#include <xquant/stages.hpp>

#include <cfenv>
#include <cmath>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

struct Errors {
    double largest = 0, mean_square = 0;
    double step = 0;  ///< mean scale
};

/// Errors over 64 groups of uniform values, relative to the group's scale.
template <class Q>
Errors errors_of() {
    test::Random random(5);
    Errors out;
    constexpr std::size_t groups = 64;
    for (std::size_t i = 0; i < groups; ++i) {
        const std::vector<float> x = random.rows(Q::group, 3);
        std::vector<std::uint8_t> codes(Q::group);
        const GroupScale scale = Q::encode(x, codes);
        out.step += static_cast<double>(scale.scale) / groups;
        for (std::size_t j = 0; j < Q::group; ++j) {
            const float decoded = scale.zero + scale.scale * static_cast<float>(codes[j]);
            const double error = std::abs(static_cast<double>(x[j] - decoded) / static_cast<double>(scale.scale));
            out.largest = std::max(out.largest, error);
            out.mean_square += error * error / static_cast<double>(groups * Q::group);
        }
    }
    return out;
}

/// Half a step, and not much less: uniform values fill it. A wider step, or a bit that is lost, fails from above; a
/// step that is narrower than the format's, from below.
template <class Q>
void check_uniform_errors(double range) {
    const Errors errors = errors_of<Q>();
    INFO(Q::bits << " bits: largest " << errors.largest << ", mean square " << errors.mean_square << " steps");
    // f16 moves the ends of the range by up to 2^-11 of it: so many steps.
    const double f16_steps = std::ldexp(1.0, Q::bits) * 0x1p-11;
    CHECK(errors.largest <= 0.5 + f16_steps);
    CHECK(errors.largest > 0.49);
    CHECK(errors.mean_square < 1.15 / 12);
    CHECK(errors.mean_square > 0.85 / 12);
    CHECK(errors.step < 1.001 * range);
    CHECK(errors.step > 0.95 * range);
}

template <unsigned Bits>
void check_bits() {
    check_uniform_errors<Uniform<Bits, 128>>(6.0 / ((1U << Bits) - 1));
    check_uniform_errors<Uniform<Bits, 128, Symmetric>>(3.0 / ((1U << (Bits - 1)) - 1));
}

template <class Q>
std::vector<float> decoded(const std::vector<float>& x) {
    std::vector<float> out(x.size());
    dequantize(quantize<Q>(MatrixView(x.data(), 1, x.size())), out.data());
    return out;
}

double square_error(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i] - b[i]), 2);
    return sum;
}

}  // namespace

TEST_CASE("uniform quantizers are off by half a step at most, and by that much") {
    check_bits<3>();
    check_bits<4>();
    check_bits<5>();
    check_bits<6>();
    check_bits<8>();
    check_uniform_errors<Uniform<2, 128>>(2.0);
    check_uniform_errors<GgmlQ8_0>(3.0 / 127);
}

TEST_CASE("smallest and largest value of a group come back to f16 rounding") {
    test::Random random(6);
    for (int i = 0; i < 50; ++i) {
        const std::vector<float> x = random.rows(128, 10);
        const auto [low, high] = range_of(x);
        std::vector<std::uint8_t> codes(128);
        const GroupScale scale = Uniform<2, 128>::encode(x, codes);
        CHECK(scale.zero == round_to_f16(low));
        CHECK(std::abs(scale.zero + 3 * scale.scale - high) <= 20 * 0x1p-10F);
        for (std::size_t j = 0; j < x.size(); ++j) {
            if (x[j] == low) CHECK(codes[j] == 0);
            if (x[j] == high) CHECK(codes[j] == 3);
        }
    }
}

TEST_CASE("order is kept inside a group") {
    test::Random random(7);
    const std::vector<float> x = random.rows(128, 1);
    const auto check = [&]<class Q>(Q) {
        std::vector<std::uint8_t> codes(128);
        const GroupScale scale = Q::encode(x, codes);
        for (std::size_t i = 0; i < x.size(); ++i) {
            for (std::size_t j = 0; j < x.size(); ++j) {
                if (x[i] < x[j]) REQUIRE((scale.scale >= 0 ? codes[i] <= codes[j] : codes[i] >= codes[j]));
            }
        }
    };
    check(Uniform<2, 128>{});
    check(Uniform<3, 128, Symmetric>{});
    check(Uniform<2, 128, MinMse>{});
    check(GgmlQ4_0{});
}

TEST_CASE("the scale of least squared error is never worse, and better where there is an outlier") {
    test::Random random(8);
    for (int i = 0; i < 20; ++i) {
        std::vector<float> x = random.rows(128, 1);
        const double plain = square_error(x, decoded<Uniform<2, 128>>(x));
        CHECK(square_error(x, decoded<Uniform<2, 128, MinMse>>(x)) <= plain);
        for (float& value : x) value = value * value * value;  // heavy tails
        const double heavy = square_error(x, decoded<Uniform<2, 128>>(x));
        const double clipped = square_error(x, decoded<Uniform<2, 128, MinMse>>(x));
        CHECK(clipped < 0.95 * heavy);
        CHECK(clipped > 0.1 * heavy);
    }
}

TEST_CASE("a symmetric quantizer stores 0 exactly, whatever stands beside it") {
    const std::vector<float> x{0, 1, -0.3F, 0, 7, -2.5F, 0, 0.01F};
    const std::vector<float> out = decoded<Uniform<4, 8, Symmetric>>(x);
    CHECK((out[0] == 0 && out[3] == 0 && out[6] == 0));
}

TEST_CASE("halfway between two levels the lower one is taken, and a flat group takes the level nearest to 0") {
    const std::vector<float> levels{-1, 0, 0.5F, 2}, x{-0.5F, 0.25F, 1.25F, -0.4375F, 0.3125F, 1.3125F};
    std::vector<std::uint8_t> codes(x.size());
    encode_levels(x, {1, 0}, levels.data(), 4, codes);
    CHECK(codes == std::vector<std::uint8_t>{0, 1, 2, 1, 2, 3});
    encode_levels(x, {0, 3}, levels.data(), 4, codes);
    CHECK(codes == std::vector<std::uint8_t>(x.size(), 1));
}

TEST_CASE("outliers are the values farthest from the mean; of those that are as far, the first") {
    // Mean 1: the distances are 4, 2, 4, 0, 4, 2, 0, 4.
    const std::vector<float> x{5, 3, -3, 1, 5, -1, 1, -3};
    std::vector<std::uint8_t> indices(3);
    WithOutliers<Uniform<4, 8>, 3>::choose(x, indices);
    CHECK(indices == std::vector<std::uint8_t>{0, 2, 4});
}

TEST_CASE("one value, the whole group, and one value more") {
    test::Random random(9);
    for (const std::size_t n : {std::size_t{1}, std::size_t{31}, std::size_t{32}, std::size_t{33}}) {
        const std::vector<float> x = random.rows(n, 5);
        const QuantizedRows stored = quantize<Uniform<8, 32>>(MatrixView(x.data(), 1, n));
        CHECK(stored.bytes() == (n + 7) / 8 * 8 + (n + 31) / 32 * 4);
        std::vector<float> out(n);
        dequantize(stored, out.data());
        for (std::size_t i = 0; i < n; ++i) CHECK(std::abs(out[i] - x[i]) < 10.0F / 255 / 2 + 0.01F);
    }
}

TEST_CASE("zero and scale are never -0, whatever the order of zeros of both signs") {
    for (const auto& x : {std::vector<float>{-0.0F, 0.0F, 1, 1, 1, 1, 1, 1},
                          {0.0F, -0.0F, 1, 1, 1, 1, 1, 1},
                          {-1e-9F, 1, 1, 1, 1, 1, 1, 1},
                          std::vector<float>(8, 0.3F),
                          std::vector<float>(8, -0.0F)}) {
        std::vector<std::uint8_t> room(64);  // g++ 12 warns of vectorized stores beyond 8 bytes, which do not happen
        const std::span<std::uint8_t> codes(room.data(), x.size());
        const GroupScale scale = Uniform<8, 8>::encode(x, codes);
        CHECK_FALSE(std::signbit(scale.zero));
        CHECK_FALSE(std::signbit(scale.scale));
        const GroupScale clipped = Uniform<2, 8, MinMse>::encode(x, codes);
        CHECK_FALSE(std::signbit(clipped.zero));
        CHECK_FALSE(std::signbit(clipped.scale));
    }
}

TEST_CASE("ggml's formats: groups whose |d| is below 2^-100 are zeros, as if they were") {
    const auto encoded = []<class Q>(Q, const std::vector<float>& x) {
        std::vector<std::uint8_t> codes(x.size());
        const GroupScale scale = Q::encode(x, codes);
        return std::pair(codes, to_f16(scale.scale).bits);
    };
    const std::vector<float> zeros(32, 0.0F);
    for (const float tiny : {1e-41F, -1e-39F, 3e-38F, -2e-36F, 6e-30F, -6e-30F}) {
        INFO(tiny);
        std::vector<float> x = zeros;
        x[3] = tiny;
        x[9] = -tiny / 2;
        CHECK(encoded(GgmlQ8_0{}, x) == encoded(GgmlQ8_0{}, zeros));
        CHECK(encoded(GgmlQ4_0{}, x) == encoded(GgmlQ4_0{}, zeros));
    }
    for (const auto& [codes, scale] : {encoded(GgmlQ8_0{}, zeros), encoded(GgmlQ4_0{}, zeros)}) {
        for (const std::uint8_t code : codes) CHECK((code == 128 || code == 8));
        CHECK((scale & 0x7FFFU) == 0);
    }
    // As in ggml from there on: codes are found with d itself, though f16 makes 0 of it.
    std::vector<float> x = zeros;
    x[3] = 0x1p-90F;
    CHECK(encoded(GgmlQ8_0{}, x).first[3] == 255);
    CHECK(encoded(GgmlQ4_0{}, x).first[3] == 0);
}

TEST_CASE("no quantizer divides by 0, or goes beyond f32 on its way") {
#if defined(__GLIBC__)
    constexpr int faults = FE_DIVBYZERO | FE_INVALID | FE_OVERFLOW;
    const auto encode = []<class Q>(Q) {
        // Zeros, flat groups, subnormal floats, the smallest and the largest f16: a group is a row.
        std::vector<float> x(8 * Q::group, 0.0F);
        for (std::size_t i = 0; i < Q::group; ++i) {
            x[Q::group + i] = 0.1F;
            x[2 * Q::group + i] = 1e-44F;
            x[3 * Q::group + i] = i % 2 == 0 ? 1e-38F : -1e-40F;
            x[4 * Q::group + i] = i % 2 == 0 ? 1e-30F : -1e-37F;
            x[5 * Q::group + i] = i % 2 == 0 ? 0x1p-24F : 0x1p-25F;
            x[6 * Q::group + i] = i % 2 == 0 ? 65504.0F : -65504.0F;
            x[7 * Q::group + i] = -0.0F;
        }
        const MatrixView view(x.data(), 8, Q::group);
        std::feclearexcept(FE_ALL_EXCEPT);
        static_cast<void>(quantize<Q>(view, view));
        static_cast<void>(quantize<Q, PerToken, backend::scalar>(view, view));
        INFO(Q::bits << " bits, groups of " << Q::group);
        CHECK(std::fetestexcept(faults) == 0);
        feenableexcept(faults);  // a signal ends the program
        static_cast<void>(quantize<Q>(view, view));
        fedisableexcept(faults);
    };
    encode(Uniform<2>{});
    encode(Uniform<4, 64>{});
    encode(Uniform<8, 128>{});
    encode(Uniform<4, 128, Symmetric>{});
    encode(Uniform<3, 128, MinMse>{});
    encode(GgmlQ8_0{});
    encode(GgmlQ4_0{});
    encode(Nf4<>{});
    encode(NonUniform<3>{});
    encode(WithOutliers<Uniform<4>>{});
#else
    std::cerr << "SKIPPED: this C library cannot stop a program at a division by 0\n";
#endif
}

TEST_CASE("what cannot be stored is refused with its place") {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(), 65505.0F, -1e30F}) {
        std::vector<float> x(3 * 40, 1.0F);
        x[40 + 17] = bad;
        try {
            static_cast<void>(quantize<Uniform<4, 32>>(MatrixView(x.data(), 3, 40)));
            FAIL("not refused");
        } catch (const value_error& e) {
            CHECK(std::string(e.what()).find("row 1, channel 17") != std::string::npos);
        }
        x[40 + 17] = std::copysign(f16_max, bad);
        CHECK_NOTHROW(static_cast<void>(quantize<Uniform<4, 32>>(MatrixView(x.data(), 3, 40))));
    }
}

TEST_CASE("stages say what is wrong with their arguments") {
    const std::vector<float> x(4 * 8, 1.0F);
    std::vector<float> out(4 * 8);
    using Q = Uniform<4, 8>;
    CHECK_THROWS_AS(static_cast<void>(quantize<Q>(MatrixView())), shape_error);
    CHECK_THROWS_AS(static_cast<void>(quantize<Q>(MatrixView(x.data(), 4, 0))), shape_error);
    CHECK_THROWS_AS(static_cast<void>(quantize<Q>(MatrixView(x.data(), 4, 8, 7))), shape_error);
    CHECK(quantize<Q>(MatrixView(x.data(), 0, 8)).bytes() == 0);

    const QuantizedRows rows = quantize<Q>(MatrixView(x.data(), 4, 8));
    const HeadPlan head{0, 2, 4, {}, {}};
    CHECK_NOTHROW(rematerialize(rows, head, 4, 0, 4, out.data()));
    constexpr auto most = static_cast<std::size_t>(-1);
    CHECK_THROWS_AS(rematerialize(rows, head, 4, 1, 4, out.data()), shape_error);
    CHECK_THROWS_AS(rematerialize(rows, head, 4, most, 1, out.data()), shape_error);
    CHECK_THROWS_AS(rematerialize(rows, HeadPlan{0, 5, 4, {}, {}}, 4, 0, 1, out.data()), shape_error);
    CHECK_THROWS_AS(rematerialize(rows, HeadPlan{0, most, 4, {}, {}}, 4, 0, 1, out.data()), shape_error);
    CHECK_THROWS_AS(rematerialize(rows, head, 3, 0, 1, out.data()), shape_error);
    CHECK_THROWS_AS(rematerialize(rows, HeadPlan{0, 0, 4, {1, 2, 3}, {}}, 4, 0, 1, out.data()), shape_error);
    CHECK_THROWS_AS(rematerialize(rows, HeadPlan{0, 0, 4, {}, {1}}, 4, 0, 1, out.data()), shape_error);
}

TEST_CASE("a rematerialized tile is z A + c") {
    test::Random random(10);
    constexpr std::size_t tokens = 70, width = 40, dh = 24;
    const std::vector<float> z = random.rows(tokens * width, 2);
    for (const bool per_channel : {false, true}) {
        const QuantizedRows rows = per_channel
                                       ? quantize<Uniform<8, 32>, PerChannel>(MatrixView(z.data(), tokens, width))
                                       : quantize<Uniform<8, 32>>(MatrixView(z.data(), tokens, width));
        std::vector<float> stored(z.size());
        dequantize(rows, stored.data());
        const HeadPlan head{0, 5, 33, random.rows(33 * dh), random.rows(dh)};
        std::vector<float> out(50 * dh);
        rematerialize(rows, head, dh, 11, 50, out.data());
        for (std::size_t t = 0; t < 50; ++t) {
            for (std::size_t i = 0; i < dh; ++i) {
                auto sum = static_cast<double>(head.constant[i]);
                for (std::size_t c = 0; c < head.width; ++c) {
                    sum += static_cast<double>(stored[(11 + t) * width + 5 + c]) *
                           static_cast<double>(head.matrix[c * dh + i]);
                }
                REQUIRE(std::abs(sum - static_cast<double>(out[t * dh + i])) < 1e-4);
            }
        }
    }
}
