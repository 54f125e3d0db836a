/// The engine and the library's caches on Gemma-3-270M: one key/value head of 256 channels, norms of q and k, windows
/// of 512 tokens in five layers of six (real_model.hpp says by what the model is found).
#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>

#include "catch.hpp"
#include "gguf.hpp"
#include "real_model.hpp"
#include "schemes.hpp"
#include "tokenizer.hpp"

using namespace llm;
using namespace llm::test;

namespace {

// WikiText-2's is llama.cpp's figure with the same weights in f32. A BOS comes first.
const KnownText texts[] = {{"the shipped essays", 4267, 0, 1024, 1024, 512, 35.983},
                           {"WikiText-2's test text", 292282, 0, 1024, 1024, 512, 7.3329}};

}  // namespace

TEST_CASE("Gemma gives the known tokens, perplexity and divergences", "[gemma3]") {
    const auto path = model_file("XQUANT_MODEL_GEMMA");
    if (!path) return;
    std::optional<Gguf> gguf = Gguf::open(*path);
    const Tokenizer tokenizer(*gguf);

    // Made with llama.cpp: digits one by one, runs of newlines, tabs and spaces as tokens of their own, bytes of a
    // character that has no token, HTML tags.
    const std::string mixed =
        "In 2024, it's 3.14 \u2014 na\u00efve caf\u00e9, \u65e5\u672c\u8a9e \U0001f642!\n\n  def f(x):\n\treturn x  # "
        "don't\r\n\u0e01\U00012345 <b>bold</b>\t\t\t     end  ";
    CHECK(tokenizer.encode(mixed) ==
          std::vector<Token>{902,    236743, 236778, 236771, 236778, 236812, 236764, 625,    236789, 236751, 236743,
                             236800, 236761, 236770, 236812, 2192,   120362, 33443,  236764, 33375,  238582, 57235,
                             236888, 108,    138,    2063,   517,    236769, 236781, 1473,   107,    255968, 2060,
                             1123,   138,    236865, 1537,   236789, 236745, 251,    107,    237057, 478,    384,
                             379,    371,    236743, 200,    15640,  209,    255970, 141,    643,    138});
    CHECK(tokenizer.decode(tokenizer.encode(mixed)) == mixed);
    CHECK(tokenizer.encode("<start_of_turn>user\nhi<end_of_turn>", true) ==
          std::vector<Token>{105, 2364, 107, 2202, 106});
    CHECK(tokenizer.bos() == 2);
    CHECK(tokenizer.adds_bos());

    const std::string text = read_text(text_file());
    std::vector<Token> tokens = tokenizer.encode(text);
    CHECK(tokenizer.decode(tokens) == text);
#ifdef NDEBUG
    constexpr std::size_t context = 768;  // longer than the window
    REQUIRE(tokens.size() >= 1024);
    tokens.insert(tokens.begin(), tokenizer.bos());
    ThreadPool pool;
    const Model model(*gguf);
    gguf.reset();
    REQUIRE(model.config().layers == 18);
    CHECK(model.layer(4).window == 512);
    CHECK(model.layer(5).window == 0);
    CHECK(model.layer(6).window == 512);

    if (const KnownText* known = known_text(texts, tokens.size())) check_perplexity(model, *known, tokens, pool);

    const std::span<const Token> ids = std::span<const Token>(tokens).first(context);
    const std::vector<float> exact = model.forward(ids, *make_exact_cache(model, pool), pool);
    const Reference reference = make_reference(model, ids, exact.data(), context / 2, pool);
    SchemeOptions options;
    options.sinks = 4;
    options.strict = true;
    options.pool = &pool;
    std::map<std::string, double> kld;
    for (const std::string scheme : {"f16", "q8_0", "q4_0_hadamard", "svd_head4", "x4_rot"}) {
        Predictions predictions;
        const auto cache = make_cache(scheme, model, options);
        const std::vector<float> hidden = model.forward(ids, *cache, pool);
        compare(model, ids, hidden.data(), reference, pool, predictions);
        kld[scheme] = predictions.kld_mean();
        std::cerr << scheme << ": KLD " << kld[scheme] << "\n";
    }
    CHECK(std::abs(kld.at("f16")) < 1e-5);
    CHECK(kld.at("q8_0") > 1e-5);
    CHECK(kld.at("q8_0") < 5e-3);
    CHECK(kld.at("svd_head4") > 2e-3);  // an error that is too small means that something exact was read
    CHECK(kld.at("svd_head4") < 0.04);
    CHECK(kld.at("svd_head4") < 0.3 * kld.at("q4_0_hadamard"));
    CHECK(kld.at("x4_rot") > 2e-3);
    CHECK(kld.at("x4_rot") < 0.5);
#else
    skipped("Gemma's perplexity and divergences, which take too long in a debug build");
#endif
}
