// Every shipped quantizer keeps the contract, so does a user's; a policy that breaks one rule is told which.
#include <xquant/testing/contract.hpp>
#include <xquant/xquant.hpp>

#include <array>
#include <string>

#include "archetypes.hpp"
#include "support/catch.hpp"
#include "support/complaint.hpp"

using namespace xquant;
using test::contains;
using testing::check_quantizer;
using testing::contract_violation;

namespace {

template <unsigned Bits, unsigned Group>
void check_uniform() {
    INFO("bits " << Bits << ", group " << Group);
    const auto half_a_step = [](GroupScale s) { return s.scale / 2; };
    CHECK_NOTHROW((check_quantizer<Uniform<Bits, Group>>({.max_error = half_a_step})));
    CHECK_NOTHROW((check_quantizer<Uniform<Bits, Group, Symmetric>>({.max_error = half_a_step})));
    CHECK_NOTHROW((check_quantizer<Uniform<Bits, Group, MinMse>>()));
}

/// What contract_violation says about Q, or "".
template <class Q>
std::string complaint(const testing::QuantizerPromise& promise = {}) {
    return test::complaint<contract_violation>([&] { check_quantizer<Q>(promise); });
}

/// Uniform<4> with one thing changed.
struct Base {
    static constexpr unsigned bits = 4, group = 64;
    static constexpr bool stores_zero = true;
    using Good = Uniform<4, 64>;
};

struct CodeTooLarge : Base {
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const GroupScale scale = Good::encode(x, codes);
        codes[0] = 16;
        return scale;
    }
};
struct ScaleNotF16 : Base {
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        GroupScale scale = Good::encode(x, codes);
        scale.scale *= 1.0001F;
        return scale;
    }
};
struct ZeroNotF16 : Base {
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        GroupScale scale = Good::encode(x, codes);
        scale.zero = range_of(x).low;
        return scale;
    }
};
struct ScaleInfinite : Base {
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        GroupScale scale = Good::encode(x, codes);
        if (range_of(x).high > 60000) scale.scale = std::numeric_limits<float>::infinity();
        return scale;
    }
};
struct NegativeScale : Base {
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        GroupScale scale = Good::encode(x, codes);
        scale = {-scale.scale, round_to_f16(scale.zero + 15 * scale.scale)};
        for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(15 - code);
        return scale;
    }
};
struct WrongZero {
    static constexpr unsigned bits = 4, group = 64;
    static constexpr bool stores_zero = false;
    static constexpr float zero_code = 7;
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        return Uniform<4, 64, Symmetric>::encode(x, codes);
    }
};
struct WritesBeyond : Base {
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        codes.data()[codes.size()] = 0;
        return Good::encode(x, codes);
    }
};
struct WritesBefore : Base {
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        *(codes.data() - 1) = 0;
        return Good::encode(x, codes);
    }
};
struct ReadsBeyond : Base {  // pads to eights with what happens to lie there
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        std::array<std::uint8_t, 72> more{};
        const std::size_t padded = (x.size() + 7) / 8 * 8;
        const GroupScale scale = Good::encode({x.data(), padded}, {more.data(), padded});
        std::copy_n(more.begin(), codes.size(), codes.begin());
        return scale;
    }
};
struct RemembersCalls : Base {
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        static unsigned calls = 0;
        const GroupScale scale = Good::encode(x, codes);
        if (++calls % 2 == 0) codes[0] ^= 1;
        return scale;
    }
};
struct IgnoresX : Base {  // stores all but flat groups as 0
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        if (range_of(x).low == range_of(x).high) return Good::encode(x, codes);
        std::fill(codes.begin(), codes.end(), std::uint8_t{0});
        return {0, 0};
    }
};
struct BadConstants : Base {  // fits all but flat groups, which it stores as 0
    static GroupScale encode(std::span<const float> x, std::span<std::uint8_t> codes) noexcept {
        const GroupScale scale = Good::encode(x, codes);
        return range_of(x).low == range_of(x).high ? GroupScale{} : scale;
    }
};
struct SaysExact : Mxfp4 {
    static constexpr bool exact_constant = true;
};
struct SaysTooLittle : Mxfp4 {
    static constexpr float constant_error = 0.2F;
};
struct LearnsNothing : LearnsTwo {
    static void learn(std::span<const std::span<const float>>, std::span<float>) {}
};
struct ChoosesTwice : EndsExact {
    static void choose(std::span<const float>, std::span<std::uint8_t> places) noexcept {
        std::fill(places.begin(), places.end(), std::uint8_t{0});
    }
};
struct ChoosesBeyond : EndsExact {
    static void choose(std::span<const float> x, std::span<std::uint8_t> places) noexcept {
        EndsExact::choose(x, places);
        places[0] = static_cast<std::uint8_t>(x.size());
    }
};
struct InfiniteLevel : Ternary {
    static constexpr std::array<float, 4> levels{-1, 0, 1, std::numeric_limits<float>::infinity()};
};

}  // namespace

TEST_CASE("uniform quantizers keep the contract, with an error of half a step") {
    // Every width, and groups of every kind: the usual ones, the smallest, one that is no multiple of 8, the largest.
    const auto groups = []<unsigned Bits>(std::integral_constant<unsigned, Bits>) {
        check_uniform<Bits, 32>();
        check_uniform<Bits, 64>();
        check_uniform<Bits, 128>();
    };
    groups(std::integral_constant<unsigned, 2>{});
    groups(std::integral_constant<unsigned, 3>{});
    groups(std::integral_constant<unsigned, 4>{});
    groups(std::integral_constant<unsigned, 5>{});
    groups(std::integral_constant<unsigned, 6>{});
    groups(std::integral_constant<unsigned, 8>{});
    check_uniform<5, 8>();
    check_uniform<6, 9>();
    check_uniform<8, 4096>();
}

TEST_CASE("ggml's formats keep the contract; q4_0 has negative scales") {
    CHECK_NOTHROW(check_quantizer<GgmlQ8_0>({.max_error = [](GroupScale s) { return s.scale / 2; }}));
    CHECK_NOTHROW(check_quantizer<GgmlQ4_0>(
        {.negative_scale = true, .max_error = [](GroupScale s) { return std::abs(s.scale); }}));
    CHECK(contains(complaint<GgmlQ4_0>(), "scale is negative"));
}

TEST_CASE("codebooks, learnt levels and outliers keep the contract") {
    CHECK_NOTHROW(check_quantizer<Nf4<>>());
    CHECK_NOTHROW(check_quantizer<Nf4<4096>>());
    CHECK_NOTHROW((check_quantizer<NonUniform<2, 8>>()));
    CHECK_NOTHROW(check_quantizer<NonUniform<3>>());
    CHECK_NOTHROW((check_quantizer<NonUniform<8, 4096>>()));
    CHECK_NOTHROW(check_quantizer<WithOutliers<NonUniform<4>>>());
    CHECK_NOTHROW((check_quantizer<WithOutliers<Uniform<2, 256, MinMse>, 128>>()));
    CHECK_NOTHROW((check_quantizer<WithOutliers<GgmlQ4_0>>({.negative_scale = true})));
    static_assert(WithOutliers<Uniform<4, 128>>::outliers == 1 && WithOutliers<Uniform<4, 256>>::outliers == 3);
}

TEST_CASE("users' quantizers keep the contract: ternary, learnt, the least one can write") {
    CHECK_NOTHROW(check_quantizer<Ternary>());
    CHECK_NOTHROW(check_quantizer<LearnsTwo>());
    CHECK_NOTHROW(check_quantizer<EndsExact>());
    CHECK_NOTHROW(check_quantizer<Minimal>());
    CHECK_NOTHROW(check_quantizer<Mxfp4>());
}

TEST_CASE("a quantizer that breaks a rule is told which") {
    CHECK(contains(complaint<CodeTooLarge>(), "not below 2^bits: 16"));
    CHECK(contains(complaint<ScaleNotF16>(), "scale is not a finite f16"));
    CHECK(contains(complaint<ScaleInfinite>(), "scale is not a finite f16"));
    CHECK(contains(complaint<ZeroNotF16>(), "zero is not a finite f16"));
    CHECK(contains(complaint<NegativeScale>(), "scale is negative"));
    CHECK(contains(complaint<WrongZero>(), "zero is not -zero_code * scale"));
    CHECK(contains(complaint<WritesBeyond>(), "writes beyond its codes"));
    CHECK(contains(complaint<WritesBefore>(), "writes beyond its codes"));
    CHECK(contains(complaint<LearnsNothing>(), "learnt is not finite"));
    CHECK(contains(complaint<ChoosesTwice>(), "chosen twice"));
    CHECK(contains(complaint<ChoosesBeyond>(), "beyond the group"));
    CHECK(contains(complaint<ReadsBeyond>(), "reads values beyond its group"));
    CHECK(contains(complaint<RemembersCalls>(), "different codes or scales for the same values"));
    CHECK(contains(complaint<IgnoresX>(), "more than the range of its group"));
    CHECK(contains(complaint<BadConstants>(), "constant group does not come back"));
    CHECK(contains(complaint<SaysExact>(), "constant group does not come back within f16 rounding"));
    CHECK(contains(complaint<SaysTooLittle>(), "constant group does not come back within constant_error"));
    CHECK(contains(complaint<InfiniteLevel>(), "levels is not finite"));
    // MinMse clips: half a step is more than it may promise.
    CHECK(contains(complaint<Uniform<2, 64, MinMse>>({.max_error = [](GroupScale s) { return s.scale / 2; }}),
                   "more than the promised error"));
}
