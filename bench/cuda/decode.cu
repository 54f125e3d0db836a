/// Attention, encoding and prefill on a GPU, by CUDA events: how fast, and how far from the limits that the same run measures.
///
///     xquant_bench_cuda [--quick] [--json FILE]
///
/// A row of the table is one layer and one new token for each of `batch` sequences of T tokens, all pages in different memory. Time
/// is the median of 15 launches; between two, 256 MB are overwritten, more than any L2 holds. The prediction is the larger of
/// bytes / copy bandwidth and operations / matrix peak, that of halves and that of bytes for what is rebuilt from codes. Exits with 77
/// where there is no GPU.
#include <xquant/cuda.cuh>
#include <xquant/projection/svd.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "support/gpu.cuh"
#include "support/model.hpp"

using namespace xquant;

namespace {

template <class T>
using Array = test::GpuArray<T>;

/// Median seconds of f, which enqueues work; what lies in L2 is overwritten before each.
double seconds_of(const std::function<void()>& f, int times = 15) {
    static const Array<std::byte> other(std::size_t{256} << 20U);
    cudaEvent_t begin{}, end{};
    check_cuda("cudaEventCreate", cudaEventCreate(&begin));
    check_cuda("cudaEventCreate", cudaEventCreate(&end));
    std::vector<float> milliseconds;
    for (int i = 0; i < times + 3; ++i) {
        check_cuda("cudaMemsetAsync", cudaMemsetAsync(other.data(), i, other.bytes()));
        check_cuda("cudaEventRecord", cudaEventRecord(begin));
        f();
        check_cuda("cudaEventRecord", cudaEventRecord(end));
        check_cuda("cudaEventSynchronize", cudaEventSynchronize(end));
        float time = 0;
        check_cuda("cudaEventElapsedTime", cudaEventElapsedTime(&time, begin, end));
        if (i >= 3) milliseconds.push_back(time);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::nth_element(milliseconds.begin(), milliseconds.begin() + times / 2, milliseconds.end());
    return static_cast<double>(milliseconds[static_cast<std::size_t>(times / 2)]) * 1e-3;
}

/// Products on tensor cores that depend on nothing else: 8 independent ones in a row.
/// @tparam T  of sums: float for products of halves, std::int32_t for those of bytes
template <class T>
struct MatrixPeak {
    static constexpr unsigned warps = 8, at_once = 2, rounds = 4096;
    static constexpr double operations = 2.0 * 16 * 8 * (std::is_same_v<T, float> ? 16 : 32) * 8 * rounds * warps;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned, unsigned, unsigned, T* out) noexcept {
        block.each_warp([&](typename M::Warp& warp) {
            typename M::template Lanes<std::uint32_t> a[4], b[2];
            typename M::template Lanes<T> c[8][4];
            warp.each([&](unsigned lane) {
                for (auto& x : a) x[lane] = lane;
                for (auto& x : b) x[lane] = lane;
                for (auto& x : c) {
                    for (auto& y : x) y[lane] = 0;
                }
            });
            for (unsigned i = 0; i < rounds; ++i) {
                XQUANT_UNROLL
                for (auto& x : c) warp.multiply(x, a, b);
            }
            warp.each([&](unsigned lane) {
                T sum = 0;
                for (auto& x : c) {
                    for (auto& y : x) sum += y[lane];
                }
                if (sum == T(12345)) out[lane] = sum;
            });
        });
    }
};

struct Limits {
    double bytes, halves, codes;  ///< of a second: copied, and operations of the two kinds of products
};

template <class T>
double measure_peak() {
    backend::CudaDevice device(nullptr);
    const Array<T> out(32);
    const unsigned blocks = 2 * device.blocks_at_once();
    const double time = seconds_of([&] { device.launch<MatrixPeak<T>>(blocks, 1U, 1U, 0, out.data()); });
    return MatrixPeak<T>::operations * blocks / time;
}

Limits measure_limits() {
    const Array<std::byte> from(std::size_t{1} << 30U), to(std::size_t{1} << 30U);
    const double copy = seconds_of([&] {
        check_cuda("cudaMemcpyAsync", cudaMemcpyAsync(to.data(), from.data(), from.bytes(), cudaMemcpyDeviceToDevice));
    });
    return {2.0 * static_cast<double>(from.bytes()) / copy, measure_peak<float>(), measure_peak<std::int32_t>()};
}

/// Rows to codes, as a step does it, but for where rows and pages come from.
struct EncodeRows {
    static constexpr unsigned warps = 4, at_once = 4;
    template <class M>
    static XQUANT_DEVICE void run(typename M::Block& block, unsigned x, unsigned, unsigned, const float* rows,
                                  std::size_t n, MutableStreamView out, unsigned blocks) noexcept {
        using namespace backend::gpu;
        const RuleScale scale(ScaleRule::min_max, out.format);
        block.each_warp([&](typename M::Warp& warp) {
            for (std::size_t part = x * warps + warp.index; part < encode_parts(out.format, n);
                 part += blocks * warps) {
                encode_part<M>(warp, part, rows, out.format.width, 0, n, out, scale);
            }
        });
    }
};

struct Row {
    std::string verb, scheme, shape;
    std::size_t tokens, batch;
    double seconds, bytes;
    double halves, codes;  ///< operations of the two kinds

    [[nodiscard]] double predicted(const Limits& limits) const {
        return std::max(bytes / limits.bytes, halves / limits.halves + codes / limits.codes);
    }
};

struct NamedShape {
    const char* name;
    LayerShape shape;
};
constexpr std::size_t fed = 2048;  ///< tokens appended at once

/// What is rebuilt for a token and kv head.
struct Rebuilt {
    std::size_t channels = 0;  ///< of latents
    bool codes = false;        ///< by products of bytes
};

/// Operations on tensor cores of `rows` query rows (of one sequence) and a token.
struct Work {
    double halves, codes;
};
Work work_of(const LayerShape& shape, const Rebuilt& rebuilt, std::size_t rows) {
    const auto number = [](std::size_t n) { return static_cast<double>(n); };
    const std::size_t queries = rows * shape.heads / shape.kv_heads;
    const std::size_t most = queries <= 16 ? 16 : backend::gpu::prefill_queries(128);
    const double rebuilding =
        number(shape.kv_heads * ((queries + most - 1) / most)) * 2 * number(rebuilt.channels) * number(shape.head_dim);
    const double attending = number(rows * shape.heads) * 4 * number(shape.head_dim);
    return {attending + (rebuilt.codes ? 0 : rebuilding), rebuilt.codes ? rebuilding : 0};
}

template <class Cache>
void measure(const char* scheme, const NamedShape& of, const Model& model, const Rebuilt& rebuilt, std::size_t tokens,
             std::size_t batch, std::vector<Row>& rows) {
    const LayerShape& shape = of.shape;
    Cache cache(model);
    const std::size_t q_width = shape.heads * shape.head_dim;
    test::Random random(5);
    const Array<float> x(random.rows(fed * shape.width)), q(random.rows(fed * q_width)), out(fed * q_width);
    std::vector<StepPart> ones;
    const auto feed = [&](Sequence sequence, std::size_t n) {
        auto step = cache.begin({{sequence, n}});
        step.append(0, MatrixView(x.data(), n, shape.width));
        step.commit();
    };
    for (std::size_t i = 0; i < batch; ++i) {
        const Sequence sequence = cache.create();
        for (std::size_t done = 0; done < tokens; done += fed) feed(sequence, std::min(fed, tokens - done));
        ones.push_back({sequence, 1});
    }
    const double stored = static_cast<double>(cache.bytes().stored());
    const auto count = static_cast<double>(tokens * batch);
    {
        auto step = cache.begin(ones);
        step.append(0, MatrixView(x.data(), batch, shape.width));
        const double time = seconds_of([&] { step.attend(0, MatrixView(q.data(), batch, q_width), out.data()); });
        const Work work = work_of(shape, rebuilt, 1);
        rows.push_back(
            {"attend_decode", scheme, of.name, tokens, batch, time, stored, work.halves * count, work.codes * count});
    }
    if (batch == 1) {
        auto step = cache.begin({{ones[0].sequence, fed}});
        step.append(0, MatrixView(x.data(), fed, shape.width));
        const double time = seconds_of([&] { step.attend(0, MatrixView(q.data(), fed, q_width), out.data()); }, 3);
        const Work work = work_of(shape, rebuilt, fed);
        rows.push_back(
            {"attend_prefill", scheme, of.name, tokens, fed, time, stored, work.halves * count, work.codes * count});
    }
}

template <class Quantizer, class Axis>
void measure_encode(const char* scheme, std::vector<Row>& rows) {
    constexpr std::size_t n = 32768, width = 4096;
    StreamFormat format = xquant::make_codec<Quantizer, Axis>(width).format;
    format.tokens = n;
    test::Random random(3);
    const Array<float> values(random.rows(n * width));
    const Array<std::byte> codes(format.code_bytes(n)), scales(format.scale_bytes(n));
    auto* halves = reinterpret_cast<f16*>(scales.data());
    const MutableStreamView out{format, codes.data(), halves, halves + scales.bytes() / 4, nullptr, nullptr};
    backend::CudaDevice device(nullptr);
    const unsigned blocks = 4 * device.blocks_at_once();
    const double time =
        seconds_of([&] { device.launch<EncodeRows>(blocks, 1U, 1U, 0, values.data(), n, out, blocks); });
    rows.push_back({"encode", scheme, "4096 channels", n, 1, time,
                    static_cast<double>(values.bytes() + codes.bytes() + scales.bytes()), 0, 0});
}

void print(const std::vector<Row>& rows, const Limits& limits) {
    std::printf(
        "| verb | shape | T | batch | scheme | time, us | x f16 | GB/s | copy | TOP/s | matrix | predicted, us |\n");
    std::printf("|---|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|\n");
    for (const Row& row : rows) {
        const auto is_f16 = [&](const Row& other) {
            return other.scheme == "f16" && other.verb == row.verb && other.shape == row.shape &&
                   other.tokens == row.tokens && other.batch == row.batch;
        };
        const auto f16 = std::find_if(rows.begin(), rows.end(), is_f16);
        const double bandwidth = row.bytes / row.seconds, rate = (row.halves + row.codes) / row.seconds;
        const double busy = (row.halves / limits.halves + row.codes / limits.codes) / row.seconds;
        std::printf("| %s | %s | %zu | %zu | %s | %.1f | %.2f | %.0f | %.0f %% | %.1f | %.0f %% | %.1f |\n",
                    row.verb.c_str(), row.shape.c_str(), row.tokens, row.batch, row.scheme.c_str(), row.seconds * 1e6,
                    f16 == rows.end() ? 0.0 : row.seconds / f16->seconds, bandwidth * 1e-9,
                    100 * bandwidth / limits.bytes, rate * 1e-12, 100 * busy, row.predicted(limits) * 1e6);
    }
}

void write_json(const std::string& path, const std::vector<Row>& rows, const Limits& limits,
                const std::string& device) {
    nlohmann::json all{{"device", device},
                       {"copy_bytes_per_second", limits.bytes},
                       {"half_operations_per_second", limits.halves},
                       {"code_operations_per_second", limits.codes}};
    for (const Row& row : rows) {
        all["rows"].push_back({{"verb", row.verb},
                               {"scheme", row.scheme},
                               {"shape", row.shape},
                               {"tokens", row.tokens},
                               {"batch", row.batch},
                               {"seconds", row.seconds},
                               {"bytes", row.bytes},
                               {"half_operations", row.halves},
                               {"code_operations", row.codes},
                               {"predicted_seconds", row.predicted(limits)}});
    }
    std::ofstream(path) << all.dump(1) << '\n';
}

template <class Quantizer, class Layout, class Projection>
using DeviceCache = XCache<Quantizer, Layout, CrossLayer<Off>, Projection, backend::cuda>;

}  // namespace

int main(int argc, char** argv) {
    bool quick = false;
    std::string json;
    for (int i = 1; i < argc; ++i) {
        if (std::strcmp(argv[i], "--quick") == 0) {
            quick = true;
        } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
            json = argv[++i];
        } else {
            std::printf("xquant_bench_cuda [--quick] [--json FILE]\n");
            return std::strcmp(argv[i], "--help") == 0 ? 0 : 2;
        }
    }
    const std::string device = test::find_gpu("nothing was measured");
    if (device.empty()) return test::skipped;
    const Limits limits = measure_limits();
    std::printf(
        "%s; copy %.0f GB/s, products of halves %.0f TFLOP/s (mma.m16n8k16), of bytes %.0f TOP/s (mma.m16n8k32)\n\n",
        device.c_str(), limits.bytes * 1e-9, limits.halves * 1e-12, limits.codes * 1e-12);

    using Token = Layout<PerToken>;
    using Split = Layout<PerChannel, PerToken>;
    std::vector<Row> rows;
    measure_encode<Uniform<4>, PerToken>("4 bit per token", rows);
    measure_encode<Uniform<4>, PerChannel>("4 bit per channel", rows);
    const NamedShape shapes[] = {{"llama3_8b", {4096, 32, 8, 128}}, {"llama2_7b", {4096, 32, 32, 128}}};
    for (const NamedShape& of : shapes) {
        const test::Setup setup(of.shape, RopePairing::halves);
        for (const std::size_t tokens :
             {std::size_t{4096}, std::size_t{8192}, std::size_t{32768}, std::size_t{65536}, std::size_t{131072}}) {
            for (const std::size_t batch : {std::size_t{1}, std::size_t{8}, std::size_t{32}, std::size_t{64}}) {
                if (tokens * batch * of.shape.kv_heads > std::size_t{65536} * 64) continue;  // 17 GB of f16
                if (quick && (tokens != 65536 || batch != 8)) continue;
                const LayerShape& s = of.shape;
                measure<DeviceCache<Unquantized<f16>, Token, Projection<KeyValue<AfterRope>>>>("f16", of, setup.model,
                                                                                               {}, tokens, batch, rows);
                measure<DeviceCache<Uniform<8, 64>, Token, Projection<KeyValue<AfterRope, Hadamard>>>>(
                    "kv8", of, setup.model, {}, tokens, batch, rows);
                measure<DeviceCache<Uniform<4, 64>, Token, Projection<KeyValue<AfterRope, Hadamard>>>>(
                    "kv4", of, setup.model, {}, tokens, batch, rows);
                measure<DeviceCache<Uniform<4>, Split, Projection<HeadSvd>>>("svd_head4", of, setup.model,
                                                                             {s.head_dim, false}, tokens, batch, rows);
                if (s.kv_heads == s.heads && tokens <= 8192) {
                    measure<DeviceCache<Uniform<4>, Token, Projection<Rotated>>>(
                        "x4_rot", of, setup.model, {2 * s.width, true}, tokens, batch, rows);
                }
            }
        }
    }
    print(rows, limits);
    if (!json.empty()) write_json(json, rows, limits, device);
    return 0;
}
