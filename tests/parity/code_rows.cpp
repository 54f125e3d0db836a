/// Rows of codes met as they are stored, of every length that the registers serve: sums are those of plain loops.
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include <xquant/backend/simd/values.hpp>

#include "parity/machines.hpp"
#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

constexpr std::size_t heads = 3, rows = 29;  // no multiple of any number of lanes

std::int64_t as_signed(std::uint8_t byte) { return static_cast<std::int8_t>(byte); }

std::vector<std::uint8_t> random_bytes(std::size_t n, test::Random& random) {
    std::vector<std::uint8_t> out(n);
    for (std::uint8_t& byte : out) byte = static_cast<std::uint8_t>(random.below(256));
    return out;
}

/// Code c of a row: of 4 bits, the upper halves of bytes come behind all lower ones.
std::int64_t code_of(const std::uint8_t* row, std::size_t row_bytes, unsigned bits, std::size_t c) {
    if (bits == 8) return row[c];
    return c < row_bytes ? row[c] & 0xF : row[c - row_bytes] >> 4;
}

template <class R, std::size_t RowBytes>
void check() {
    INFO(R::name << ", rows of " << RowBytes << " bytes");
    test::Random random(11);
    const std::vector<std::uint8_t> stored = random_bytes(rows * RowBytes, random);
    const backend::detail::CodeRows view{reinterpret_cast<const std::byte*>(stored.data()), rows, 0};
    const auto product = [&](std::size_t t, unsigned bits, const std::uint8_t* weights) {
        std::int64_t sum = 0;
        for (std::size_t c = 0; c < RowBytes * 8 / bits; ++c) {
            sum += code_of(stored.data() + t * RowBytes, RowBytes, bits, c) * as_signed(weights[c]);
        }
        return sum;
    };
    alignas(64) std::array<float, heads * backend::tile_tokens> sums;
    const auto put = [&](std::size_t h, std::size_t t, typename R::f32 some) {
        R::store(sums.data() + h * backend::tile_tokens + t, some);
    };

    const std::vector<std::uint8_t> queries = random_bytes(heads * backend::int8_channels, random);
    backend::detail::score_code_rows<R, RowBytes, heads>(view, queries.data(), put);
    for (std::size_t h = 0; h < heads; ++h) {
        for (std::size_t t = 0; t < rows; ++t) {
            REQUIRE(sums[h * backend::tile_tokens + t] ==
                    static_cast<float>(product(t, 4, queries.data() + h * backend::int8_channels)));
        }
    }

    if constexpr (R::dot_bits >= 8) {
        backend::WholeWeights whole{};
        const std::vector<std::uint8_t> high = random_bytes(whole.high.size(), random),
                                        low = random_bytes(whole.low.size(), random);
        std::copy(high.begin(), high.end(), whole.high.begin());
        std::copy(low.begin(), low.end(), whole.low.begin());
        constexpr std::size_t before = 2;  // queries that are not these
        backend::detail::score_byte_rows<R, RowBytes, heads>(view, whole, before, put);
        for (std::size_t h = 0; h < heads; ++h) {
            for (std::size_t t = 0; t < rows; ++t) {
                const std::size_t at = h * backend::tile_tokens, query = at + before * backend::tile_tokens;
                const std::int64_t expected =
                    256 * product(t, 8, high.data() + query) + product(t, 8, low.data() + query);
                // Of the order of 1e7; lanes are added up in f32, whose last place is 2 or 4 there.
                REQUIRE(std::abs(static_cast<double>(sums[at + t]) - static_cast<double>(expected)) <= 16);
            }
        }
    }
}

}  // namespace

TEST_CASE("scores of rows of codes as they are stored are sums of plain loops, whatever their length") {
    parity::for_each_registers([]<class R>() {
        check<R, 4 * R::lanes>();
        if constexpr (R::lanes >= 8) {
            check<R, 2 * R::lanes>();
        } else {
            check<R, 8 * R::lanes>();
            check<R, 16 * R::lanes>();
        }
    });
}

TEST_CASE("rows of codes are met as they are stored where registers serve their length") {
    const auto found = []<class R>(std::type_identity<R>, unsigned bits, std::uint32_t channels) {
        StreamFormat format{};
        format.kind = CodeKind::planes;
        format.bits = static_cast<std::uint8_t>(bits);
        format.width = channels;
        format.group_tokens = 1;
        format.group_channels = channels;
        return backend::detail::code_row_bytes<R>(format, {0, channels});
    };
    parity::for_each_registers([&]<class R>() {
        INFO(R::name);
        const std::type_identity<R> of;
        CHECK(found(of, 4, 8 * R::lanes) == 4 * R::lanes);
        CHECK(found(of, 4, 4 * R::lanes) == (R::lanes >= 8 ? 2 * R::lanes : 0));
        CHECK(found(of, 4, 16 * R::lanes) == (R::lanes >= 8 ? 0 : 8 * R::lanes));
        CHECK(found(of, 8, 4 * R::lanes) == (R::dot_bits >= 8 ? 4 * R::lanes : 0));
        CHECK(found(of, 3, 8 * R::lanes) == 0);
    });
}
