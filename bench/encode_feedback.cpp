// How fast are rows rounded for what errors cost? Names: encode_feedback/stream/shape/T/backend. Bytes are those of the
// f32 rows. Counters, measured in the same run: `nearest`, how many times the encoder's time without feedback it takes;
// `limit`, its share of three times that and of the products at the machine's f32 speed.
#include <numeric>

#include <xquant/backend/feedback.hpp>

#include "formats.hpp"

namespace bench {
namespace {

/// F of `blocks` blocks [n, n] as it is where channels weigh alike: entries below 1.
std::vector<float> random_feedback(std::size_t n, std::size_t blocks) {
    std::vector<float> columns = random_rows(3, blocks, xq::feedback_entries(n));
    for (float& entry : columns) entry *= 0.5F / std::sqrt(static_cast<float>(n));
    return columns;
}

template <class Quantizer, class Axis, class Tag>
void encode_feedback(benchmark::State& state, std::size_t tokens, std::size_t width, std::size_t block) {
    const Stream<Quantizer, Axis> stream(tokens, width);
    xq::QuantizedRows out(stream.quantized.codec(), tokens);
    const std::vector<float> columns = random_feedback(block, width / block);
    const xq::FeedbackView feedback{block, columns.data()};
    const xq::StreamFormat& format = out.codec().format;
    std::vector<float> scratch(xq::backend::feedback_scratch(format, feedback));
    const xq::backend::Matrix rows{stream.rows.data(), tokens, width, width};
    const auto run = [&] {
        encode_with_feedback(Tag{}, out.codec(), feedback, rows, 0, out.view(), scratch.data());
        benchmark::ClobberMemory();
    };
    run();
    double nearest = 0;
    const double start = thread_seconds();
    for (auto _ : state) {
        run();
        state.PauseTiming();
        const double before = thread_seconds();
        encode_rows(Tag{}, out.codec(), rows, 0, out.view());
        nearest += thread_seconds() - before;
        state.ResumeTiming();
    }
    const double own = thread_seconds() - start - nearest, runs = static_cast<double>(state.iterations());
    count(state, {4.0 * static_cast<double>(stream.rows.size()), 0}, own);
    const double pass = static_cast<double>(std::min<std::size_t>(block, format.group_channels)) / 2,
                 twice = format.group_channels > 1 ? 1 : 0;
    const double products = (static_cast<double>(block) / 2 + twice * pass) * static_cast<double>(stream.rows.size());
    const double at_peak = 2 * products / roofline().f32;
    state.counters["nearest"] = own / nearest;
    state.counters["limit"] = own / runs / (3 * nearest / runs + at_peak);
}

/// One stream on one shape, in pages' tokens at once as caches seal them, and one token as decoding encodes it.
template <class Quantizer, class Axis>
void add(const char* name, const Shape& shape, std::size_t width, std::size_t block) {
    for_each_backend([&]<class Tag>(Tag) {
        for (const std::size_t tokens : {std::size_t{512}, std::size_t{1}}) {
            if (tokens == 1 && std::is_same_v<Axis, xq::PerChannel>) continue;
            benchmark::RegisterBenchmark(
                name_of("encode_feedback", name, shape, tokens, Tag::name).c_str(),
                [=](benchmark::State& state) { encode_feedback<Quantizer, Axis, Tag>(state, tokens, width, block); })
                ->Unit(benchmark::kMicrosecond)
                ->MinTime(0.05);
        }
    });
}

[[maybe_unused]] const bool registered = [] {
    for (const Shape& shape : shapes) {
        const xq::LayerShape& layer = shape.layer;
        const std::size_t r = layer.kv_width(), dh = layer.head_dim;
        add<xq::Uniform<4, 128>, xq::PerChannel>("head4_k", shape, r, dh);
        add<xq::Uniform<3, 128, xq::MinMse>, xq::PerChannel>("head3_k", shape, r, dh);
        add<xq::Uniform<4, 128>, xq::PerToken>("head4_v", shape, r, dh);
        add<xq::Uniform<3, 128, xq::MinMse>, xq::PerToken>("head3_v", shape, r, dh);
        if (r <= 1024) add<xq::Uniform<4, 128>, xq::PerChannel>("joint4_k", shape, r, r);
        add<xq::Uniform<4, 128>, xq::PerToken>("x4_rot", shape, layer.width, layer.width);
    }
    return true;
}();

}  // namespace
}  // namespace bench
