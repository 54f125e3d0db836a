/// Caches on a device in plain C++: kernels, tables and bookkeeping of the CUDA backend, all but CUDA itself.
#include "cuda/caches.hpp"

#include <xquant/core/device/backend.cuh>
#include <xquant/persistence.hpp>
#include "support/compiled/emulated.hpp"
#include "support/compiled/scalar.hpp"

#include <iostream>
#include <limits>
#include <sstream>

#include "contract/archetypes.hpp"
#include "support/catch.hpp"

using namespace xquant;
using Device = backend::on_device<backend::EmulatedDevice>;

namespace {

class Memory {
public:
    explicit Memory(const std::vector<float>& values) : values_(values) {}
    float* data() const noexcept { return values_.data(); }
    std::vector<float> read() const { return values_; }
    static void copy(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

private:
    mutable std::vector<float> values_;
};

using DeviceCache = XCache<Uniform<4>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<HeadSvd>, Device>;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool few = true;  // minutes otherwise
#else
constexpr bool few = false;
#endif

/// While it lives, devices have so much shared memory.
class Shared {
public:
    explicit Shared(std::size_t kib) : before_(backend::EmulatedDevice::shared_bytes) {
        backend::EmulatedDevice::shared_bytes = kib * 1024;
    }
    Shared(const Shared&) = delete;
    Shared& operator=(const Shared&) = delete;
    ~Shared() { backend::EmulatedDevice::shared_bytes = before_; }

private:
    std::size_t before_;
};

}  // namespace

TEST_CASE("caches on an emulated device: attention and bytes are those of the processor") {
    std::cerr << "no GPU takes part: the CUDA backend runs on EmulatedDevice\n";
    on_device::for_each_case<Device, Memory>(
        [](const on_device::Case& c, const on_device::Outcome& outcome) {
            INFO(c.name << ": attention off by " << outcome.attention << ", " << outcome.different << " of "
                        << outcome.bytes << " bytes differ");
            CHECK(outcome.attention < 2e-3);
            CHECK(outcome.attention > 1e-6);
            CHECK(outcome.same_pages);
            // Rows are projected with other roundings where the processor's compiler does not fuse: some codes are
            // neighbours then.
            CHECK(outcome.different * 500 <= outcome.bytes);
            CHECK(!outcome.bad_rows);
        },
        few);
}

TEST_CASE("latents of least cost on an emulated device: attention and bytes are those of the processor") {
    on_device::for_each_latent_case<Device, Memory>(
        [](const on_device::Case& c, const on_device::Outcome& outcome) {
            INFO(c.name << ": attention off by " << outcome.attention << ", " << outcome.different << " of "
                        << outcome.bytes << " bytes differ");
            // A code of 3 bits that is its neighbour, and those behind it that make up for it, change more than f16.
            CHECK(outcome.attention < (outcome.different == 0 ? 2e-3 : 0.03));
            CHECK(outcome.attention > 1e-6);
            CHECK(outcome.same_pages);
            CHECK(outcome.different * 500 <= outcome.bytes);
            CHECK(!outcome.bad_rows);
        },
        few);
}

TEST_CASE("matrices that mix are counted with the weights of a cache on a device, and the rows before with workspace") {
    using Split = Layout<PerChannel, PerToken>;
    using Mixed = XCache<Uniform<4>, Split, CrossLayer<Off>, Projection<KeyValueLatent<EachHead>>, Device>;
    using OnProcessor =
        XCache<Uniform<4>, Split, CrossLayer<Off>, Projection<KeyValueLatent<EachHead>>, backend::scalar>;
    using Plain = XCache<Uniform<4>, Split, CrossLayer<Off>, Projection<KeyValue<BeforeRope>>, Device>;
    constexpr std::size_t n = 300, rows = 2 * 128;
    test::Setup setup({192, 6, 2, 64}, RopePairing::halves, 2);
    const on_device::Knowledge knowledge(setup.model);
    const Options options{.sinks = 0, .recent = 0, .weights = WeightType::f16};
    Mixed mixed(setup.model, options);
    Plain plain(setup.model, options);
    const OnProcessor processor(setup.model, options);
    const std::size_t floats = 2 * rows * 64, halves = 2 * (192 + 64) * rows;  // of two layers: M; T and A
    const std::size_t least = floats * sizeof(float) + halves * sizeof(f16);
    const std::size_t on_device = mixed.bytes().weights - processor.bytes().weights;
    CHECK(on_device > least);
    CHECK(on_device < least + least / 2);  // A a second time, as kernels read it, and tables
    const std::vector<float> x(n * 192, 0.5F);
    const auto workspace_of = [&](auto& cache) {
        const Sequence sequence = cache.create();
        auto step = cache.begin({{sequence, n}});
        for (std::size_t layer = 0; layer < 2; ++layer) step.append(layer, MatrixView(x.data(), n, 192));
        step.commit();
        return cache.bytes().workspace;
    };
    const std::size_t with = workspace_of(mixed), without = workspace_of(plain);
    CHECK(with - without == n * rows * sizeof(float));
}

TEST_CASE("rows have to fit into f16 as they are stored, not before they are mixed") {
    using Split = Layout<PerChannel, PerToken>;
    using Mixed = XCache<Uniform<4>, Split, CrossLayer<Off>, Projection<KeyValueLatent<EachHead>>, Device>;
    using Expected = XCache<Uniform<4>, Split, CrossLayer<Off>, Projection<KeyValueLatent<EachHead>>, backend::scalar>;
    test::Random random(6);
    for (const bool large : {false, true}) {
        // Keys and values of 10^6, that were to be expected or not.
        test::Setup setup({96, 4, 2, 32}, RopePairing::halves, 1);
        const on_device::Knowledge knowledge(setup.model);
        LayerStatistics statistics = *setup.model.layers[0].statistics;
        for (std::vector<float>* spread : {&statistics.key_spread, &statistics.value_spread}) {
            for (float& value : *spread) value *= large ? 1e12F : 1.0F;
        }
        for (std::vector<float>* cost : {&statistics.key_cost, &statistics.value_cost}) {
            for (float& value : *cost) value *= large ? 1e-12F : 1.0F;
        }
        setup.model.layers[0].statistics = &statistics;
        const std::vector<float> x = random.rows(40 * 96, 1e6F);
        Expected expected(setup.model);
        Mixed found(setup.model);
        auto step = expected.begin({{expected.create(), 40}});
        if (large) {
            CHECK_NOTHROW(step.append(0, MatrixView(x.data(), 40, 96)));
        } else {
            CHECK_THROWS_AS(step.append(0, MatrixView(x.data(), 40, 96)), value_error);
        }
        auto on_device = found.begin({{found.create(), 40}});
        on_device.append(0, MatrixView(x.data(), 40, 96));
        on_device.commit();
        CHECK(found.take_bad_rows() == !large);
    }
}

TEST_CASE("codes that meet 8-bit weights: attention is off by what rounding these does, and bytes are the same") {
    using Coded = backend::int8<Device>;
    on_device::for_each_coded_case<Coded, Memory>(
        [](const on_device::Case& c, const on_device::Outcome& outcome) {
            INFO(c.name << ": attention off by " << outcome.attention);
            CHECK(outcome.attention < 0.03);
            CHECK(outcome.attention > 2e-3);
            CHECK(outcome.same_pages);
            CHECK(outcome.different * 500 <= outcome.bytes);
        },
        few);
}

TEST_CASE("a device with little shared memory serves prompts 16 queries at a time; with too little, none") {
    using Split = Layout<PerChannel, PerToken>;
    {
        const Shared little(100);
        const on_device::Outcome outcome =
            on_device::compare<Device, Memory, Uniform<4>, Split, Projection<HeadSvd>, CrossLayer<Off>>(
                {"svd_head4", {192, 6, 2, 64}});
        CHECK(outcome.attention < 2e-3);
        CHECK(outcome.attention > 1e-6);
    }
    const test::Setup setup({192, 6, 2, 64}, RopePairing::halves, 2);
    const Shared too_little(40);
    CHECK_THROWS_AS(DeviceCache(setup.model), state_error);
}

TEST_CASE("a device refuses groups of several tokens and channels") {
    using Blocks = XCache<Uniform<4, 64>, Layout<FourTokens>, CrossLayer<Off>, Projection<Plain>, Device>;
    const test::Setup setup({192, 6, 2, 64}, RopePairing::halves, 2);
    CHECK_THROWS_AS(Blocks(setup.model), state_error);
}

TEST_CASE("256 sequences of different lengths in one launch") {
    using Expected =
        XCache<Uniform<4>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<HeadSvd>, backend::scalar>;
    const LayerShape shape{48, 4, 1, 16};
    const test::Setup setup(shape, RopePairing::halves, 1);
    DeviceCache found(setup.model, {.sinks = 2, .recent = 8});
    Expected expected(setup.model, {.sinks = 2, .recent = 8});
    test::Random random(4);
    std::vector<Sequence> a, b;
    for (const bool one : {false, true}) {
        std::vector<StepPart> parts_a, parts_b;
        std::size_t n = 0;
        for (std::size_t i = 0; i < 256; ++i) {
            if (!one) {
                a.push_back(expected.create());
                b.push_back(found.create());
            }
            const std::size_t tokens = one ? 1 : 1 + i % 20 * (i % 3) * 5;
            parts_a.push_back({a[i], tokens});
            parts_b.push_back({b[i], tokens});
            n += tokens;
        }
        const std::vector<float> x = random.rows(n * shape.width), q = random.rows(n * 64, 2);
        std::vector<float> wanted(n * 64), out(n * 64);
        auto step_a = expected.begin(parts_a);
        auto step_b = found.begin(parts_b);
        step_a.append(0, MatrixView(x.data(), n, shape.width));
        step_b.append(0, MatrixView(x.data(), n, shape.width));
        step_a.attend(0, MatrixView(q.data(), n, 64), wanted.data());
        step_b.attend(0, MatrixView(q.data(), n, 64), out.data());
        step_a.commit();
        step_b.commit();
        CHECK(on_device::distance(out, wanted) < 2e-3);
        CHECK(on_device::distance(out, wanted) > 1e-6);
    }
}

TEST_CASE("a cache on a device counts its bytes, and gives all of them back") {
    const test::Setup setup({192, 6, 2, 64}, RopePairing::halves, 2);
    DeviceCache cache(setup.model, {.sinks = 4, .recent = 16});
    const Bytes before = cache.bytes();
    CHECK(before.weights > 0);
    const Sequence sequence = cache.create();
    const std::vector<float> x(300 * 192, 0.5F);
    {
        auto step = cache.begin({{sequence, 300}});
        for (std::size_t layer = 0; layer < 2; ++layer) step.append(layer, MatrixView(x.data(), 300, 192));
        step.commit();
    }
    const Bytes predicted = DeviceCache::predict(setup.model, {.sinks = 4, .recent = 16}, 300);
    CHECK(cache.bytes().codes == predicted.codes);
    CHECK(cache.bytes().scales == predicted.scales);
    CHECK(cache.bytes().tail == predicted.tail);
    cache.drop(sequence);
    CHECK(cache.bytes().codes == 0);
    DeviceCache moved(std::move(cache));
    cache = DeviceCache(setup.model);
    moved = std::move(cache);
    CHECK(moved.bytes().codes == 0);
}

TEST_CASE("F of a stream is counted with the weights of a cache on a device, and its scratch with the workspace") {
    using Plain4 = XCache<Uniform<4>, Layout<PerToken>, CrossLayer<Off>, Projection<Rotated>, Device>;
    using Fed4 = XCache<WithFeedback<Uniform<4>>, Layout<PerToken>, CrossLayer<Off>, Projection<Rotated>, Device>;
    const test::Setup setup({192, 6, 2, 64}, RopePairing::halves, 2);
    Plain4 plain(setup.model, {.sinks = 0, .recent = 0, .weights = WeightType::f16});
    Fed4 fed(setup.model, {.sinks = 0, .recent = 0, .weights = WeightType::f16});
    const std::size_t factors = 2 * feedback_floats(192, 192) * sizeof(f16);
    const std::size_t more = fed.bytes().weights - plain.bytes().weights;
    CHECK(more >= 2 * factors);  // the processor's and the device's
    CHECK(more < 2 * factors + 256);
    const std::vector<float> x(300 * 192, 0.5F);
    const auto workspace_of = [&](auto& cache) {
        const Sequence sequence = cache.create();
        auto step = cache.begin({{sequence, 300}});
        for (std::size_t layer = 0; layer < 2; ++layer) step.append(layer, MatrixView(x.data(), 300, 192));
        step.commit();
        return cache.bytes().workspace;
    };
    const std::size_t without = workspace_of(plain), with = workspace_of(fed);
    // 32 tokens of a block of the metric and a group, for each of the blocks that run side by side, or a few more.
    const std::size_t each = 32 * (192 + 128) * sizeof(float);
    CHECK(with - without >= 3 * each);
    CHECK(with - without <= (backend::EmulatedDevice::blocks_at_once() + 3) * each);
}

TEST_CASE("a device runs one step at a time, in order, and finds rows that are not finite") {
    const test::Setup setup({192, 6, 2, 64}, RopePairing::halves, 2);
    DeviceCache cache(setup.model);
    const Sequence a = cache.create(), b = cache.create();
    std::vector<float> x(192, 0.5F), q(384, 1), out(384);
    CHECK_THROWS_AS(DeviceCache(setup.model, Options{.rebuilt = std::size_t{1} << 24U}), shape_error);
    {
        auto step = cache.begin({{a, 1}});
        CHECK_THROWS_AS(cache.begin({{b, 1}}), state_error);
        CHECK_THROWS_AS(step.append(1, MatrixView(x.data(), 1, 192)), state_error);
        CHECK_THROWS_AS(step.attend(0, MatrixView(q.data(), 1, 384), out.data()), state_error);
        CHECK_THROWS_AS(step.append(0, MatrixView(x.data(), 1, 191)), shape_error);
        CHECK_THROWS_AS(step.commit(), state_error);
    }
    CHECK(cache.size(a) == 0);
    {
        auto step = cache.begin({{a, 1}});
        step.append(0, MatrixView(x.data(), 1, 192));
        CHECK_THROWS_AS(step.attend(0, MatrixView(q.data(), 1, 384), out.data(), Visibility::whole), state_error);
        step.append(1, MatrixView(x.data(), 1, 192));
        CHECK_THROWS_AS(step.attend(0, MatrixView(q.data(), 1, 384), out.data()), state_error);
    }
    const std::vector<std::int32_t> tree{-1, -1};
    CHECK_THROWS_AS(cache.begin({{a, 2, tree}}), state_error);
    const std::vector<std::uint32_t> rows{1, 0};
    CHECK_THROWS_AS(cache.begin({{a, 2, {}, rows}}), state_error);
    CHECK_THROWS_AS(cache.attend(0, {{a, 1}}, MatrixView(q.data(), 1, 384), out.data()), state_error);
    x[7] = std::numeric_limits<float>::infinity();
    auto step = cache.begin({{a, 1}});
    for (std::size_t layer = 0; layer < 2; ++layer) step.append(layer, MatrixView(x.data(), 1, 192));
    step.commit();
    CHECK(cache.take_bad_rows());
    CHECK(!cache.take_bad_rows());
}

TEST_CASE("a cache saved on a device loads on the processor, and the other way round") {
    using OnProcessor = XCache<Uniform<4>, Layout<PerChannel, PerToken>, CrossLayer<Off>, Projection<HeadSvd>>;
    const test::Setup setup({192, 6, 2, 64}, RopePairing::halves, 2);
    DeviceCache device(setup.model, {.sinks = 4, .recent = 16});
    OnProcessor processor(setup.model, {.sinks = 4, .recent = 16});
    test::Random random(3);
    const Sequence sequence = device.create();
    const std::vector<float> x = random.rows(300 * 192);
    auto step = device.begin({{sequence, 300}});
    for (std::size_t layer = 0; layer < 2; ++layer) step.append(layer, MatrixView(x.data(), 300, 192));
    step.commit();
    std::stringstream first, second, third;
    save(device, std::span(&sequence, 1), first);
    const Loaded loaded = load(processor, first);
    REQUIRE(loaded.sequences.size() == 1);
    save(processor, loaded.sequences, second);
    CHECK(second.str() == first.str());
    const Loaded again = load(device, second);
    save(device, again.sequences, third);
    CHECK(third.str() == first.str());
}

TEST_CASE("what a device does not serve is refused when the cache is made") {
    const test::Setup setup({192, 6, 2, 64}, RopePairing::halves, 4);
    using Levels = XCache<Nf4<>, Layout<PerToken>, CrossLayer<Off>, Projection<Rotated>, Device>;
    CHECK_THROWS_AS(Levels(setup.model), state_error);
    using Sums =
        XCache<Uniform<4>, Layout<PerToken>, CrossLayer<Delta, FourBits, GgmlQ8_0>, Projection<Rotated>, Device>;
    CHECK_THROWS_AS(Sums(setup.model), state_error);
    test::Setup chunks({192, 6, 2, 64}, RopePairing::halves, 2);
    chunks.model.layers[1].chunk = 50;
    CHECK_THROWS_AS(DeviceCache(chunks.model), state_error);
    test::Setup borrowing({192, 6, 2, 64}, RopePairing::halves, 2);
    borrowing.model.layers[1].rows_of = 0;
    using Rows = XCache<Uniform<4>, Layout<PerToken>, CrossLayer<Off>, Projection<Rotated>, Device>;
    CHECK_THROWS_AS(Rows(borrowing.model), state_error);
    // Latents of least cost take K and V on a processor, and X alone here.
    using Each = Projection<KeyValueLatent<EachHead>>;
    using All = Projection<KeyValueLatent<AllHeads>>;
    using Split = Layout<PerChannel, PerToken>;
    test::Setup given({192, 6, 2, 64}, RopePairing::halves, 2);
    const on_device::Knowledge knowledge(given.model);
    for (Layer& layer : given.model.layers) layer.input = LayerInput::keys_before_rope;
    CHECK_NOTHROW(XCache<Uniform<4>, Split, CrossLayer<Off>, Each, backend::scalar>(given.model));
    CHECK_THROWS_AS((XCache<Uniform<4>, Split, CrossLayer<Off>, Each, Device>(given.model)), state_error);
    CHECK_THROWS_AS((XCache<Uniform<4>, Split, CrossLayer<Off>, All, Device>(given.model)), state_error);
}
