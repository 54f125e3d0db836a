// How fast are rows of a stream decoded to f32? Names: decode/scheme/shape/T/backend. Bytes are those of the f32 rows.
#include "formats.hpp"

namespace bench {
namespace {

template <class Quantizer, class Axis, class Tag>
void decode(benchmark::State& state, std::size_t tokens, std::size_t width) {
    const Stream<Quantizer, Axis> stream(tokens, width);
    std::vector<float> out(stream.rows.size());
    const auto run = [&] {
        xq::dequantize<Tag>(stream.quantized, out.data());
        benchmark::ClobberMemory();
    };
    run();
    if (!stream.near(out)) return state.SkipWithError("the decoded rows are wrong");
    const double start = thread_seconds();
    for (auto _ : state) run();
    count(state, {4.0 * static_cast<double>(stream.rows.size()), 0}, thread_seconds() - start);
}

[[maybe_unused]] const bool registered =
    register_formats("decode", []<class Quantizer, class Axis, class Tag>() { return decode<Quantizer, Axis, Tag>; });

}  // namespace
}  // namespace bench
