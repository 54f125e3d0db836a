/// Everything that steps, windows, sinks and several sequences promise holds for caches that store differences.
#include <xquant/projection/joint_svd.hpp>
#include <xquant/xquant.hpp>

#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/model.hpp"
#include "support/oracle.hpp"

using namespace xquant;

namespace {

constexpr std::size_t layer_count = 6, width = 96;
constexpr LayerShape shape{.width = width, .heads = 4, .kv_heads = 1, .head_dim = 32};

using Exact = XCache<Unquantized<float>, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<AfterRope>>>;
template <class P, class Q = Unquantized<float>>
using Differences = XCache<Q, Layout<PerToken>, CrossLayer<Delta, Q>, Projection<P>>;

test::Setup setup() { return {shape, RopePairing::halves, layer_count}; }

/// The rows of a token depend on its number alone, so that it does not matter in which step it comes.
void fill(std::size_t token, std::size_t layer, std::uint32_t seed, std::size_t n, float* out) {
    test::Random random(static_cast<std::uint32_t>(token * 100 + layer) ^ seed);
    for (std::size_t c = 0; c < n; ++c) out[c] = random();
}

struct Feed {
    Sequence sequence;
    std::size_t tokens;  ///< so far
    std::uint32_t seed;
    std::vector<float> out{};  ///< of the last layer, token after token
};

/// Runs the tasks last to first.
struct Backwards {
    template <class F>
    void parallel_for(std::size_t n, F&& f) const {
        while (n > 0) f(--n);
    }
};

/// One step that adds n tokens to each of the sequences. Rows are spoiled after every append.
template <class Cache, class Executor = Serial>
void run(Cache& cache, std::vector<Feed*> feeds, std::size_t n, bool commit = true, Executor threads = {}) {
    std::vector<StepPart> parts;
    for (const Feed* feed : feeds) parts.push_back({feed->sequence, n});
    auto step = cache.begin(parts);
    const std::size_t rows = n * feeds.size(), heads = shape.heads * shape.head_dim;
    std::vector<float> x(rows * width), q(rows * heads), out(rows * heads);
    for (std::size_t layer = 0; layer < layer_count; ++layer) {
        for (std::size_t i = 0; i < rows; ++i) {
            const Feed& feed = *feeds[i / n];
            fill(feed.tokens + i % n, layer, feed.seed, width, x.data() + i * width);
            fill(feed.tokens + i % n, layer + 50, feed.seed, heads, q.data() + i * heads);
        }
        step.append(layer, MatrixView(x.data(), rows, width), threads);
        std::fill(x.begin(), x.end(), std::nanf(""));
        step.attend(layer, MatrixView(q.data(), rows, heads), out.data(), 0, threads);
    }
    if (!commit) return;
    step.commit();
    for (std::size_t i = 0; i < feeds.size(); ++i) {
        const auto begin = out.begin() + static_cast<std::ptrdiff_t>(i * n * heads);
        feeds[i]->out.insert(feeds[i]->out.end(), begin, begin + static_cast<std::ptrdiff_t>(n * heads));
        feeds[i]->tokens += n;
    }
}

float largest_error(const std::vector<float>& a, const std::vector<float>& b) {
    double worst = a.size() == b.size() ? 0 : 1e9;
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        worst = std::max(worst, test::distance_to(double{a[i]}, b[i]));
    }
    return static_cast<float>(worst);
}

constexpr std::size_t steps[] = {1, 7, 130, 1, 64, 100};

template <class Cache>
std::vector<float> outputs(const Options& options) {
    const test::Setup s = setup();
    Cache cache(s.model, options);
    Feed feed{cache.create(), 0, 1};
    for (const std::size_t n : steps) run(cache, {&feed}, n);
    return feed.out;
}

}  // namespace

TEST_CASE("unquantized differences are plain attention, whatever the steps, sinks and window") {
    for (const bool strict : {false, true}) {
        for (const std::size_t recent : {std::size_t{0}, std::size_t{50}}) {
            Options options;
            options.rows = DType::f32;
            options.weights = WeightType::f32;
            options.recent = recent;
            options.strict = strict;
            INFO("strict " << strict << ", recent " << recent);
            const std::vector<float> exact = outputs<Exact>(options);
            CHECK(largest_error(exact, outputs<Differences<Plain>>(options)) < 2e-5F);
            CHECK(largest_error(exact, outputs<Differences<Rotated>>(options)) < 2e-5F);
            CHECK(largest_error(exact, outputs<Differences<JointSvd<NoMix, FullRank>>>(options)) < 2e-5F);
            CHECK(largest_error(exact, outputs<Differences<JointSvd<Hadamard, FullRank>>>(options)) < 2e-5F);
        }
    }
}

TEST_CASE("differences grouped per channel are stored 128 tokens at a time") {
    using Cache = XCache<Uniform<8>, Layout<PerChannel>, CrossLayer<Delta, Uniform<8>>, Projection<Rotated>>;
    Options options;
    options.recent = 0;
    for (const bool strict : {false, true}) {
        options.strict = strict;
        const float error = largest_error(outputs<Exact>(options), outputs<Cache>(options));
        CHECK(error < 0.05F);
        CHECK(error > 1e-4F);
    }
}

TEST_CASE("sequences that share steps are each what they are alone, on any executor, bit for bit") {
    const test::Setup s = setup();
    using Cache = Differences<JointSvd<Hadamard, FullRank>, Uniform<3>>;
    Options options;
    options.recent = 20;
    Cache together(s.model, options), alone(s.model, options);
    Feed a{together.create(), 0, 1}, b{together.create(), 0, 2}, c{alone.create(), 0, 2}, d{alone.create(), 0, 1};
    run(together, {&a}, 33);
    run(together, {&a, &b}, 100);
    run(together, {&b, &a}, 60, true, Backwards{});
    run(together, {&a, &b}, 1);
    for (const std::size_t n : {100, 60, 1}) run(alone, {&c}, n);
    for (const std::size_t n : {33, 100, 60, 1}) run(alone, {&d}, n);
    CHECK(largest_error(b.out, c.out) == 0);
    CHECK(largest_error(a.out, d.out) == 0);
}

TEST_CASE("a step that is not committed leaves no trace") {
    const test::Setup s = setup();
    using Cache = Differences<Rotated, Uniform<3>>;
    Options options;
    options.recent = 0;
    Cache with(s.model, options), without(s.model, options);
    Feed a{with.create(), 0, 1}, b{without.create(), 0, 1};
    for (const std::size_t n : {60, 30, 90}) {
        run(with, {&a}, n + 3, false);
        run(with, {&a}, n);
        run(without, {&b}, n);
    }
    CHECK(largest_error(a.out, b.out) == 0);
}

TEST_CASE("a sealed sequence goes on from its codes") {
    const test::Setup s = setup();
    Options options;
    options.recent = 0;
    using Cache = XCache<Uniform<8>, Layout<PerChannel>, CrossLayer<Delta, Uniform<8>>, Projection<Rotated>>;
    Cache sealed(s.model, options);
    Exact exact(s.model, options);
    Feed a{sealed.create(), 0, 1}, b{exact.create(), 0, 1};
    run(sealed, {&a}, 70);
    run(exact, {&b}, 70);
    CHECK(sealed.bytes().tail > 0);
    sealed.seal(a.sequence);
    CHECK(sealed.bytes().tail == 0);
    run(sealed, {&a}, 20);
    run(exact, {&b}, 20);
    const float error = largest_error(a.out, b.out);
    CHECK(error < 0.05F);
    CHECK(error > 1e-4F);
}

TEST_CASE("accumulators are counted while a step lives, and predicted") {
    const test::Setup s = setup();
    Options options;
    options.recent = 0;
    using Cache = XCache<Uniform<2>, Layout<PerToken>, CrossLayer<Delta, Uniform<8>, f16>, Projection<Rotated>>;
    Cache cache(s.model, options);
    Feed feed{cache.create(), 0, 1};
    run(cache, {&feed}, 304);
    CHECK(cache.bytes().accumulator == 0);
    {
        const auto step = cache.begin({{feed.sequence, 1}});
        // 300 coded tokens and the one that is added: three pages of f16 rows and their headers.
        CHECK(cache.bytes().accumulator == Cache::predict_accumulator(s.model, options, 301));
        CHECK(cache.bytes().accumulator >= 3 * 128 * width * 2);
        CHECK(cache.bytes().accumulator < 3 * (128 * width * 2 + 256));
        CHECK(cache.peak_accumulator_bytes() == cache.bytes().accumulator);
    }
    CHECK(cache.bytes().accumulator == 0);
    Bytes now = cache.bytes();
    now.workspace = 0;
    CHECK(now == Cache::predict(s.model, options, 304));
    CHECK(Exact::predict_accumulator(s.model, options, 304) == 0);
}

TEST_CASE("mixed page_groups: each layer in the scheme that was chosen for it") {
    const test::Setup s = setup();
    using Cache = MixedCache<Scheme<Uniform<8>, Layout<PerChannel, PerToken>, Projection<HeadSvd>>,
                             Scheme<Uniform<8>, Layout<PerToken>, Projection<Rotated>>>;
    Options options;
    options.recent = 0;
    const std::size_t choice[] = {0, 1, 1, 0, 1, 0};
    Cache cache(s.model, choice, options);
    Exact exact(s.model, options);
    Feed a{cache.create(), 0, 1}, b{exact.create(), 0, 1};
    for (const std::size_t n : steps) {
        run(cache, {&a}, n);
        run(exact, {&b}, n);
    }
    const float error = largest_error(a.out, b.out);
    CHECK(error < 0.05F);
    CHECK(error > 1e-4F);
    Bytes now = cache.bytes();
    now.workspace = 0;
    CHECK(now == Cache::predict(s.model, choice, options, a.tokens));
    CHECK_THROWS_AS(Cache(s.model, {0, 1}), shape_error);
    CHECK_THROWS_AS(Cache(s.model, {0, 1, 2, 0, 0, 0}), shape_error);
}
