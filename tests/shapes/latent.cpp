/// Multi-head latent attention against float64: K and V from the model's own latent, a rotary part that all heads
/// share.
#include <xquant/projection/svd.hpp>
#include <xquant/xquant.hpp>

#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;

namespace {

/// Width 96, 3 heads: keys of 16 shared and 24 own channels, values of 32.
struct LatentModel {
    static constexpr std::size_t d = 96, r = 48, heads = 3, shared = 16, own = 24, dh = shared + own, dv = 32;

    explicit LatentModel(RopePairing pairing) {
        test::Random random(2);
        down = random.rows(r * d, 0.18F);
        down_shared = random.rows(shared * d, 0.18F);
        gain = random.rows(r, 0.5F);
        for (float& value : gain) value += 1.2F;
        w_k = random.rows(heads * own * r, 0.25F);
        w_v = random.rows(heads * dv * r, 0.25F);
        model = Model::uniform(1, {d, heads, heads, dh}, Rope::standard(shared, 10000.0, pairing));
        Layer& layer = model.layers[0];
        layer.w_k = MatrixView(w_k.data(), heads * own, r);
        layer.w_v = MatrixView(w_v.data(), heads * dv, r);
        layer.latent.w_down = MatrixView(down.data(), r, d);
        layer.latent.w_shared = MatrixView(down_shared.data(), shared, d);
        layer.latent.norm = gain.data();
        layer.latent.norm_epsilon = 1e-3;
    }
    LatentModel(const LatentModel&) = delete;
    LatentModel& operator=(const LatentModel&) = delete;

    Model model;
    std::vector<float> down, down_shared, gain, w_k, w_v;
};

double dot(const float* a, const double* b, std::size_t n) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
    return sum;
}

/// The definition, token by token: out [n, heads, dh], channels from dv on 0.
std::vector<double> naive(const LatentModel& m, const std::vector<float>& x, const std::vector<float>& q) {
    using M = LatentModel;
    const Rope& rope = m.model.layers[0].rope;
    const std::size_t n = x.size() / M::d;
    std::vector<double> keys(n * M::heads * M::dh), values(n * M::heads * M::dv), out(n * M::heads * M::dh, 0.0);
    for (std::size_t t = 0; t < n; ++t) {
        const std::vector<double> row(x.begin() + static_cast<std::ptrdiff_t>(t * M::d),
                                      x.begin() + static_cast<std::ptrdiff_t>((t + 1) * M::d));
        std::vector<double> latent(M::r), turned(M::shared);
        double square = 0;
        for (std::size_t i = 0; i < M::r; ++i) {
            latent[i] = dot(m.down.data() + i * M::d, row.data(), M::d);
            square += latent[i] * latent[i];
        }
        for (std::size_t i = 0; i < M::r; ++i) {
            latent[i] *= static_cast<double>(m.gain[i]) / std::sqrt(square / static_cast<double>(M::r) + 1e-3);
        }
        for (std::size_t i = 0; i < M::shared; ++i) turned[i] = dot(m.down_shared.data() + i * M::d, row.data(), M::d);
        const std::size_t pairs = M::shared / 2;
        for (std::size_t j = 0; j < pairs; ++j) {
            const bool halves = rope.pairing == RopePairing::halves;
            double &a = turned[halves ? j : 2 * j], &b = turned[halves ? j + pairs : 2 * j + 1];
            const double angle = static_cast<double>(t) *
                                 std::pow(10000.0, -static_cast<double>(2 * j) / static_cast<double>(M::shared));
            const double u = a, v = b;
            a = u * std::cos(angle) - v * std::sin(angle);
            b = u * std::sin(angle) + v * std::cos(angle);
        }
        for (std::size_t h = 0; h < M::heads; ++h) {
            double* key = keys.data() + (t * M::heads + h) * M::dh;
            for (std::size_t i = 0; i < M::shared; ++i) key[i] = turned[i];
            for (std::size_t i = 0; i < M::own; ++i) {
                key[M::shared + i] = dot(m.w_k.data() + (h * M::own + i) * M::r, latent.data(), M::r);
            }
            for (std::size_t i = 0; i < M::dv; ++i) {
                values[(t * M::heads + h) * M::dv + i] =
                    dot(m.w_v.data() + (h * M::dv + i) * M::r, latent.data(), M::r);
            }
        }
    }
    std::vector<double> scores(n);
    for (std::size_t t = 0; t < n; ++t) {
        for (std::size_t h = 0; h < M::heads; ++h) {
            double total = 0;
            for (std::size_t s = 0; s <= t; ++s) {
                scores[s] = std::exp(
                    dot(q.data() + (t * M::heads + h) * M::dh, keys.data() + (s * M::heads + h) * M::dh, M::dh) /
                    std::sqrt(static_cast<double>(M::dh)));
                total += scores[s];
            }
            for (std::size_t s = 0; s <= t; ++s) {
                for (std::size_t i = 0; i < M::dv; ++i) {
                    out[(t * M::heads + h) * M::dh + i] += scores[s] / total * values[(s * M::heads + h) * M::dv + i];
                }
            }
        }
    }
    return out;
}

/// The largest error of a cache, relative to the largest output.
template <class Cache>
double error_of(const LatentModel& m, const Options& options) {
    using M = LatentModel;
    constexpr std::size_t steps[] = {1, 7, 128, 1, 60, 1};
    std::size_t n = 0;
    for (const std::size_t some : steps) n += some;
    test::Random random(8);
    const std::vector<float> x = random.rows(n * M::d), q = random.rows(n * M::heads * M::dh, 1.5F);
    std::vector<float> out(n * M::heads * M::dh, -1.0F);
    Cache cache(m.model, options);
    const Sequence sequence = cache.create();
    std::size_t done = 0;
    for (const std::size_t some : steps) {
        auto step = cache.begin({{sequence, some}});
        step.append(0, MatrixView(x.data() + done * M::d, some, M::d));
        step.attend(0, MatrixView(q.data() + done * M::heads * M::dh, some, M::heads * M::dh),
                    out.data() + done * M::heads * M::dh);
        step.commit();
        done += some;
    }
    CHECK(Cache::predict(m.model, options, n).stored() == cache.bytes().stored());
    CHECK(Cache::predict(m.model, options, n).weights == cache.bytes().weights);
    const std::vector<double> exact = naive(m, x, q);
    double largest = 0, worst = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
        largest = std::max(largest, std::abs(exact[i]));
        worst = std::max(worst, test::distance_to(exact[i], out[i]));
    }
    return worst / largest;
}

using Exact = XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<Latent>>;

}  // namespace

TEST_CASE("latent attention, unquantized, is the model's") {
    for (const RopePairing pairing : {RopePairing::halves, RopePairing::interleaved}) {
        const LatentModel m(pairing);
        for (const bool strict : {false, true}) {
            Options options;
            options.rows = DType::f32;
            options.weights = WeightType::f32;
            options.recent = 10;
            options.strict = strict;
            CHECK(error_of<Exact>(m, options) < 1e-5);
        }
    }
}

TEST_CASE("latent attention, quantized: the rotary part stays in f16, and its bits are counted") {
    const LatentModel m(RopePairing::interleaved);
    Options options;
    options.recent = 0;
    options.strict = true;
    const double four = error_of<preset::mla<4>>(m, options), eight = error_of<preset::mla<8>>(m, options);
    CHECK(eight < 0.01);
    CHECK(eight > 1e-4);
    CHECK(four < 0.15);
    CHECK(four > 5 * eight);
    const preset::mla<4> cache(m.model, options);
    CHECK(cache.bits_per_token_layer(128) == 48 * 4 + 32 + 16 * 16);
}

TEST_CASE("own key channels are absorbed into few queries, as beside a partial RoPE") {
    AttendTask task;
    const std::vector<float> matrix(512 * 192);
    task.head_dim = 192;
    task.rope.pairs = 32;
    task.shared_channels = 64;
    task.rows = 1;
    task.key = {0, 0, 512, matrix.data(), nullptr};
    CHECK(absorbs_keys(task));
    task.rows = 1000;
    CHECK_FALSE(absorbs_keys(task));
}

TEST_CASE("latent attention that does not fit is refused") {
    using M = LatentModel;
    LatentModel m(RopePairing::halves);
    Layer& layer = m.model.layers[0];
    const Layer good = layer;
    const auto refused = [&] {
        CHECK_THROWS_AS(Exact(m.model), shape_error);
        layer = good;
    };
    CHECK_THROWS_AS((XCache<>(m.model)), shape_error);  // stores X, from which K and V do not come
    CHECK_THROWS_AS(preset::kivi<4>(m.model), shape_error);
    CHECK_THROWS_AS(XCache<>::predict(m.model, {}, 10), shape_error);
    layer.latent = {};
    refused();
    layer.rope = Rope::standard(M::shared - 2);
    refused();
    layer.w_k.rows -= 1;
    refused();
    layer.w_v.rows += M::heads * 9;
    refused();
    layer.latent.w_down.cols -= 1;
    refused();
    layer.latent.w_shared = {};
    refused();
    layer.k_norm = m.gain.data();
    refused();
    CHECK_NOTHROW(Exact(m.model));
}
