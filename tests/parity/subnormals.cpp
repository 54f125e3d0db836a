/// A processor that takes subnormal floats for 0 (MXCSR: FTZ and DAZ, which other libraries set) stores the bytes, and
/// reads the values, of one that does not: small groups have f16 scales that are subnormal.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "parity/machines.hpp"
#include "support/catch.hpp"
#include "support/flush.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

constexpr std::size_t rows = 128, width = 160;

/// Rows of every size from subnormal floats to the largest f16.
std::vector<float> rows_of_every_size() {
    test::Random random(8);
    std::vector<float> x(rows * width);
    for (std::size_t t = 0; t < rows; ++t) {
        const float size = std::ldexp(1.0F, static_cast<int>(t * 165 / rows) - 149);
        for (std::size_t c = 0; c < width; ++c) x[t * width + c] = random(size) * 0.999F;
    }
    return x;
}

struct Stored {
    std::vector<std::byte> bytes;
    std::vector<float> values;
    friend bool operator==(const Stored& a, const Stored& b) {
        return a.bytes == b.bytes &&
               std::equal(a.values.begin(), a.values.end(), b.values.begin(), b.values.end(), [](float x, float y) {
                   return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
               });
    }
};

template <class Q, class Axis, class Backend>
Stored store(const std::vector<float>& x) {
    const MatrixView view(x.data(), rows, width);
    const QuantizedRows stored = quantize<Q, Axis, Backend>(view, view);
    Stored out;
    const StreamView in = stored.view();
    const auto add = [&](const void* from, std::size_t n) {
        const auto* at = static_cast<const std::byte*>(from);
        out.bytes.insert(out.bytes.end(), at, at + n);
    };
    add(in.codes, in.format.code_bytes(rows));
    add(in.scales, in.format.scale_bytes(rows));
    add(in.outliers, in.format.outlier_count(rows) * sizeof(f16));
    add(in.indices, in.format.outlier_count(rows));
    out.values.resize(rows * width);
    dequantize<Backend>(stored, out.values.data());
    return out;
}

template <class Q>
void check(const char* name) {
    const std::vector<float> x = rows_of_every_size();
    const auto on = [&]<class Axis, class Backend>(Axis, Backend) {
        const Stored expected = store<Q, Axis, Backend>(x);
        const test::FlushSubnormals flush;
        INFO(name << " on " << Backend::name << (std::is_same_v<Axis, PerToken> ? ", per token" : ", per channel"));
        CHECK((store<Q, Axis, Backend>(x) == expected));
    };
    on(PerToken{}, backend::scalar{});
    on(PerChannel{}, backend::scalar{});
    parity::for_each_registers([&]<class R>() {
        on(PerToken{}, backend::simd<R>{});
        on(PerChannel{}, backend::simd<R>{});
    });
}

}  // namespace

TEST_CASE("bytes and values do not depend on what the processor makes of subnormal floats") {
    if (!test::FlushSubnormals::works()) {
        std::cerr << "SKIPPED: this processor's floats are always subnormal where they are small\n";
        return;
    }
    check<Uniform<2>>("2 bits");
    check<Uniform<4>>("4 bits");
    check<Uniform<8, 32>>("8 bits");
    check<Uniform<4, 128, Symmetric>>("symmetric");
    check<Uniform<3, 128, MinMse>>("min-MSE");
    check<GgmlQ8_0>("q8_0");
    check<GgmlQ4_0>("q4_0");
    check<Nf4<>>("nf4");
    check<NonUniform<4>>("learnt");
    check<WithOutliers<Uniform<4>>>("outliers");
    check<Unquantized<f16>>("f16");
}

TEST_CASE("every f16 is read as it is where subnormal floats are taken for 0") {
    if (!test::FlushSubnormals::works()) {
        std::cerr << "SKIPPED: this processor's floats are always subnormal where they are small\n";
        return;
    }
    std::vector<f16> halves(65536);
    std::vector<float> expected(halves.size());
    for (std::size_t i = 0; i < halves.size(); ++i) {
        halves[i].bits = static_cast<std::uint16_t>(i);
        expected[i] = to_float(halves[i]);
    }
    REQUIRE(expected[1] == 0x1p-24F);
    const auto equal = [&](const std::vector<float>& found) {
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < found.size(); ++i) {
            // Of a NaN, registers may make a quiet one.
            const bool number = (i & 0x7FFFU) <= 0x7C00U;
            wrong += number && std::bit_cast<std::uint32_t>(found[i]) != std::bit_cast<std::uint32_t>(expected[i]);
            wrong += number && to_f16(found[i]).bits != i;
        }
        return wrong == 0;
    };
    const test::FlushSubnormals flush;
    std::vector<float> found(halves.size());
    load_row(halves.data(), DType::f16, halves.size(), found.data());
    CHECK(equal(found));
    parity::for_each_registers([&]<class R>() {
        INFO(R::name);
        for (std::size_t i = 0; i < halves.size(); i += R::lanes) {
            R::store(found.data() + i, R::load_f16(halves.data() + i));
        }
        CHECK(equal(found));
    });
}
