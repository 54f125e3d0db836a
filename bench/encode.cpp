// How fast are rows of a stream encoded? Names: encode/scheme/shape/T/backend. Bytes are those of the f32 rows. T 512 comes
// out of a cache of the processor, T 4096 partly out of memory.
#include <cstring>

#include "formats.hpp"

namespace bench {
namespace {

template <class Quantizer, class Axis, class Tag>
void encode(benchmark::State& state, std::size_t tokens, std::size_t width) {
    const Stream<Quantizer, Axis> stream(tokens, width);
    xq::QuantizedRows out(stream.quantized.codec(), tokens);
    const auto run = [&] {
        encode_rows(Tag{}, out.codec(), xq::backend::Matrix{stream.rows.data(), tokens, width, width}, 0, out.view());
        benchmark::ClobberMemory();
    };
    run();
    const xq::StreamView expected = stream.quantized.view(), got = xq::read_only(out.view());
    const xq::StreamFormat& format = expected.format;
    std::vector<float> decoded(stream.rows.size());
    xq::dequantize<xq::backend::scalar>(out, decoded.data());
    if (std::memcmp(expected.codes, got.codes, format.code_bytes(tokens)) != 0 ||
        (format.quantized() && std::memcmp(expected.scales, got.scales, format.scale_bytes(tokens)) != 0) ||
        !stream.near(decoded)) {
        return state.SkipWithError("the bytes differ from the scalar backend's, or are wrong");
    }
    const double start = thread_seconds();
    for (auto _ : state) run();
    count(state, {4.0 * static_cast<double>(stream.rows.size()), 0}, thread_seconds() - start);
}

[[maybe_unused]] const bool registered =
    register_formats("encode", []<class Quantizer, class Axis, class Tag>() { return encode<Quantizer, Axis, Tag>; });

}  // namespace
}  // namespace bench
