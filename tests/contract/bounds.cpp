/// The error bounds that the quantizers state, over groups of every size that f16 has: 1e-8 to 6e4, around zero and far
/// from it. Below 2^-14 an f16 is a multiple of 2^-24, so that bounds stop shrinking there.
#include <xquant/stages.hpp>
#include <xquant/xquant.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

/// What storing a number in f16 may change: half a unit in its last place.
double f16_rounding(double value) { return std::max(std::abs(value) * 0x1p-11, 0x1p-25); }

/// A group, what was stored of it, and the numbers that bounds are made of.
struct Group {
    double low, high, extreme;  ///< smallest, largest, and of largest magnitude
    double scale, zero;         ///< as stored
};

/// Sizes of groups: 1e-8 .. 6e4, five for each power of ten.
std::vector<float> sizes() {
    std::vector<float> out;
    for (int i = -40; i <= 23; ++i) out.push_back(static_cast<float>(std::pow(10.0, i / 5.0)));
    out.push_back(6e4F);
    return out;
}

/// Groups of a size: symmetric, of one sign, and far from zero.
std::vector<std::vector<float>> groups_of(float size, std::size_t n) {
    static test::Random random(77);
    std::vector<std::vector<float>> out;
    for (int i = 0; i < 20; ++i) out.push_back(random.rows(n, size));
    out.push_back(random.rows(n, size));
    for (float& x : out.back()) x = std::abs(x);
    for (const float centre : {20 * size, -3 * size}) {
        if (std::abs(centre) + size > 65000) continue;
        out.push_back(random.rows(n, size));
        for (float& x : out.back()) x += centre;
    }
    return out;
}

/// Checks |x - decoded| <= bound(group) over all groups. f32 rounding aside: 2^-20 of the bound and of the values.
/// @return for each size the largest share of the bound, or of the values where they are smaller, that an error takes
template <class Q>
std::vector<double> check_bound(const std::function<double(const Group&)>& bound, const float* levels = nullptr) {
    std::vector<double> all;
    for (const float size : sizes()) {
        double worst = 0;
        for (const std::vector<float>& x : groups_of(size, Q::group)) {
            std::vector<std::uint8_t> codes(x.size());
            GroupScale found;
            if constexpr (learning_policy<Q>) {
                found = Q::encode(x, codes, levels);
            } else {
                found = Q::encode(x, codes);
            }
            const Range range = range_of(x);
            const Group group{range.low, range.high, extreme_of(x), found.scale, found.zero};
            const double allowed = bound(group);
            for (std::size_t i = 0; i < x.size(); ++i) {
                const double level = levels != nullptr ? levels[codes[i]] : codes[i];
                const double error = std::abs(double{x[i]} - (group.zero + group.scale * level));
                const double rounding = 0x1p-20 * (allowed + std::abs(group.extreme));
                if (error > allowed + rounding) {
                    FAIL("size " << size << ": " << x[i] << " is off by " << error << ", more than " << allowed);
                }
                worst = std::max(worst, error / std::min(allowed, std::abs(group.extreme)));
            }
        }
        all.push_back(worst);
    }
    return all;
}

/// A bound that nothing comes near to says nothing: errors take this share of it for some size, that share for all.
void check_tight(const std::vector<double>& worst, double most, double least) {
    CHECK(*std::max_element(worst.begin(), worst.end()) > most);
    for (std::size_t i = 0; i < worst.size(); ++i) {
        INFO("size " << sizes()[i] << ": at most " << worst[i] << " of the bound");
        CHECK(worst[i] > least);
    }
}

template <unsigned Bits>
void check_uniform() {
    INFO(Bits << " bits");
    constexpr double top = (1U << Bits) - 1, zero_code = 1U << (Bits - 1);
    // Half a step; what the scale's rounding takes off the top code; the rounding of the zero.
    const auto min_max = [](const Group& g) { return std::max({g.scale / 2, top * 0x1p-25, f16_rounding(g.low)}); };
    check_tight(check_bound<Uniform<Bits>>(min_max), 0.98, 0.05);
    const auto symmetric = [](const Group& g) { return std::max(g.scale / 2, (zero_code - 1) * 0x1p-25); };
    check_tight(check_bound<Uniform<Bits, 64, Symmetric>>(symmetric), 0.98, 0.15);
    // A quarter of the range is clipped away on either side, at most.
    const auto min_mse = [](const Group& g) {
        const double range = g.high - g.low, clipped = range / 4 + range * 0x1p-11 + top * 0x1p-25;
        return std::max(g.scale / 2, clipped) + f16_rounding(g.extreme);
    };
    check_tight(check_bound<Uniform<Bits, 128, MinMse>>(min_mse), 0.5, 0.002);
}

template <class Q>
double widest_gap(const Q&) {
    double gap = 0;
    for (std::size_t k = 1; k < std::size(Q::levels); ++k) {
        gap = std::max(gap, double{Q::levels[k]} - double{Q::levels[k - 1]});
    }
    return gap;
}

}  // namespace

TEST_CASE("Uniform's error bounds hold for groups of every size") {
    check_uniform<2>();
    check_uniform<3>();
    check_uniform<4>();
    check_uniform<5>();
    check_uniform<6>();
    check_uniform<8>();
}

TEST_CASE("the bounds of ggml's formats, of codebooks and of learnt levels hold for groups of every size") {
    const auto q8_0 = [](const Group& g) {
        const double d = std::abs(g.extreme) / 127;
        return d / 2 + 127 * f16_rounding(d);
    };
    check_tight(check_bound<GgmlQ8_0>(q8_0), 0.9, 0.002);
    const auto q4_0 = [](const Group& g) {
        const double d = std::abs(g.extreme) / 8;
        return d + 8 * f16_rounding(d);
    };
    check_tight(check_bound<GgmlQ4_0>(q4_0), 0.9, 0.02);
    const double gap = widest_gap(Nf4<>{});
    const auto nf4 = [gap](const Group& g) { return std::max(g.scale * gap / 2, f16_rounding(g.extreme)); };
    check_tight(check_bound<Nf4<>>(nf4, Nf4<>::levels.data()), 0.98, 0.3);

    test::Random random(3);
    const std::vector<float> seen = random.rows(4096, 1);
    std::vector<float> levels(8);
    NonUniform<3>::learn(std::vector<std::span<const float>>(32, std::span<const float>(seen).first(128)), levels);
    double reach = std::max(double{levels.front()}, 1 - double{levels.back()});
    for (std::size_t k = 1; k < levels.size(); ++k) {
        reach = std::max(reach, (double{levels[k]} - double{levels[k - 1]}) / 2);
    }
    const auto learnt = [reach](const Group& g) {
        const double range = g.high - g.low;
        return reach * g.scale + f16_rounding(g.low) + f16_rounding(range) + std::max(range - double{f16_max}, 0.0);
    };
    check_tight(check_bound<NonUniform<3>>(learnt, levels.data()), 0.9, 0.1);
}

TEST_CASE("a group whose scale rounds to 0 comes back as its smallest value, and half a step later it does not") {
    const auto decoded = [](float step) {
        std::vector<float> x(128);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = step * static_cast<float>(2 * i);
        std::vector<std::uint8_t> codes(x.size());
        const GroupScale scale = Uniform<8>::encode(x, codes);
        return std::pair(scale.zero + scale.scale * static_cast<float>(codes.back()), x.back());
    };
    const auto [lost, last] = decoded(0x1p-25F);  // 254 / 255 of 2^-25
    CHECK(lost == 0.0F);
    CHECK(last <= 255 * 0x1p-25F);  // the bound
    const auto [kept, there] = decoded(0x1.1p-25F);
    CHECK(std::abs(kept - there) <= 255 * 0x1p-25F);
    CHECK(kept > 0.9F * there);
}

TEST_CASE("a group that spans more than 65504 saturates with learnt levels, and with no others") {
    std::vector<float> x(128, -60000.0F);
    for (std::size_t i = 64; i < x.size(); ++i) x[i] = 60000.0F;
    std::vector<std::uint8_t> codes(x.size());
    const std::vector<float> levels{0, 0.25F, 0.75F, 1};
    const GroupScale learnt = NonUniform<2>::encode(x, codes, levels.data());
    CHECK(learnt.zero == round_to_f16(-60000.0F));
    CHECK(learnt.scale == f16_max);
    CHECK(learnt.zero + learnt.scale * levels[codes.back()] == round_to_f16(-60000.0F) + f16_max);
    const GroupScale even = Uniform<2>::encode(x, codes);
    CHECK(std::abs(even.zero + even.scale * 3 - 60000) <= 60000 * 0x1p-9F);
}
