/// Sampling, the chat prompt, and texts that go on: to an end token, or by drafts.
#include "generate.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <random>
#include <string>

#include "catch.hpp"
#include "continuation.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "sampling.hpp"
#include "schemes.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;

namespace {

struct Engine {
    Gguf gguf = Gguf::parse(to_gguf(tiny_model()).bytes(), "test.gguf");
    Tokenizer tokenizer{gguf};
    Model model{gguf};
    ThreadPool pool{1};

    std::unique_ptr<AttentionCache> cache(const std::string& scheme) {
        SchemeOptions options;
        options.strict = true;
        options.pool = &pool;
        return make_cache(scheme, model, options);
    }
    /// What follows a prompt, at temperature 0.
    std::vector<Token> answer(const std::vector<Token>& prompt, const std::string& scheme,
                              const std::vector<Token>& ends, std::size_t most) {
        Sampler sampler(0, 0);
        const auto own = cache(scheme);
        return continue_text(model, read_tokens(model, prompt, *own, pool), *own, sampler, tokenizer, ends, most, pool,
                             [](auto) {});
    }
    /// The most likely tokens behind rows of hidden [n, D].
    std::vector<Token> most_likely(const std::vector<float>& hidden) {
        const std::size_t n = hidden.size() / model.config().width, vocabulary = model.config().vocabulary;
        std::vector<float> logits(n * vocabulary);
        model.logits(hidden.data(), n, logits.data(), pool);
        std::vector<Token> out;
        for (std::size_t i = 0; i < n; ++i) {
            Sampler sampler(0, 0);
            out.push_back(sampler.draw(std::span(logits).subspan(i * vocabulary, vocabulary)));
        }
        return out;
    }
};

std::vector<Token> some_prompt() {
    std::mt19937 random(11);
    std::vector<Token> ids(150);
    for (Token& id : ids) id = static_cast<Token>(first_byte_token + random() % 256);
    return ids;
}

}  // namespace

TEST_CASE("temperature 0 takes the most likely token", "[generate]") {
    Sampler sampler(0, 1);
    const std::vector<float> logits{1, 5, 2, 5};
    for (int i = 0; i < 10; ++i) REQUIRE(sampler.draw(logits) == 1);
}

TEST_CASE("sampling follows the softmax, the temperature and the seed", "[generate]") {
    const std::vector<float> logits{0, std::log(2.0f), -100, std::log(5.0f)};
    Sampler sampler(1, 7), again(1, 7), other(1, 8);
    std::array<int, 4> count{};
    int differ = 0;
    const int draws = 20000;
    for (int i = 0; i < draws; ++i) {
        const Token token = sampler.draw(logits);
        ++count[static_cast<std::size_t>(token)];
        REQUIRE(again.draw(logits) == token);
        differ += other.draw(logits) != token;
    }
    CHECK(std::abs(count[0] - draws / 8) < 250);  // 5 standard deviations
    CHECK(std::abs(count[1] - draws / 4) < 320);
    CHECK(count[2] == 0);
    CHECK(differ > 0);

    // At half the temperature, odds are squared: 1 : 4 : 25.
    Sampler colder(0.5, 7);
    count = {};
    for (int i = 0; i < draws; ++i) ++count[static_cast<std::size_t>(colder.draw(logits))];
    CHECK(std::abs(count[0] - draws / 30) < 130);
    CHECK(std::abs(count[1] - draws * 4 / 30) < 250);
}

TEST_CASE("a chat prompt is ChatML, and a user can't write its markers", "[generate]") {
    GgufWriter file;
    const Tokenizer tokenizer(Gguf::parse(add_vocabulary(file, {}).bytes(), "test.gguf"));
    const auto plain = chat_prompt(tokenizer, "Be kind", "Hi");
    CHECK(tokenizer.decode(plain) ==
          "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    const auto markers = [](const std::vector<Token>& ids) {
        return std::count_if(ids.begin(), ids.end(), [](Token t) { return t < first_byte_token; });
    };
    CHECK(markers(plain) == 5);
    CHECK(markers(chat_prompt(tokenizer, "Be kind", "<|im_end|>")) == 5);
}

TEST_CASE("a text ends before the first end token, or after as many tokens as it may have", "[generate]") {
    Engine e;
    const std::vector<Token> whole = e.answer(some_prompt(), "f32", {}, 24);
    REQUIRE(whole.size() == 24);
    const Token end = whole[9];
    const auto first = std::find(whole.begin(), whole.end(), end);
    CHECK(e.answer(some_prompt(), "f32", {first_byte_token - 1, end}, 24) == std::vector<Token>(whole.begin(), first));
    CHECK(e.answer(some_prompt(), "f32", {}, 5) == std::vector<Token>(whole.begin(), whole.begin() + 5));
}

TEST_CASE("drafts: tokens that the model would have said are kept, the others taken back, and the text is the same",
          "[generate]") {
    Engine e;
    const std::vector<Token> prompt = some_prompt();
    constexpr std::size_t most = 60, ahead = 4;
    // Schemes whose rows do not depend on the step in which they came.
    for (const std::string scheme : {"f32", "f16", "q8_0", "x4_rot"}) {
        INFO(scheme);
        const std::vector<Token> expected = e.answer(prompt, scheme, {}, most + ahead);
        const auto cache = e.cache(scheme);
        Token next = e.most_likely(read_tokens(e.model, prompt, *cache, e.pool)).front();
        std::mt19937 random(3);
        std::vector<Token> made;
        std::size_t accepted = 0, rejected = 0, none = 0, all = 0;
        while (made.size() < most) {
            // A draft that is right for a while: each token with odds of three to one.
            std::vector<Token> step{next};
            for (std::size_t i = 1; i < ahead; ++i) {
                const Token right = expected[made.size() + i];
                step.push_back(random() % 4 == 0 ? (right + 1) % 259 : right);
            }
            const std::size_t before = cache->size();
            const std::vector<Token> said = e.most_likely(e.model.forward(step, *cache, e.pool));
            std::size_t kept = 1;
            while (kept < ahead && step[kept] == said[kept - 1]) ++kept;
            cache->truncate(before + kept);
            CHECK(cache->size() == before + kept);
            made.insert(made.end(), step.begin(), step.begin() + static_cast<std::ptrdiff_t>(kept));
            next = said[kept - 1];
            accepted += kept - 1;
            rejected += ahead - kept;
            none += kept == 1 ? 1U : 0U;
            all += kept == ahead ? 1U : 0U;
        }
        made.resize(most);
        CHECK(made == std::vector<Token>(expected.begin(), expected.begin() + most));
        INFO(accepted << " accepted, " << rejected << " rejected, " << none << " drafts wholly, " << all
                      << " not at all");
        CHECK(accepted > 15);
        CHECK(rejected > 10);
        CHECK(none > 0);
        CHECK(all > 0);
    }
}
