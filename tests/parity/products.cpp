/// Keys rebuilt by 8-bit products where scales or matrices are as large or as small as a float can be.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "parity/machines.hpp"
#include "parity/some_rows.hpp"
#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

constexpr std::size_t tokens = 128, width = 64, head_dim = 20;

/// Calls f(name, keys [Dh, tokens]) for the scalar and each vector backend.
template <class F>
void for_each_backend(const QuantizedRows& rows, const std::vector<float>& matrix, F&& f) {
    const std::size_t dh = matrix.size() / width;
    const HeadDecoder head{0, 0, width, matrix.data(), nullptr, dh};
    REQUIRE(backend::fits_int8(rows.view().format, head));
    const auto run = [&]<class Tag>(Tag tag) {
        std::vector<float> keys(dh * tokens), scratch(backend::rematerialize_scratch(dh));
        backend::rematerialize(tag, rows.view(), head, 0,
                               {keys.data(), tokens, dh, tokens, backend::TileOrder::channel_major}, scratch.data());
        INFO(Tag::name);
        f(keys);
    };
    run(backend::int8<backend::scalar>{});
    parity::for_each_product_registers([&]<class R>() { run(backend::int8<backend::simd<R>>{}); });
}

}  // namespace

TEST_CASE("a scale that is not finite gives keys that are not, never a cast of what no integer holds") {
    test::Random random(3);
    const std::vector<float> matrix = random.rows(width * head_dim);
    for (const std::size_t channel : {std::size_t{0}, width / 2, width - 1}) {
        QuantizedRows rows = parity::some_rows(tokens, width);
        f16& scale = rows.view().scales[channel];
        scale = to_f16(std::numeric_limits<float>::infinity());
        for_each_backend(rows, matrix, [](const std::vector<float>& keys) {
            for (const float key : keys) REQUIRE_FALSE(std::isfinite(key));
        });
        scale = to_f16(std::numeric_limits<float>::quiet_NaN());
        for_each_backend(rows, matrix, [](const std::vector<float>&) {});
    }
}

TEST_CASE("a matrix so small that its inverse is no float gives keys as small") {
    const std::vector<float> matrix(width * head_dim, 1e-39F);
    for_each_backend(parity::some_rows(tokens, width), matrix, [](const std::vector<float>& keys) {
        for (const float key : keys) REQUIRE(std::abs(key) < 1e-35F);
    });
}
