/// RoPE: tables and turns against float64, near position 0 and far from it, in both pairings.
#include <xquant/backend/scalar/rope.hpp>

#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;

namespace {

struct Table {
    explicit Table(const Rope& rope, std::size_t tokens = 128)
        : cosines(rope.inverse_frequencies.size() * tokens), sines(cosines.size()) {
        fill_rope_table(rope, tokens, cosines.data(), sines.data());
        view = {rope.pairing, rope.inverse_frequencies.size(), tokens, rope.inverse_frequencies.data(), cosines.data(),
                sines.data()};
    }
    std::vector<float> cosines, sines;
    RopeView view;
};

}  // namespace

TEST_CASE("standard frequencies are base^(-2j / head_dim)") {
    const Rope rope = Rope::standard(64, 500000.0);
    REQUIRE(rope.inverse_frequencies.size() == 32);
    CHECK(rope.inverse_frequencies[0] == 1);
    for (std::size_t j = 0; j < 32; ++j) {
        const double exact = std::exp(-std::log(500000.0) * static_cast<double>(j) / 32);
        CHECK(std::abs(rope.inverse_frequencies[j] / exact - 1) < 1e-13);
    }
}

TEST_CASE("the table of a tile is cos and sin in f64, rounded once") {
    for (const std::size_t dh : {2, 64, 80, 96, 128, 256}) {
        const Rope rope = Rope::standard(dh);
        const Table table(rope);
        for (std::size_t j = 0; j < dh / 2; ++j) {
            for (std::size_t t = 0; t < 128; ++t) {
                const double angle = static_cast<double>(t) * rope.inverse_frequencies[j];
                REQUIRE(table.cosines[j * 128 + t] == static_cast<float>(std::cos(angle)));
                REQUIRE(table.sines[j * 128 + t] == static_cast<float>(std::sin(angle)));
            }
        }
    }
}

TEST_CASE("heads are turned as the formula says, at any position; pairs are where the pairing puts them") {
    test::Random random(1);
    for (const RopePairing pairing : {RopePairing::halves, RopePairing::interleaved}) {
        for (const std::size_t pairs : {std::size_t{32}, std::size_t{7}}) {  // all of the head, and a part of it
            Rope rope = Rope::standard(64, 10000.0, pairing);
            rope.inverse_frequencies.resize(pairs);
            const Table table(rope);
            for (const std::int64_t position : {0, 1, 127, 128, 4095, 131071, 1 << 30}) {
                INFO("position " << position << ", " << pairs << " pairs");
                const std::vector<float> head = random.rows(64);
                std::vector<double> exact(head.begin(), head.end());
                test::oracle_rope(rope, position, exact.data());
                std::vector<float> row = head;
                backend::apply_rope_to_row(backend::scalar{}, table.view, position, 64, row.data(), 64);
                for (std::size_t c = 0; c < 64; ++c) {
                    REQUIRE(std::abs(exact[c] - static_cast<double>(row[c])) < 3e-7);
                    if (c >= 2 * pairs) REQUIRE(row[c] == head[c]);
                }
                // And back.
                std::vector<float> cosines(pairs), sines(pairs);
                rope_angles(table.view, position, cosines.data(), sines.data());
                backend::apply_rope(backend::scalar{}, table.view, cosines.data(), sines.data(), -1.0F, row.data());
                for (std::size_t c = 0; c < 64; ++c) REQUIRE(std::abs(row[c] - head[c]) < 5e-7F);
            }
        }
    }
}

TEST_CASE(
    "a tile turned by its own table, against a query turned back by its start, or turned by both: the same scores") {
    test::Random random(2);
    constexpr std::size_t dh = 32, tokens = 128;
    for (const RopePairing pairing : {RopePairing::halves, RopePairing::interleaved}) {
        const Rope rope = Rope::standard(dh, 10000.0, pairing);
        const Table table(rope);
        constexpr std::int64_t start = 100000;
        std::vector<float> keys = random.rows(dh * tokens), query = random.rows(dh);  // keys [Dh, tokens]
        std::vector<double> exact(tokens);
        for (std::size_t t = 0; t < tokens; ++t) {
            std::vector<double> key(dh);
            for (std::size_t c = 0; c < dh; ++c) key[c] = static_cast<double>(keys[c * tokens + t]);
            test::oracle_rope(rope, static_cast<std::int64_t>(start + t), key.data());
            for (std::size_t c = 0; c < dh; ++c) exact[t] += key[c] * static_cast<double>(query[c]);
        }
        const auto check = [&](const std::vector<float>& turned, const std::vector<float>& q) {
            for (std::size_t t = 0; t < tokens; ++t) {
                double score = 0;
                for (std::size_t c = 0; c < dh; ++c) {
                    score += static_cast<double>(turned[c * tokens + t]) * static_cast<double>(q[c]);
                }
                REQUIRE(std::abs(score - exact[t]) < 3e-6);
            }
        };
        backend::TileAngles angles;
        angles.move_to(table.view, start);
        std::vector<float> by_start = keys;
        const auto tile = [&](std::vector<float>& of) {
            return backend::Tile{of.data(), tokens, dh, tokens, backend::TileOrder::channel_major};
        };
        backend::apply_rope_to_tile(backend::scalar{}, table.view, &angles, tile(by_start));
        check(by_start, query);
        backend::apply_rope_to_tile(backend::scalar{}, table.view, nullptr, tile(keys));
        std::vector<float> turned_back = query;
        backend::apply_rope(backend::scalar{}, table.view, angles.cosines.data(), angles.sines.data(), -1.0F,
                            turned_back.data());
        check(keys, turned_back);
    }
}

TEST_CASE("the angles of tile after tile are those of their positions") {
    const Rope rope = Rope::standard(64);
    const Table table(rope);
    backend::TileAngles angles;
    std::vector<float> cosines(32), sines(32);
    std::int64_t start = 4;
    for (int i = 0; i < 1000; ++i) {
        angles.move_to(table.view, start);
        REQUIRE(angles.start() == start);
        rope_angles(table.view, start, cosines.data(), sines.data());
        for (std::size_t j = 0; j < 32; ++j) {
            REQUIRE(std::abs(angles.cosines[j] - cosines[j]) <= 0x1p-23F);
            REQUIRE(std::abs(angles.sines[j] - sines[j]) <= 0x1p-23F);
        }
        start += i % 100 == 99 ? 32 : 128;  // now and then a tile that does not follow
    }
}
