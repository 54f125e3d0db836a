/// The numbers of a file: no cache stores what is not finite or beyond 65504, so a file that has such numbers is
/// damaged, whatever its checksums say. And formats that no cache has.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <xquant/persistence.hpp>
#include <xquant/xquant.hpp>

#include "support/catch.hpp"
#include "support/feed.hpp"
#include "support/model.hpp"
#include "support/saved_file.hpp"

using namespace xquant;
using test::Feed;
using test::SavedFile;

namespace {

/// A cache that has coded pages, a tail and sinks, saved.
SavedFile saved_by(test::Cache& cache, const Model& model) {
    Feed feed{cache.create()};
    test::feed(cache, model, {{&feed, 150}});
    SavedFile file(test::saved(cache, {feed.sequence}));
    cache.drop(feed.sequence);
    return file;
}

/// The text of damage_error; "" where the file is taken.
std::string damage(test::Cache& cache, const std::string& bytes, const LoadOptions& options = {}) {
    try {
        for (const Sequence sequence : test::load_bytes(cache, bytes, options).sequences) cache.drop(sequence);
    } catch (const damage_error& e) {
        return e.what();
    }
    return "";
}

std::size_t first_page(const SavedFile& file, PageKind kind) {
    for (std::size_t i = 0; i < file.about.pages.size(); ++i) {
        if (file.about.pages[i].kind == kind) return i;
    }
    FAIL("no such page");
    return 0;
}

/// A file one of whose numbers is replaced: the one at byte `at` of its first page of this kind.
template <class Bits>
std::string with_number(SavedFile file, PageKind kind, std::size_t at, Bits bits) {
    std::memcpy(file.page(first_page(file, kind)) + at, &bits, sizeof bits);
    file.seal();
    return file.bytes;
}

constexpr std::uint16_t taken_f16[] = {0, 0x8000, 0x0001, 0x7BFF, 0xFBFF},
                        refused_f16[] = {0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF};
constexpr std::uint16_t taken_bf16[] = {0, 0x8000, 0x0001, 0x477F, 0x4780, 0xC780},  // 0x4780: 65504, rounded
    refused_bf16[] = {0x4781, 0xC781, 0x5000, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF};
constexpr std::uint32_t taken_f32[] = {0, 0x80000000, 1, 0x477FE000, 0xC77FE000},  // the last are 65504 and -65504
    refused_f32[] = {0x477FE001, 0xC77FE001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFFFFFFF};

/// Every one of these numbers at this place is taken, or refused, with checksums that are right; without
/// LoadOptions::verify all are taken.
template <class Bits, std::size_t Taken, std::size_t Refused>
void check_numbers(test::Cache& cache, const SavedFile& file, PageKind kind, std::size_t at, const Bits (&taken)[Taken],
                   const Bits (&refused)[Refused]) {
    for (const Bits bits : taken) {
        INFO("bits " << bits << " at " << at);
        CHECK(damage(cache, with_number(file, kind, at, bits)) == "");
    }
    for (const Bits bits : refused) {
        INFO("bits " << bits << " at " << at);
        const std::string bytes = with_number(file, kind, at, bits);
        CHECK(damage(cache, bytes).find("has values that are not finite, or larger") != std::string::npos);
        CHECK(damage(cache, bytes, {.verify = false}) == "");
    }
}

}  // namespace

TEST_CASE("rows of the tail and of the sinks are finite and within f16, in every type") {
    const test::Setup setup = test::small_model();
    const test::Scheme& scheme = test::scheme("x rotated 3");
    for (const DType rows : {DType::f16, DType::bf16, DType::f32}) {
        const auto cache = scheme.make(setup.model, {.sinks = 3, .recent = 7, .rows = rows});
        const SavedFile file = saved_by(*cache, setup.model);
        for (const PageKind kind : {PageKind::rows, PageKind::sinks}) {
            for (const std::size_t value : {0U, 23U}) {  // of the first row
                const std::size_t at = value * size_of(rows);
                if (rows == DType::f16) check_numbers(*cache, file, kind, at, taken_f16, refused_f16);
                if (rows == DType::bf16) check_numbers(*cache, file, kind, at, taken_bf16, refused_bf16);
                if (rows == DType::f32) check_numbers(*cache, file, kind, at, taken_f32, refused_f32);
            }
        }
    }
}

TEST_CASE("coded pages: values as they are, scales, zeros and outliers are finite and within f16") {
    using Exact = CrossLayer<Off>;
    const test::Setup setup = test::small_model();
    const Options options{.sinks = 3, .recent = 7};
    {
        const auto cache = test::scheme("f32 x").make(setup.model, options);
        const SavedFile file = saved_by(*cache, setup.model);
        check_numbers(*cache, file, PageKind::coded, 4 * 24 * 127, taken_f32, refused_f32);
    }
    {
        const auto cache = test::scheme("f16 k and v").make(setup.model, options);
        const SavedFile file = saved_by(*cache, setup.model);
        check_numbers(*cache, file, PageKind::coded, 2 * 8 * 127, taken_f16, refused_f16);
    }
    {
        XCache<Unquantized<bf16>, Layout<PerToken>, Exact, Projection<Plain>> cache(setup.model, options);
        const SavedFile file = saved_by(cache, setup.model);
        check_numbers(cache, file, PageKind::coded, 2 * 24 * 127, taken_bf16, refused_bf16);
    }
    {
        XCache<WithOutliers<Uniform<4, 32>, 1>, Layout<PerToken>, Exact, Projection<Plain>> cache(setup.model, options);
        const SavedFile file = saved_by(cache, setup.model);
        // 24 channels are one group, so 128 x 12 bytes of codes; 128 scales, 128 zeros; 128 outliers.
        for (const std::size_t at : {1536U, 1536U + 254U, 1536U + 256U, 1536U + 510U, 2048U, 2048U + 254U}) {
            check_numbers(cache, file, PageKind::coded, at, taken_f16, refused_f16);
        }
    }
}

TEST_CASE("rows of 65504 stay 65504 from bf16 to other types, in codes and when they are transcoded") {
    // 65504 is 65536 in bf16, and 65536 is infinity in f16.
    const test::Setup setup = test::small_model();
    const auto fill = [&](test::Cache& cache, Sequence sequence, std::size_t n) {
        const std::vector<float> x(n * 24, f16_max), q(n * 32, 1e-6F);
        std::vector<float> out(n * 32);
        auto step = cache.begin({{sequence, n}});
        for (std::size_t layer = 0; layer < 4; ++layer) {
            step.append(layer, MatrixView(x.data(), n, 24));
            step.attend(layer, MatrixView(q.data(), n, 32), out.data());
            for (const float value : out) REQUIRE(std::isfinite(value));
        }
        step.commit();
        return out;
    };
    for (const char* name : {"f32 x", "x 4", "f32 cross-layer x", "cross-layer x 3", "x in blocks of 4 tokens"}) {
        INFO(name);
        const test::Scheme& scheme = test::scheme(name);
        const auto exact = scheme.make(setup.model, {.sinks = 3, .recent = 7, .rows = DType::f32}),
                   rounded = scheme.make(setup.model, {.sinks = 3, .recent = 7, .rows = DType::bf16});
        const Sequence a = exact->create(), b = rounded->create();
        for (const std::size_t n : {5U, 150U}) fill(*exact, a, n), fill(*rounded, b, n);
        const std::vector<float> expected = fill(*exact, a, 1), found = fill(*rounded, b, 1);
        for (std::size_t i = 0; i < expected.size(); ++i) {
            CHECK(std::abs(found[i] - expected[i]) <= 0.01F * std::abs(expected[i]) + 20);
        }
        const std::string file = test::saved(*rounded, {b});
        for (const DType rows : {DType::f16, DType::f32}) {
            INFO("rows " << static_cast<int>(rows));
            const auto other = scheme.make(setup.model, {.sinks = 3, .recent = 7, .rows = rows});
            const Loaded loaded = test::load_bytes(*other, file, {.transcode = true});
            CHECK(loaded.pages_transcoded > 0);
            const std::vector<float> answers = fill(*other, loaded.sequences.at(0), 1);
            for (std::size_t i = 0; i < expected.size(); ++i) {
                CHECK(std::abs(answers[i] - expected[i]) <= 0.01F * std::abs(expected[i]) + 20);
            }
            // What was loaded can be saved and loaded again.
            CHECK(damage(*other, test::saved(*other, loaded.sequences)) == "");
        }
    }
}

TEST_CASE("sums of damaged differences stay finite, though their scales are the largest that there are") {
    const test::Setup setup = test::small_model();
    for (const char* name : {"cross-layer x rotated 8, f16 sums", "cross-layer x 3"}) {
        INFO(name);
        const auto cache = test::scheme(name).make(setup.model, {.sinks = 3, .recent = 7});
        const SavedFile good = saved_by(*cache, setup.model);
        const std::size_t coded = first_page(good, PageKind::coded);
        const std::string bytes = good.rewritten([&](std::size_t i, std::span<std::byte> page) {
            std::memcpy(page.data(), good.bytes.data() + good.places[i] + 64, page.size());
            const std::uint16_t most = 0x7BFF;
            for (std::size_t at = 0; i == coded && at < page.size(); at += 2) std::memcpy(&page[at], &most, 2);
        });
        const Loaded loaded = test::load_bytes(*cache, bytes);
        Feed feed{loaded.sequences.at(0), 1, 150};
        test::feed(*cache, setup.model, {{&feed, 1}});
        for (const std::vector<float>& layer : feed.out) {
            for (const float value : layer) CHECK(std::isfinite(value));
        }
    }
}

TEST_CASE("a format that no cache has is damage, and no page of it is decoded") {
    const test::Setup setup = test::small_model();
    const auto cache = test::scheme("x 4").make(setup.model, {.sinks = 3, .recent = 7});
    const SavedFile good = saved_by(*cache, setup.model);
    const auto with = [&](StreamFormat format, const std::vector<float>& levels = {}) {
        SavedFile file = good;
        format.width = 24;
        file.about.layers[2].streams[0].coded = format;
        file.about.layers[2].streams[0].coded_levels = levels;
        file.about.layers[2].streams[0].requantized = format;
        file.about.layers[2].streams[0].requantized_levels = levels;
        detail::Ledger ledger(nullptr);
        for (auto& page : file.about.pages) {
            if (format.group_channels == 0) continue;  // such a page has no size
            page.bytes = detail::format_of(ledger, file.about, page.page_group, page.kind, 1).sizes.total - 64;
        }
        const std::string bytes = file.rewritten(
            [](std::size_t, std::span<std::byte> page) { std::fill(page.begin(), page.end(), std::byte{1}); });
        return damage(*cache, bytes, {.transcode = true});
    };
    // What is taken: formats of policies.
    CHECK(with({0, 1, 128, CodeKind::planes, 4, true}) == "");
    CHECK(with({0, 128, 1, CodeKind::planes, 3, true}) == "");
    CHECK(with({0, 128, 32, CodeKind::planes, 8, false, 128}) == "");
    CHECK(with({0, 4, 16, CodeKind::planes, 4, true}) == "");
    CHECK(with({0, 1, 24, CodeKind::f32, 32, false}) == "");
    CHECK(with({0, 1, 8, CodeKind::bf16, 16, false}) == "");
    CHECK(with({0, 1, 64, CodeKind::planes, 2, true}, {-1, 0, 1, 2}) == "");
    const char* unknown = "xquant: saved cache: unknown format of a stream";
    CHECK(with({0, 128, 1, CodeKind::f16, 16, false}) == unknown);  // rows are found by their token alone
    CHECK(with({0, 2, 24, CodeKind::f32, 32, false}) == unknown);
    CHECK(with({0, 1, 25, CodeKind::f32, 32, false}) == unknown);
    CHECK(with({0, 1, 4097, CodeKind::planes, 4, true}) == unknown);  // decoders have room for 4096 codes
    CHECK(with({0, 128, 33, CodeKind::planes, 4, true}) == unknown);
    CHECK(with({0, 3, 64, CodeKind::planes, 4, true}) == unknown);
    CHECK(with({0, 1, 4, CodeKind::planes, 4, true}) == unknown);
    CHECK(with({0, 1, 0, CodeKind::planes, 4, true}) == unknown);
    CHECK(with({0, 1, 64, CodeKind::planes, 9, true}) == unknown);
    CHECK(with({0, 1, 64, CodeKind::planes, 0, true}) == unknown);
    CHECK(with({0, 1, 24, CodeKind::f16, 32, false}) == unknown);
    CHECK(with({0, 1, 24, static_cast<CodeKind>(4), 16, false}) == unknown);
    CHECK(with({0, 1, 64, CodeKind::planes, 4, false, INFINITY}) == unknown);
    CHECK(with({0, 1, 64, CodeKind::planes, 4, false, NAN}) == unknown);
    CHECK(with({0, 1, 512, CodeKind::planes, 4, true, 0, nullptr, 1}) == unknown);
    CHECK(with({0, 1, 24, CodeKind::f16, 16, false, 0, nullptr, 1}) == unknown);
    const char* levels = "xquant: saved cache: the levels of a codebook are damaged";
    CHECK(with({0, 1, 64, CodeKind::planes, 2, true}, {-1, 0, 1}) == levels);
    CHECK(with({0, 1, 64, CodeKind::planes, 2, true}, {-1, 0, 1, INFINITY}) == levels);
    CHECK(with({0, 1, 64, CodeKind::planes, 2, true}, {-1, 0, 1, NAN}) == levels);
}
