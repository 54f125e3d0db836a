/// Who holds what: every element of every fragment, every slot of a page, every operation of the emulated machine that kernels
/// rely on.
#include <array>
#include <cmath>
#include <set>
#include <vector>

#include <xquant/backend/cuda/device/query_tile.cuh>
#include <xquant/xquant.hpp>
#include "support/gpu/machine.hpp"

#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;
using namespace xquant::backend;
using Gpu = emulated_gpu;

namespace {

template <class F>
std::set<std::pair<unsigned, unsigned>> elements(unsigned registers, unsigned halves, F&& element) {
    std::set<std::pair<unsigned, unsigned>> seen;
    for (unsigned lane = 0; lane < gpu::lanes; ++lane) {
        for (unsigned i = 0; i < registers; ++i) {
            for (unsigned h = 0; h < halves; ++h) {
                const gpu::Element at = element(lane, i, h);
                seen.insert({at.row, at.column});
            }
        }
    }
    return seen;
}

template <class Q>
void check_rebuilt(std::size_t width, std::size_t dh) {
    constexpr unsigned size = 128, tiles = 2, stride = 136;
    using Rebuild = gpu::Rebuilder<Gpu, tiles, size, true>;
    test::Random random(9);
    const std::vector<float> x = random.rows(128 * width), a = random.rows(width * dh, 0.3F);
    const QuantizedRows stored = quantize<Q, PerToken, scalar>(MatrixView(x.data(), 128, width));
    const StreamView in = stored.view();
    std::vector<float> z(128 * width);
    decode_tile(scalar{}, in, 0, 0, {z.data(), 128, width, width, TileOrder::token_major});
    const HeadDecoder head{0, 0, width, a.data(), nullptr, dh};
    const gpu::Strip page{0, 5, 120, 16 * tiles, 0, 0};
    for (const bool keys : {true, false}) {
        for (const bool codes : {false, true}) {
            INFO("width " << width << ", head_dim " << dh << ", bits " << Q::bits << ", keys " << keys << ", codes "
                          << codes);
            REQUIRE(gpu::fits_codes(in.format, head));
            const gpu::ChannelOrder order{size, static_cast<unsigned>(dh), keys ? static_cast<unsigned>(dh) / 2 : 0,
                                          keys};
            const gpu::PackedMatrix packed = gpu::pack_matrix(head, order, 0, codes ? &in.format : nullptr);
            const gpu::MatrixTable matrix = packed.view();
            Gpu::Block block(gpu::block_warps, sizeof(f16) * (Rebuild::halves + gpu::block_warps * 32 * stride), false);
            auto* memory = reinterpret_cast<f16*>(block.shared());
            Rebuild rebuild(block, memory);
            struct Products {
                gpu::Product<Gpu, tiles, 8> keys;
                gpu::Product<Gpu, 4, 2 * tiles> values;
            };
            std::vector<Products> products(gpu::block_warps);
            const auto place_of = [&](const Gpu::Warp& warp) {
                gpu::Strip place = page;
                place.warp = warp.index;
                return place;
            };
            const auto strip_of = [&](const Gpu::Warp& warp) {
                return memory + Rebuild::halves + warp.index * 32 * stride;
            };
            double off = 0, length = 0;
            for (unsigned set = 0; set < size / gpu::set_channels; ++set) {
                const auto compare = [&](const gpu::Strip& place, unsigned row, unsigned column, float found) {
                    const unsigned c = order.channel(order.place(set, column));
                    double expected = 0;
                    for (std::size_t k = 0; k < width && c < dh && place.wants(row); ++k) {
                        expected +=
                            static_cast<double>(z[place.slot(row) * width + k]) * static_cast<double>(a[k * dh + c]);
                    }
                    off += std::pow(static_cast<double>(found) - expected, 2);
                    length += expected * expected;
                };
                if (keys) {
                    rebuild.run<true>(
                        in, head, matrix, set, place_of, strip_of,
                        stride, [&](const Gpu::Warp& warp) -> auto& { return products[warp.index].keys; });
                } else {
                    rebuild.run<false>(
                        in, head, matrix, set, place_of, strip_of,
                        stride, [&](const Gpu::Warp& warp) -> auto& { return products[warp.index].values; });
                }
                block.each_warp([&](Gpu::Warp& warp) {
                    const gpu::Strip place = place_of(warp);
                    if (keys) {
                        products[warp.index].keys.each(warp,
                                                       [&](unsigned, unsigned slot, unsigned c, float& x0, float& x1) {
                                                           compare(place, slot, c, x0);
                                                           compare(place, slot, c + 1, x1);
                                                       });
                    } else {
                        products[warp.index].values.each(
                            warp, [&](unsigned, unsigned c, unsigned slot, float& x0, float& x1) {
                                compare(place, slot, c, x0);
                                compare(place, slot + 1, c, x1);
                            });
                    }
                });
            }
            const double relative = std::sqrt(off / length);
            // Halves: their rounding. Weights of 8 bits: 1/127 of the largest of a column, evenly spread.
            CHECK(relative < (codes ? 0.01 : 5e-4));
            CHECK(relative > (codes ? 1e-3 : 1e-5));
        }
    }
}

float small(test::Random& random) { return (static_cast<float>(random.below(33)) - 16) / 8; }

}  // namespace

TEST_CASE("each element of a fragment has one lane, register and half") {
    const auto a = elements(4, 2, gpu::element_a);
    CHECK(a.size() == 256);
    CHECK(*a.rbegin() == std::pair{15U, 15U});
    const auto b = elements(2, 2, gpu::element_b);
    CHECK(b.size() == 128);
    CHECK(*b.rbegin() == std::pair{15U, 7U});
    const auto a8 = elements(4, 4, gpu::element_a8), b8 = elements(2, 4, gpu::element_b8);
    CHECK(a8.size() == 512);
    CHECK(*a8.rbegin() == std::pair{15U, 31U});
    CHECK(b8.size() == 256);
    CHECK(*b8.rbegin() == std::pair{31U, 7U});
    const auto c = elements(4, 1, [](unsigned lane, unsigned i, unsigned) { return gpu::element_c(lane, i); });
    CHECK(c.size() == 128);
    CHECK(*c.rbegin() == std::pair{15U, 7U});
}

TEST_CASE("the two ways in which C becomes an operand of the next product") {
    for (unsigned lane = 0; lane < gpu::lanes; ++lane) {
        for (unsigned h = 0; h < 2; ++h) {
            for (unsigned i = 0; i < 4; ++i) {
                // C of 16 slots and 16 channels (two blocks of 8) is B of 16 channels and two times 8 slots.
                const gpu::Element k = gpu::element_c(lane, 2 * (i / 2) + h);
                const gpu::Element in_b = gpu::element_b(lane, i % 2, h);
                CHECK(8 * (i % 2) + k.column == in_b.row);
                CHECK(k.row == 8 * (i / 2) + in_b.column);
                // C of 16 queries and 16 slots (two blocks of 8) is A of 16 queries and 16 slots.
                const gpu::Element p = gpu::element_c(lane, 2 * (i % 2) + h);
                const gpu::Element in_a = gpu::element_a(lane, i, h);
                CHECK(p.row == in_a.row);
                CHECK(8 * (i / 2) + p.column == in_a.column);
                // C of 16 channels and 16 slots (two blocks of 8) is twice B of 16 slots and 8 channels.
                const gpu::Element v = gpu::element_c(lane, 2 * (i / 2) + h);
                CHECK(8 * (i % 2) + v.column == in_b.row);
                CHECK(v.row == 8 * (i / 2) + in_b.column);
            }
        }
    }
}

TEST_CASE("matrices from shared memory arrive as fragments, and are multiplied as matrices") {
    test::Random random(5);
    alignas(16) std::array<f16, 16 * 24> a{}, b{};
    for (auto* matrix : {&a, &b}) {
        for (f16& value : *matrix) value = to_f16(small(random));
    }
    Gpu::Warp warp(0);
    Gpu::Lanes<std::uint32_t> in_a[4], both[4];
    Gpu::Lanes<const f16*> rows;
    warp.each([&](unsigned lane) { rows[lane] = a.data() + (lane % 16) * 24 + 8 * (lane / 16); });
    warp.load_matrices<false>(in_a, rows);
    warp.each([&](unsigned lane) { rows[lane] = b.data() + (lane % 16) * 24 + 8 * (lane / 16); });
    warp.load_matrices<true>(both, rows);
    for (unsigned block = 0; block < 2; ++block) {
        const Gpu::Lanes<std::uint32_t> in_b[2] = {both[2 * block], both[2 * block + 1]};
        Gpu::Lanes<float> c[4];
        warp.each([&](unsigned lane) {
            for (auto& element : c) element[lane] = 1;
        });
        warp.multiply(c, in_a, in_b);
        for (unsigned lane = 0; lane < gpu::lanes; ++lane) {
            for (unsigned i = 0; i < 4; ++i) {
                const gpu::Element at = gpu::element_c(lane, i);
                float expected = 1;
                for (unsigned k = 0; k < 16; ++k) {
                    expected += to_float(a[at.row * 24 + k]) * to_float(b[k * 24 + 8 * block + at.column]);
                }
                CHECK(c[i][lane] == expected);
            }
        }
    }
}

TEST_CASE("bytes from shared memory arrive as fragments, and are multiplied as whole numbers") {
    test::Random random(6);
    constexpr unsigned stride = 24;  // halves
    alignas(16) std::array<std::int8_t, 16 * 2 * stride> a{}, b{};
    for (auto* matrix : {&a, &b}) {
        for (std::int8_t& value : *matrix) value = static_cast<std::int8_t>(random.below(256) - 128);
    }
    Gpu::Warp warp(0);
    Gpu::Lanes<std::uint32_t> in_a[4], in_b[2][2];
    gpu::detail::load_rows<Gpu>(warp, in_a, reinterpret_cast<const f16*>(a.data()), stride, 0);
    gpu::detail::load_across<Gpu>(warp, in_b, reinterpret_cast<const f16*>(b.data()), stride, 0);
    for (unsigned block = 0; block < 2; ++block) {
        Gpu::Lanes<std::int32_t> c[4];
        warp.each([&](unsigned lane) {
            for (auto& element : c) element[lane] = 1;
        });
        warp.multiply(c, in_a, in_b[block]);
        for (unsigned lane = 0; lane < gpu::lanes; ++lane) {
            for (unsigned i = 0; i < 4; ++i) {
                const gpu::Element at = gpu::element_c(lane, i);
                std::int32_t expected = 1;
                for (unsigned k = 0; k < 32; ++k) {
                    expected += a[at.row * 2 * stride + k] * b[(8 * block + at.column) * 2 * stride + k];
                }
                CHECK(c[i][lane] == expected);
            }
        }
    }
}

TEST_CASE("every channel of a head has one place, and RoPE's pairs meet in a lane") {
    for (const unsigned dh : {7U, 64U, 80U, 96U, 128U, 192U, 256U}) {
        const unsigned size = gpu::size_of_head(dh);
        for (const unsigned pairs : {0U, 2U, dh / 4, dh / 2}) {
            for (const bool keys : {true, false}) {
                INFO("head_dim " << dh << ", pairs " << pairs << ", keys " << keys);
                const gpu::ChannelOrder order{size, dh, keys ? pairs : 0, keys};
                std::set<unsigned> channels, places;
                for (unsigned set = 0; set < size / gpu::set_channels; ++set) {
                    for (unsigned column = 0; column < gpu::set_channels; ++column) {
                        const unsigned place = order.place(set, column), c = order.channel(place);
                        places.insert(place);
                        if (c < dh) channels.insert(c);
                        // Column 32 further is the partner.
                        if (keys && c < pairs) CHECK(order.channel(order.place(set, column + 32)) == c + pairs);
                    }
                }
                CHECK(places.size() == size);
                CHECK(*places.rbegin() == size - 1);
                CHECK(channels.size() == dh);
            }
        }
    }
}

TEST_CASE("products of strips with A, of halves and of codes, as keys and as values, are those of plain code") {
    for (const std::size_t width : {40, 128, 192, 320}) {
        for (const std::size_t dh : {64, 80}) check_rebuilt<Uniform<4>>(width, dh);
        check_rebuilt<Uniform<4, 64>>(width, 64);
        if (width % 32 == 0) check_rebuilt<Uniform<3, 32>>(width, 64);
    }
}

TEST_CASE("a page's slots are dealt out to warps, rounds and rows, each once") {
    for (const unsigned tiles : {1U, 2U}) {
        std::set<std::size_t> seen;
        for (unsigned round = 0; round < 2 / tiles; ++round) {
            for (unsigned warp = 0; warp < gpu::block_warps; ++warp) {
                const gpu::Strip strip{256, 256, 384, 16 * tiles, round, warp};
                for (unsigned row = 0; row < strip.rows; ++row) {
                    CHECK(strip.wants(row));
                    seen.insert(strip.slot(row));
                }
            }
        }
        CHECK(seen.size() == 128);
        CHECK(*seen.begin() == 256);
        CHECK(*seen.rbegin() == 383);
    }
}

TEST_CASE("pairs of halves and bytes") {
    CHECK(Gpu::select_bytes(0x33221100U, 0x77665544U, 0x7520U) == 0x77552200U);
    for (unsigned code = 0; code < 256; ++code) {
        // 1024 + code in f16 has the code in its lowest bits.
        CHECK(to_float(f16{static_cast<std::uint16_t>(0x6400U | code)}) == 1024.0F + static_cast<float>(code));
        const std::uint32_t word = code | (255 - code) << 8U | 7U << 16U | 200U << 24U;
        const std::uint32_t scales = gpu::detail::two(to_f16(0.5F).bits), zeros = gpu::detail::two(to_f16(-3.0F).bits);
        CHECK(gpu::detail::decode_bytes<Gpu>(word, 0, scales, zeros) ==
              Gpu::pack(0.5F * static_cast<float>(code) - 3, 0.5F * static_cast<float>(255 - code) - 3));
        CHECK(gpu::detail::decode_bytes<Gpu>(word, 1, scales, zeros) == Gpu::pack(0.5F * 7 - 3, 0.5F * 200 - 3));
        // 64 + code has a code of 4 bits in bits 4 to 7.
        if (code < 16)
            CHECK(to_float(f16{static_cast<std::uint16_t>(0x5400U | code << 4U)}) == 64.0F + static_cast<float>(code));
    }
    CHECK(Gpu::mask(0x12345678U, 0x0F0F0F0FU, 0x60000000U) == 0x62040608U);
    float cosine = 0, sine = 0;
    Gpu::angle(1000.125, cosine, sine);
    CHECK(std::abs(cosine - std::sqrt(0.5F)) < 1e-6F);
    CHECK(std::abs(sine - std::sqrt(0.5F)) < 1e-6F);
}
