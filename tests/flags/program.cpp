/// What flags of the compiler may not change: stored bytes, which are printed as hashes and compared with those of a
/// program that was compiled without the flags; and softmax, and what is refused, which are checked here.
#include <xquant/backend/simd/attention.hpp>
#include <xquant/backend/simd/feedback.hpp>
#include <xquant/model.hpp>
#include <xquant/quantizer/ggml.hpp>
#include <xquant/quantizer/non_uniform.hpp>
#include <xquant/quantizer/outliers.hpp>
#include <xquant/quantizer/uniform.hpp>
#include <xquant/stages.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

using namespace xquant;

namespace {

constexpr std::size_t rows = 256, width = 160;  // groups of 128 and of 32
int failures = 0;

void check(bool holds, const char* what) {
    if (holds) return;
    std::printf("WRONG: %s\n", what);
    ++failures;
}

/// Rows of every size that f16 has, with ties, zeros of both signs, flat groups and subnormal floats among them. Whole
/// numbers times powers of two, and bits, so that no flag changes them.
std::vector<float> difficult_rows() {
    std::vector<float> x(rows * width);
    std::uint32_t state = 12345;
    for (std::size_t t = 0; t < rows; ++t) {
        const float unit = std::bit_cast<float>(static_cast<std::uint32_t>(127 - 40 + t % 40) << 23U);
        for (std::size_t c = 0; c < width; ++c) {
            state = state * 1664525U + 1013904223U;
            const auto whole = static_cast<std::int32_t>(state >> 9U) - (1 << 22);
            x[t * width + c] = static_cast<float>(whole) * unit * 0x1p-8F;
            if (t % 4 == 1) x[t * width + c] = static_cast<float>(whole % 33) * 0.5F;  // ties
            if (t % 16 == 2) x[t * width + c] = std::bit_cast<float>(state & 0x80000000U);
            if (t % 16 == 6) x[t * width + c] = std::bit_cast<float>(state & 0x807FFFFFU);
            if (t % 16 == 10) x[t * width + c] = 0.1F;
            if (std::abs(x[t * width + c]) > 60000) x[t * width + c] = static_cast<float>(whole % 60000);
        }
    }
    return x;
}

/// FNV-1a.
void hash(std::uint64_t& to, const void* bytes, std::size_t n) {
    const auto* at = static_cast<const unsigned char*>(bytes);
    for (std::size_t i = 0; i < n; ++i) to = (to ^ at[i]) * 0x100000001B3U;
}

template <class Quantizer, class Backend>
void print_bytes(const char* name, const std::vector<float>& x) {
    const MatrixView view(x.data(), rows, width);
    const QuantizedRows stored = quantize<Quantizer, PerToken, Backend>(view, view);
    const StreamView in = stored.view();
    std::uint64_t codes = 0xCBF29CE484222325U, others = codes;
    hash(codes, in.codes, in.format.code_bytes(rows));
    hash(others, in.scales, in.format.scale_bytes(rows));
    if (in.format.outliers > 0) {
        hash(others, in.outliers, in.format.outlier_count(rows) * sizeof(f16));
        hash(others, in.indices, in.format.outlier_count(rows));
    }
    if (in.format.levels != nullptr) hash(others, in.format.levels, sizeof(float) << in.format.bits);
    std::printf("%s %016llx %016llx\n", name, static_cast<unsigned long long>(codes),
                static_cast<unsigned long long>(others));
}

template <class Quantizer>
void print_both(const char* name, const std::vector<float>& x) {
    print_bytes<Quantizer, backend::scalar>(name, x);
    print_bytes<Quantizer, backend::best>(name, x);
}

/// Rows that are rounded with feedback, per token and per channel. Entries of F are whole numbers times a power of two.
template <class Quantizer, class Axis, class Backend>
void print_feedback(const char* name, const std::vector<float>& x) {
    std::vector<float> small(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
        small[i] = std::abs(x[i]) < 100 ? x[i] : static_cast<float>(i % 97) * 0.3F;
    const MatrixView view(small.data(), rows, width);
    QuantizedRows stored = quantize<Quantizer, Axis, Backend>(view, view);
    std::vector<float> columns(feedback_entries(width));
    for (std::size_t i = 0; i < columns.size(); ++i) columns[i] = static_cast<float>(i * 7919 % 41) * 0x1p-8F - 0x1p-4F;
    const FeedbackView feedback{width, columns.data()};
    std::vector<float> scratch(backend::feedback_scratch(stored.view().format, feedback));
    encode_with_feedback(Backend{}, stored.codec(), feedback, backend::Matrix{small.data(), rows, width, width}, 0,
                         stored.view(), scratch.data());
    const StreamView in = read_only(stored.view());
    std::uint64_t codes = 0xCBF29CE484222325U, scales = codes;
    hash(codes, in.codes, in.format.code_bytes(rows));
    hash(scales, in.scales, in.format.scale_bytes(rows));
    std::printf("%s, feedback %016llx %016llx\n", name, static_cast<unsigned long long>(codes),
                static_cast<unsigned long long>(scales));
}

template <class Quantizer, class Axis>
void print_both_feedbacks(const char* name, const std::vector<float>& x) {
    print_feedback<Quantizer, Axis, backend::scalar>(name, x);
    print_feedback<Quantizer, Axis, backend::best>(name, x);
}

/// The weights of a row of scores, relative to the largest, against e^x in f64.
template <class Backend>
void check_softmax() {
    std::vector<float> scores(128), sum(8, 0.0F);
    for (std::size_t t = 0; t < scores.size(); ++t) scores[t] = 3 - static_cast<float>(t * t % 611) * 0.125F;
    std::vector<float> weights = scores;
    float maximum = std::bit_cast<float>(0xFF800000U), total = 0;
    online_softmax(Backend{}, weights.data(), backend::VisibleTokens{0, 128, 128},
                   backend::SoftmaxRow{maximum, total, sum.data(), sum.size()});
    double expected = 0;
    for (std::size_t t = 0; t < scores.size(); ++t) {
        const double exact = std::exp(static_cast<double>(scores[t]) - 3);
        expected += exact;
        check(std::abs(static_cast<double>(weights[t]) - exact) <= 5e-7 * exact, "a weight of the softmax");
    }
    check(std::abs(static_cast<double>(total) - expected) <= 1e-6 * expected, "the sum of the softmax");
}

template <class F>
bool refuses(F&& call) {
    try {
        call();
    } catch (const value_error&) {
        return true;
    }
    return false;
}

}  // namespace

int main() {
    const std::vector<float> x = difficult_rows();
    print_both<Uniform<2>>("2 bits", x);
    print_both<Uniform<3, 32>>("3 bits", x);
    print_both<Uniform<4>>("4 bits", x);
    print_both<Uniform<5, 64>>("5 bits", x);
    print_both<Uniform<8>>("8 bits", x);
    print_both<Uniform<4, 128, Symmetric>>("symmetric", x);
    print_both<Uniform<2, 128, MinMse>>("min-MSE", x);
    print_both<Uniform<4, 32, MinMse>>("min-MSE, 4 bits", x);
    print_both<GgmlQ8_0>("q8_0", x);
    print_both<GgmlQ4_0>("q4_0", x);
    print_both<Nf4<>>("nf4", x);
    print_both<NonUniform<3>>("learnt", x);
    print_both<WithOutliers<Uniform<4>>>("outliers", x);

    print_both_feedbacks<Uniform<4>, PerToken>("4 bits per token", x);
    print_both_feedbacks<Uniform<3, 128, MinMse>, PerToken>("3 bits per token", x);
    print_both_feedbacks<Uniform<4>, PerChannel>("4 bits per channel", x);
    print_both_feedbacks<Uniform<2, 128, MinMse>, PerChannel>("2 bits per channel", x);

    check_softmax<backend::scalar>();
    check_softmax<backend::best>();

    // Infinity and NaN, in rows and in the numbers of a model.
    for (const std::uint32_t bits : {0x7FC00000U, 0xFFC00001U, 0x7F800000U, 0xFF800000U}) {
        std::vector<float> bad(width, 1.0F);
        bad[77] = std::bit_cast<float>(bits);
        check(refuses([&] { static_cast<void>(quantize<Uniform<4>>(MatrixView(bad.data(), 1, width))); }),
              "a row that is not finite is taken");
        Layer layer;
        layer.shape = {.width = width, .heads = 1, .kv_heads = 1, .head_dim = 1};
        const std::vector<float> good(width, 1.0F);
        layer.w_k = layer.w_v = MatrixView(good.data(), 1, width);
        check(!refuses([&] { xquant::detail::check_layer(layer, 0); }), "a good layer is refused");
        layer.softmax_scale =
            std::bit_cast<double>(std::uint64_t{bits} << 32U | std::uint64_t{bits & 0x400000U} << 29U);
        check(refuses([&] { xquant::detail::check_layer(layer, 0); }), "a scale that is not finite is taken");
        layer.softmax_scale = 0;
        layer.w_v = MatrixView(bad.data(), 1, width);
        check(refuses([&] { xquant::detail::check_layer(layer, 0); }), "weights that are not finite are taken");
    }
    std::printf("%s\n", failures == 0 ? "all is well" : "FAILED");
    return failures == 0 ? 0 : 1;
}
