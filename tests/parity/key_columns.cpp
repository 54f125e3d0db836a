/// Slow pairs: which they are, how well their polynomials turn them, and what that changes in scores.
#include <xquant/backend/slow_pairs.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "parity/machines.hpp"
#include "parity/some_rows.hpp"
#include "support/catch.hpp"
#include "support/model.hpp"

using namespace xquant;

namespace {

constexpr std::size_t head_dim = 64, tokens = 128;

/// Codes of a latent, per channel or (two groups of channels) per token; or those of K itself, per channel.
enum class Codes { by_channel, by_token, of_keys };

/// A task of one query row over one tile of random codes, with what it points to. Keys lie `constants` from nought, by
/// a constant or, where codes are those of K, as they are.
struct OneTile {
    explicit OneTile(std::size_t queries, double base = 100000, RopePairing pairing = RopePairing::interleaved,
                     float constants = 1, Codes codes = Codes::by_channel)
        : width(codes == Codes::by_token ? 200 : 64),
          rope(Rope::standard(head_dim, base, pairing)),
          cosines(rope.inverse_frequencies.size() * tokens),
          sines(cosines.size()),
          rows(codes == Codes::by_token ? parity::some_rows<PerToken>(tokens, width)
                                        : parity::some_rows(tokens, width, codes == Codes::of_keys ? constants : 0)) {
        test::Random random(5);
        matrix = random.rows(width * head_dim);
        constant = random.rows(head_dim, constants);
        q = random.rows(queries * head_dim);
        rope.factor = 1.25;
        fill_rope_table(rope, tokens, cosines.data(), sines.data());
        task.key = {0, 0, width, matrix.data(), constant.data(), head_dim};
        if (codes == Codes::of_keys) task.key = {0, 0, width, nullptr, nullptr, head_dim};
        task.rope = {
            rope.pairing, rope.inverse_frequencies.size(), tokens, rope.inverse_frequencies.data(), cosines.data(),
            sines.data(), static_cast<float>(rope.factor)};
        task.head_dim = head_dim;
        task.rows = 1;
        task.queries_per_kv = queries;
        task.first_position = 5000;
        task.q = q.data();
        task.q_stride = q.size();
        task.rules.scale = 0.125F;
    }
    OneTile(const OneTile&) = delete;

    /// Channel c of the key of a token with this latent, before RoPE.
    [[nodiscard]] double key(const float* z, std::size_t c) const {
        if (task.key.matrix == nullptr) return static_cast<double>(z[c]);
        double sum = static_cast<double>(constant[c]);
        for (std::size_t r = 0; r < width; ++r) {
            sum += static_cast<double>(z[r]) * static_cast<double>(matrix[r * head_dim + c]);
        }
        return sum;
    }

    std::size_t width;
    Rope rope;
    std::vector<float> cosines, sines;
    QuantizedRows rows;
    std::vector<float> matrix, constant, q;
    AttendTask task;
};

backend::KeyColumns ordered(const OneTile& at, std::vector<float>& memory) {
    std::vector<float> room(backend::rematerialize_scratch(head_dim));
    const StreamFormat format = at.rows.view().format;
    memory.assign(backend::key_columns_floats(at.task, format), 0);
    backend::KeyColumns out;
    backend::detail::order_columns(backend::int8<backend::scalar>{}, at.task, format, memory.data(), room.data(), out);
    return out;
}

}  // namespace

TEST_CASE("three polynomials turn a slow pair by every angle of a tile, to 3 thousandths; five turn a constant") {
    double three = 0, five = 0;
    for (const double x : {0.0, 1e-4, 0.1, -0.3, 0.4, backend::slow_angle, -backend::slow_angle}) {
        const auto series = backend::detail::bessel_series(x);
        for (std::size_t t = 0; t < tokens; ++t) {
            const double angle = x * (static_cast<double>(t) - 64) / 64;
            double cosine = 0, sine = 0;
            for (std::size_t m = 0; m < backend::constant_terms; ++m) {
                const double turn = m == 0 ? 1 : static_cast<double>(backend::turn_table.at[m - 1][tokens + t]);
                (m % 2 == 0 ? cosine : sine) += static_cast<double>(series[m]) * turn;
                const double off = std::max(std::abs(cosine - std::cos(angle)), std::abs(sine - std::sin(angle)));
                if (m + 1 == backend::slow_terms) three = std::max(three, off);
                if (m + 1 == backend::constant_terms) five = std::max(five, off);
            }
        }
    }
    CHECK(three < 3.1e-3);
    CHECK(three > 2e-3);  // the most that a pair may turn is used up
    CHECK(five < 8e-6);
    CHECK(five > 1e-6);
}

TEST_CASE("slow pairs are those that turn little within a tile, where enough of them share a query") {
    for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::halves}) {
        const Codes codes = GENERATE(Codes::by_channel, Codes::by_token, Codes::of_keys);
        const bool by_token = codes == Codes::by_token, of_keys = codes == Codes::of_keys;
        const OneTile three(3, 100000, pairing, 1, codes);
        std::vector<float> memory;
        const backend::KeyColumns columns = ordered(three, memory);
        // 64 / 100000^(j / 32) is 0.416 for j = 14 and 0.60 for j = 13.
        CHECK(columns.pairs == 14);
        CHECK(columns.built == 28);
        CHECK(columns.slow == 36);
        std::vector<std::size_t> channels(columns.channels.begin(), columns.channels.begin() + head_dim);
        CHECK(channels[26] == three.task.rope.first(13));
        CHECK(channels[27] == three.task.rope.second(13));
        // 576 / 100000^(j / 32) is 0.427 for j = 20 and 0.298 for j = 21. K itself needs no product with A.
        const std::size_t by_tile = of_keys ? 18 : 7;
        CHECK(columns.by_tile == by_tile);
        CHECK(channels[28] == three.task.rope.first(14));
        CHECK(channels[28 + by_tile] == three.task.rope.second(14));
        if (!of_keys) CHECK(channels[28 + 14] == three.task.rope.first(21));
        CHECK(channels[28 + 14 + 11] == three.task.rope.second(21));
        CHECK((columns.built_matrix == nullptr) == (by_token || of_keys));
        CHECK((columns.slow_matrix == nullptr) == of_keys);
        CHECK(columns.width == (of_keys ? 36 : three.width));
        for (std::size_t k = 0; k < head_dim && !of_keys; ++k) {
            for (const std::size_t c : {std::size_t{3}, three.width - 1}) {
                const float expected = three.matrix[c * head_dim + channels[k]];
                if (k >= 28) CHECK(columns.slow_matrix[(k - 28) * three.width + c] == expected);
                if (k < 28 && !by_token) CHECK(columns.built_matrix[k * three.width + c] == expected);
            }
        }
        std::sort(channels.begin(), channels.end());
        for (std::size_t k = 0; k < head_dim; ++k) CHECK(channels[k] == k);
    }
    std::vector<float> memory;
    CHECK(ordered(OneTile(8), memory).slow == 0);     // 24 columns and their making would take the place of 36
    CHECK(ordered(OneTile(3, 3), memory).slow == 0);  // every pair turns fast
    CHECK(ordered(OneTile(1, 1e9), memory).slow > 36);
    OneTile normed(3);
    normed.task.rules.key_norm = normed.constant.data();
    CHECK(ordered(normed, memory).slow == 0);
    const auto slow_keys = [&](std::size_t queries, double base) {
        return ordered(OneTile(queries, base, RopePairing::halves, 1, Codes::of_keys), memory).slow;
    };
    CHECK(slow_keys(8, 100000) == 0);
    CHECK(slow_keys(4, 100000) == 36);
    CHECK(slow_keys(3, 3) == 0);
}

TEST_CASE("scores of slow pairs are those of keys that are turned one by one, and 8 bits; constants may be large") {
    const bool is_large = GENERATE(false, true);
    const Codes codes = GENERATE(Codes::by_channel, Codes::by_token, Codes::of_keys);
    const bool by_token = codes == Codes::by_token;
    const OneTile at(3, 100000, RopePairing::interleaved, is_large ? 1e4F : 1.0F, codes);
    const std::size_t width = at.width;
    std::vector<float> memory;
    backend::KeyColumns columns = ordered(at, memory);
    // The ends of a stretch of 1,024 positions, its inside, and the next ones; how far off scores may be, by 8-bit
    // products and by large constants.
    struct Case {
        std::int64_t start;
        double bound, large;
    };
    const auto [start, bound, large] =
        GENERATE(Case{0, 0.01, 1e-5}, Case{1023, 0.021, 2.1e-5}, Case{1024, 0.021, 2.1e-5}, Case{4321, 0.015, 1e-5},
                 Case{1 << 20, 0.018, 1e-5});
    backend::TileAngles angles;
    const backend::int8<backend::scalar> tag;
    for (const std::int64_t before : {start + 2048, start}) {  // what was made for another stretch is not kept
        angles.move_to(at.task.rope, before);
        backend::detail::make_slow_columns(tag, at.task, {0, 1}, angles, columns);
    }
    std::vector<float> scores(3 * backend::tile_tokens, 0.0F), z(tokens * width);
    backend::detail::add_slow_scores(tag, at.task, at.rows.view(), {0, tokens}, 3, columns, scores.data());
    backend::decode_tile(backend::scalar{}, at.rows.view(), 0, 0,
                         {z.data(), tokens, width, width, backend::TileOrder::token_major});
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < 3; ++i) {
        for (std::size_t t = 0; t < tokens; ++t) {
            double exact = 0;
            for (std::size_t k = 0; k < columns.slow / 2; ++k) {
                const std::size_t j = columns.numbers[columns.pairs + k];
                const std::size_t channels[2] = {at.task.rope.first(j), at.task.rope.second(j)};
                const float* const latent = z.data() + t * width;
                const double key[2] = {at.key(latent, channels[0]), at.key(latent, channels[1])};
                const double angle =
                    static_cast<double>(start + static_cast<std::int64_t>(t)) * at.rope.inverse_frequencies[j];
                const float* const q = at.task.query(i) + channels[0];
                const float* const p = at.task.query(i) + channels[1];
                exact += 1.25 * 0.125 *
                         (static_cast<double>(*q) * (key[0] * std::cos(angle) - key[1] * std::sin(angle)) +
                          static_cast<double>(*p) * (key[0] * std::sin(angle) + key[1] * std::cos(angle)));
            }
            difference += std::pow(static_cast<double>(scores[i * backend::tile_tokens + t]) - exact, 2);
            size += exact * exact;
        }
    }
    const double off = std::sqrt(difference / size);
    INFO(off);
    // Beside the constants, z A of rows that are three times as wide is larger.
    CHECK(off < (is_large ? large * (by_token ? 3.2 : 1) : bound));
    CHECK(off > (is_large ? 1e-8 : 1e-4));  // the codes' part is rounded to 8 bits
}
