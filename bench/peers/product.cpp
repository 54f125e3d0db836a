// How fast is the product that rebuilds keys, z [tokens, width] A [width, Dh], beside Eigen's and OpenBLAS's? Both operands in a
// cache of the processor, as in attention. Names: product/who/tokens x width x Dh. `ours` is the f32 product of the backend;
// `ours_codes` rebuilds the same keys from 4-bit codes, unpacking included.
#include <cblas.h>

#include <Eigen/Core>

#include "../formats.hpp"

namespace bench {
namespace {

struct Size {
    std::size_t tokens, width, dh;
};

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// z, A and room for K; and K in f64.
struct Product {
    explicit Product(Size of)
        : size(of),
          z(random_values(of.tokens * of.width, 1)),
          a(random_values(of.width * of.dh, 2, 1 / std::sqrt(static_cast<float>(of.width)))),
          k(of.tokens * of.dh) {}

    [[nodiscard]] double error(const std::vector<float>& from) const {
        double difference = 0, total = 0;
        for (std::size_t t = 0; t < size.tokens; ++t) {
            for (std::size_t i = 0; i < size.dh; ++i) {
                double sum = 0;
                for (std::size_t c = 0; c < size.width; ++c) {
                    sum += static_cast<double>(from[t * size.width + c]) * static_cast<double>(a[c * size.dh + i]);
                }
                difference += std::pow(static_cast<double>(k[t * size.dh + i]) - sum, 2);
                total += sum * sum;
            }
        }
        return std::sqrt(difference / total);
    }

    Size size;
    std::vector<float> z, a, k;
};

template <class F>
void measure(benchmark::State& state, Product& p, const std::vector<float>& from, double bound, F&& run) {
    run();
    if (!(p.error(from) <= bound)) return state.SkipWithError("the product is wrong");
    const double start = thread_seconds();
    for (auto _ : state) {
        run();
        benchmark::ClobberMemory();
    }
    count(state, {0, static_cast<double>(2 * p.size.tokens * p.size.width * p.size.dh)}, thread_seconds() - start);
}

void eigen(benchmark::State& state, Size size) {
    Product p(size);
    const auto rows = static_cast<Eigen::Index>(size.tokens), depth = static_cast<Eigen::Index>(size.width),
               columns = static_cast<Eigen::Index>(size.dh);
    const Eigen::Map<const RowMajor> z(p.z.data(), rows, depth), a(p.a.data(), depth, columns);
    Eigen::Map<RowMajor> k(p.k.data(), rows, columns);
    measure(state, p, p.z, 1e-5, [&] { k.noalias() = z * a; });
}

void openblas(benchmark::State& state, Size size) {
    Product p(size);
    const auto rows = static_cast<int>(size.tokens), depth = static_cast<int>(size.width),
               columns = static_cast<int>(size.dh);
    measure(state, p, p.z, 1e-5, [&] {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, columns, depth, 1, p.z.data(), depth, p.a.data(),
                    columns, 0, p.k.data(), columns);
    });
}

template <class Tag>
void ours(benchmark::State& state, Size size) {
    Product p(size);
    measure(state, p, p.z, 1e-5, [&] {
        xq::backend::multiply(Tag{}, {p.z.data(), size.width, 1}, {p.a.data(), size.width, size.dh, size.dh},
                              {p.k.data(), size.tokens, size.dh, size.dh}, false);
    });
}

template <class Tag>
void ours_codes(benchmark::State& state, Size size) {
    Product p(size);
    const xq::QuantizedRows rows =
        xq::quantize<xq::Uniform<4, 128>, xq::PerToken>(xq::MatrixView(p.z.data(), size.tokens, size.width));
    std::vector<float> decoded(p.z.size()), scratch(xq::backend::rematerialize_scratch(size.dh));
    xq::dequantize<xq::backend::scalar>(rows, decoded.data());
    const xq::HeadDecoder head{0, 0, size.width, p.a.data(), nullptr, size.dh};
    // A backend may round A to 8 bits.
    measure(state, p, decoded, 2e-2, [&] {
        xq::backend::rematerialize(Tag{}, rows.view(), head, 0,
                                   {p.k.data(), size.tokens, size.dh, size.dh, xq::backend::TileOrder::token_major},
                                   scratch.data());
    });
}

[[maybe_unused]] const bool registered = [] {
    for (const Size size : {Size{128, 64, 64}, Size{128, 576, 64}, Size{128, 128, 128}}) {
        const std::string shape =
            "/" + std::to_string(size.tokens) + "x" + std::to_string(size.width) + "x" + std::to_string(size.dh);
        const auto add = [&](const std::string& who, void (*run)(benchmark::State&, Size)) {
            benchmark::RegisterBenchmark(("product/" + who + shape).c_str(), run, size)
                ->Unit(benchmark::kMicrosecond)
                ->MinTime(0.05);
        };
        add("eigen", eigen);
        add("openblas", openblas);
        for_each_backend([&]<class Tag>(Tag) {
            add(std::string("ours_") + Tag::name, ours<Tag>);
            add(std::string("ours_codes_") + Tag::name, ours_codes<Tag>);
        });
    }
    return true;
}();

}  // namespace
}  // namespace bench

BENCHMARK_MAIN();
