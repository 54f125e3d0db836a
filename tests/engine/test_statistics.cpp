/// `xquant-llm calibrate` on a tiny model: what it learns from texts, the caches that are made by it, and what is
/// refused.
#include "statistics.hpp"

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>
#include <xquant/mixed_bits.hpp>
#include <xquant/persistence/bytes.hpp>

#include "catch.hpp"
#include "error.hpp"
#include "folder.hpp"
#include "gguf.hpp"
#include "library_cache.hpp"
#include "model.hpp"
#include "schemes.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;
using ::test::bytes_of;
using ::test::Folder;
using ::test::write_bytes;

namespace {

/// Letters and spaces, one token each.
std::string text_of(std::size_t n, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::string out;
    for (std::size_t i = 0; i < n; ++i) out += random() % 6 == 0 ? ' ' : static_cast<char>('a' + random() % 26);
    return out;
}

/// A folder with a model and two texts.
struct Files {
    Files() {
        const std::vector<std::byte> bytes = to_gguf(tiny_model()).bytes();
        write_bytes(folder / "model.gguf", std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
        write_bytes(folder / "a.txt", text_of(500, 1));
        write_bytes(folder / "b.txt", text_of(300, 2));
        options.model = folder / "model.gguf";
        options.out = folder / "out.xqcal";
        options.texts = {folder / "a.txt", folder / "b.txt"};
        options.context = 64;
        options.contexts = 5;
        options.measured = 2;
        options.threads = 1;
    }
    /// What is learnt.
    [[nodiscard]] xquant::Calibration learnt() const {
        calibrate_texts(options);
        return read_statistics(options.out, model);
    }
    [[nodiscard]] std::string refusal() const {
        try {
            calibrate_texts(options);
        } catch (const Error& e) {
            return e.what();
        }
        return "";
    }

    Folder folder;
    CalibrateOptions options;
    Model model{Gguf::parse(to_gguf(tiny_model()).bytes(), "model.gguf")};
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// How far the last layer's rows are from those of the exact cache.
double distance(const Model& model, const std::string& scheme, const xquant::Calibration& statistics) {
    std::vector<Token> ids(150);
    std::mt19937 random(9);
    for (Token& id : ids) id = static_cast<Token>(first_byte_token + random() % 256);
    ThreadPool pool(1);
    SchemeOptions options;
    options.strict = true;
    options.pool = &pool;
    options.statistics = &statistics;
    const auto exact = make_cache("f32", model, options), cache = make_cache(scheme, model, options);
    const std::vector<float> expected = model.forward(ids, *exact, pool), found = model.forward(ids, *cache, pool);
    double error = 0, size = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        error += std::pow(static_cast<double>(found[i]) - static_cast<double>(expected[i]), 2);
        size += std::pow(static_cast<double>(expected[i]), 2);
    }
    return std::isfinite(error) ? std::sqrt(error / size) : HUGE_VAL;
}

}  // namespace

TEST_CASE("statistics are learnt from all texts, and caches by them err less with every bit", "[statistics]") {
    Files files;
    files.options.x = true;
    const xquant::Calibration found = files.learnt();
    CHECK(found.contexts == 5);
    CHECK(found.tokens == 5 * 60);
    REQUIRE(found.layers.size() == 2);
    for (const xquant::LayerStatistics& layer : found.layers) {
        CHECK(layer.key_spread.size() == 2 * 4 * 4);
        CHECK(layer.value_cost.size() == 2 * 4 * 4);
        CHECK(layer.joint_keys.size() == 8 * 8);
        CHECK(layer.x_spread.size() == 24 * 24);
        CHECK(layer.key_sensitivity > 1e-6F);
        CHECK(layer.value_sensitivity > 1e-6F);
        for (std::size_t i = 0; i < 24; ++i) CHECK(layer.x_spread[i * 24 + i] > 0);
    }
    for (const std::string form : {"head", "joint"}) {
        double before = 1;  // that of zeros
        for (const std::string bits : {"2", "3", "4"}) {
            const double divided = distance(files.model, form + bits, found),
                         uniform = distance(files.model, form + bits + ":uniform", found);
            INFO(form << bits << ": " << divided << ", uniform " << uniform);
            CHECK(uniform < 0.8 * before);
            CHECK(divided < 0.8 * before);
            CHECK(divided > 1e-4);
            before = uniform;
        }
    }
    const double x = distance(files.model, "xc4", found), kvx = distance(files.model, "kvx4", found);
    CHECK((x > 1e-4 && x < 0.3));
    CHECK((kvx > 1e-4 && kvx < 0.3));
}

TEST_CASE("what is learnt depends on the texts and on no number of threads", "[statistics]") {
    Files files;
    static_cast<void>(files.learnt());
    const std::string one = bytes_of(files.options.out);
    files.options.threads = 3;
    static_cast<void>(files.learnt());
    CHECK((bytes_of(files.options.out) == one));
    files.options.to = 200;
    static_cast<void>(files.learnt());
    CHECK((bytes_of(files.options.out) != one));
    CHECK(files.folder.files() == 4);
    // Contexts do not overlap: of 300 tokens, there are four.
    files.options = Files().options;
    files.options.model = files.folder / "model.gguf";
    files.options.out = files.folder / "out.xqcal";
    files.options.texts = {files.folder / "b.txt"};
    files.options.contexts = 100;
    CHECK(files.learnt().contexts == 4);
}

TEST_CASE("bits are divided on order, and the recipe is a scheme", "[statistics]") {
    Files files;
    const xquant::Calibration found = files.learnt();
    AllocateOptions order;
    order.model = files.options.model;
    order.calibration = files.options.out;
    order.out = files.folder / "recipe";
    const auto divided = [&] {
        allocate(order);
        return xquant::parse_recipe(bytes_of(order.out));
    };
    order.bits = 3.5;
    xquant::Model described = describe(files.model);
    found.attach(described);
    CHECK((divided() == xquant::allocate_bits(xquant::BitForm::heads, described, 3.5)));
    order.form = "joint";
    order.bits = 5;
    CHECK(divided().form == xquant::BitForm::joint);
    const double five = distance(files.model, "recipe=" + order.out, found);
    CHECK(five > 1e-4);
    CHECK(five < 0.6 * distance(files.model, "joint3", found));
    order.bits = 0;
    order.bytes_per_token = 10000;
    for (const xquant::LayerBits& layer : divided().layers) CHECK((layer == xquant::LayerBits{6, 6}));
    const auto refusal = [&] {
        try {
            allocate(order);
        } catch (const std::exception& e) {
            return std::string(e.what());
        }
        return std::string();
    };
    order.bytes_per_token = 3;
    CHECK(has(refusal(), "--bytes-per-token 3: 2 bits everywhere take "));
    order.bits = 3;
    CHECK(has(refusal(), "one of --bits and --bytes-per-token"));
    order.bytes_per_token = 0;
    order.bits = 7;
    CHECK(has(refusal(), "expected 2 to 6"));
    order.form = "heights";
    CHECK(has(refusal(), "--form is 'heights'"));
    CHECK_THROWS_AS(parse_scheme("recipe=x:group=64"), Error);
}

TEST_CASE("without measurements bits are not divided, and schemes say what they need", "[statistics]") {
    Files files;
    files.options.measured = 0;
    const xquant::Calibration found = files.learnt();
    for (const xquant::LayerStatistics& layer : found.layers) {
        CHECK(layer.key_sensitivity == 0);
        CHECK(layer.value_sensitivity == 0);
        CHECK(layer.x_spread.empty());
    }
    CHECK(distance(files.model, "head4:uniform", found) < 0.3);
    const auto said = [&](const std::string& scheme, const xquant::Calibration* statistics) {
        ThreadPool pool(1);
        SchemeOptions options;
        options.pool = &pool;
        options.statistics = statistics;
        try {
            static_cast<void>(make_cache(scheme, files.model, options));
        } catch (const std::exception& e) {
            return std::string(e.what());
        }
        return std::string();
    };
    CHECK(has(said("head4", &found), "layer 0: no sensitivity of K and V"));
    CHECK(has(said("xc4", &found), "0 floats of x_spread"));
    CHECK(has(said("head4", nullptr), "scheme 'head4' needs --calibration FILE, which `xquant-llm calibrate` makes"));
    CHECK(has(said("joint3:uniform", nullptr), "scheme 'joint3:uniform' needs --calibration FILE"));
    const Model other(Gguf::parse(to_gguf(tiny_model("qwen3")).bytes(), "other.gguf"));
    try {
        static_cast<void>(read_statistics(files.options.out, other));
        FAIL("a file of another model was taken");
    } catch (const xquant::mismatch_error& e) {
        CHECK(has(e.what(), "head_dim of layer 0 is 4 there and 8 here"));
    }
}

TEST_CASE("calibrate refuses what leaves nothing to learn from, and writes nothing", "[statistics]") {
    const auto said = [](auto&& change) {
        Files files;
        change(files.options);
        const std::string text = files.refusal();
        CHECK(files.folder.files() == 3);
        return text;
    };
    CHECK(has(said([](CalibrateOptions& o) { o.contexts = 0; }), "--contexts must be 1 or more"));
    CHECK(has(said([](CalibrateOptions& o) { o.context = 5; }), "--context 5 leaves nothing to learn from behind 4"));
    CHECK(has(said([](CalibrateOptions& o) { o.context = 400; }), "between --from 0 and 300 there are 300"));
    CHECK(has(said([](CalibrateOptions& o) { o.from = 250; }), "between --from 250 and 300 there are 50"));
    CHECK(has(said([](CalibrateOptions& o) { o.from = 1000; }), "there are 0"));
    CHECK(has(said([](CalibrateOptions& o) { o.to = 63; }), "between --from 0 and 63 there are 63"));
    CHECK(said([](CalibrateOptions& o) { o.texts[0] += "x"; }) != "");
    CHECK(said([](CalibrateOptions& o) { o.model += "x"; }) != "");
}
