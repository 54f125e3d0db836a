/// Caches by name: every name makes the cache that its preset is, wrong names are told apart, schemes of one's own join
/// in.
#include <xquant/registry_svd.hpp>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"

using namespace xquant;
using test::complaint;
using test::contains;

namespace {

test::Setup small() {
    return test::Setup({.width = 24, .heads = 4, .kv_heads = 1, .head_dim = 8}, RopePairing::interleaved, 4);
}

/// The bytes of every page of a sequence that was fed some tokens.
std::vector<std::vector<std::byte>> stored(Cache<>& cache, const Model& model) {
    test::Feed feed{cache.create()};
    test::feed(cache, model, {{&feed, 150}});
    std::vector<std::vector<std::byte>> pages;
    cache.for_each_page(feed.sequence,
                        [&](const PageView& page) { pages.emplace_back(page.bytes.begin(), page.bytes.end()); });
    return pages;
}

/// Whether a name makes the cache that `Preset` is.
template <class Preset>
void check_is(const std::string& name, const Model& model) {
    INFO(name);
    const Options options{.sinks = 2, .recent = 9};
    const auto made = make_cache(name, model, options);
    Preset expected(model, options);
    CHECK(made->bytes() == expected.bytes());
    CHECK(predict(name, model, options, 1000) == Preset::predict(model, options, 1000));
    CHECK(made->bits_per_token_layer(1024) == expected.bits_per_token_layer(1024));
    CHECK(stored(*made, model) == stored(expected, model));
}

}  // namespace

TEST_CASE("a name makes the cache of its preset") {
    const test::Setup setup = small();
    check_is<preset::f16_kv>("f16", setup.model);
    check_is<preset::kv<4>>("kv4", setup.model);
    check_is<preset::q4_0_hadamard>("q4_0_hadamard", setup.model);
    check_is<preset::nf4>("nf4", setup.model);
    check_is<preset::kivi<3>>("kivi3", setup.model);
    check_is<preset::kivi<3, 32>>("kivi3:group=32", setup.model);
    check_is<preset::rotated_x<2>>("x2_rot", setup.model);
    check_is<preset::cross_layer_x<4>>("cl_x4", setup.model);
    check_is<preset::cross_layer_rotated_x<3, 64>>("cl_x_rot3:group=64", setup.model);
    check_is<preset::split_svd<4>>("svd_joint4", setup.model);
    check_is<preset::gqa4>("svd_head4", setup.model);
    check_is<preset::cross_layer_rotated_svd<2, 32>>("cl_svd_rot2:group=32", setup.model);
}

TEST_CASE("every scheme that is listed can be made, and says what it costs") {
    test::Setup setup = small();
    std::vector<float> rows(300 * 24);
    for (std::size_t i = 0; i < rows.size(); ++i)
        rows[i] = static_cast<float>(static_cast<int>(i * 7919 % 2001) - 1000) * 1e-3F;
    const LayerStatistics statistics = test::random_statistics(setup.model.layers.front().shape);
    std::set<std::string> names;
    for (const SchemeInfo& scheme : schemes()) {
        INFO(to_string(scheme));
        CHECK(names.insert(scheme.name).second);
        CHECK(scheme.forms.size() >= 1);
        CHECK(to_string(scheme).find(scheme.summary) != std::string::npos);
        for (Layer& layer : setup.model.layers) {
            layer.calibration = scheme.needs == Needs::calibration ? MatrixView(rows.data(), 300, 24) : MatrixView();
            layer.statistics = scheme.needs == Needs::statistics ? &statistics : nullptr;
        }
        for (const SchemeInfo::Form& form : scheme.forms) {
            const std::string name =
                form.group == 0 ? scheme.name : scheme.name + ":group=" + std::to_string(form.group);
            INFO(name);
            CHECK((form.bits_per_value >= 2 && form.bits_per_value <= 16));
            const SchemeInfo found = find_scheme(name);
            CHECK(found.name == name);
            CHECK(found.forms.size() == 1);
            CHECK(found.forms[0].group == form.group);
            CHECK(found.needs == scheme.needs);
            CHECK(found.inputs == scheme.inputs);
            CHECK(found.reads_w_k == scheme.reads_w_k);
            CHECK(predict(name, setup.model, {}, 500).stored() > 0);
            const auto cache = make_cache(name, setup.model);
            static_cast<void>(cache->create());
            CHECK(cache->bytes() == predict(name, setup.model, {}, 0));
        }
        // What may be handed over, and what of the weights is read then.
        for (const LayerInput input :
             {LayerInput::x, LayerInput::keys_before_rope, LayerInput::keys_after_rope, LayerInput::keys_in_place}) {
            INFO(to_string(input));
            Model given = setup.model;
            const std::vector<float> beside(300 * 2 * given.layers.front().shape.kv_width(), 0.5F);
            for (Layer& layer : given.layers) {
                layer.input = input;
                if (input == LayerInput::keys_in_place) layer.rope = {};
                if (input == LayerInput::x) continue;
                if (!layer.calibration.empty()) layer.calibration = MatrixView(beside.data(), 300, beside.size() / 300);
                layer.w_v = {};
                if (!scheme.reads_w_k) layer.w_k = {};
            }
            if (std::count(scheme.inputs.begin(), scheme.inputs.end(), input) > 0) {
                CHECK_NOTHROW(make_cache(scheme.name, given));
                if (!scheme.reads_w_k || input == LayerInput::x) continue;
                given.layers.back().w_k = {};
            }
            CHECK_THROWS_AS(make_cache(scheme.name, given), shape_error);
        }
    }
    CHECK(names.count("svd_head4") == 1);
    CHECK(find_scheme("svd_head4").reads_w_k);
    CHECK(find_scheme("kv4").inputs.size() == 4);
    CHECK(find_scheme("kivi4").inputs == std::vector{LayerInput::x, LayerInput::keys_before_rope});
    CHECK(find_scheme("x4_rot").inputs == std::vector{LayerInput::x});
    CHECK(names.count("kv4") == 1);
    CHECK(names.size() == schemes().size());
}

TEST_CASE("bits of a value are those of what is stored") {
    const auto bits = [](const char* name) { return find_scheme(name).forms[0].bits_per_value; };
    CHECK(bits("f16") == 16);
    CHECK(bits("q8_0") == 8.5);  // 32 codes of 8 bits and an f16
    CHECK(bits("kv4") == 4.5);   // 64 codes of 4 bits, an f16 scale and an f16 zero
    CHECK(bits("x3_rot") == 3.25);
    CHECK(bits("x3_rot:group=32") == 4);
    CHECK(bits("kvquant4") == 4 + 0.25 + 24.0 / 128);
}

TEST_CASE("unknown names, groups and suffixes are refused with what there is") {
    const test::Setup setup = small();
    const auto said = [&](const char* name) {
        const std::string text = complaint<shape_error>([&] { static_cast<void>(make_cache(name, setup.model)); });
        CHECK(complaint<shape_error>([&] { static_cast<void>(find_scheme(name)); }) == text);
        CHECK(complaint<shape_error>([&] { static_cast<void>(predict(name, setup.model, {}, 1)); }) == text);
        return text;
    };
    CHECK(contains(said("kv5"), "unknown scheme 'kv5', did you mean kv8, kv4"));
    CHECK(contains(said("svd_hed4"), "did you mean svd_head4, svd_head3, svd_head2"));
    CHECK(contains(said("nothing like it"), "unknown scheme 'nothing like it'; xquant::schemes() lists all"));
    CHECK(contains(said(""), "unknown scheme ''"));
    CHECK(contains(said("kivi4:group=16"), "with N one of 128, 64, 32"));
    CHECK(contains(said("kivi4:group=64 "), "with N one of 128, 64, 32"));
    CHECK(contains(said("kivi4:group="), "with N one of"));
    CHECK(contains(said("kivi4:"), "with N one of"));
    CHECK(contains(said("f16:group=64"), "f16 has no groups"));
}

TEST_CASE("a scheme of one's own is made by its name, on every backend") {
    using Own = XCache<Uniform<5, 64>, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<BeforeRope>>>;
    using Wide = XCache<Uniform<5, 128>, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<BeforeRope>>>;
    const test::Setup setup = small();
    const std::size_t before = schemes().size();
    register_scheme<Own>("own5", "K before RoPE and V, 5 bits");
    register_scheme<Wide>("own5", "");  // another group of it
    CHECK(schemes().size() == before + 1);
    CHECK(schemes().back().summary == "K before RoPE and V, 5 bits");
    check_is<Own>("own5", setup.model);
    check_is<Wide>("own5:group=128", setup.model);
    const auto scalar = make_cache<backend::scalar>("own5", setup.model);
    CHECK(scalar->bytes() == make_cache("own5", setup.model)->bytes());

    CHECK(contains(complaint<state_error>([] { register_scheme<Own>("own5", ""); }), "'own5' in groups of 64 already"));
    CHECK(contains(complaint<state_error>([] { register_scheme<preset::kv<4>>("kv4", ""); }), "'kv4'"));
    for (const char* name : {"", "two words", "own:group=5"}) {
        CHECK(contains(complaint<shape_error>([&] { register_scheme<Own>(name, ""); }),
                       "expected one word, without ':'"));
    }
    CHECK(schemes().size() == before + 1);
}

TEST_CASE("presets serve every backend, and caches of all schemes are held by one type") {
    const test::Setup setup = small();
    std::vector<std::unique_ptr<Cache<backend::scalar>>> caches;
    caches.push_back(std::make_unique<preset::kv<4>::on<backend::scalar>>(setup.model));
    caches.push_back(std::make_unique<preset::gqa4::on<backend::scalar>>(setup.model));
    caches.push_back(make_cache<backend::scalar>("x4", setup.model));
    using Two = MixedCache<Scheme<Uniform<8>>, Scheme<>>;
    caches.push_back(
        std::make_unique<Two::on<backend::scalar>>(setup.model, std::initializer_list<std::size_t>{0, 1, 1, 0}));
    for (auto& cache : caches) {
        const Sequence sequence = cache->create();
        CHECK(cache->size(sequence) == 0);
        CHECK(cache->bytes().weights > 0);
    }
    caches.clear();
}
