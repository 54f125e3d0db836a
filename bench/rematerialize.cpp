// How fast do the keys of all kv heads come back from codes, tile by tile: K^T = A^T z^T? RoPE is not in it.
// Names: rematerialize/scheme/shape/T/backend. Bytes are those stored for the T tokens.
#include "formats.hpp"

namespace bench {
namespace {

/// Which channels of the stream a key head reads.
enum class Latent { of_head, of_all_heads, x };

template <class Tag>
struct Keys {
    Keys(const xq::QuantizedRows& stored, const Shape& of, Latent latent)
        : rows(stored),
          shape(of.layer),
          tile(shape.head_dim * 128),
          scratch(xq::backend::rematerialize_scratch(shape.head_dim)) {
        const std::size_t dh = shape.head_dim, all = stored.codec().format.width;
        for (std::size_t head = 0; head < shape.kv_heads; ++head) {
            const bool own = latent == Latent::of_head;
            plans.push_back({0, own ? head * dh : 0, own ? dh : all, {}, {}});
            const std::size_t width = plans.back().width;
            plans.back().matrix = random_values(width * dh, 7 + head, 1 / std::sqrt(static_cast<float>(width)));
        }
    }

    /// K of a head for tokens first .. first + 128, [Dh, 128].
    void rebuild(std::size_t head, std::size_t first) {
        const xq::HeadPlan& plan = plans[head];
        const xq::HeadDecoder decoder{plan.stream, plan.first, plan.width, plan.matrix.data(), nullptr, shape.head_dim};
        xq::backend::rematerialize(Tag{}, rows.view(), decoder, first,
                                   {tile.data(), 128, shape.head_dim, 128, xq::backend::TileOrder::channel_major},
                                   scratch.data());
    }

    /// Relative error of the last head's first tile against z A in f64.
    double error() {
        const xq::HeadPlan& plan = plans.back();
        const std::size_t dh = shape.head_dim, all = rows.codec().format.width;
        std::vector<float> z(rows.rows() * all);
        xq::dequantize<xq::backend::scalar>(rows, z.data());
        rebuild(plans.size() - 1, 0);
        double difference = 0, size = 0;
        for (std::size_t t = 0; t < 128; ++t) {
            for (std::size_t i = 0; i < dh; ++i) {
                double sum = 0;
                for (std::size_t c = 0; c < plan.width; ++c) {
                    sum +=
                        static_cast<double>(z[t * all + plan.first + c]) * static_cast<double>(plan.matrix[c * dh + i]);
                }
                difference += std::pow(static_cast<double>(tile[i * 128 + t]) - sum, 2);
                size += sum * sum;
            }
        }
        return std::sqrt(difference / size);
    }

    [[nodiscard]] double operations() const {
        double sum = 0;
        for (const xq::HeadPlan& plan : plans) sum += static_cast<double>(2 * rows.rows() * plan.matrix.size());
        return sum;
    }

    const xq::QuantizedRows& rows;
    xq::LayerShape shape;
    std::vector<xq::HeadPlan> plans;
    std::vector<float> tile, scratch;
};

template <class Quantizer, class Axis, class Tag>
void rematerialize(benchmark::State& state, const Shape& shape, Latent latent, std::size_t tokens) {
    const std::size_t width = latent == Latent::x ? shape.layer.width : shape.layer.kv_width();
    const Stream<Quantizer, Axis> stream(tokens, width);
    Keys<Tag> keys(stream.quantized, shape, latent);
    // A backend may round A to 8 bits.
    const double bound = std::is_same_v<Tag, xq::backend::scalar> ? 1e-5 : 2e-2, error = keys.error();
    if (!(error <= bound)) return state.SkipWithError("the keys differ from the exact product");
    const double start = thread_seconds();
    for (auto _ : state) {
        for (std::size_t head = 0; head < keys.plans.size(); ++head) {
            for (std::size_t first = 0; first < tokens; first += 128) {
                keys.rebuild(head, first);
                benchmark::ClobberMemory();
            }
        }
    }
    count(state, {static_cast<double>(stream.quantized.bytes()), keys.operations()}, thread_seconds() - start);
    state.counters["error"] = error;
}

[[maybe_unused]] const bool registered = [] {
    for_each_backend([]<class Tag>(Tag) {
        for (const Shape& shape : shapes) {
            for (const std::size_t tokens : {512U, 4096U}) {
                const auto add = [&]<class Axis>(const char* scheme, Axis, Latent latent) {
                    benchmark::RegisterBenchmark(name_of("rematerialize", scheme, shape, tokens, Tag::name).c_str(),
                                                 rematerialize<xq::Uniform<4, 128>, Axis, Tag>, shape, latent, tokens)
                        ->Unit(benchmark::kMicrosecond)
                        ->MinTime(0.05);
                };
                add("svd_head4", xq::PerChannel{}, Latent::of_head);
                add("svd_joint4", xq::PerChannel{}, Latent::of_all_heads);
                add("x4_rot", xq::PerToken{}, Latent::x);
            }
        }
    });
    return true;
}();

}  // namespace
}  // namespace bench
