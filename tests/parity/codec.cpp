/// Every backend's codec against the scalar one: bytes by memcmp, values to one rounding; odd sizes, every number of
/// bits.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "parity/machines.hpp"
#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

/// Rows with what encoders stumble over: flat groups, zeros of both signs, outliers, ties.
std::vector<float> difficult_rows(std::size_t rows, std::size_t width) {
    test::Random random(3);
    std::vector<float> x = random.rows(rows * width, 3);
    for (std::size_t i = 0; i < x.size(); i += 11) x[i] = static_cast<float>(random.below(16)) * 0.5F;
    for (std::size_t i = 0; i < x.size(); i += 257) x[i] = 4000;
    for (std::size_t c = 0; c < width; ++c) {
        x[c] = -0.0F;
        if (rows > 2) x[2 * width + c] = 1.5F;
    }
    return x;
}

/// Rows so small that a scale is rounded to two thirds of itself, the smallest f16: values lie beyond the top code.
std::vector<float> tiny_rows(std::size_t rows, std::size_t width, unsigned bits) {
    test::Random random(4);
    return random.rows(rows * width, static_cast<float>((1U << bits) - 1) * 4.3e-8F);
}

template <class Q, class Axis>
void check(std::size_t rows, std::size_t width, const std::vector<float>& x) {
    const StreamCodec codec = xquant::make_codec<Q, Axis>(width);
    QuantizedRows expected(codec, rows);
    encode_rows(backend::scalar{}, codec, backend::Matrix{x.data(), rows, width, width}, 0, expected.view());
    std::vector<float> values(rows * width);
    backend::decode_tile(backend::scalar{}, std::as_const(expected).view(), 0, 0,
                         {values.data(), rows, width, width, backend::TileOrder::token_major});
    parity::for_each_registers([&]<class R>() {
        INFO(R::name << ": " << rows << " x " << width << ", " << Q::bits << " bits, groups of " << Q::group
                     << (std::is_same_v<Axis, PerToken> ? " per token" : " per channel"));
        const backend::simd<R> tag;
        QuantizedRows found(codec, rows);
        encode_rows(tag, codec, backend::Matrix{x.data(), rows, width, width}, 0, found.view());
        const std::size_t code_bytes = codec.format.code_bytes(rows), scales = codec.format.scale_bytes(rows);
        CHECK(std::memcmp(found.view().codes, expected.view().codes, code_bytes) == 0);
        CHECK(std::memcmp(found.view().scales, expected.view().scales, scales) == 0);

        // Tiles that begin and end anywhere, in both orders.
        const StreamView in = std::as_const(expected).view();
        for (const std::size_t token : {std::size_t{0}, rows / 3}) {
            for (const std::size_t channel : {std::size_t{0}, width / 2}) {
                const std::size_t tokens = std::min<std::size_t>(rows - token, 128), channels = width - channel;
                std::vector<float> by_token(tokens * channels, NAN), by_channel(channels * 128, NAN);
                decode_tile(
                    tag, in, token, channel,
                    backend::Tile{by_token.data(), tokens, channels, channels, backend::TileOrder::token_major});
                decode_tile(tag, in, token, channel,
                            backend::Tile{by_channel.data(), tokens, channels, 128, backend::TileOrder::channel_major});
                double worst = 0;
                for (std::size_t t = 0; t < tokens; ++t) {
                    for (std::size_t c = 0; c < channels; ++c) {
                        const double exact = values[(token + t) * width + channel + c];
                        const double a = by_token[t * channels + c], b = by_channel[c * 128 + t];
                        const double error = std::max(std::abs(a - exact), std::abs(b - exact));
                        worst = std::isnan(a + b) ? HUGE_VAL : std::max(worst, error / (1 + std::abs(exact)));
                    }
                }
                INFO("tokens from " << token << ", channels from " << channel);
                CHECK(worst <= 0x1p-10 * 0x1p-12);
            }
        }
    });
}

template <class Q>
void check_sizes() {
    for (const std::size_t width :
         {std::size_t{1}, std::size_t{64}, std::size_t{80}, std::size_t{200}, std::size_t{576}}) {
        check<Q, PerToken>(5, width, difficult_rows(5, width));
        check<Q, PerToken>(5, width, tiny_rows(5, width, Q::bits));
    }
    for (const std::size_t rows :
         {std::size_t{1}, std::size_t{31}, std::size_t{128}, std::size_t{133}, std::size_t{256}}) {
        check<Q, PerChannel>(rows, 20, difficult_rows(rows, 20));
        check<Q, PerChannel>(rows, 20, tiny_rows(rows, 20, Q::bits));
    }
}

}  // namespace

TEST_CASE("codes, scales and zeros are the same bytes on every backend") {
    check_sizes<Uniform<2>>();
    check_sizes<Uniform<3>>();
    check_sizes<Uniform<4>>();
    check_sizes<Uniform<5>>();
    check_sizes<Uniform<6>>();
    check_sizes<Uniform<8>>();
    check_sizes<Uniform<4, 32>>();
    check_sizes<Uniform<3, 64>>();
    check_sizes<Uniform<5, 32>>();
    check_sizes<Uniform<4, 128, Symmetric>>();
    check_sizes<Uniform<2, 128, MinMse>>();
    check_sizes<GgmlQ8_0>();
    check_sizes<GgmlQ4_0>();
    check_sizes<Nf4<>>();
    check_sizes<WithOutliers<Uniform<4>>>();
}

TEST_CASE("rows of one channel that are stored as they are come back in either order") {
    const std::vector<float> x{1.0F, -2.5F, 0.25F, 7.0F, -8.0F, 9.0F, 10.0F, -11.0F, 12.0F};
    const auto decodes = [&]<class T>(std::type_identity<T>) {
        const StreamCodec codec = xquant::make_codec<Unquantized<T>, PerToken>(1);
        QuantizedRows stored(codec, x.size());
        encode_rows(backend::scalar{}, codec, backend::Matrix{x.data(), x.size(), 1, 1}, 0, stored.view());
        parity::for_each_registers([&]<class R>() {
            for (const auto order : {backend::TileOrder::token_major, backend::TileOrder::channel_major}) {
                std::vector<float> out(x.size());
                const std::size_t stride = order == backend::TileOrder::token_major ? 1 : x.size();
                decode_tile(backend::simd<R>{}, std::as_const(stored).view(), 0, 0,
                            backend::Tile{out.data(), x.size(), 1, stride, order});
                INFO(R::name);
                CHECK(out == x);
            }
        });
    };
    decodes(std::type_identity<float>{});
    decodes(std::type_identity<f16>{});
    decodes(std::type_identity<bf16>{});
}
