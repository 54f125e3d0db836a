/// Every option of caches that store differences, and ranks of every SVD: what they cost is counted, what they lose is
/// bounded.
#include <xquant/projection/joint_svd.hpp>
#include <xquant/xquant.hpp>

#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

constexpr std::size_t layer_count = 6, d = 96, tokens = 140;
constexpr LayerShape shape{.width = d, .heads = 4, .kv_heads = 1, .head_dim = 32};

/// A model, X that changes from layer to layer by a third of itself, and queries.
struct Data {
    Data() : setup(shape, RopePairing::halves, layer_count) {
        test::Random random(6);
        for (std::size_t i = 0; i < layer_count; ++i) {
            x.push_back(random.rows(tokens * d, i == 0 ? 1.0F : 0.3F));
            for (std::size_t j = 0; j < x[i].size() && i > 0; ++j) x[i][j] += x[i - 1][j];
            q.push_back(random.rows(tokens * shape.heads * shape.head_dim, 2));
        }
    }
    test::Setup setup;
    std::vector<std::vector<float>> x, q;
};

const Data& data() {
    static const Data all;
    return all;
}

struct Result {
    double bits = 0;
    std::size_t accumulator = 0;
    std::vector<std::vector<float>> out;  ///< of each layer
};

/// Two steps, everything but the second's rows read from codes. What was predicted must be what was allocated.
template <class Cache>
Result run(Options options = {}) {
    options.sinks = options.recent = 0;
    options.strict = true;
    options.weights = WeightType::f32;
    const std::size_t q_width = shape.heads * shape.head_dim;
    Cache cache(data().setup.model, options);
    const Sequence sequence = cache.create();
    Result result;
    result.out.resize(layer_count);
    std::size_t done = 0;
    for (const std::size_t n : {std::size_t{130}, std::size_t{10}}) {
        auto step = cache.begin({{sequence, n}});
        result.accumulator = cache.bytes().accumulator;
        for (std::size_t i = 0; i < layer_count; ++i) {
            result.out[i].resize((done + n) * q_width);
            step.append(i, MatrixView(data().x[i].data() + done * d, n, d));
            step.attend(i, MatrixView(data().q[i].data() + done * q_width, n, q_width),
                        result.out[i].data() + done * q_width);
        }
        step.commit();
        done += n;
    }
    Bytes now = cache.bytes();
    now.workspace = 0;
    CHECK(now == Cache::predict(data().setup.model, options, tokens));
    result.bits = cache.bits_per_token_layer(128);
    return result;
}

double error_of(const Result& found, const Result& exact, std::size_t layer) {
    double off = 0, size = 0;
    for (std::size_t i = 0; i < exact.out[layer].size(); ++i) {
        off += std::pow(static_cast<double>(found.out[layer][i] - exact.out[layer][i]), 2);
        size += std::pow(static_cast<double>(exact.out[layer][i]), 2);
    }
    return std::sqrt(off / size);
}

using Plain32 = XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>;
const Result& exact() {
    static const Result result = run<Plain32>();
    return result;
}

template <class P, class Axis, class Accumulator, class Q = Uniform<6, 64>>
using Differences = XCache<Q, Layout<Axis>, CrossLayer<Delta, Uniform<8, 32>, Accumulator>, Projection<P>>;

}  // namespace

TEST_CASE("every accumulator and axis, for X and for latents: the last layer is no worse than the first difference") {
    const auto check = [&]<class P, class Axis, class Accumulator>(const char* name, P, Axis,
                                                                   std::type_identity<Accumulator>, std::size_t bits) {
        using Cache = Differences<P, Axis, Accumulator>;
        const Result result = run<Cache>();
        const double first = error_of(result, exact(), 3), last = error_of(result, exact(), 5);
        INFO(name << ", accumulator of " << bits << " bits: " << first << ", " << last);
        CHECK(first < 0.03);
        CHECK(first > 0.001);
        CHECK(last < 1.6 * first);
        // Two pages of D values for each token, and their headers; groups of 32 bits for quantized ones.
        CHECK(result.accumulator == Cache::predict_accumulator(data().setup.model, {}, tokens));
        CHECK(result.accumulator >= 2 * 128 * d * bits / 8);
        CHECK(result.accumulator <= 2 * (128 * (d * bits / 8 + 12) + 192));
    };
    check("X rotated, per token", Rotated{}, PerToken{}, std::type_identity<f16>{}, 16);
    check("X rotated, per token", Rotated{}, PerToken{}, std::type_identity<Uniform<8, 32>>{}, 8);
    check("X rotated, per channel", Rotated{}, PerChannel{}, std::type_identity<bf16>{}, 16);
    check("latents, per token", JointSvd<NoMix, FullRank>{}, PerToken{}, std::type_identity<float>{}, 32);
    check("latents, per token", JointSvd<NoMix, FullRank>{}, PerToken{},
          std::type_identity<WithOutliers<Uniform<8, 96>>>{}, 8);
    check("latents rotated, per channel", JointSvd<Hadamard, FullRank>{}, PerChannel{},
          std::type_identity<Uniform<8, 32>>{}, 8);
}

TEST_CASE("outliers of differences are kept like any others") {
    using Dense = Uniform<2, 96>;
    const Result dense = run<Differences<Rotated, PerToken, float, Dense>>();
    const Result sparse = run<Differences<Rotated, PerToken, float, WithOutliers<Dense, 6>>>();
    CHECK(error_of(sparse, exact(), 5) < 0.9 * error_of(dense, exact(), 5));
    CHECK(error_of(sparse, exact(), 5) > 0.1 * error_of(dense, exact(), 5));
    CHECK(std::abs(sparse.bits - dense.bits - 3 * 6 * 24.0 / layer_count) < 1e-9);
}

TEST_CASE("layers at the start and at the end keep the first quantizer's bits, and are as good") {
    using Cache = XCache<Uniform<2, 32>, Layout<PerToken>, CrossLayer<Delta, Uniform<8, 32>>, Projection<Rotated>>;
    Options early, late;
    early.base_layer = 3;
    late.last_layers = 2;
    const Result plain = run<Cache>(), start = run<Cache>(early), end = run<Cache>(late);
    const double two = d * 2 + 3 * 32, eight = d * 8 + 3 * 32;
    CHECK(std::abs(plain.bits - (3 * eight + 3 * two) / 6) < 1e-9);
    CHECK(std::abs(start.bits - (4 * eight + 2 * two) / 6) < 1e-9);
    CHECK(std::abs(end.bits - (5 * eight + two) / 6) < 1e-9);
    CHECK(error_of(start, exact(), 3) < 0.1 * error_of(plain, exact(), 3));
    CHECK(error_of(end, exact(), 3) == error_of(plain, exact(), 3));
    // What layer 3 got wrong is made good by layer 4: the loop is closed.
    CHECK(error_of(end, exact(), 4) < 0.1 * error_of(plain, exact(), 4));
    CHECK(error_of(end, exact(), 5) < 0.1 * error_of(plain, exact(), 5));
}

TEST_CASE("ranks of every SVD: fewer bits, more error, nothing lost at full rank") {
    const auto check = [&]<class Full, class Most, class Few>(const char* name, std::type_identity<Full>,
                                                              std::type_identity<Most>, std::type_identity<Few>,
                                                              double full_bits, double most_bits, double few_bits) {
        const Result full = run<Full>(), most = run<Most>(), few = run<Few>();
        INFO(name);
        CHECK(std::abs(full.bits - full_bits) < 1e-9);
        CHECK(std::abs(most.bits - most_bits) < 1e-9);
        CHECK(std::abs(few.bits - few_bits) < 1e-9);
        for (std::size_t layer = 0; layer < layer_count; ++layer) CHECK(error_of(full, exact(), layer) < 1e-5);
        CHECK(error_of(most, exact(), 5) > 1e-3);
        CHECK(error_of(most, exact(), 5) < 0.5);
        CHECK(error_of(few, exact(), 5) > 1.2 * error_of(most, exact(), 5));
    };
    const auto alone = []<class P>(P) {
        return std::type_identity<XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<P>>>{};
    };
    const auto difference = []<class P>(P) {
        return std::type_identity<
            XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Delta, Unquantized<float>>, Projection<P>>>{};
    };
    check("SplitSvd", alone(SplitSvd{}), alone(SplitSvdOf<Rank<28>>{}), alone(SplitSvdOf<Rank<16>>{}), 32.0 * 64,
          32.0 * 56, 32.0 * 32);
    check("HeadSvd", alone(HeadSvd{}), alone(HeadSvdOf<Rank<28>>{}), alone(HeadSvdOf<Rank<16>>{}), 32.0 * 64, 32.0 * 60,
          32.0 * 48);
    check("JointSvd", alone(JointSvd<NoMix, Rank<100>>{}), alone(JointSvd<NoMix, Rank<56>>{}),
          alone(JointSvd<Hadamard, Rank<32>>{}), 32.0 * 64, 32.0 * 56, 32.0 * 32);
    // Layers below the base are SplitSvd of full rank, the base is X.
    const double below = 2 * 64 + 96;
    check("differences", difference(JointSvd<Hadamard, FullRank>{}), difference(JointSvd<Hadamard, Rank<56>>{}),
          difference(JointSvd<Hadamard, Rank<32>>{}), 32 * (below + 3 * 64) / 6, 32 * (below + 3 * 56) / 6,
          32 * (below + 3 * 32) / 6);
}

TEST_CASE("a share of the energy keeps the directions that hold it") {
    const Layer& layer = data().setup.model.layers[0];
    const std::vector<double> values = singular_values(layer.w_k, 0, 32);
    double total = 0, kept = 0;
    for (const double value : values) total += value * value;
    const std::size_t rank = EnergyShare<900>::rank(layer.w_k, 0, 32);
    CHECK(rank > 1);
    CHECK(rank < 32);
    for (std::size_t i = 0; i + 1 < rank; ++i) kept += values[i] * values[i];
    CHECK(kept < 0.9 * total);
    CHECK(kept + values[rank - 1] * values[rank - 1] >= 0.9 * total);
    CHECK(EnergyShare<1000>::rank(layer.w_k, 0, 32) == 32);
    CHECK(SplitSvdOf<EnergyShare<900>>::footprint(layer).widths[0] == rank);
    CHECK(Rank<40>::rank(layer.w_k, 0, 32) == 32);
}
