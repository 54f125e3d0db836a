/// Codes times a wide matrix in 8 bits, which sums over layers are made of: near the exact product, alike on every
/// backend, and whatever other tokens they are made with.
#include <algorithm>
#include <cmath>
#include <vector>

#include "parity/machines.hpp"
#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

constexpr std::size_t tokens = 120, columns = 300;

/// Rows of `width` channels in codes per token, and S [width, columns].
struct Case {
    std::size_t width;
    QuantizedRows rows;
    std::vector<float> matrix;

    template <class Quantizer>
    static Case of(Quantizer, std::size_t width) {
        test::Random random(7);
        const std::vector<float> x = random.rows(tokens * width);
        return {width, quantize<Quantizer, PerToken>(MatrixView(x.data(), tokens, width)),
                random.rows(width * columns)};
    }
};

template <class Backend>
std::vector<float> spread(Backend tag, const Case& c, backend::Slots some) {
    backend::SpreadMatrix matrix{c.rows.view().format, {0, 0, c.width, c.matrix.data(), nullptr, columns}, nullptr};
    std::vector<float> weights(matrix.panels() * matrix.panel_floats()), scratch(backend::spread_scratch());
    std::vector<float> out(some.count * columns, NAN);
    matrix.weights = weights.data();
    for (std::size_t panel = 0; panel < matrix.panels(); ++panel) {
        const backend::Slots of = matrix.columns_of(panel);
        round_spread(tag, matrix, panel, scratch.data());
        spread_codes(tag, c.rows.view(), some.first, matrix, panel,
                     {out.data() + of.first, some.count, of.count, columns, backend::TileOrder::token_major},
                     scratch.data());
    }
    return out;
}

/// The product, and by how much 8-bit weights may be off: half a step of each, times the code and its scale.
struct Exact {
    double value, bound;
};
Exact exact(const Case& c, std::size_t token, std::size_t column) {
    const StreamView in = c.rows.view();
    std::vector<float> z(c.width);
    const backend::Tile tile{z.data(), 1, c.width, c.width, backend::TileOrder::token_major};
    for (std::size_t k = 0; k < c.width; k += in.format.group_channels) {
        const std::size_t some = std::min<std::size_t>(in.format.group_channels, c.width - k);
        backend::decode_tile(backend::scalar{}, in, token, k, tile.part({0, 1}, {k, some}));
    }
    Exact out{0, 0};
    backend::for_each_int8_block(
        in.format, {0, 0, c.width, nullptr, nullptr, columns}, [&](std::size_t first, std::size_t channels) {
            double largest = 0, codes = 0;
            const GroupScale scale =
                backend::stored_scale(in, in.format.group_index(token, first / in.format.group_channels));
            for (std::size_t k = first; k < first + channels; ++k) {
                const double weight = static_cast<double>(c.matrix[k * columns + column]);
                out.value += static_cast<double>(z[k]) * weight;
                largest = std::max(largest, std::abs(weight));
                codes += static_cast<double>(z[k] - scale.zero);
            }
            out.bound += codes * largest / 254;
        });
    return out;
}

}  // namespace

TEST_CASE("codes times a wide matrix are as near as 8-bit weights are, on every backend, with any other tokens") {
    const Case c = GENERATE(Case::of(Uniform<3>{}, 200), Case::of(Uniform<2, 32>{}, 96), Case::of(Uniform<5>{}, 576));
    INFO(c.width << " channels in groups of " << c.rows.view().format.group_channels);
    const backend::Slots all{0, tokens}, some{7, 70};
    const std::vector<float> expected = spread(backend::int8<backend::scalar>{}, c, all);
    double off = 0, worst = 0, size = 0;
    for (std::size_t t = 0; t < tokens; t += 17) {
        for (std::size_t j = 0; j < columns; j += 7) {
            const Exact at = exact(c, t, j);
            const double error = static_cast<double>(expected[t * columns + j]) - at.value;
            worst = std::max(worst, std::abs(error) / at.bound);
            off += error * error;
            size += at.value * at.value;
        }
    }
    CHECK(worst <= 1);
    CHECK(std::sqrt(off / size) < 0.01);
    CHECK(std::sqrt(off / size) > 1e-4);  // weights do have 8 bits
    const auto check = [&]<class Tag>(Tag tag) {
        INFO(Tag::name);
        const std::vector<float> full = spread(tag, c, all), part = spread(tag, c, some);
        double largest = 0, difference = 0;
        for (std::size_t i = 0; i < full.size(); ++i) {
            largest = std::max(largest, static_cast<double>(std::abs(expected[i])));
            difference = std::max(difference, static_cast<double>(std::abs(full[i] - expected[i])));
        }
        CHECK(difference <= 1e-5 * largest);
        CHECK(std::equal(part.begin(), part.end(), full.begin() + some.first * columns));
    };
    check(backend::int8<backend::scalar>{});
    parity::for_each_product_registers([&]<class R>() { check(backend::int8<backend::simd<R>>{}); });
}
