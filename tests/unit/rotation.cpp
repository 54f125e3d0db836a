/// The rotation: orthogonal, its own transpose undoes it, and the fast form is the matrix that its comment writes down.
#include <xquant/projection/rotation.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

/// Entry (i, j) of kron(C, H), from the formulas, in f64.
double entry(std::size_t n, std::size_t i, std::size_t j) {
    std::size_t p = 1;
    while (n % (2 * p) == 0) p *= 2;
    const std::size_t m = n / p, k = i / p, block = j / p;
    const double pi = std::acos(-1.0), size = static_cast<double>(m);
    const double cosine =
        std::sqrt((k == 0 ? 1.0 : 2.0) / size) * std::cos(pi * static_cast<double>((2 * block + 1) * k) / (2 * size));
    // Sylvester's matrix: -1 to the number of ones that the two indices share.
    unsigned shared = 0;
    for (std::size_t bits = i % p & j % p; bits != 0; bits &= bits - 1) ++shared;
    return cosine * (shared % 2 == 0 ? 1 : -1) / std::sqrt(static_cast<double>(p));
}

std::vector<float> rotated(std::vector<float> row) {
    const std::vector<float> dct = dct_matrix(dct_size(row.size()));
    std::vector<float> scratch(row.size());
    rotate_row(row.data(), row.size(), dct.data(), scratch.data());
    return row;
}

double length(const std::vector<float>& row) {
    double sum = 0;
    for (const float value : row) sum += static_cast<double>(value) * static_cast<double>(value);
    return std::sqrt(sum);
}

constexpr std::size_t widths[] = {1, 2, 3, 5, 7, 8, 64, 80, 96, 100, 576, 960, 4096};

}  // namespace

TEST_CASE("a width is the largest power of two that divides it, and the rest") {
    CHECK((hadamard_size(576) == 64 && dct_size(576) == 9));
    CHECK((hadamard_size(960) == 64 && dct_size(960) == 15));
    CHECK((hadamard_size(4096) == 4096 && dct_size(4096) == 1));
    CHECK((hadamard_size(7) == 1 && dct_size(7) == 7));
    CHECK((hadamard_size(1) == 1 && dct_size(1) == 1));
}

TEST_CASE("a rotated row is the row times the matrix of the formula") {
    test::Random random(2);
    for (const std::size_t n : widths) {
        INFO("width " << n);
        const std::vector<float> x = random.rows(n), found = rotated(x);
        // All columns of small matrices, some of large ones.
        for (std::size_t i = 0; i < std::min<std::size_t>(n, 100); ++i) {
            const std::size_t column = n <= 100 ? i : random.below(n);
            double sum = 0;
            for (std::size_t row = 0; row < n; ++row) sum += static_cast<double>(x[row]) * entry(n, row, column);
            REQUIRE(std::abs(sum - static_cast<double>(found[column])) <= 1e-6 * length(x));
        }
    }
}

TEST_CASE("lengths and angles stay, and the transposed matrix turns back") {
    test::Random random(3);
    for (const std::size_t n : widths) {
        INFO("width " << n);
        const std::vector<float> a = random.rows(n), b = random.rows(n);
        const std::vector<float> turned_a = rotated(a), turned_b = rotated(b);
        CHECK(std::abs(length(turned_a) / length(a) - 1) < 1e-6);
        double before = 0, after = 0;
        for (std::size_t i = 0; i < n; ++i) {
            before += static_cast<double>(a[i]) * static_cast<double>(b[i]);
            after += static_cast<double>(turned_a[i]) * static_cast<double>(turned_b[i]);
        }
        CHECK(std::abs(before - after) < 1e-6 * length(a) * length(b));
        if (n > 1000) continue;
        const std::vector<float> r = rotation_matrix(n);
        for (std::size_t i = 0; i < n; i += 1 + n / 50) {
            double back = 0, row = 0, other = 0;
            for (std::size_t j = 0; j < n; ++j) {
                const auto value = static_cast<double>(r[i * n + j]);
                back += value * static_cast<double>(turned_a[j]);  // y R^T
                row += value * value;
                other += value * static_cast<double>(r[(i + 1) % n * n + j]);
            }
            REQUIRE(std::abs(back - static_cast<double>(a[i])) <= 1e-6 * length(a));
            REQUIRE(std::abs(row - 1) < 1e-6);
            REQUIRE((n == 1 || std::abs(other) < 1e-6));
        }
    }
}

TEST_CASE("an outlier is spread over all channels") {
    std::vector<float> x(576, 0.0F);
    x[100] = 100;
    float largest = 0;
    for (const float value : rotated(x)) largest = std::max(largest, std::abs(value));
    CHECK(largest < 100 * std::sqrt(2.0F / 576) * 1.01F);
    CHECK(largest > 100 / std::sqrt(576.0F));
}

TEST_CASE("blocks are rotated each by itself") {
    test::Random random(4);
    const std::vector<float> x = random.rows(3 * 12);
    std::vector<float> all = x, scratch(12);
    const std::vector<float> dct = dct_matrix(dct_size(12));
    rotate_blocks(all.data(), all.size(), 12, dct.data(), scratch.data());
    for (std::size_t block = 0; block < 3; ++block) {
        const auto begin = x.begin() + static_cast<std::ptrdiff_t>(12 * block);
        const std::vector<float> one = rotated({begin, begin + 12});
        // Not bit for bit: compilers may fuse differently in the two places.
        for (std::size_t c = 0; c < 12; ++c) CHECK(std::abs(one[c] - all[12 * block + c]) < 1e-6F);
    }
}
