/// What is coded in bases of least cost, compared with the files in encoder/, which tools/golden_encoder made in numpy
/// from the same statistics.
#include <xquant/backend/feedback.hpp>
#include <xquant/projection/latent_basis.hpp>
#include <xquant/stages.hpp>
#include <xquant/xquant.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "golden/stored.hpp"
#include "support/catch.hpp"

using namespace xquant;

namespace {

/// A file: "XQE1", eight numbers, and what they are the sizes of.
struct File {
    explicit File(const std::string& name) {
        // ctest starts the program in the top folder.
        std::ifstream stream("tests/golden/encoder/" + name, std::ios::binary);
        REQUIRE(stream.good());
        bytes = {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
        REQUIRE(bytes.size() > 36);
        REQUIRE(std::string(bytes.data(), 4) == "XQE1");
        std::array<std::uint32_t, 8> numbers{};
        std::memcpy(numbers.data(), bytes.data() + 4, sizeof numbers);
        tokens = numbers[0];
        width = numbers[1];
        n = numbers[2];
        bits = numbers[3];
        group_tokens = numbers[4];
        group_channels = numbers[5];
        clipped = numbers[6] != 0;
        mix = numbers[7] != 0 ? BasisMix::rotation : BasisMix::geometric_mean;
        const std::size_t blocks = width / n, square = blocks * n * n, all = tokens * width;
        const std::size_t groups =
            (tokens + group_tokens - 1) / group_tokens * ((width + group_channels - 1) / group_channels);
        c = take<double>(square);
        m = take<double>(square);
        rows = take<float>(all);
        to = take<float>(square);
        from = take<float>(square);
        cost = take<double>(square);
        columns = take<float>(blocks * feedback_entries(n));
        latents = take<float>(all);
        codes = take<std::uint8_t>(all);
        scales = take<float>(groups);
        zeros = take<float>(groups);
        REQUIRE(at == bytes.size());
    }

    std::size_t tokens, width, n, bits, group_tokens, group_channels;
    bool clipped;
    BasisMix mix;
    std::vector<double> c, m, cost;
    std::vector<float> rows, to, from, columns, latents, scales, zeros;
    std::vector<std::uint8_t> codes;

private:
    template <class T>
    std::vector<T> take(std::size_t count) {
        REQUIRE(at + count * sizeof(T) <= bytes.size());
        std::vector<T> out(count);
        std::memcpy(out.data(), bytes.data() + at, count * sizeof(T));
        at += count * sizeof(T);
        return out;
    }

    std::vector<char> bytes{};
    std::size_t at = 36;
};

using Quantize = QuantizedRows (*)(const MatrixView&);
struct Case {
    const char* name;
    Quantize quantize;
};
const Case cases[] = {
    {"keys4", [](const MatrixView& rows) { return quantize<Uniform<4, 128>, PerChannel>(rows); }},
    {"keys3_clip", [](const MatrixView& rows) { return quantize<Uniform<3, 128, MinMse>, PerChannel>(rows); }},
    {"values4_group48", [](const MatrixView& rows) { return quantize<Uniform<4, 48>, PerToken>(rows); }},
    {"values3_group32_clip", [](const MatrixView& rows) { return quantize<Uniform<3, 32, MinMse>, PerToken>(rows); }},
    {"values2_group8_clip", [](const MatrixView& rows) { return quantize<Uniform<2, 8, MinMse>, PerToken>(rows); }},
};

/// Latents, rounded with feedback by a backend.
template <class Tag>
QuantizedRows rounded(Tag tag, const Case& of, const File& file, const std::vector<float>& latents,
                      const std::vector<float>& columns) {
    QuantizedRows out = of.quantize(MatrixView(latents.data(), file.tokens, file.width));
    const FeedbackView feedback{file.n, columns.data()};
    std::vector<float> scratch(backend::feedback_scratch(out.view().format, feedback));
    backend::encode_with_feedback(tag, out.codec(), feedback, {latents.data(), file.tokens, file.width, file.width}, 0,
                                  out.view(), scratch.data());
    return out;
}

void check_codes(const File& file, const QuantizedRows& found) {
    const StreamView view = found.view();
    REQUIRE(view.format.bits == file.bits);
    REQUIRE(view.format.group_tokens == file.group_tokens);
    REQUIRE(view.format.group_channels == file.group_channels);
    CHECK(test::difference(file.codes, test::codes_of(found)) == "");
    CHECK(test::difference(test::halves(file.scales),
                           std::vector<f16>(view.scales, view.scales + file.scales.size())) == "");
    CHECK(test::difference(test::halves(file.zeros), std::vector<f16>(view.zeros, view.zeros + file.zeros.size())) ==
          "");
}

template <class T>
double distance(const std::vector<T>& found, const std::vector<T>& expected) {
    if (found.size() != expected.size() || found.empty()) return HUGE_VAL;
    double worst = 0, largest = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
        const double off = std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i]));
        worst = std::isfinite(off) ? std::max(worst, off) : HUGE_VAL;
        largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    }
    return worst / largest;
}

}  // namespace

TEST_CASE("equal latents and an equal F make the codes, scales and zeros of the files, byte for byte") {
    for (const Case& of : cases) {
        INFO(of.name);
        const File file(of.name);
        check_codes(file, rounded(backend::scalar{}, of, file, file.latents, file.columns));
        check_codes(file, rounded(backend::best{}, of, file, file.latents, file.columns));
        // Rounding to the nearest code is something else.
        const std::vector<std::uint8_t> nearest =
            test::codes_of(of.quantize(MatrixView(file.latents.data(), file.tokens, file.width)));
        std::size_t others = 0;
        for (std::size_t i = 0; i < nearest.size(); ++i) others += nearest[i] != file.codes[i] ? 1U : 0U;
        CHECK(others > nearest.size() / 10);
    }
}

TEST_CASE("equal statistics make an equal basis to rounding, and codes of which 999 in 1000 are those of the files") {
    std::size_t others = 0, all = 0;
    for (const Case& of : cases) {
        INFO(of.name);
        const File file(of.name);
        const std::size_t n = file.n, square = n * n;
        std::vector<float> to, from, columns, latents(file.latents.size());
        std::vector<double> cost;
        for (std::size_t block = 0; block < file.width / n; ++block) {
            const auto part = [&](const std::vector<double>& values) {
                const auto first = values.begin() + static_cast<std::ptrdiff_t>(block * square);
                return std::vector<double>(first, first + static_cast<std::ptrdiff_t>(square));
            };
            const LatentBasis found =
                latent_basis(part(file.c), part(file.m), n, static_cast<unsigned>(file.bits), file.mix);
            to.insert(to.end(), found.to.begin(), found.to.end());
            from.insert(from.end(), found.from.begin(), found.from.end());
            cost.insert(cost.end(), found.cost.begin(), found.cost.end());
            factor_metric(found.cost.data(), n, columns);
            for (std::size_t t = 0; t < file.tokens; ++t) {
                for (std::size_t j = 0; j < n; ++j) {
                    double sum = 0;
                    for (std::size_t i = 0; i < n; ++i) {
                        sum += static_cast<double>(file.rows[t * file.width + block * n + i]) *
                               static_cast<double>(found.to[i * n + j]);
                    }
                    latents[t * file.width + block * n + j] = static_cast<float>(sum);
                }
            }
        }
        CHECK(distance(to, file.to) < 1e-5);
        CHECK(distance(from, file.from) < 1e-5);
        CHECK(distance(cost, file.cost) < 1e-5);
        CHECK(distance(columns, file.columns) < 1e-5);
        CHECK(distance(latents, file.latents) < 1e-5);
        const std::vector<std::uint8_t> found = test::codes_of(rounded(backend::best{}, of, file, latents, columns));
        std::size_t here = 0;
        for (std::size_t i = 0; i < found.size(); ++i) here += found[i] != file.codes[i] ? 1U : 0U;
        INFO(here << " of " << found.size() << " codes are others");
        CHECK(here <= found.size() / 100);
        others += here;
        all += found.size();
    }
    INFO(others << " of " << all << " codes are others");
    CHECK(others <= all / 1000);
}
