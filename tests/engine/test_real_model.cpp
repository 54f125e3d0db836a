/// The engine on SmolLM2-135M-Instruct (real_model.hpp says by what it is found).
#include <cmath>
#include <optional>
#include <string>

#include "catch.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "real_model.hpp"
#include "tokenizer.hpp"

using namespace llm;
using namespace llm::test;

namespace {

const std::string paragraph =
    "The lighthouse stood at the end of a long stone pier, and every evening the keeper walked out to light the lamp. "
    "In winter the waves "
    "broke over the wall and froze on the steps, so that he had to hold on to an iron chain. His daughter counted the "
    "ships that passed.";

const KnownText texts[] = {{"the shipped essays", 4374, 0, 2048, 1024, 0, 35.649},
                           {"WikiText-2's test text", 301948, 20000, 2048, 1024, 0, 26.753}};

}  // namespace

TEST_CASE("SmolLM2 gives the known tokens and perplexity", "[smollm2]") {
    const auto path = model_file("XQUANT_MODEL");
    if (!path) return;
    std::optional<Gguf> gguf = Gguf::open(*path);
    const Tokenizer tokenizer(*gguf);

    // Made with the tokenizers package.
    const std::string mixed =
        "In 2024, it's 3.14 \u2014 na\u00efve caf\u00e9, \u65e5\u672c\u8a9e \U0001f642!\n\n  def f(x):\n\treturn x  # "
        "don't\r\n";
    CHECK(tokenizer.encode(mixed) ==
          std::vector<Token>{788,   216,   34,    32,  34,    36,  28,   357,   506, 216, 35,   30,    33,  36,   1841,
                             15486, 46494, 37366, 28,  17097, 241, 115,  40993, 179, 120, 248,  47526, 17,  8866, 753,
                             275,   24,    104,   727, 198,   197, 5406, 1792,  216, 907, 1326, 982,   2738});
    CHECK(tokenizer.decode(tokenizer.encode(mixed)) == mixed);
    CHECK(tokenizer.encode("The capital of France is") == std::vector<Token>{504, 3575, 282, 4649, 314});

    ThreadPool pool;
    const Model model(*gguf);
    gguf.reset();
    REQUIRE(model.config().layers == 30);
    const std::vector<Token> ids = tokenizer.encode(paragraph);
    const double of_paragraph = exact_perplexity(model, ids, ids.size(), 0, pool);
    INFO("perplexity of the paragraph " << of_paragraph);
    CHECK(of_paragraph > 5);
    CHECK(of_paragraph < 40);

    const std::string text = read_text(text_file());
    const std::vector<Token> tokens = tokenizer.encode(text);
    CHECK(tokenizer.decode(tokens) == text);
    const KnownText* known = known_text(texts, tokens.size());
    if (known == nullptr) return;
    if (known == &texts[1]) {
        CHECK(std::vector<Token>(tokens.begin(), tokens.begin() + 7) ==
              std::vector<Token>{446, 6356, 389, 9226, 352, 446, 3717});
    }
#ifdef NDEBUG
    check_perplexity(model, *known, tokens, pool);
#else
    skipped("the perplexity of a text, which takes too long in a debug build");
#endif
}
