/// Codes to bytes and back: planes of every width against a writer that sets bit after bit, and rows in every format.
#include <xquant/backend/scalar/codec.hpp>
#include <xquant/core/make_codec.hpp>
#include <xquant/quantizer/uniform.hpp>

#include <algorithm>
#include <vector>

#include "support/catch.hpp"
#include "support/format.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

constexpr backend::scalar scalar;

std::vector<std::uint8_t> random_codes(std::size_t n, unsigned bits, test::Random& random) {
    std::vector<std::uint8_t> codes(n);
    for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random.below(std::size_t{1} << bits));
    return codes;
}

std::vector<std::uint8_t> packed(const std::vector<std::uint8_t>& codes, unsigned bits) {
    std::vector<std::uint8_t> out(test::group_size(codes.size(), bits), 0xEE);
    backend::pack_group(scalar, codes.data(), codes.size(), bits, reinterpret_cast<std::byte*>(out.data()));
    return out;
}

}  // namespace

TEST_CASE("groups of every size are packed as a bit by bit writer does it, and unpacked from any place") {
    test::Random random(1);
    for (const unsigned bits : {1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U}) {
        for (const std::size_t n :
             {1, 2, 7, 8, 9, 15, 16, 31, 32, 33, 53, 63, 64, 65, 127, 128, 129, 576, 4095, 4096}) {
            INFO(bits << " bits, " << n << " codes");
            const std::vector<std::uint8_t> codes = random_codes(n, bits, random);
            const std::vector<std::uint8_t> bytes = packed(codes, bits);
            CHECK(test::difference(test::pack_bit_by_bit(codes, bits), bytes) == "");
            CHECK(test::difference(codes, test::unpack_bit_by_bit(bytes.data(), n, bits)) == "");

            std::vector<std::uint8_t> all(n);
            const auto* source = reinterpret_cast<const std::byte*>(bytes.data());
            backend::unpack_group(scalar, source, n, bits, {0, n}, all.data());
            CHECK(test::difference(codes, all) == "");
            for (int i = 0; i < 20; ++i) {
                const std::size_t first = random.below(n), count = 1 + random.below(n - first);
                std::vector<std::uint8_t> part(count + 1, 0xEE);
                backend::unpack_group(scalar, source, n, bits, {first, count}, part.data());
                REQUIRE(std::equal(part.begin(), part.end() - 1, codes.begin() + static_cast<std::ptrdiff_t>(first)));
                REQUIRE(part.back() == 0xEE);
            }
        }
    }
}

TEST_CASE("bytes are those that docs/format.md draws") {
    std::vector<std::uint8_t> codes(128);
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i % 16);
    codes[0] = 1;
    codes[64] = 2;
    const std::vector<std::uint8_t> four = packed(codes, 4);
    CHECK(four.size() == 64);
    CHECK(four[0] == 0x21);
    CHECK(four[63] == (codes[127] << 4U | codes[63]));

    std::fill(codes.begin(), codes.end(), std::uint8_t{0});
    codes[0] = 0b101;
    codes[32] = 0b010;
    codes[96] = 0b111;
    codes[112] = 0b001;
    const std::vector<std::uint8_t> three = packed(codes, 3);
    CHECK(three.size() == 48);
    CHECK(three[0] == (0b10 | 0b01 << 2 | 0b11 << 6));  // codes 0, 32, 64, 96, without their lowest bits
    CHECK(three[32] == (1 | 1 << 6 | 1 << 7));          // the lowest bits of codes 0, 96, 112
}

TEST_CASE("a group takes its bits and no more") {
    for (const unsigned bits : {2U, 3U, 4U, 5U, 6U, 8U}) {
        for (const std::size_t n : {8, 64, 128, 4096}) {
            const StreamFormat format{static_cast<std::uint32_t>(n), 1, static_cast<std::uint32_t>(n), CodeKind::planes,
                                      static_cast<std::uint8_t>(bits)};
            CHECK(format.code_bytes(1) * 8 == n * bits);
            CHECK(format.ideal_bits(1) == n * bits + 32);
        }
    }
}

namespace {

/// Encodes rows, decodes them in tiles of every kind, and compares with a decoder that finds bit after bit.
void check_stream(const StreamCodec& codec, std::size_t rows, std::uint32_t seed) {
    const StreamFormat format = codec.format.with_room(rows);
    const std::size_t width = format.width;
    test::Random random(seed);
    const std::vector<float> x = random.rows(rows * width, 3);
    std::vector<std::byte> codes(format.code_bytes(rows), std::byte{0xEE});
    std::vector<f16> scales(format.token_blocks(rows) * format.channel_blocks()), zeros(scales.size());
    const MutableStreamView view{format, codes.data(), scales.data(), zeros.data()};
    backend::encode_rows(scalar, codec, {x.data(), rows, width, width}, 0, view);

    std::vector<float> expected(rows * width);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(codes.data());
    std::size_t group = 0;
    for (std::size_t c = 0; c < width; c += format.group_channels) {
        for (std::size_t t = 0; t < rows; t += format.group_tokens, ++group) {
            const std::size_t channels = std::min<std::size_t>(format.group_channels, width - c);
            const std::size_t n = format.group_tokens * channels;
            const std::vector<std::uint8_t> one = test::unpack_bit_by_bit(bytes, n, format.bits);
            bytes += test::group_size(n, format.bits);
            for (std::size_t i = 0; i < n && t + i / channels < rows; ++i) {
                const float scale = to_float(scales[group]), zero = to_float(zeros[group]);
                const double exact = static_cast<double>(zero) + static_cast<double>(scale) * one[i];
                expected[(t + i / channels) * width + c + i % channels] = static_cast<float>(exact);
                REQUIRE(std::abs(x[(t + i / channels) * width + c + i % channels] - static_cast<float>(exact)) <=
                        scale * 0.51F + 0.01F);
            }
        }
    }
    CHECK(reinterpret_cast<const std::byte*>(bytes) == codes.data() + codes.size());

    for (int i = 0; i < 12; ++i) {
        const std::size_t token = i == 0 ? 0 : random.below(rows);
        const std::size_t tokens = i == 0 ? rows : 1 + random.below(rows - token);
        const std::size_t channel = i == 0 ? 0 : random.below(width);
        const std::size_t channels = i == 0 ? width : 1 + random.below(width - channel);
        for (const auto order : {backend::TileOrder::token_major, backend::TileOrder::channel_major}) {
            const bool by_token = order == backend::TileOrder::token_major;
            const std::size_t stride = (by_token ? channels : tokens) + 3;
            std::vector<float> out((by_token ? tokens : channels) * stride, -99.0F);
            backend::decode_tile(scalar, read_only(view), token, channel,
                                 {out.data(), tokens, channels, stride, order});
            for (std::size_t t = 0; t < tokens; ++t) {
                for (std::size_t c = 0; c < channels; ++c) {
                    const float found = out[by_token ? t * stride + c : c * stride + t];
                    const float exact = expected[(token + t) * width + channel + c];
                    // One product and one sum in f32, fused or not.
                    REQUIRE(std::abs(found - exact) <= 1e-6F * (3 + std::abs(exact)));
                }
            }
            for (std::size_t j = by_token ? channels : tokens; j < stride; ++j) REQUIRE(out[j] == -99.0F);
        }
    }
}

}  // namespace

TEST_CASE("rows of odd widths and counts, in groups along tokens, channels and both, decode to what was coded") {
    std::uint32_t seed = 1;
    constexpr std::uint32_t g = 32;
    for (const std::uint32_t width : {1U, g - 1, g, g + 1, 100U}) {
        for (const std::size_t rows : {std::size_t{1}, std::size_t{31}, std::size_t{32}, std::size_t{33}}) {
            INFO(width << " channels, " << rows << " rows");
            const auto check = [&]<class Q>(Q, std::uint32_t tokens, std::uint32_t channels) {
                check_stream({{width, tokens, channels, CodeKind::planes, Q::bits}, &xquant::detail::encode_group<Q>},
                             rows, seed++);
            };
            check(Uniform<2, g>{}, 1, g);
            check(Uniform<3, g>{}, g, 1);
            check(Uniform<4, g>{}, 1, g);
            check(Uniform<5, g>{}, 4, g / 4);
            check(Uniform<6, g>{}, g, 1);
            check(Uniform<8, g>{}, 1, g);
        }
    }
}

TEST_CASE("rows that are stored as they are come back as f32, f16 or bf16 has them") {
    test::Random random(4);
    constexpr std::size_t rows = 5, width = 33, head = 11;
    const std::vector<float> x = random.rows(rows * width, 100);
    for (const CodeKind kind : {CodeKind::f32, CodeKind::f16, CodeKind::bf16}) {
        const unsigned bits = kind == CodeKind::f32 ? 32 : 16;
        const StreamFormat whole{width, 1, head, kind, static_cast<std::uint8_t>(bits), false, 0, nullptr};
        const StreamFormat format = whole.with_room(rows);
        CHECK(format.code_bytes(rows) == rows * width * bits / 8);
        CHECK(format.scale_bytes(rows) == 0);
        std::vector<float> memory(rows * width);
        const MutableStreamView view{format, reinterpret_cast<std::byte*>(memory.data()), nullptr, nullptr};
        backend::encode_rows(scalar, {format, nullptr}, {x.data(), rows, width, width}, 0, view);
        std::vector<float> out(rows * width);
        backend::decode_tile(scalar, read_only(view), 0, 0,
                             {out.data(), rows, width, width, backend::TileOrder::token_major});
        for (std::size_t i = 0; i < x.size(); ++i) {
            const float expected = kind == CodeKind::f32   ? x[i]
                                   : kind == CodeKind::f16 ? to_float(to_f16(x[i]))
                                                           : to_float(to_bf16(x[i]));
            REQUIRE(out[i] == expected);
        }
    }
}
