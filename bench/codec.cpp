// How fast are rows encoded and decoded? Names: verb/format/width/backend. Bytes are those of the f32 rows.
#include <benchmark/benchmark.h>

#include <cmath>
#include <string>

#include <xquant/xquant.hpp>

#include "data.hpp"

namespace {

namespace xq = xquant;

constexpr std::size_t tokens = 128;

/// The decoded rows are within half a step of the rows, or the benchmark says so and stops.
bool is_right(const xq::QuantizedRows& quantized, const std::vector<float>& rows, float bound) {
    std::vector<float> back(rows.size());
    xq::dequantize(quantized, back.data());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        if (!(std::abs(back[i] - rows[i]) <= bound)) return false;
    }
    return true;
}

template <class Quantizer, class Axis>
void encode(benchmark::State& state, std::size_t width) {
    const std::vector<float> rows = bench::rows(tokens * width, 1);
    xq::QuantizedRows quantized = xq::quantize<Quantizer, Axis>(xq::MatrixView(rows.data(), tokens, width));
    if (!is_right(quantized, rows, 2.0F / (1U << Quantizer::bits))) return state.SkipWithError("wrong values");
    for (auto _ : state) {
        xq::backend::encode_rows(xq::backend::best{}, quantized.codec(), rows.data(), width, 0, tokens,
                                 quantized.view());
        benchmark::ClobberMemory();
    }
    state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * rows.size() * sizeof(float)));
}

template <class Quantizer, class Axis>
void decode(benchmark::State& state, std::size_t width) {
    const std::vector<float> rows = bench::rows(tokens * width, 1);
    const xq::QuantizedRows quantized = xq::quantize<Quantizer, Axis>(xq::MatrixView(rows.data(), tokens, width));
    if (!is_right(quantized, rows, 2.0F / (1U << Quantizer::bits))) return state.SkipWithError("wrong values");
    std::vector<float> back(rows.size());
    for (auto _ : state) {
        xq::dequantize(quantized, back.data());
        benchmark::ClobberMemory();
    }
    state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * rows.size() * sizeof(float)));
}

template <class Quantizer, class Axis>
void add(const std::string& format) {
    for (const std::size_t width : {std::size_t{576}, std::size_t{4096}}) {
        const std::string tail = "/" + format + "/" + std::to_string(width) + "/" + xq::backend::best::name;
        benchmark::RegisterBenchmark(("encode" + tail).c_str(), encode<Quantizer, Axis>, width);
        benchmark::RegisterBenchmark(("decode" + tail).c_str(), decode<Quantizer, Axis>, width);
    }
}

[[maybe_unused]] const bool registered = [] {
    add<xq::Quantizer<2>, xq::PerToken>("q2_per_token");
    add<xq::Quantizer<3>, xq::PerToken>("q3_per_token");
    add<xq::Quantizer<4>, xq::PerToken>("q4_per_token");
    add<xq::Quantizer<8>, xq::PerToken>("q8_per_token");
    add<xq::Quantizer<4>, xq::PerChannel>("q4_per_channel");
    return true;
}();

}  // namespace
