/// Prepared matrices: every backend copies them to the numbers that weight_at says, to the last bit, and multiplies by
/// them as by a matrix of f32.
#include <cmath>
#include <iostream>
#include <string>
#include <vector>

#include <xquant/backend/weights.hpp>
#include <xquant/core/weight_pool.hpp>

#include "parity/machines.hpp"
#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;
using detail::WeightPool;

namespace {

constexpr WeightType types[] = {WeightType::f32, WeightType::f16, WeightType::bf16, WeightType::q8};

/// Two matrices in one pool, so that groups of 8 bits have entries of both. The second one is a thousand times smaller.
struct Pair {
    explicit Pair(WeightType type) : pool(ledger, type, first.size() + second.size()) {
        for (float& value : second) value *= 1e-3F;
        a = pool.keep(first);
        b = pool.keep(second);
        pool.finish();
    }
    test::Random random{4};
    std::vector<float> first = random.rows(70 * 90), second = random.rows(33 * 50);
    detail::Ledger ledger{nullptr, 0, 0};
    WeightPool pool;
    WeightMatrix a, b;
};

}  // namespace

TEST_CASE("weights that are kept in less are as near as their type says, and not nearer") {
    for (const WeightType type : types) {
        const Pair pair(type);
        INFO(to_string(type));
        CHECK(pair.pool.entries().size() + 4 * pair.pool.scales().size() == WeightPool::bytes(type, 70 * 90 + 33 * 50));
        for (const auto& [matrix, values] : {std::pair{pair.a, pair.first}, {pair.b, pair.second}}) {
            double worst = 0, worst_beside_group = 0;
            for (std::size_t i = 0; i < values.size(); ++i) {
                const double off = std::abs(double{weight_at(matrix, i)} - double{values[i]});
                if (values[i] != 0) worst = std::max(worst, off / std::abs(double{values[i]}));
                if (type != WeightType::q8) continue;
                worst_beside_group = std::max(worst_beside_group, off / double{matrix.scales[(matrix.first + i) / 64]});
            }
            if (type == WeightType::f32) CHECK(worst == 0);
            if (type == WeightType::f16) CHECK((worst <= 0x1p-11 && worst > 0x1p-12));
            if (type == WeightType::bf16) CHECK((worst <= 0x1p-8 && worst > 0x1p-9));
            if (type == WeightType::q8) CHECK((worst_beside_group <= 0.5001 && worst_beside_group > 0.4));
        }
    }
}

TEST_CASE("f16 weights keep their precision however small or large a matrix is") {
    for (const int power : {-120, -60, -20, 0, 30, 100, 126}) {
        detail::Ledger ledger{nullptr, 0, 0};
        std::vector<float> values = test::Random(5).rows(100);
        for (float& value : values) value = std::ldexp(value, power);
        WeightPool pool(ledger, WeightType::f16, values.size());
        const WeightMatrix matrix = pool.keep(values);
        INFO("2^" << power);
        for (std::size_t i = 0; i < values.size(); ++i) {
            CHECK(std::abs(weight_at(matrix, i) - values[i]) <= std::ldexp(std::abs(values[i]), -11));
        }
    }
}

TEST_CASE("matrices of zeros stay zeros, and no matrix is none") {
    for (const WeightType type : types) {
        detail::Ledger ledger{nullptr, 0, 0};
        WeightPool pool(ledger, type, 100);
        const WeightMatrix matrix = pool.keep(std::vector<float>(100, 0.0F));
        pool.finish();
        for (std::size_t i = 0; i < 100; ++i) CHECK(weight_at(matrix, i) == 0);
        CHECK((pool.keep({}) == nullptr));
        CHECK_FALSE((matrix == nullptr));
    }
}

TEST_CASE("every backend copies and multiplies weights alike") {
    std::cerr << parity::missing_machines() << "\n";
    for (const WeightType type : types) {
        const Pair pair(type);
        const auto check = [&]<class Tag>(Tag tag) {
            INFO(Tag::name << ", " << to_string(type));
            for (const auto& [first, count] :
                 {std::pair<std::size_t, std::size_t>{0, 1650}, {1, 100}, {50, 37}, {64, 3}, {1649, 1}}) {
                std::vector<float> copy(count + 1, -7.0F);
                backend::load_weights(tag, pair.b, {first, count}, copy.data());
                bool equal = copy[count] == -7.0F;
                for (std::size_t i = 0; i < count; ++i) equal &= copy[i] == weight_at(pair.b, first + i);
                CHECK(equal);
            }
            // [rows, 70] times [70, 90], and their transposes as the left side has them.
            std::vector<float> whole(70 * 90);
            backend::load_weights(backend::scalar{}, pair.a, {0, whole.size()}, whole.data());
            for (const std::size_t rows : {1U, 5U, 32U}) {
                const std::vector<float> x = test::Random(6).rows(rows * 70);
                std::vector<float> found(rows * 100, 0.5F), expected = found;
                for (const bool add : {false, true}) {
                    for (const bool columns : {false, true}) {
                        const backend::Operand left{x.data(), columns ? 1U : 70U, columns ? rows : 1U};
                        backend::multiply_weights(tag, left, pair.a, 70, {found.data(), rows, 90, 100}, add);
                        multiply(tag, left, {whole.data(), 70, 90, 90}, {expected.data(), rows, 90, 100}, add);
                        CHECK(found == expected);
                    }
                }
            }
        };
        check(backend::scalar{});
        parity::for_each_registers([&]<class R>() { check(backend::simd<R>{}); });
    }
}
