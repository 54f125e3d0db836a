/// Who holds what: every element of every fragment, every slot of a page, every operation of the emulated machine that kernels
/// rely on.
#include <array>
#include <cmath>
#include <set>

#include <xquant/backend/cuda/codec.cuh>
#include <xquant/backend/emulated/gpu.hpp>

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

float small(test::Random& random) { return (static_cast<float>(random.below(33)) - 16) / 8; }

}  // namespace

TEST_CASE("each element of a fragment has one lane, register and half") {
    const auto a = elements(4, 2, gpu::element_a);
    CHECK(a.size() == 256);
    CHECK(*a.rbegin() == std::pair{15U, 15U});
    const auto b = elements(2, 2, gpu::element_b);
    CHECK(b.size() == 128);
    CHECK(*b.rbegin() == std::pair{15U, 7U});
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
        const std::uint32_t codes = code | (255 - code) << 16U;
        const std::uint32_t found = gpu::detail::decode_pair<Gpu>(codes, gpu::detail::two(to_f16(0.5F).bits),
                                                                  gpu::detail::two(to_f16(-3.0F).bits));
        CHECK(found == Gpu::pack(0.5F * static_cast<float>(code) - 3, 0.5F * static_cast<float>(255 - code) - 3));
    }
    float cosine = 0, sine = 0;
    Gpu::angle(1000.125, cosine, sine);
    CHECK(std::abs(cosine - std::sqrt(0.5F)) < 1e-6F);
    CHECK(std::abs(sine - std::sqrt(0.5F)) < 1e-6F);
}
