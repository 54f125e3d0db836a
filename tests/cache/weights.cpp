/// Options::weights: what prepared matrices are kept in, in every kind of cache.
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include <xquant/registry_svd.hpp>
#include <xquant/xquant.hpp>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/memory.hpp"
#include "support/model.hpp"
#include "support/tolerance.hpp"

using namespace xquant;

namespace {

Options kept_in(WeightType type) { return {.sinks = 4, .recent = 20, .rows = DType::f32, .weights = type}; }

}  // namespace

TEST_CASE("answers of exact caches are off by what the type of the weights rounds, whatever the scheme") {
    const test::Setup setup = test::small_model();
    std::size_t tried = 0;
    for (const test::Scheme& scheme : test::schemes()) {
        if (!scheme.exact) continue;
        const auto outputs = [&](WeightType type) {
            const auto cache = scheme.make(setup.model, kept_in(type));
            return test::outputs_of(*cache, setup.model, {150, 1, 33, 1});
        };
        const test::Outputs exact = outputs(WeightType::f32);
        const double f16 = test::relative_distance(outputs(WeightType::f16), exact),
                     bf16 = test::relative_distance(outputs(WeightType::bf16), exact),
                     q8 = test::relative_distance(outputs(WeightType::q8), exact);
        INFO(scheme.name << ": f16 " << f16 << ", bf16 " << bf16 << ", q8 " << q8);
        CHECK(f16 < 1e-3);
        CHECK(f16 > 2e-5);
        CHECK(bf16 < 8e-3);
        CHECK(bf16 > 3 * f16);
        CHECK(q8 < 2e-2);
        CHECK(q8 > 1e-4);
        ++tried;
    }
    CHECK(tried >= 8);
}

TEST_CASE("bytes of weights are those of their type, and predict knows them") {
    const std::size_t d = 256, r = 64;
    const test::Setup setup({d, 4, 2, 32}, RopePairing::halves, 3);
    // T of X is a rotation, and no matrix: 2 D R entries of A, and half a matrix of what feedback multiplies errors by.
    const auto bytes = [&](WeightType type) {
        Options options;
        options.weights = type;
        const auto cache = make_cache("x4_rot", setup.model, options);
        CHECK(cache->bytes().weights == predict("x4_rot", setup.model, options, 0).weights);
        return cache->bytes().weights;
    };
    const std::size_t entries = 3 * (2 * d * r + feedback_floats(d, d)), f16 = bytes(WeightType::f16);
    CHECK(bytes(WeightType::f32) - f16 == 2 * entries);
    CHECK(bytes(WeightType::bf16) == f16);
    CHECK(f16 - bytes(WeightType::q8) == entries - entries / 64 * sizeof(float));
    CHECK(Options{}.weights == WeightType::f16);
}

TEST_CASE("a value's weights that are 2^-60 of others give answers that are, too") {
    for (const WeightType type : {WeightType::f16, WeightType::bf16, WeightType::q8}) {
        test::Setup setup({64, 4, 2, 16}, RopePairing::halves, 1);
        std::vector<float> small(32 * 64);
        for (std::size_t i = 0; i < 32; ++i) load_row(setup.model.layers[0].w_v.row(i), DType::f32, 64, &small[i * 64]);
        for (float& value : small) value = std::ldexp(value, -60);
        Model other = setup.model;
        other.layers[0].w_v = MatrixView(small.data(), 32, 64);
        const auto a = make_cache("x4_rot", setup.model, kept_in(type)), b = make_cache("x4_rot", other, kept_in(type));
        test::Outputs large = test::outputs_of(*a, setup.model, {40, 1}), found = test::outputs_of(*b, other, {40, 1});
        for (float& value : found[0]) value = std::ldexp(value, 60);
        CHECK(found == large);
    }
}

TEST_CASE("a type of weights that is none is refused") {
    const test::Setup setup = test::small_model();
    Options options;
    options.weights = static_cast<WeightType>(4);
    const auto said =
        test::complaint<shape_error>([&] { static_cast<void>(make_cache("x4_rot", setup.model, options)); });
    CHECK(said.find("Options::weights is 4; expected WeightType::f32, f16, bf16 or q8") != std::string::npos);
}

namespace {

/// The weights of a model in bf16, from which one layer at a time becomes f32.
class Stored {
public:
    explicit Stored(const Model& model) : model_(model) {
        for (const Layer& layer : model.layers) {
            stored_.emplace_back();
            for (const MatrixView& weight : {layer.w_k, layer.w_v}) {
                std::vector<float> row(weight.cols);
                for (std::size_t i = 0; i < weight.rows; ++i) {
                    load_row(weight.row(i), weight.type, weight.cols, row.data());
                    for (const float value : row) stored_.back().push_back(to_bf16(value));
                }
            }
        }
    }
    /// The model with all weights in f32 at once.
    Model whole() {
        Model out = model_;
        all_.clear();
        for (std::size_t i = 0; i < out.layers.size(); ++i) {
            all_.emplace_back(stored_[i].size());
            load_row(stored_[i].data(), DType::bf16, stored_[i].size(), all_[i].data());
            place(out.layers[i], all_[i]);
        }
        return out;
    }
    /// The model without weights, which are loaded into one buffer.
    Model by_layers() {
        Model out = model_;
        for (Layer& layer : out.layers) layer.w_k = layer.w_v = {};
        out.load_layer = [this](std::size_t index, Layer& layer) {
            calls.push_back(index);
            one_.assign(stored_[index].size(), 0.0F);
            load_row(stored_[index].data(), DType::bf16, one_.size(), one_.data());
            place(layer, one_);
        };
        return out;
    }
    std::vector<std::size_t> calls;

private:
    static void place(Layer& layer, const std::vector<float>& values) {
        const std::size_t r = layer.shape.kv_width(), d = layer.shape.width;
        layer.w_k = MatrixView(values.data(), r, d);
        layer.w_v = MatrixView(values.data() + r * d, r, d);
    }
    const Model& model_;
    std::vector<std::vector<bf16>> stored_;
    std::vector<std::vector<float>> all_;
    std::vector<float> one_;
};

}  // namespace

TEST_CASE("weights that are loaded layer by layer make the cache that they make all at once") {
    const test::Setup setup = test::small_model();
    Stored stored(setup.model);
    const Model whole = stored.whole(), by_layers = stored.by_layers();
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < whole.layers.size(); ++i) order.push_back(i);
    for (const test::Scheme& scheme : test::schemes()) {
        INFO(scheme.name);
        stored.calls.clear();
        const auto cache = scheme.make(by_layers, {});
        CHECK(stored.calls == order);
        CHECK(cache->bytes().weights == scheme.predict(by_layers, {}, 0).weights);
        CHECK(stored.calls == order);  // predict loads nothing
        CHECK(test::outputs_of(*cache, whole, {30, 1}) == test::outputs_of(*scheme.make(whole, {}), whole, {30, 1}));
    }
}

TEST_CASE("a layer that fails to load, or is another one than the model says, makes no cache") {
    const test::Setup setup = test::small_model();
    Stored stored(setup.model);
    test::CountingMemory memory;
    Options options;
    options.memory = &memory;
    Model model = stored.by_layers();
    const auto load = model.load_layer;
    model.load_layer = [&](std::size_t index, Layer& layer) {
        if (index == 1) throw std::runtime_error("no such file");
        load(index, layer);
    };
    CHECK_THROWS_AS(make_cache("x4_rot", model, options), std::runtime_error);
    CHECK(memory.bytes() == 0);
    model.load_layer = [&](std::size_t index, Layer& layer) {
        load(index, layer);
        if (index == 1) layer.window = 7;
    };
    CHECK(test::complaint<shape_error>([&] {
              static_cast<void>(make_cache("x4_rot", model, options));
          }).find("layer 1: Model::load_layer changed its shape, rope, window") != std::string::npos);
    model.load_layer = [&](std::size_t index, Layer& layer) {
        if (index != 1) load(index, layer);
    };
    CHECK(test::complaint<shape_error>([&] {
              static_cast<void>(make_cache("x4_rot", model, options));
          }).find("layer 1: w_k is") != std::string::npos);
    CHECK(memory.bytes() == 0);
    // A rank that is found in weights needs them beforehand.
    using Cut = XCache<Uniform<4>, Layout<PerToken>, CrossLayer<Off>, Projection<SplitSvdOf<EnergyShare<900>>>>;
    CHECK(test::complaint<shape_error>([&] {
              static_cast<void>(Cut::predict(model, {}, 1));
          }).find("does not call Model::load_layer") != std::string::npos);
}
