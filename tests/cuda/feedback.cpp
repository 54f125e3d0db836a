/// Encoding with feedback on a GPU: the bytes of the scalar encoder, for every scale rule, every shape of a group,
/// every kind of weights, and blocks of a metric above and below a group.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include <xquant/backend/feedback.hpp>
#include <xquant/core/weight_pool.hpp>
#include <xquant/xquant.hpp>

#include "support/catch.hpp"
#include "support/gpu/rounded.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

/// F of blocks of n channels, entries of any size below `most`, kept as `type`.
class Factors {
public:
    Factors(std::size_t n, std::size_t blocks, WeightType type, float most)
        : pool_(ledger_, type, 1 + size(n, blocks)) {
        test::Random random(static_cast<std::uint32_t>(n));
        // One entry before: what 8 bits share a scale with may belong to another matrix.
        pool_.keep({0.25F});
        std::vector<float> columns = random.rows(size(n, blocks), most);
        for (std::size_t i = 0; i < columns.size(); i += 7) columns[i] = 0;
        view_ = {n, pool_.keep(columns)};
        pool_.finish();
    }
    [[nodiscard]] const FeedbackView& view() const noexcept { return view_; }

private:
    static std::size_t size(std::size_t n, std::size_t blocks) { return blocks * feedback_entries(n); }

    detail::Ledger ledger_{nullptr};
    detail::WeightPool pool_;
    FeedbackView view_;
};

/// Rows of a case: zeros of both signs, ties, a flat token; where `wild`, some that feedback leads out of f16.
std::vector<float> rows_of(std::size_t tokens, std::size_t width, bool wild) {
    test::Random random(static_cast<std::uint32_t>(tokens + width));
    std::vector<float> x = random.rows(tokens * width, 3);
    for (std::size_t i = 0; i < x.size(); i += 11) x[i] = static_cast<float>(random.below(16)) * 0.5F;
    for (std::size_t c = 0; c < width && tokens > 2; ++c) x[(tokens - 1) * width + c] = -0.0F;
    for (std::size_t t = 1; wild && t < tokens; t += 2) {
        for (std::size_t c = 0; c < width / 2; ++c)
            x[t * width + c] = std::clamp(x[t * width + c] * 1e5F, -65e3F, 65e3F);
    }
    return x;
}

struct Stored {
    Stored(const StreamCodec& codec, std::size_t tokens)
        : format(codec.format.with_room(tokens)),
          codes(format.code_bytes(tokens), std::byte{0xA5}),
          scales(groups(tokens), f16{0xFFFF}),
          zeros(groups(tokens), f16{0xFFFF}) {}
    MutableStreamView view() {
        MutableStreamView out{format, codes.data(), scales.data(), nullptr, nullptr, nullptr};
        if (format.stores_zero) out.zeros = zeros.data();
        return out;
    }
    std::size_t groups(std::size_t tokens) const { return format.token_blocks(tokens) * format.channel_blocks(); }

    StreamFormat format;
    std::vector<std::byte> codes;
    std::vector<f16> scales, zeros;
};

/// Which tokens feedback leads out of f16.
enum class Lost { none, some, all };

/// Writes of a page of 128: slots 0 .. cut, then the rest up to `tokens`.
template <class Q, class Axis>
void check(std::size_t tokens, std::size_t cut, std::size_t width, std::size_t block, WeightType type = WeightType::f32,
           Lost lost = Lost::none) {
    const StreamCodec codec = make_codec<Q, Axis>(width);
    REQUIRE(backend::gpu::encodes(codec));
    REQUIRE(codec.feeds_back);
    const float size = lost == Lost::all ? 1e6F : 2 / std::sqrt(static_cast<float>(block));
    const Factors factors(block, width / block, type, size);
    const std::vector<float> rows = rows_of(tokens, width, lost == Lost::some);
    INFO(tokens << " tokens, the first " << cut << " before, of " << width << " channels, blocks of " << block << ", "
                << Q::bits << " bits, groups of " << Q::group << ", rule " << static_cast<int>(codec.rule)
                << ", weights " << static_cast<int>(type));
    Stored expected(codec, 128), found(codec, 128), plain(codec, 128);
    std::vector<float> scratch(backend::feedback_scratch(expected.format, factors.view()));
    for (const auto& [begin, end] : {std::pair{std::size_t{0}, cut}, std::pair{cut, tokens}}) {
        if (begin == end) continue;
        const backend::Matrix some{rows.data() + begin * width, end - begin, width, width};
        encode_with_feedback(backend::scalar{}, codec, factors.view(), some, begin, expected.view(), scratch.data());
        encode_rows(backend::scalar{}, codec, some, begin, plain.view());
        test::encode_on_gpu(codec, factors.view(), some, begin, found.view());
    }
    CHECK(found.codes == expected.codes);
    CHECK(found.scales == expected.scales);
    CHECK(found.zeros == expected.zeros);
    // Feedback changes a quarter of the groups or more (those of one value have no choice); where targets leave f16,
    // some or none.
    std::size_t changed = 0, all = 0;
    for (std::size_t t = 0; t < expected.format.token_blocks(tokens); ++t) {
        for (std::size_t b = 0; b < expected.format.channel_blocks(); ++b) {
            const std::size_t at = expected.format.code_offset(t, b);
            const std::size_t bytes = expected.format.group_bytes(expected.format.channels_of(b));
            changed += std::memcmp(expected.codes.data() + at, plain.codes.data() + at, bytes) != 0 ? 1U : 0U;
            ++all;
        }
    }
    INFO(changed << " of " << all << " groups changed");
    if (lost == Lost::none && block > 1) CHECK(4 * changed > all);
    if (lost == Lost::some) CHECK((changed > 0 && all - changed >= all / 8));
    if (lost == Lost::all) CHECK(changed == 0);
}

}  // namespace

TEST_CASE("bytes of the device's encoder with feedback are the scalar encoder's: groups along a token") {
    for (const std::size_t tokens : {1, 2, 31, 33, 128}) {
        check<WithFeedback<Uniform<4>>, PerToken>(tokens, tokens / 2, 320, 320);
        check<WithFeedback<Uniform<2, 32>>, PerToken>(tokens, tokens / 3, 96, 32);
    }
    check<WithFeedback<Uniform<3>>, PerToken>(37, 0, 576, 576);   // a last group that is not full
    check<WithFeedback<Uniform<4>>, PerToken>(37, 5, 256, 64);    // groups over blocks
    check<WithFeedback<Uniform<5>>, PerToken>(20, 3, 192, 64);    // and the last group shorter
    check<WithFeedback<Uniform<4>>, PerToken>(9, 0, 256, 16);     // a block is a panel
    check<WithFeedback<Uniform<4, 8>>, PerToken>(9, 0, 40, 40);   // groups shorter than a panel
    check<WithFeedback<Uniform<4, 24>>, PerToken>(9, 2, 72, 72);  // that panels do not divide
    check<WithFeedback<Uniform<6, 12>>, PerToken>(40, 7, 84, 84);
    check<WithFeedback<Uniform<8, 64>>, PerToken>(35, 1, 128, 128);
    check<WithFeedback<Uniform<4, 512>>, PerToken>(33, 1, 1024, 256);
    check<WithFeedback<Uniform<4>>, PerToken>(33, 1, 129, 129);  // a last group of one channel
    check<WithFeedback<Uniform<4, 128, Symmetric>>, PerToken>(37, 5, 320, 320);
    check<WithFeedback<Uniform<2, 128, MinMse>>, PerToken>(37, 5, 320, 320);
    check<WithFeedback<Uniform<3, 32, MinMse>>, PerToken>(40, 8, 64, 16);
}

TEST_CASE("bytes of the device's encoder with feedback are the scalar encoder's: groups along a channel") {
    for (const std::size_t tokens : {1, 31, 33, 100, 128}) {
        check<WithFeedback<Uniform<4>>, PerChannel>(tokens, 0, 96, 48);
        check<WithFeedback<Uniform<4, 32>>, PerChannel>(tokens, tokens / 64 * 32, 40, 40);
    }
    check<WithFeedback<Uniform<3>>, PerChannel>(128, 0, 21, 7);
    check<WithFeedback<Uniform<2, 8>>, PerChannel>(43, 16, 70, 70);
    check<WithFeedback<Uniform<4>>, PerChannel>(128, 0, 64, 1);
    check<WithFeedback<Uniform<4, 128, Symmetric>>, PerChannel>(128, 0, 72, 36);
    check<WithFeedback<Uniform<2, 128, MinMse>>, PerChannel>(128, 0, 64, 64);
    check<WithFeedback<Uniform<3, 64, MinMse>>, PerChannel>(128, 64, 48, 48);
}

TEST_CASE("F is read in every form that matrices are kept in") {
    for (const WeightType type : {WeightType::f32, WeightType::f16, WeightType::bf16, WeightType::q8}) {
        check<WithFeedback<Uniform<4>>, PerToken>(34, 2, 256, 128, type);
        check<WithFeedback<Uniform<3>>, PerChannel>(128, 0, 80, 40, type);
    }
}

TEST_CASE("tokens whose targets leave f16 are rounded without feedback, and others with it") {
    for (const Lost lost : {Lost::some, Lost::all}) {
        check<WithFeedback<Uniform<4>>, PerToken>(70, 6, 320, 320, WeightType::f32, lost);
        check<WithFeedback<Uniform<4, 32>>, PerToken>(70, 6, 96, 16, WeightType::f32, lost);
        check<WithFeedback<Uniform<2, 64, MinMse>>, PerToken>(40, 6, 128, 128, WeightType::f32, lost);
        check<WithFeedback<Uniform<4, 16>>, PerChannel>(128, 16, 80, 40, WeightType::f32, lost);
        check<WithFeedback<Uniform<4>>, PerChannel>(128, 0, 78, 39, WeightType::f32, lost);
    }
}
