/// Trials of `retrieve`: their lengths, where key and answer stand, and what is refused.
#include "retrieve.hpp"

#include <set>
#include <string>
#include <vector>

#include "catch.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;

TEST_CASE("a trial has its key in the text and behind the question", "[engine]") {
    GgufWriter file;
    const Tokenizer tokenizer(Gguf::parse(add_vocabulary(file, {}).bytes(), "test.gguf"));
    std::string letters;
    for (std::size_t i = 0; i < 3000; ++i) letters += static_cast<char>('a' + i * 7 % 26);
    const std::vector<Token> text = tokenizer.encode(letters);
    RetrieveOptions options;
    options.trials = 5;
    options.shortest = 200;
    options.longest = 1000;
    const std::vector<RetrieveTrial> trials = make_trials(options, tokenizer, text);
    REQUIRE(trials.size() == 5);
    std::set<std::string> keys;
    std::set<double> places;
    for (std::size_t i = 0; i < trials.size(); ++i) {
        const RetrieveTrial& trial = trials[i];
        CHECK(trial.ids.size() == 200 + 200 * i);
        const auto cut = trial.ids.begin() + static_cast<std::ptrdiff_t>(trial.answer);
        const std::string before = tokenizer.decode({trial.ids.begin(), cut}),
                          key = tokenizer.decode({cut, trial.ids.end()});
        const std::string digits = key.substr(key.find_first_not_of(' '));
        CHECK(digits.size() == 5);
        CHECK(digits.find_first_not_of("0123456789") == std::string::npos);
        CHECK(before.find("The pass key is " + digits + ". Remember it. " + digits + " is the pass key.") !=
              std::string::npos);
        CHECK((before + key).ends_with("\nWhat is the pass key? The pass key is " + digits));
        CHECK(trial.place > 0);
        CHECK(trial.place < 1);
        keys.insert(digits);
        places.insert(trial.place);
    }
    CHECK(keys.size() == 5);
    CHECK(places.size() == 5);
    CHECK(make_trials(options, tokenizer, text)[3].ids == trials[3].ids);
    options.seed = 2;
    CHECK(make_trials(options, tokenizer, text)[3].ids != trials[3].ids);

    const auto refused = [&](auto change) {
        RetrieveOptions wrong = options;
        change(wrong);
        try {
            make_trials(wrong, tokenizer, text);
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    CHECK(refused([](RetrieveOptions& o) { o.longest = 9000; }).find("the text has 3000 tokens") == 0);
    CHECK(refused([](RetrieveOptions& o) { o.shortest = 1001; }) == "--shortest 1001 is more than --longest 1000");
    CHECK(refused([](RetrieveOptions& o) { o.shortest = 90; }).find("--shortest 90: key and question take") == 0);
    CHECK(refused([](RetrieveOptions& o) { o.digits = 0; }) == "--digits 0: expected 1 to 9");
    CHECK(refused([](RetrieveOptions& o) { o.trials = 0; }) == "--trials must be 1 or more");
}
