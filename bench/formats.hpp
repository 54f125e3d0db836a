// The formats of stored streams that codec benchmarks run over.
#pragma once

#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include <xquant/xquant.hpp>

#include "data.hpp"
#include "roofline.hpp"
#include "shapes.hpp"

namespace bench {

namespace xq = xquant;

/// Calls f(tag) for the scalar backend and, if it is another one, for the best of this build.
template <class F>
void for_each_backend(F&& f) {
    f(xq::backend::scalar{});
    if constexpr (!std::is_same_v<xq::backend::best, xq::backend::scalar>) f(xq::backend::best{});
}

/// Calls f.template operator()<Quantizer, Axis>(scheme, width) for the streams of the schemes on a shape.
template <class F>
void for_each_format(const xq::LayerShape& shape, F&& f) {
    f.template operator()<xq::Unquantized<xq::f16>, xq::PerToken>("f16", shape.kv_width());
    f.template operator()<xq::Uniform<8, 64>, xq::PerToken>("kv8", shape.kv_width());
    f.template operator()<xq::Uniform<4, 64>, xq::PerToken>("kv4", shape.kv_width());
    f.template operator()<xq::Uniform<4, 128>, xq::PerChannel>("svd_head4", shape.kv_width());
    f.template operator()<xq::Uniform<4, 128>, xq::PerToken>("x4", shape.width);
    f.template operator()<xq::Uniform<3, 128>, xq::PerToken>("x3", shape.width);
}

/// T rows of a stream, as f32 and encoded by the scalar backend.
template <class Quantizer, class Axis>
struct Stream {
    Stream(std::size_t tokens, std::size_t width)
        : rows(random_rows(0, tokens, width)),
          quantized(xq::quantize<Quantizer, Axis, xq::backend::scalar>(xq::MatrixView(rows.data(), tokens, width))) {}

    /// Whether the decoded rows are as near to the rows as the format can bring them.
    [[nodiscard]] bool near(const std::vector<float>& decoded) const {
        // Random values lie within 2 sqrt(3). Rounding to f16 adds to half a step.
        float bound = 2e-3F;
        if constexpr (xq::quantizer_policy<Quantizer>) {
            bound = 0.51F * 6.93F / static_cast<float>((1U << Quantizer::bits) - 1) + 2e-3F;
        }
        for (std::size_t i = 0; i < rows.size(); ++i) {
            if (!(std::abs(decoded[i] - rows[i]) <= bound)) return false;
        }
        return true;
    }

    std::vector<float> rows;
    xq::QuantizedRows quantized;
};

/// Registers verb/format/shape/T/backend for all of them. `of.template operator()<Quantizer, Axis, Tag>()` gives the
/// benchmark, a function of (state, tokens, width).
template <class Of>
bool register_formats(const char* verb, Of&& of) {
    for_each_backend([&]<class Tag>(Tag) {
        for (const Shape& shape : shapes) {
            for (const std::size_t tokens : {512U, 4096U}) {
                for_each_format(shape.layer, [&]<class Quantizer, class Axis>(const char* scheme, std::size_t width) {
                    benchmark::RegisterBenchmark(name_of(verb, scheme, shape, tokens, Tag::name).c_str(),
                                                 of.template operator()<Quantizer, Axis, Tag>(), tokens, width)
                        ->Unit(benchmark::kMicrosecond)
                        ->MinTime(0.05);
                });
            }
        }
    });
    return true;
}

}  // namespace bench
