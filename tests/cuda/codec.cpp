/// The codec for GPUs against the scalar one: bytes by memcmp, decoded strips to the rounding of f16.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <xquant/backend/cuda/device/decode.cuh>
#include <xquant/backend/cuda/kernels/append.cuh>
#include <xquant/xquant.hpp>
#include "support/gpu/machine.hpp"

#include "contract/archetypes.hpp"
#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;
using Gpu = backend::emulated_gpu;

namespace {

/// Values with flat groups, zeros of both signs, ties.
std::vector<float> values(std::size_t rows, std::size_t width) {
    test::Random random(11);
    std::vector<float> x = random.rows(rows * width, 3);
    for (std::size_t i = 0; i < x.size(); i += 11) x[i] = static_cast<float>(random.below(16)) * 0.5F;
    for (std::size_t c = 0; c < width; ++c) x[c] = -0.0F;
    return x;
}

template <class Q, class Axis>
QuantizedRows encode_scalar(const std::vector<float>& x, std::size_t rows, std::size_t width) {
    const MatrixView view(x.data(), rows, width);
    if constexpr (learning_policy<Q>) {
        return quantize<Q, Axis, backend::scalar>(view, view);
    } else {
        return quantize<Q, Axis, backend::scalar>(view);
    }
}

template <class Q, class Axis>
void check_encode(std::size_t rows, std::size_t width) {
    INFO("encode " << rows << " x " << width << ", " << Q::bits << " bits, groups of " << Q::group);
    const std::vector<float> x = values(rows, width);
    QuantizedRows expected = encode_scalar<Q, Axis>(x, rows, width);
    const StreamCodec codec = expected.codec();
    REQUIRE(backend::gpu::encodes(codec));
    QuantizedRows found(codec, rows);
    const backend::gpu::RuleScale scale(codec.rule, codec.format);
    const Gpu::Warp warp(0);
    for (std::size_t part = 0; part < backend::gpu::encode_parts(codec.format, rows); ++part) {
        backend::gpu::encode_part<Gpu>(warp, part, x.data(), width, 0, rows, found.view(), scale);
    }
    CHECK(std::memcmp(found.view().codes, expected.view().codes, codec.format.code_bytes(rows)) == 0);
    CHECK(std::memcmp(found.view().scales, expected.view().scales, codec.format.scale_bytes(rows)) == 0);
}

template <class Q>
void check_encode_sizes() {
    for (const std::size_t width : {1, 64, 80, 200, 576}) check_encode<Q, PerToken>(5, width);
    for (const std::size_t rows : {1, 31, 128, 133, 256}) {
        check_encode<Q, PerToken>(rows, 72);
        if constexpr (128 % Q::group == 0) check_encode<Q, PerChannel>(rows, 72);
    }
}

backend::gpu::StripForm form_of(const StreamFormat& format, std::size_t channel, unsigned channels) {
    return backend::gpu::strip_form(format, channel, channels);
}

/// Strips of channels channel .. + channels, slots begin .. end wanted.
template <class Q, class Axis>
void check_decode(std::size_t rows, std::size_t width, std::size_t channel, unsigned channels, std::size_t begin,
                  std::size_t end, backend::gpu::StripForm form) {
    const std::vector<float> x = values(rows, width);
    const QuantizedRows stored = encode_scalar<Q, Axis>(x, rows, width);
    const StreamView in = stored.view();
    INFO("decode " << rows << " x " << width << ", channels " << channel << " + " << channels << ", slots " << begin
                   << " to " << end << ", bits " << static_cast<int>(in.format.bits) << ", group "
                   << in.format.group_tokens << " x " << in.format.group_channels);
    CHECK(form_of(in.format, channel, channels) == form);
    std::vector<float> exact(rows * width);
    backend::decode_tile(backend::scalar{}, in, 0, 0,
                         {exact.data(), rows, width, width, backend::TileOrder::token_major});
    constexpr unsigned stride = 264;
    for (const unsigned tiles : {1U, 2U}) {
        for (unsigned round = 0; round < 2 / tiles; ++round) {
            for (unsigned index = 0; index < backend::gpu::block_warps; ++index) {
                const backend::gpu::Strip strip{begin / 128 * 128, begin, end, 16 * tiles, round, index};
                Gpu::Warp warp(index);
                std::vector<f16> out(32 * stride, to_f16(-77));
                if (tiles == 1) {
                    backend::gpu::decode_strip<Gpu, 1>(warp, in, strip, channel, channels, out.data(), stride);
                } else {
                    backend::gpu::decode_strip<Gpu, 2>(warp, in, strip, channel, channels, out.data(), stride);
                }
                warp.wait_for_copies();
                double worst = 0;
                for (unsigned row = 0; row < strip.rows; ++row) {
                    for (unsigned c = 0; c < (channels + 15) / 16 * 16; ++c) {
                        const bool there = strip.wants(row) && c < channels;
                        const double expected = there ? exact[strip.slot(row) * width + channel + c] : 0;
                        const double found = to_float(out[row * stride + c]);
                        worst = std::max(worst, std::abs(found - expected) / (std::abs(expected) + 1e-3));
                    }
                    // Nothing beyond what was asked for.
                    CHECK(out[row * stride + (channels + 15) / 16 * 16] == to_f16(-77));
                }
                CHECK(worst <= 0x1p-11 + 1e-6);
            }
        }
    }
}

}  // namespace

TEST_CASE("bytes of the device's encoder are the scalar encoder's") {
    check_encode_sizes<Uniform<2>>();
    check_encode_sizes<Uniform<3, 32>>();
    check_encode_sizes<Uniform<4>>();
    check_encode_sizes<Uniform<4, 64>>();
    check_encode_sizes<Uniform<5, 32>>();
    check_encode_sizes<Uniform<6>>();
    check_encode_sizes<Uniform<8, 64>>();
    check_encode_sizes<Uniform<4, 128, Symmetric>>();
    check_encode_sizes<Uniform<2, 128, MinMse>>();
    check_encode_sizes<Uniform<3, 32, MinMse>>();
    check_encode<Uniform<4, 12>, PerToken>(7, 100);
    check_encode<Uniform<3, 8>, PerChannel>(21, 40);
    CHECK(!backend::gpu::encodes(make_codec<Nf4<>, PerToken>(64)));
    CHECK(!backend::gpu::encodes(make_codec<GgmlQ4_0, PerToken>(64)));
    CHECK(!backend::gpu::encodes(make_codec<Uniform<4, 64>, FourTokens>(64)));
}

TEST_CASE("a code is where the planes have it") {
    for (const unsigned bits : {2U, 3U, 4U, 5U, 6U, 8U}) {
        for (const std::size_t n : {1, 8, 13, 64, 128}) {
            std::vector<std::uint8_t> codes(n);
            test::Random random(bits);
            for (auto& code : codes) code = static_cast<std::uint8_t>(random.below(1U << bits));
            std::vector<std::byte> packed((n + 7) / 8 * bits);
            backend::pack_group(backend::scalar{}, codes.data(), n, bits, packed.data());
            for (std::size_t i = 0; i < n; ++i) {
                CHECK(backend::gpu::code_at(packed.data(), n, bits, i) == codes[i]);
            }
        }
    }
}

TEST_CASE("four codes at a time are the single ones") {
    for (const unsigned bits : {2U, 3U, 4U, 5U, 6U, 8U}) {
        for (const std::size_t n : {16, 32, 64, 96, 128}) {
            if (!backend::gpu::has_words(n, bits)) continue;
            std::vector<std::uint8_t> codes(n);
            test::Random random(bits);
            for (auto& code : codes) code = static_cast<std::uint8_t>(random.below(1U << bits));
            std::vector<std::uint32_t> packed(n / 8 * bits / 4);
            auto* bytes = reinterpret_cast<std::byte*>(packed.data());
            backend::pack_group(backend::scalar{}, codes.data(), n, bits, bytes);
            for (unsigned i = 0; i < n; i += 4) {
                const std::uint32_t word = backend::gpu::code_word(bytes, static_cast<unsigned>(n), bits, i);
                for (unsigned k = 0; k < 4; ++k) CHECK((word >> (8 * k) & 0xFFU) == codes[i + k]);
            }
        }
    }
}

TEST_CASE("strips of every kind of stream are what is stored, rounded to f16") {
    using backend::gpu::StripForm;
    check_decode<Uniform<4>, PerChannel>(128, 192, 64, 64, 0, 128, StripForm::channel4);
    check_decode<Uniform<4>, PerChannel>(128, 192, 2, 80, 17, 101, StripForm::channel4);
    check_decode<Uniform<4>, PerChannel>(256, 32, 0, 32, 130, 256, StripForm::channel4);
    check_decode<Uniform<4>, PerChannel>(133, 32, 0, 32, 128, 133, StripForm::channel4);
    check_decode<Uniform<4, 128, Symmetric>, PerChannel>(128, 64, 0, 64, 0, 128, StripForm::channel4);
    check_decode<Uniform<4, 32>, PerChannel>(128, 64, 0, 64, 3, 128, StripForm::channel);
    check_decode<Uniform<4, 32>, PerChannel>(70, 40, 0, 40, 3, 70, StripForm::channel);
    check_decode<Uniform<3>, PerChannel>(128, 64, 0, 64, 0, 100, StripForm::channel);
    check_decode<Uniform<2, 64>, PerChannel>(256, 72, 8, 58, 140, 256, StripForm::channel);
    check_decode<Uniform<5>, PerChannel>(128, 64, 0, 64, 0, 128, StripForm::channel);
    check_decode<Uniform<8>, PerChannel>(128, 64, 0, 63, 0, 128, StripForm::any);
    check_decode<Uniform<2, 8>, PerChannel>(128, 64, 0, 64, 0, 128, StripForm::any);
    check_decode<Uniform<4, 64>, PerToken>(128, 192, 64, 64, 0, 128, StripForm::token4);
    check_decode<Uniform<4>, PerToken>(128, 576, 512, 64, 5, 60, StripForm::token4);
    check_decode<Uniform<4, 64>, PerToken>(128, 192, 0, 192, 0, 128, StripForm::token4);
    check_decode<Uniform<4, 32>, PerToken>(128, 72, 64, 8, 0, 128, StripForm::token4);
    check_decode<GgmlQ4_0, PerToken>(128, 128, 64, 64, 0, 128, StripForm::token4);
    check_decode<Uniform<8, 64>, PerToken>(128, 128, 64, 64, 1, 127, StripForm::token8);
    check_decode<GgmlQ8_0, PerToken>(128, 96, 0, 96, 0, 128, StripForm::token8);
    check_decode<Uniform<4>, PerToken>(128, 192, 64, 64, 0, 128, StripForm::any);
    check_decode<Uniform<5, 32>, PerToken>(128, 64, 0, 64, 0, 128, StripForm::token);
    check_decode<Uniform<3, 64>, PerToken>(128, 192, 64, 128, 9, 128, StripForm::token);
    check_decode<Uniform<2>, PerToken>(128, 144, 0, 144, 0, 77, StripForm::token);
    check_decode<Uniform<6, 32>, PerToken>(128, 64, 32, 32, 0, 128, StripForm::token);
    check_decode<Uniform<3>, PerToken>(128, 136, 0, 136, 0, 128, StripForm::any);
    check_decode<Nf4<>, PerToken>(128, 64, 0, 64, 0, 128, StripForm::any);
    check_decode<WithOutliers<NonUniform<3>>, PerChannel>(128, 40, 3, 21, 0, 128, StripForm::any);
    check_decode<Unquantized<f16>, PerToken>(200, 64, 16, 48, 130, 200, StripForm::halves);
    check_decode<Unquantized<f16>, PerToken>(200, 20, 3, 7, 130, 200, StripForm::any);
    check_decode<Unquantized<float>, PerToken>(128, 64, 0, 64, 0, 128, StripForm::any);
    check_decode<Unquantized<bf16>, PerToken>(128, 64, 0, 64, 0, 128, StripForm::any);
}
