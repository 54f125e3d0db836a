// measure_machine: what planner/machine.hpp asks of a machine, by short loops and by this library's own kernels on
// caches of one layer.
//
//     memory     a sum over 64 MiB, all threads at once
//     f32, int8  multiply-adds of the widest registers of this build, out of registers
//     page       attention over 8 pages of 4 kv heads after 64 MiB of other memory was read, less what it takes at
//                once; layer: what a whole step takes then beside that
//     kernels    attention of one token over 256 and over 1,280 coded tokens: what 1,024 more tokens cost a kv head of
//                128 channels with one query head and with four, and one of 64 channels; products are of four shapes
//
// The best of several rounds counts, so that other programs on the machine matter little.
// Cost    a second, 64 MiB.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <fstream>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <xquant/planner/machine.hpp>
#include <xquant/preset.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Seconds of the processor that this process has used.
inline double processor_seconds() noexcept {
    return static_cast<double>(std::clock()) / static_cast<double>(CLOCKS_PER_SEC);
}

/// The value, which the compiler can neither know nor leave out.
template <class T>
void keep_value(const T& value) noexcept {
    volatile unsigned char kept = 0;
    unsigned char first = 0;
    std::memcpy(&first, &value, 1);
    kept = first;
    static_cast<void>(kept);
}

/// Bytes that `threads` threads read together in a second.
inline double measure_memory(std::size_t threads) {
    constexpr std::size_t bytes = std::size_t{64} << 20U;
    const std::vector<std::uint64_t> values(bytes / sizeof(std::uint64_t), 1);
    double best = 0;
    for (int round = 0; round < 12; ++round) {
        // Alone, by what the processor did: other programs take turns on it.
        const auto start = std::chrono::steady_clock::now();
        const double began = processor_seconds();
        std::vector<std::thread> others;
        const auto read = [&](std::size_t part) {
            const std::size_t first = values.size() * part / threads, end = values.size() * (part + 1) / threads;
            keep_value(std::accumulate(values.begin() + static_cast<std::ptrdiff_t>(first),
                                       values.begin() + static_cast<std::ptrdiff_t>(end), std::uint64_t{0}));
        };
        for (std::size_t i = 1; i < threads; ++i) others.emplace_back(read, i);
        read(0);
        for (std::thread& other : others) other.join();
        const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
        const double seconds = threads == 1 ? processor_seconds() - began : passed.count();
        best = (std::max)(best, static_cast<double>(bytes) / (std::max)(seconds, 1e-6));
    }
    return best;
}

/// Operations that one core does in a second: `step` does `each` of them.
template <class Step>
double measure_rate(double each, Step&& step) {
    constexpr int steps = 1 << 20;
    double best = 0;
    for (int round = 0; round < 5; ++round) {
        const double start = processor_seconds();
        step(steps);
        const double seconds = (std::max)(processor_seconds() - start, 1e-6);
        best = (std::max)(best, each * steps / seconds);
    }
    return best;
}

/// Multiply-adds of f32 and of 8-bit integers, of a backend with registers.
template <class Backend>
void measure_arithmetic(Machine& machine) {
    constexpr std::size_t chains = 10;  // independent sums: enough to hide how long one takes
    if constexpr (requires { typename Backend::registers; }) {
        using R = typename Backend::registers;
        machine.f32 = measure_rate(2.0 * chains * R::lanes, [](int steps) {
            const float half = opaque(0.5F), one = opaque(1.0F);
            const typename R::f32 factor = R::splat(half), add = R::splat(one);
            typename R::f32 sums[chains];
            for (std::size_t i = 0; i < chains; ++i) sums[i] = R::splat(static_cast<float>(i));
            for (int s = 0; s < steps; ++s) {
                for (auto& sum : sums) sum = R::fma(sum, factor, add);
            }
            for (const auto& sum : sums) keep_value(sum);
        });
        machine.int8 = measure_rate(2.0 * chains * 4 * R::lanes, [](int steps) {
            const auto word = static_cast<std::int32_t>(opaque(50529027.0F));  // 3 in every byte
            const typename R::i32 codes = R::splat_i32(word), weights = R::splat_i32(word);
            typename R::i32 sums[chains];
            for (auto& sum : sums) sum = R::zero_i32();
            for (int s = 0; s < steps; ++s) {
                for (auto& sum : sums) sum = R::dot(sum, R::bits_and(codes, codes), weights);
            }
            for (const auto& sum : sums) keep_value(sum);
        });
    } else {
        constexpr std::size_t lanes = 16;
        const auto chain = [](auto zero, auto factor, auto add) {
            using T = decltype(zero);
            return measure_rate(2.0 * chains * lanes,
                                [=](int steps) {
                                    T sums[chains * lanes];
                                    for (std::size_t i = 0; i < chains * lanes; ++i) sums[i] = static_cast<T>(i);
                                    for (int s = 0; s < steps / 16; ++s) {
                                        for (T& sum : sums) sum = sum * factor + add;
                                    }
                                    keep_value(std::accumulate(std::begin(sums), std::end(sums), T{}));
                                }) /
                   16;
        };
        machine.f32 = chain(0.0F, opaque(0.5F), opaque(1.0F));
        machine.int8 = chain(std::uint32_t{0}, static_cast<std::uint32_t>(opaque(3.0F)), std::uint32_t{1});
    }
}

/// Attention of one token with others cached, in one layer of a scheme: `dh` channels of a kv head, `heads` query
/// heads of each, `width` channels of X.
template <class Cached>
class MeasuredLayer {
public:
    MeasuredLayer(std::size_t dh, std::size_t heads, std::size_t width, std::size_t kv_heads)
        : heads_(heads * kv_heads), dh_(dh), width_(width), x_(most * width), q_(heads_ * dh), out_(q_.size()) {
        Model model = Model::uniform(1, {width, heads_, kv_heads, dh}, Rope::standard(dh));
        std::vector<float> weights(kv_heads * dh * width);
        std::uint32_t bits = 1;
        for (std::vector<float>* values : {&weights, &x_, &q_}) {
            for (float& value : *values) {
                bits = bits * 1664525U + 1013904223U;
                value = static_cast<float>(static_cast<std::int32_t>(bits)) * 0x1p-31F;
            }
        }
        model.layers[0].w_k = model.layers[0].w_v = MatrixView(weights.data(), kv_heads * dh, width);
        Options options;
        options.sinks = options.recent = 0;
        cache_ = std::make_unique<Cached>(model, options);
        sequence_ = cache_->create();
    }

    /// `tokens` more are cached.
    void fill(std::size_t tokens) {
        auto step = cache_->begin({{sequence_, tokens}});
        step.append(0, MatrixView(x_.data(), tokens, width_));
        step.commit();
    }

    /// The best of several rounds, in seconds; `before` each run.
    template <class F>
    double seconds(int rounds, int runs, F&& before) {
        double best = (std::numeric_limits<double>::max)();
        auto step = cache_->begin({{sequence_, 1}});
        step.append(0, MatrixView(x_.data(), 1, width_));
        const auto attend = [&] { step.attend(0, MatrixView(q_.data(), 1, heads_ * dh_), out_.data()); };
        attend();
        for (int round = 0; round < rounds; ++round) {
            before();
            const double start = processor_seconds();
            for (int i = 0; i < runs; ++i) attend();
            best = (std::min)(best, (processor_seconds() - start) / runs);
        }
        return best;
    }

    /// The best of several whole steps of one token, that are not committed; `before` each.
    template <class F>
    double step_seconds(int rounds, F&& before) {
        double best = (std::numeric_limits<double>::max)();
        for (int round = 0; round < rounds; ++round) {
            before();
            const double start = processor_seconds();
            auto step = cache_->begin({{sequence_, 1}});
            step.append(0, MatrixView(x_.data(), 1, width_));
            step.attend(0, MatrixView(q_.data(), 1, heads_ * dh_), out_.data());
            best = (std::min)(best, processor_seconds() - start);
        }
        return best;
    }

    static constexpr std::size_t most = 1280;  ///< that fill may be asked for

private:
    std::size_t heads_, dh_, width_;
    std::vector<float> x_, q_, out_;
    std::unique_ptr<Cached> cache_;
    Sequence sequence_;
};

/// Seconds that attention needs for a coded token of one kv head.
template <class Cached>
double measure_token(std::size_t dh, std::size_t heads, std::size_t width, std::size_t kv_heads = 1) {
    constexpr std::size_t few = 256, more = 1024;
    MeasuredLayer<Cached> layer(dh, heads, width, kv_heads);
    layer.fill(few);
    const double before = layer.seconds(10, 3, [] {});
    layer.fill(more);
    return (std::max)((layer.seconds(10, 3, [] {}) - before) / static_cast<double>(more * kv_heads), 1e-11);
}

/// Seconds that a page of a kv head takes longer when other memory was read since; and what is left of a step.
inline void measure_cold(Machine& machine) {
    constexpr std::size_t few = 256, more = 1024, heads = 4;
    const std::vector<std::uint64_t> other((std::size_t{64} << 20U) / sizeof(std::uint64_t), 1);
    MeasuredLayer<preset::kv<4>> layer(64, 3, 128, heads);
    const auto evict = [&] { keep_value(std::accumulate(other.begin(), other.end(), std::uint64_t{0})); };
    const auto longer = [&] {
        const double warm = layer.seconds(10, 1, [] {});
        return layer.seconds(8, 1, evict) - warm;
    };
    layer.fill(few);
    const double once = longer(), warm = layer.seconds(10, 1, [] {});
    constexpr double page = static_cast<double>(heads) / static_cast<double>(coded_page_tokens);  // of a token
    // What it reads of weights: W_k and W_v [256, 128] and the turns of two times four heads, in f16.
    constexpr double weights = 2.0 * (2 * 256 * 128 + 2 * 4 * 64 * 64);
    const double step = layer.step_seconds(12, evict);
    layer.fill(more);
    machine.page = (std::max)((longer() - once) / (page * static_cast<double>(more)), 1e-9);
    const double rest = step - warm - weights / machine.memory - machine.page * page * static_cast<double>(few);
    machine.layer = (std::max)(rest, 1e-7);
}

/// Of a scheme whose K and V are read alike: t(Dh, g) = 2 Dh (channel + g query) + g score.
template <class Cached>
ReadTime measure_read() {
    const double one = measure_token<Cached>(128, 1, 128), four = measure_token<Cached>(128, 4, 128),
                 narrow = measure_token<Cached>(64, 4, 128);
    const double score = std::clamp((2 * narrow - four) / 4, 0.0, one / 2);
    const double query = std::clamp((four - one - 3 * score) / 768, 0.0, (one - score) / 256);
    return {(one - score) / 256 - query, query, score};
}

/// Keys of a scheme whose values are read like `values`.
template <class Cached>
ReadTime measure_keys(const ReadTime& values) {
    const ReadTime both = measure_read<Cached>();
    return {(std::max)(2 * both.channel - values.channel, 1e-13), (std::max)(2 * both.query - values.query, 0.0),
            both.score};
}

/// What keys took that are products of this shape.
struct ProductTime {
    double dh = 0, width = 0, seconds = 0;
};

/// The product that comes closest to all of them, by the square of what it is off beside 1.
inline ReadTime fit_product(const std::vector<ProductTime>& times) {
    double aa = 0, ab = 0, bb = 0, a = 0, b = 0;
    for (const ProductTime& time : times) {
        const double entries = time.width * time.dh / time.seconds, channels = time.dh / time.seconds;
        aa += entries * entries;
        ab += entries * channels;
        bb += channels * channels;
        a += entries;
        b += channels;
    }
    const double determinant = aa * bb - ab * ab;
    ReadTime out{(a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant, 0};
    if (!(out.channel > 0)) out = {1e-14, b / bb, 0};
    if (!(out.query >= 0)) out = {a / aa, 0, 0};
    return out;
}

/// Products of at most 128 channels, beside values that are read like `values` and scores that take what those of
/// `turned` do. `Of` makes keys of the channels of their own head, `Joint` of those of all heads.
template <class Of, class Joint>
ReadTime measure_channel_product(const ReadTime& turned, const ReadTime& values) {
    std::vector<ProductTime> times;
    const auto add = [&](double dh, double width, double token) {
        times.push_back({dh, width, (std::max)(token - dh * (values.channel + values.query) - turned.score, 1e-10)});
    };
    add(64, 64, measure_token<Of>(64, 1, 256));
    add(64, 128, measure_token<Joint>(64, 1, 256, 2));
    add(128, 128, measure_token<Of>(128, 1, 256));
    return fit_product(times);
}

/// Products of X; values are sums of X.
template <class OfX>
ReadTime measure_token_product(const ReadTime& turned, const ReadTime& values) {
    std::vector<ProductTime> times;
    for (const std::size_t dh : {64U, 128U}) {
        for (const std::size_t width : {256U, 640U}) {
            const auto channels = static_cast<double>(width);
            const double others = channels * (values.channel + values.query) + turned.score;
            times.push_back(
                {static_cast<double>(dh), channels, (std::max)(measure_token<OfX>(dh, 1, width) - others, 1e-10)});
        }
    }
    return fit_product(times);
}

/// K before RoPE per channel, with a matrix for each head.
template <unsigned Bits>
using product_by_channel =
    XCache<Uniform<Bits>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<KeyValue<BeforeRope, Hadamard>>>;

/// K of every head from the channels of all.
struct KeysOfAllChannels {
    using One = KeyValue<BeforeRope, Hadamard>;
    static constexpr std::size_t streams = 2;
    static LayerFootprint<2> footprint(const Layer& layer) {
        LayerFootprint<2> out = One::footprint(layer);
        const std::size_t r = layer.shape.kv_width();
        out.matrix_floats += r * r - r * layer.shape.head_dim;
        out.blocks[0] = 0;
        return out;
    }
    static LayerPlan prepare(const Layer& layer) {
        LayerPlan plan = One::prepare(layer);
        const std::size_t r = layer.shape.kv_width(), dh = layer.shape.head_dim;
        for (HeadPlan& head : plan.keys) {
            std::vector<float> wide;
            for (std::size_t i = 0; i < r; i += dh) wide.insert(wide.end(), head.matrix.begin(), head.matrix.end());
            head.matrix = std::move(wide);
            head.first = 0;
            head.width = r;
        }
        return plan;
    }
};
template <unsigned Bits>
using joint_product_by_channel =
    XCache<Uniform<Bits>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<KeysOfAllChannels>>;

}  // namespace detail

/// Measures this machine with so many threads reading memory. Throws shape_error for none or more than 65,536, and what
/// std::thread throws.
inline Machine measure_machine(std::size_t threads = 1) {
    detail::expects(threads >= 1 && threads <= 65536, "measure_machine: ", threads, " threads; expected 1 to 65536");
    Machine out;
    out.threads = threads;
    out.memory = detail::measure_memory(threads);
    detail::measure_arithmetic<backend::best>(out);
    detail::measure_cold(out);
    const auto of = [&out](ReadKind kind) -> ReadTime& { return out.kernels[static_cast<std::size_t>(kind)]; };
    of(ReadKind::rows) = detail::measure_read<preset::f16_kv>();
    of(ReadKind::plain4) = detail::measure_read<preset::kv<4>>();
    of(ReadKind::plain8) = detail::measure_read<preset::kv<8>>();
    const ReadTime &few = of(ReadKind::plain4), &many = of(ReadKind::plain8);
    of(ReadKind::turned2) = detail::measure_keys<preset::kivi<2>>(few);
    of(ReadKind::turned3) = detail::measure_keys<preset::kivi<3>>(few);
    of(ReadKind::turned4) = detail::measure_keys<preset::kivi<4>>(few);
    of(ReadKind::turned8) = detail::measure_keys<preset::kivi<8>>(many);
    const ReadTime &turned = of(ReadKind::turned4), &turned8 = of(ReadKind::turned8);
    using detail::joint_product_by_channel, detail::product_by_channel;
    of(ReadKind::channel_product4) =
        detail::measure_channel_product<product_by_channel<4>, joint_product_by_channel<4>>(turned, few);
    of(ReadKind::channel_product8) =
        detail::measure_channel_product<product_by_channel<8>, joint_product_by_channel<8>>(turned8, many);
    of(ReadKind::token_product4) = detail::measure_token_product<preset::plain_x<4>>(turned, few);
    of(ReadKind::token_product8) = detail::measure_token_product<preset::plain_x<8>>(turned8, many);
    return out;
}

/// The machine of a file. Where the file is not there, this machine is measured, and the file written; without a path,
/// measured. Throws value_error for a file of another number of threads, or of no machine; and as measure_machine.
inline Machine machine_of_file(const std::string& path, std::size_t threads = 1) {
    if (path.empty()) return measure_machine(threads);
    if (!std::ifstream(path, std::ios::binary)) {
        const Machine measured = measure_machine(threads);
        save_machine(measured, path);
        return measured;
    }
    Machine known = load_machine(path);
    if (known.threads != threads) {
        detail::raise<value_error>("machine: ", path, " was measured with ", known.threads, " threads, and ", threads,
                                   " are asked for; name another file, or use ", known.threads);
    }
    return known;
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
