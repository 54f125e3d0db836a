/// 8-bit products on a matrix unit: sums are those of the dot instruction, and so is every answer. Not to the last bit
/// here: the compiler makes two programs of the emulated registers, and joins products and sums otherwise in each.
#include <vector>

#include "parity/attention_of.hpp"
#include "parity/distance.hpp"
#include "parity/machines.hpp"
#include "support/catch.hpp"

using namespace xquant;

namespace {

// Of this file alone: of functions that several files have, the linker keeps one, and the files round otherwise.
struct Plain : backend::emulated_registers {};
struct WithUnit : backend::emulated_matrix_registers {};

/// Words of random bytes; weights within -127 .. 127.
std::vector<std::uint32_t> random_words(std::size_t n, bool weights, test::Random& random) {
    std::vector<std::uint32_t> out(n);
    for (std::uint32_t& word : out) {
        for (unsigned b = 0; b < 32; b += 8) {
            const auto byte = static_cast<std::uint8_t>(random.below(256));
            word |= std::uint32_t{weights && byte == 0x80 ? std::uint8_t{1} : byte} << b;
        }
    }
    return out;
}

template <class Quantizer, class Axes, class Form, class Base>
std::vector<float> answer(const parity::Case& c) {
    test::Setup setup(c.shape, c.interleaved ? RopePairing::interleaved : RopePairing::halves);
    test::Random random(17);
    const std::vector<float> x = random.rows((c.tokens + c.queries) * c.shape.width);
    const std::vector<float> q = random.rows(c.queries * c.shape.heads * c.shape.head_dim, 2);
    const std::vector<float> gain = random.rows(c.shape.head_dim, 0.5F);
    if (c.normed) setup.model.layers[0].k_norm = gain.data();
    using Backend = backend::int8<backend::simd<Base>>;
    return parity::attend<XCache<Quantizer, Axes, CrossLayer<Off>, Form, Backend>>(setup.model, c, x, q);
}

const std::vector<parity::Case>& cases() {
    static const std::vector<parity::Case> all{
        {"GQA, one query", {192, 6, 2, 64}, 389, 1},
        {"head_dim 128, halves, 8 queries", {512, 4, 1, 128}, 260, 2, false},
        {"head_dim 80: 64 channels, and 16 more", {240, 3, 1, 80}, 270, 1},
        {"head_dim 20: no group of 64 channels", {60, 4, 2, 20}, 200, 2},
        {"many queries", {192, 6, 2, 64}, 200, 40},
        {"a norm of K", {192, 6, 2, 64}, 300, 1, true, true},
    };
    return all;
}

template <class Quantizer, class Axes, class Form>
void check_answers(const char* name) {
    for (const parity::Case& c : cases()) {
        INFO(name << ", " << c.name);
        const std::vector<float> expected = answer<Quantizer, Axes, Form, Plain>(c);
        REQUIRE(parity::distance(std::vector<float>(expected.size()), expected) ==
                1);  // zeros are far off, and not right
        // What a neighbouring code in a row or two makes; a wrong sum makes a thousand times as much.
        constexpr double bound = 2e-4;
        CHECK(parity::distance(answer<Quantizer, Axes, Form, WithUnit>(c), expected) < bound);
        WithUnit::MatrixScope::refused = 1;
        CHECK(parity::distance(answer<Quantizer, Axes, Form, WithUnit>(c), expected) < bound);
        WithUnit::MatrixScope::refused = 0;
#if defined(XQUANT_HAS_AMX)
        CHECK(parity::distance(answer<Quantizer, Axes, Form, backend::amx_registers>(c),
                               answer<Quantizer, Axes, Form, backend::avx512_registers>(c)) < bound);
#endif
    }
}

}  // namespace

TEST_CASE("a panel of a matrix unit is the sums of the dot instruction") {
    test::Random random(3);
    constexpr std::size_t columns = 16, tokens = 64, quad_step = 128, groups = 3, quads = 16 * groups, step = quads + 5;
    const std::vector<std::uint32_t> weights = random_words(columns * step, true, random),
                                     codes = random_words(quads * quad_step, false, random);
    const auto check = [&]<class R>() {
        INFO(R::name);
        static_assert(R::matrix_unit && backend::register_wrapper<R>);
        const typename R::MatrixScope scope;
        if (!scope.ready()) return;
        std::vector<std::int32_t> sums(columns * tokens);
        R::multiply_panel(weights.data(), step, codes.data() + 32, quad_step, groups, sums.data());
        for (std::size_t j = 0; j < columns; ++j) {
            for (std::size_t t = 0; t < tokens; t += R::lanes) {
                auto expected = R::zero_i32();
                for (std::size_t q = 0; q < quads; ++q) {
                    expected = R::dot(expected, R::load_i32(codes.data() + 32 + q * quad_step + t),
                                      R::splat_i32(static_cast<std::int32_t>(weights[j * step + q])));
                }
                std::vector<std::int32_t> row(R::lanes);
                R::store_i32(row.data(), R::dot_end(expected));
                for (std::size_t i = 0; i < R::lanes; ++i) REQUIRE(sums[j * tokens + t + i] == row[i]);
            }
        }
    };
    check.operator()<backend::emulated_matrix_registers>();
#if defined(XQUANT_HAS_AMX)
    check.operator()<backend::amx_registers>();
#endif
}

TEST_CASE("answers by a matrix unit are those of the dot instruction") {
    using Token = Layout<PerToken>;
    using Split = Layout<PerChannel, PerToken>;
    check_answers<Uniform<4>, Split, Projection<HeadSvd>>("head4");
    check_answers<Uniform<3, 32>, Token, Projection<Rotated>>("x3_group32");
    check_answers<Uniform<4>, Token, Projection<Rotated>>("x4");
}
