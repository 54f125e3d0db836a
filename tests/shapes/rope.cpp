/// Builders of RoPE for longer contexts against their formulas, written out here as their papers and first
/// implementations have them, with the parameters of published models.
#include <xquant/xquant.hpp>

#include <array>
#include <cmath>
#include <numbers>
#include <vector>

#include "support/catch.hpp"

using namespace xquant;

namespace {

constexpr double pi = std::numbers::pi;

void check_equal(const Rope& rope, const std::vector<double>& expected) {
    REQUIRE(rope.inverse_frequencies.size() == expected.size());
    for (std::size_t j = 0; j < expected.size(); ++j) {
        INFO("pair " << j << ": " << rope.inverse_frequencies[j] << ", expected " << expected[j]);
        CHECK(std::abs(rope.inverse_frequencies[j] - expected[j]) <= 1e-12 * expected[j]);
    }
}

double frequency(double base, std::size_t j, std::size_t dims) {
    return 1.0 / std::pow(base, 2.0 * static_cast<double>(j) / static_cast<double>(dims));
}

/// YaRN as released by its authors: find_correction_range, linear_ramp_mask, get_mscale.
std::vector<double> yarn_formula(std::size_t dims, double base, double scale, double original, double fast, double slow,
                                 bool truncate) {
    const auto d = static_cast<double>(dims);
    const auto correction_dim = [&](double rotations) {
        return d * std::log(original / (rotations * 2 * pi)) / (2 * std::log(base));
    };
    double low = correction_dim(fast), high = correction_dim(slow);
    if (truncate) {
        low = std::floor(low);
        high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, d - 1);
    std::vector<double> out;
    for (std::size_t j = 0; j < dims / 2; ++j) {
        const double mask = 1 - std::min(1.0, std::max(0.0, (static_cast<double>(j) - low) / (high - low)));
        const double extrapolated = frequency(base, j, dims), interpolated = extrapolated / scale;
        out.push_back(interpolated * (1 - mask) + extrapolated * mask);
    }
    return out;
}

/// Phi-3-mini-128k-instruct: head_dim 96, trained on 4,096, stretched to 131,072.
constexpr std::array<double, 48> phi3_long{
    1.0700000524520874, 1.1200000047683716, 1.149999976158142,  1.4199999570846558, 1.5699999332427979,
    1.7999999523162842, 2.129999876022339,  2.129999876022339,  3.009999990463257,  5.910000324249268,
    6.950000286102295,  9.070000648498535,  9.930000305175781,  10.710000038146973, 11.130000114440918,
    14.609999656677246, 15.409998893737793, 19.809999465942383, 37.279998779296875, 38.279998779296875,
    38.599998474121094, 40.12000274658203,  46.20000457763672,  50.940006256103516, 53.66000747680664,
    54.9373893737793,   56.89738845825195,  57.28738784790039,  59.98738479614258,  60.86738586425781,
    60.887386322021484, 61.71739196777344,  62.91739273071289,  62.957393646240234, 63.41739273071289,
    63.8173942565918,   63.83739471435547,  63.897396087646484, 63.93739700317383,  64.06739807128906,
    64.11434936523438,  64.12435150146484,  64.15435028076172,  64.19435119628906,  64.24435424804688,
    64.57435607910156,  64.69000244140625,  64.76000213623047};

}  // namespace

TEST_CASE("linear: positions are divided") {
    const Rope rope = scale_linear(Rope::standard(128, 10000.0), 4);  // as in LongChat-32k's fourfold part
    std::vector<double> expected;
    for (std::size_t j = 0; j < 64; ++j) expected.push_back(frequency(10000, j, 128) / 4);
    check_equal(rope, expected);
    CHECK(rope.factor == 1);
}

TEST_CASE("NTK-aware: the base grows") {
    const double base = 10000 * std::pow(8.0, 128.0 / 126.0);
    std::vector<double> expected;
    for (std::size_t j = 0; j < 64; ++j) expected.push_back(frequency(base, j, 128));
    const Rope rope = scale_ntk(Rope::standard(128, 10000.0), 8);
    check_equal(rope, expected);
    CHECK(rope.inverse_frequencies.front() == 1);
    CHECK(std::abs(rope.inverse_frequencies.back() * 8 / frequency(10000, 63, 128) - 1) < 1e-12);
}

TEST_CASE("YaRN: Yarn-Llama-2-7b-64k, Qwen2.5 and gpt-oss") {
    const Rope llama = scale_yarn(Rope::standard(128, 10000.0), {.factor = 16, .original_context = 4096});
    check_equal(llama, yarn_formula(128, 10000, 16, 4096, 32, 1, true));
    CHECK(std::abs(llama.factor - 1.2772588722239782) < 1e-12);  // 0.1 ln 16 + 1
    // Pairs 20 .. 46 are the ramp: what is faster stays, what is slower is divided.
    CHECK(llama.inverse_frequencies[20] == Rope::standard(128, 10000.0).inverse_frequencies[20]);
    CHECK(llama.inverse_frequencies[21] < frequency(10000, 21, 128));
    CHECK(llama.inverse_frequencies[45] > frequency(10000, 45, 128) / 16);
    CHECK(std::abs(llama.inverse_frequencies[46] * 16 / frequency(10000, 46, 128) - 1) < 1e-12);

    const Rope qwen = scale_yarn(Rope::standard(128, 1e6), {.factor = 4, .original_context = 32768});
    check_equal(qwen, yarn_formula(128, 1e6, 4, 32768, 32, 1, true));
    CHECK(std::abs(qwen.factor - (0.1 * std::log(4.0) + 1)) < 1e-15);

    const YarnScaling oss{.factor = 32, .original_context = 4096, .truncate = false};
    check_equal(scale_yarn(Rope::standard(64, 150000.0), oss), yarn_formula(64, 150000, 32, 4096, 32, 1, false));

    // DeepSeek-V2: mscale = mscale_all_dim, so cosines are left alone (and the softmax scale is the engine's).
    const YarnScaling deepseek{.factor = 40, .original_context = 4096, .attention_factor = 1};
    const Rope latent = scale_yarn(Rope::standard(64, 10000.0), deepseek);
    check_equal(latent, yarn_formula(64, 10000, 40, 4096, 32, 1, true));
    CHECK(latent.factor == 1);
}

TEST_CASE("Llama 3.1 and 3.2") {
    for (const double factor : {8.0, 32.0}) {
        const Rope rope = scale_llama3(Rope::standard(128, 500000.0), {.factor = factor});
        std::vector<double> expected;
        for (std::size_t j = 0; j < 64; ++j) {
            const double f = frequency(500000, j, 128), wavelength = 2 * pi / f;
            if (wavelength < 8192.0 / 4) {
                expected.push_back(f);
            } else if (wavelength > 8192.0 / 1) {
                expected.push_back(f / factor);
            } else {
                const double smooth = (8192 / wavelength - 1) / (4 - 1);
                expected.push_back((1 - smooth) * f / factor + smooth * f);
            }
        }
        check_equal(rope, expected);
        CHECK(rope.inverse_frequencies[28] ==
              Rope::standard(128, 500000.0).inverse_frequencies[28]);      // wavelength 1,957
        CHECK(rope.inverse_frequencies[29] < frequency(500000, 29, 128));  // 2,402: the ramp begins
        CHECK(rope.factor == 1);
    }
}

TEST_CASE("LongRoPE: Phi-3-mini-128k") {
    std::vector<double> short_factor(48, 2.0);
    const std::array<double, 9> first{1.1, 1.1, 1.1, 1.3, 1.35, 1.35, 1.4, 1.55, 2.0};
    std::copy(first.begin(), first.end(), short_factor.begin());
    const LongRopeScaling scaling{short_factor, phi3_long, 4096, 131072};
    const auto formula = [](const auto& factors) {
        std::vector<double> out;
        for (std::size_t j = 0; j < 48; ++j) {
            out.push_back(1.0 / (factors[j] * std::pow(10000.0, 2.0 * static_cast<double>(j) / 96)));
        }
        return out;
    };
    const Rope standard = Rope::standard(96, 10000.0);
    check_equal(scale_longrope(standard, scaling, 4096), formula(short_factor));
    const Rope rope = scale_longrope(standard, scaling, 4097);
    check_equal(rope, formula(phi3_long));
    CHECK(std::abs(rope.factor - std::sqrt(1 + std::log(32.0) / std::log(4096.0))) < 1e-15);
    CHECK(std::abs(rope.factor - 1.19024) < 1e-5);
}

TEST_CASE("parameters that make no sense are refused") {
    const Rope rope = Rope::standard(64);
    CHECK_THROWS_AS(scale_linear(rope, 0.5), shape_error);
    CHECK_THROWS_AS(scale_ntk(Rope::standard(2), 2), shape_error);
    CHECK_THROWS_AS(scale_yarn(rope, {.factor = 2}), shape_error);
    CHECK_THROWS_AS(scale_yarn(rope, {.factor = 2, .original_context = 4096, .beta_fast = 1}), shape_error);
    CHECK_THROWS_AS(scale_yarn(Rope{}, {.factor = 2, .original_context = 4096}), shape_error);
    CHECK_THROWS_AS(scale_llama3(rope, {.high_freq_factor = 1}), shape_error);
    CHECK_THROWS_AS(scale_longrope(rope, {phi3_long, phi3_long, 4096, 131072}, 1), shape_error);
    CHECK_THROWS_AS(scale_longrope(Rope::standard(96), {phi3_long, phi3_long, 4096, 2048}, 1), shape_error);
}
