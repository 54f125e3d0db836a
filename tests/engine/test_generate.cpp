/// Sampling and the chat prompt.
#include "generate.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "catch.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "sampling.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;

TEST_CASE("temperature 0 takes the most likely token", "[generate]") {
    Sampler sampler(0, 1);
    const std::vector<float> logits{1, 5, 2, 5};
    for (int i = 0; i < 10; ++i) REQUIRE(sampler.draw(logits) == 1);
}

TEST_CASE("sampling follows the softmax, and the seed", "[generate]") {
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
