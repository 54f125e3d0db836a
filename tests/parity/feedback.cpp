/// Encoding with feedback: against a few plain lines, its gain, and the same bytes on every backend.
#include <xquant/backend/feedback.hpp>

#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "parity/machines.hpp"
#include "support/catch.hpp"
#include "support/gpu/rounded.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

/// A metric of `blocks` blocks [n, n] whose eigenvalues fall by a factor of 100, and its F.
struct RandomMetric {
    RandomMetric(std::size_t n, std::size_t blocks, float strength = 1) : block(n), values(blocks * n * n) {
        test::Random random(7);
        for (std::size_t b = 0; b < blocks; ++b) {
            const std::vector<float> factor = random.rows(n * n, strength);
            for (std::size_t i = 0; i < n; ++i) {
                for (std::size_t j = 0; j < n; ++j) {
                    double sum = i == j ? 0.01 * static_cast<double>(n) : 0.0;
                    for (std::size_t k = 0; k < n; ++k) {
                        const double weight = std::pow(100.0, -static_cast<double>(k) / static_cast<double>(n));
                        sum += weight * static_cast<double>(factor[k * n + i]) * static_cast<double>(factor[k * n + j]);
                    }
                    values[(b * n + i) * n + j] = sum;
                }
            }
            factor_metric(values.data() + b * n * n, n, columns);
        }
    }

    [[nodiscard]] FeedbackView view() const { return {block, columns.data()}; }
    /// Entry (i, j) of F of a block, i > j.
    [[nodiscard]] float entry(std::size_t b, std::size_t i, std::size_t j) const {
        return columns[b * feedback_entries(block) + feedback_column(block, j) + i - j - 1];
    }
    /// e^T G e, e [blocks * n].
    [[nodiscard]] double cost(const std::vector<double>& e) const {
        double sum = 0;
        for (std::size_t first = 0; first < e.size(); first += block) {
            for (std::size_t i = 0; i < block; ++i) {
                for (std::size_t j = 0; j < block; ++j) {
                    sum += e[first + i] * e[first + j] * static_cast<double>(values[(first + i) * block + j]);
                }
            }
        }
        return sum;
    }

    std::size_t block;
    std::vector<double> values;
    std::vector<float> columns;
};

/// How rows are grouped, and how wide a block of the metric is.
struct Case {
    const char* name;
    std::size_t width, tokens, block;
    bool by_channel;
    unsigned bits = 4;
};

const std::vector<Case>& cases() {
    static const std::vector<Case> all{
        {"channels, two heads", 64, 256, 32, true},
        {"channels, a page that is not full", 32, 170, 32, true},
        {"channels, odd blocks, 3 bits", 21, 128, 7, true, 3},
        {"tokens, a block over groups", 320, 37, 320, false},
        {"tokens, groups over blocks", 256, 16, 64, false},
        {"tokens, one group, 2 bits", 48, 5, 48, false, 2},
        {"tokens, one token", 192, 1, 192, false, 3},
        {"tokens, a block that straddles groups", 288, 20, 96, false},
    };
    return all;
}

template <unsigned Bits>
QuantizedRows quantized(const Case& c, const std::vector<float>& rows) {
    const MatrixView view(rows.data(), c.tokens, c.width);
    return c.by_channel ? quantize<Uniform<Bits>, PerChannel>(view) : quantize<Uniform<Bits>, PerToken>(view);
}
QuantizedRows nearest(const Case& c, const std::vector<float>& rows) {
    return c.bits == 4 ? quantized<4>(c, rows) : c.bits == 3 ? quantized<3>(c, rows) : quantized<2>(c, rows);
}

/// The rows of a case, rounded with feedback by a backend.
template <class Tag>
QuantizedRows rounded(Tag tag, const Case& c, const std::vector<float>& rows, const FeedbackView& feedback) {
    QuantizedRows out = nearest(c, rows);
    std::vector<float> scratch(backend::feedback_scratch(out.view().format, feedback),
                               std::numeric_limits<float>::quiet_NaN());
    backend::encode_with_feedback(tag, out.codec(), feedback, {rows.data(), c.tokens, c.width, c.width}, 0, out.view(),
                                  scratch.data());
    return out;
}

/// The same by a GPU in plain C++.
QuantizedRows rounded_by_gpu(const Case& c, const std::vector<float>& rows, const FeedbackView& feedback) {
    QuantizedRows out = nearest(c, rows);
    test::encode_on_gpu(out.codec(), feedback, {rows.data(), c.tokens, c.width, c.width}, 0, out.view());
    return out;
}

std::vector<float> decoded(const QuantizedRows& rows, const Case& c) {
    std::vector<float> out(c.tokens * c.width);
    dequantize(rows, out.data());
    return out;
}

/// Codes, scales and zeros.
bool same_bytes(const QuantizedRows& a, const QuantizedRows& b) {
    const StreamView x = a.view(), y = b.view();
    const std::size_t codes = x.format.code_bytes(a.rows());
    const std::size_t groups = x.format.token_blocks(a.rows()) * x.format.channel_blocks();
    REQUIRE(codes > 0);
    return std::memcmp(x.codes, y.codes, codes) == 0 && std::memcmp(x.scales, y.scales, groups * sizeof(f16)) == 0 &&
           std::memcmp(x.zeros, y.zeros, groups * sizeof(f16)) == 0;
}

}  // namespace

#if !defined(XQUANT_CROSS_COMPILED)  // no backend takes part, and four minutes of an emulated processor
TEST_CASE("a metric is F^T D F, D_i what is left of its diagonal behind channel i") {
    for (const std::size_t n : {1U, 2U, 63U, 64U, 65U, 150U, 700U}) {
        const RandomMetric metric(n, 1);
        REQUIRE(metric.columns.size() == feedback_entries(n));
        // D from G and F, the last one first.
        std::vector<double> d(n);
        double worst = 0;
        for (std::size_t i = n; i-- > 0;) {
            const auto f = [&](std::size_t row, std::size_t column) {
                return row == column ? 1.0 : static_cast<double>(metric.entry(0, row, column));
            };
            for (std::size_t j = 0; j <= i; ++j) {
                double sum = 0;
                for (std::size_t k = i + 1; k < n; ++k) sum += d[k] * f(k, i) * f(k, j);
                const double left = static_cast<double>(metric.values[i * n + j]) - sum;
                if (j == i) d[i] = left;
            }
            REQUIRE(d[i] > 0);
            for (std::size_t j = 0; j < i; j += 1 + n / 20) {
                double sum = d[i] * f(i, j);
                for (std::size_t k = i + 1; k < n; ++k) sum += d[k] * f(k, i) * f(k, j);
                worst = std::max(worst, std::abs(sum - static_cast<double>(metric.values[i * n + j])));
            }
        }
        CHECK(worst < 1e-4 * static_cast<double>(n));
    }
    const std::vector<double> indefinite{1, 2, 2, 1};
    std::vector<float> out;
    CHECK_THROWS_AS(factor_metric(indefinite.data(), 2, out), value_error);
}
#endif

TEST_CASE("feedback costs a fraction of rounding to the nearest code, and its bytes are the same on every backend") {
    std::cerr << parity::missing_machines() << "\n";
    for (const Case& c : cases()) {
        INFO(c.name);
        test::Random random(11);
        const std::vector<float> rows = random.rows(c.tokens * c.width);
        const RandomMetric metric(c.block, c.width / c.block);
        const QuantizedRows by_scalar = rounded(backend::scalar{}, c, rows, metric.view());
        const std::vector<float> plain = decoded(nearest(c, rows), c), fed = decoded(by_scalar, c);
        double plain_cost = 0, fed_cost = 0;
        for (std::size_t t = 0; t < c.tokens; ++t) {
            std::vector<double> a(c.width), b(c.width);
            for (std::size_t i = 0; i < c.width; ++i) {
                a[i] = static_cast<double>(plain[t * c.width + i]) - static_cast<double>(rows[t * c.width + i]);
                b[i] = static_cast<double>(fed[t * c.width + i]) - static_cast<double>(rows[t * c.width + i]);
            }
            plain_cost += metric.cost(a);
            fed_cost += metric.cost(b);
        }
        INFO(fed_cost / plain_cost);
        CHECK(fed_cost < 0.9 * plain_cost);
        CHECK(fed_cost > 0);
        parity::for_each_registers([&]<class R>() {
            INFO(R::name);
            CHECK(same_bytes(rounded(backend::simd<R>{}, c, rows, metric.view()), by_scalar));
        });
        CHECK(same_bytes(rounded_by_gpu(c, rows, metric.view()), by_scalar));
        // In other steps: per token any, per channel whole groups.
        const std::size_t step = c.by_channel ? 128 : 3;
        QuantizedRows in_steps = nearest(c, rows);
        std::vector<float> scratch(backend::feedback_scratch(in_steps.view().format, metric.view()));
        for (std::size_t t = 0; t < c.tokens; t += step) {
            backend::encode_with_feedback(backend::scalar{}, in_steps.codec(), metric.view(),
                                          {rows.data() + t * c.width, std::min(step, c.tokens - t), c.width, c.width},
                                          t, in_steps.view(), scratch.data());
        }
        CHECK(same_bytes(in_steps, by_scalar));
    }
}

TEST_CASE("codes are those of a few plain lines") {
    const Case c{"", 96, 40, 96, false};
    test::Random random(3);
    const std::vector<float> rows = random.rows(c.tokens * c.width);
    const RandomMetric metric(c.block, 1);
    const std::vector<float> found = decoded(rounded(backend::scalar{}, c, rows, metric.view()), c);
    std::vector<float> expected(rows.size());
    for (std::size_t t = 0; t < c.tokens; ++t) {
        const float* const z = rows.data() + t * c.width;
        std::vector<float> target(z, z + c.width), error(c.width);
        for (int pass = 0; pass < 2; ++pass) {
            const GroupScale scale = Uniform<4>::scale_of(range_of(target));
            for (std::size_t i = 0; i < c.width; ++i) {
                target[i] = z[i];
                for (std::size_t j = 0; j < i; ++j) target[i] = std::fma(-metric.entry(0, i, j), error[j], target[i]);
                const auto code = static_cast<float>(code_of(target[i], scale, inverse_scale(scale), 15));
                expected[t * c.width + i] = scale.zero + scale.scale * code;
                error[i] = expected[t * c.width + i] - z[i];
            }
        }
    }
    CHECK(found == expected);
}

TEST_CASE("where all channels cost by themselves, feedback is rounding to the nearest code") {
    for (const Case& c : cases()) {
        INFO(c.name);
        test::Random random(5);
        const std::vector<float> rows = random.rows(c.tokens * c.width);
        const std::vector<float> zeros(c.width / c.block * feedback_entries(c.block), 0.0F);
        CHECK(same_bytes(rounded(backend::scalar{}, c, rows, {c.block, zeros.data()}), nearest(c, rows)));
    }
}

TEST_CASE("rows whose targets would leave f16 are rounded to the nearest code") {
    for (const Case& c : cases()) {
        INFO(c.name);
        test::Random random(6);
        std::vector<float> rows = random.rows(c.tokens * c.width);
        for (std::size_t i = 0; i < c.width; ++i) rows[i] *= 1e4F;  // the first token's
        std::vector<float> wild(c.width / c.block * feedback_entries(c.block), 1e3F);
        const QuantizedRows found = rounded(backend::scalar{}, c, rows, {c.block, wild.data()});
        CHECK(same_bytes(rounded_by_gpu(c, rows, {c.block, wild.data()}), found));
        const std::vector<float> plain = decoded(nearest(c, rows), c), fed = decoded(found, c);
        for (std::size_t i = 0; i < c.width; ++i) CHECK(fed[i] == plain[i]);
        for (const float value : fed) REQUIRE(std::isfinite(value));
    }
}
