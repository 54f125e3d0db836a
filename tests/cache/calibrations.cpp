/// Calibrations in files: each comes back bit for bit, and a file that is damaged, cut or of another model is refused
/// with what is wrong.
#include <xquant/persistence/calibration.hpp>

#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/complaint.hpp"
#include "support/folder.hpp"
#include "support/model.hpp"
#include "support/statistics.hpp"

using namespace xquant;
using test::complaint;
using test::contains;
using test::Folder;

namespace {

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}
bool same_bits(const LayerStatistics& a, const LayerStatistics& b) {
    return same_bits(a.key_spread, b.key_spread) && same_bits(a.key_cost, b.key_cost) &&
           same_bits(a.value_spread, b.value_spread) && same_bits(a.value_cost, b.value_cost) &&
           same_bits(a.joint_keys, b.joint_keys) && same_bits(a.joint_values, b.joint_values) &&
           same_bits(a.x_spread, b.x_spread) && same_bits(a.difference_spread, b.difference_spread) &&
           same_bits({a.key_sensitivity, a.value_sensitivity}, {b.key_sensitivity, b.value_sensitivity});
}
bool same_bits(const Calibration& a, const Calibration& b) {
    bool same = a.layers.size() == b.layers.size() && a.tokens == b.tokens && a.contexts == b.contexts;
    for (std::size_t i = 0; same && i < a.layers.size(); ++i) same = same_bits(a.layers[i], b.layers[i]);
    return same;
}

/// Two layers of different shapes and RoPE.
test::Setup two_layers() {
    test::Setup setup({.width = 6, .heads = 4, .kv_heads = 2, .head_dim = 4}, RopePairing::halves, 2);
    Layer& second = setup.model.layers[1];
    second.shape = {5, 3, 1, 3};
    second.rope = {RopePairing::interleaved, {0.5}, 1.5};
    return setup;
}

/// A file's bytes with a checksum that fits them.
std::string sealed(std::string bytes) {
    const std::size_t end = bytes.size() - sizeof(std::uint64_t);
    const std::uint64_t hash = detail::hash_of(std::as_bytes(std::span(bytes.data(), end)));
    std::memcpy(bytes.data() + end, &hash, sizeof hash);
    return bytes;
}

template <class Error>
std::string refusal(const std::string& path, const Model& model) {
    return complaint<Error>([&] { static_cast<void>(load_calibration(path, model)); });
}

}  // namespace

TEST_CASE("a calibration comes back bit for bit, whatever it has") {
    const test::Setup setup = two_layers();
    const Folder folder;
    const std::string path = folder / "model.xqcal";
    Calibration all = test::random_calibration(setup.model);
    all.tokens = std::size_t{1} << 40U;
    const auto check = [&](const Calibration& given) {
        save_calibration(given, setup.model, path);
        CHECK(same_bits(load_calibration(path, setup.model), given));
        CHECK(folder.files() == 1);
    };
    check(all);
    Calibration numbers = all;
    std::vector<float>& values = numbers.layers[0].joint_keys;
    const float some[] = {-0.0F, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max(),
                          std::bit_cast<float>(0x7FC12345U)};
    for (std::size_t i = 0; i < std::size(some); ++i) values[i * 8 + i] = some[i];
    numbers.layers[1].key_sensitivity = std::numeric_limits<float>::denorm_min();
    check(numbers);
    // One of the matrices in each layer is missing, or all but one.
    const auto parts = detail::parts_of(setup.model.layers[0].shape);
    for (const detail::StatisticsPart& part : parts) {
        INFO(part.name);
        Calibration without = all, alone = all;
        for (std::size_t i = 0; i < 2; ++i) {
            (without.layers[i].*part.values).clear();
            for (const detail::StatisticsPart& other : parts) {
                if (other.values != part.values) (alone.layers[i].*other.values).clear();
            }
        }
        check(without);
        check(alone);
    }
    check({std::vector<LayerStatistics>(2), 0, 0});
}

TEST_CASE("a calibration's file has the lower triangles alone") {
    const test::Setup setup = two_layers();
    const Folder folder;
    const Calibration all = test::random_calibration(setup.model);
    save_calibration(all, setup.model, folder / "a");
    // Magic, version, three counts; of each layer nine numbers, two sensitivities and eight flags; a checksum.
    std::size_t floats = 0;
    for (const Layer& layer : setup.model.layers) {
        const auto triangle = [](std::size_t n) { return n * (n + 1) / 2; };
        const LayerShape& s = layer.shape;
        floats += 4 * s.kv_heads * triangle(s.head_dim) + 2 * triangle(s.kv_width()) + 2 * triangle(s.width);
    }
    CHECK(std::filesystem::file_size(folder / "a") == 8 + 4 + 24 + 2 * (9 * 8 + 8 + 8) + 4 * floats + 8);
}

TEST_CASE("every damaged byte and every cut of a calibration's file is refused") {
    const test::Setup setup({.width = 3, .heads = 1, .kv_heads = 1, .head_dim = 2}, RopePairing::halves, 1);
    const Folder folder;
    const std::string path = folder / "model.xqcal";
    save_calibration(test::random_calibration(setup.model), setup.model, path);
    const std::string good = test::bytes_of(path);
    REQUIRE(good.size() > 150);
    std::size_t taken = 0, other = 0;
    const auto tried = [&](const std::string& bytes) {
        test::write_bytes(path, bytes);
        try {
            static_cast<void>(load_calibration(path, setup.model));
            ++taken;
        } catch (const damage_error&) {
        } catch (const std::exception&) {
            ++other;
        }
    };
    for (std::size_t i = 0; i < good.size(); ++i) {
        for (const unsigned bits : {1U, 0x80U, 0xFFU}) {
            std::string bad = good;
            bad[i] = static_cast<char>(bad[i] ^ static_cast<char>(bits));
            tried(bad);
        }
        tried(good.substr(0, i));
        tried(good + good.substr(0, i + 1));
    }
    CHECK(taken == 0);
    CHECK(other == 0);
    // The same under a checksum that fits: cut anywhere, it ends too soon.
    const std::size_t checksum = sizeof(std::uint64_t);
    for (std::size_t i = 12; i + checksum < good.size(); ++i) tried(sealed(good.substr(0, i) + std::string(8, '\0')));
    CHECK(taken == 0);
    CHECK(other == 0);
    tried(good);
    CHECK(taken == 1);
}

TEST_CASE("what is no calibration, or of another version, is told so") {
    const test::Setup setup = two_layers();
    const Folder folder;
    const std::string path = folder / "model.xqcal";
    save_calibration(test::random_calibration(setup.model), setup.model, path);
    const std::string good = test::bytes_of(path);
    std::string bad = good;
    bad[2] = 'K';
    test::write_bytes(path, sealed(bad));
    CHECK(contains(refusal<damage_error>(path, setup.model), path + ": no calibration"));
    bad = good;
    bad[8] = 2;
    test::write_bytes(path, sealed(bad));
    CHECK(contains(refusal<mismatch_error>(path, setup.model), "version 2; this library reads version 1"));
    bad = good;
    bad[bad.size() / 2] = static_cast<char>(bad[bad.size() / 2] + 1);
    test::write_bytes(path, bad);
    CHECK(contains(refusal<damage_error>(path, setup.model), "checksum does not fit its"));
    test::write_bytes(path, sealed(bad));  // another number, and nothing else
    CHECK_NOTHROW(load_calibration(path, setup.model));
    CHECK(contains(refusal<file_error>(folder / "nothing", setup.model), "cannot read"));
    CHECK(contains(refusal<file_error>(folder / "", setup.model), "it is no regular file"));
    test::write_bytes(path, "");
    CHECK(contains(refusal<damage_error>(path, setup.model), "empty"));
}

TEST_CASE("a calibration of another model is refused with what differs") {
    const test::Setup setup = two_layers();
    const Folder folder;
    const std::string path = folder / "model.xqcal";
    save_calibration(test::random_calibration(setup.model), setup.model, path);
    const auto said = [&](auto&& change) {
        Model other = setup.model;
        change(other.layers);
        return refusal<mismatch_error>(path, other);
    };
    using Layers = std::vector<Layer>;
    CHECK(contains(said([](Layers& l) { l.pop_back(); }), "of a model of 2 layers; this one has 1"));
    CHECK(contains(said([](Layers& l) { l.push_back(l[0]); }), "of a model of 2 layers; this one has 3"));
    CHECK(contains(said([](Layers& l) { l[1].shape.heads = 6; }), "heads of layer 1 is 3 there and 6 here"));
    CHECK(contains(said([](Layers& l) { l[0].shape.kv_heads = 1; }), "kv_heads of layer 0 is 2 there and 1 here"));
    CHECK(contains(said([](Layers& l) { l[0].shape.head_dim = 5; }), "head_dim of layer 0 is 4 there and 5 here"));
    CHECK(contains(said([](Layers& l) { l[1].shape.width = 6; }), "width of layer 1 is 5 there and 6 here"));
    CHECK(contains(said([](Layers& l) { l[0].rope.inverse_frequencies.pop_back(); }),
                   "number of RoPE frequencies of layer 0 is 2 there and 1 here"));
    CHECK(contains(said([](Layers& l) { l[0].rope.inverse_frequencies.front() *= 1.0001; }),
                   "first RoPE frequency of layer 0"));
    CHECK(contains(said([](Layers& l) { l[0].rope.inverse_frequencies.back() *= 0.9999; }),
                   "last RoPE frequency of layer 0 is 0.01 there"));
    CHECK(contains(said([](Layers& l) { l[0].rope.pairing = RopePairing::interleaved; }),
                   "RoPE pairing of layer 0 is 1 there and 0 here"));
    CHECK(contains(said([](Layers& l) { l[1].rope.pairing = RopePairing::halves; }),
                   "RoPE pairing of layer 1 is 0 there and 1 here"));
    CHECK(contains(said([](Layers& l) { l[1].rope.factor = 1; }), "RoPE factor of layer 1 is 1.5 there and 1 here"));
    CHECK(contains(said([](Layers& l) { l[1].rope = {}; }),
                   "number of RoPE frequencies of layer 1 is 1 there and 0 here"));
    // Frequencies that were computed on another machine, and engines that hand over K and V and know no width.
    CHECK(said([](Layers& l) { l[0].rope.inverse_frequencies.back() *= 1 + 1e-9; }) == "");
    CHECK(said([](Layers& l) { l[0].shape.width = l[1].shape.width = 0; }) == "");
}

TEST_CASE(
    "statistics of a model without a width serve one that has it, and a calibration that fits no model is not "
    "saved") {
    test::Setup setup = two_layers();
    const Folder folder;
    const std::string path = folder / "model.xqcal";
    Model narrow = setup.model;
    for (Layer& layer : narrow.layers) layer.shape.width = 0;
    const Calibration without = test::random_calibration(narrow);
    save_calibration(without, narrow, path);
    CHECK(same_bits(load_calibration(path, setup.model), without));
    const std::string before = test::bytes_of(path);

    Calibration wrong = test::random_calibration(setup.model);
    wrong.layers.pop_back();
    const auto said = [&] { return complaint<shape_error>([&] { save_calibration(wrong, setup.model, path); }); };
    CHECK(contains(said(), "statistics of 1 layers; the model has 2"));
    for (const detail::StatisticsPart& part : detail::parts_of(setup.model.layers[1].shape)) {
        wrong = test::random_calibration(setup.model);
        (wrong.layers[1].*part.values).push_back(1);
        CHECK(contains(said(), "layer 1 has " + std::to_string(part.blocks * part.n * part.n + 1) + " floats of " +
                                   part.name + "; expected " + std::to_string(part.blocks * part.n * part.n)));
    }
    CHECK(test::bytes_of(path) == before);
    wrong = test::random_calibration(setup.model);
    CHECK(contains(complaint<file_error>([&] { save_calibration(wrong, setup.model, folder / "no/where"); }),
                   "cannot write"));
    CHECK(folder.files() == 1);
}

TEST_CASE("a model's layers point at their statistics, as many as there are") {
    test::Setup setup = two_layers();
    Calibration some = test::random_calibration(setup.model);
    some.attach(setup.model);
    CHECK(setup.model.layers[0].statistics == &some.layers[0]);
    CHECK(setup.model.layers[1].statistics == &some.layers[1]);
    Model longer = setup.model;
    for (Layer& layer : longer.layers) layer.statistics = nullptr;
    some.layers.pop_back();
    some.attach(longer);
    CHECK(longer.layers[0].statistics == &some.layers[0]);
    CHECK(longer.layers[1].statistics == nullptr);
}
