#include "retrieve.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "error.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "schemes.hpp"
#include "statistics.hpp"
#include "threads.hpp"

namespace llm {
namespace {

/// How many of the model's next tokens are those of the key, until one is not, with the tokens before them as in ids.
std::size_t found_tokens(const Model& model, const RetrieveTrial& trial, AttentionCache& cache, std::size_t step,
                         ThreadPool& pool) {
    cache.reset();
    const std::size_t n = trial.ids.size() - 1, width = model.config().width;
    std::vector<float> hidden;  // from the token before the key on
    for (std::size_t at = 0; at < n; at += step) {
        const std::size_t count = std::min(step, n - at);
        const std::vector<float> rows = model.forward(std::span(trial.ids).subspan(at, count), cache, pool);
        const std::size_t first = std::max(at, trial.answer - 1);
        if (first < at + count)
            hidden.insert(hidden.end(), rows.begin() + static_cast<std::ptrdiff_t>((first - at) * width), rows.end());
    }
    const std::size_t answers = hidden.size() / width, vocabulary = model.output().rows;
    std::vector<float> logits(answers * vocabulary);
    model.logits(hidden.data(), answers, logits.data(), pool);
    for (std::size_t i = 0; i < answers; ++i) {
        const auto row = logits.begin() + static_cast<std::ptrdiff_t>(i * vocabulary);
        const auto best = std::max_element(row, row + static_cast<std::ptrdiff_t>(vocabulary)) - row;
        if (static_cast<Token>(best) != trial.ids[trial.answer + i]) return i;
    }
    return answers;
}

bool answers(const Model& model, const RetrieveTrial& trial, AttentionCache& cache, std::size_t step,
             ThreadPool& pool) {
    return found_tokens(model, trial, cache, step, pool) == trial.ids.size() - trial.answer;
}

}  // namespace

std::vector<RetrieveTrial> make_trials(const RetrieveOptions& o, const Tokenizer& tokenizer,
                                       std::span<const Token> tokens) {
    if (o.trials < 1) throw Error("--trials must be 1 or more");
    if (o.digits < 1 || o.digits > 9) throw Error(fmt::format("--digits {}: expected 1 to 9", o.digits));
    if (o.shortest > o.longest)
        throw Error(fmt::format("--shortest {} is more than --longest {}", o.shortest, o.longest));
    std::mt19937 random(o.seed);
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
    std::vector<RetrieveTrial> trials;
    for (std::size_t i = 0; i < o.trials; ++i) {
        std::string key(1, static_cast<char>('1' + below(9)));
        while (key.size() < o.digits) key += static_cast<char>('0' + below(10));
        const std::vector<Token> needle =
            tokenizer.encode(fmt::format("\nThe pass key is {}. Remember it. {} is the pass key.\n", key, key));
        const std::string question = "\nWhat is the pass key? The pass key is";
        const std::vector<Token> asked = tokenizer.encode(question), whole = tokenizer.encode(question + " " + key);
        const std::size_t size = o.trials == 1 ? o.longest : o.shortest + (o.longest - o.shortest) * i / (o.trials - 1);
        const std::size_t others = needle.size() + whole.size();
        if (size < others + 16)
            throw Error(fmt::format("--shortest {}: key and question take {} tokens", size, others));
        const std::size_t text = size - others;
        if (text > tokens.size())
            throw Error(
                fmt::format("the text has {} tokens, but a trial of {} asks for {}", tokens.size(), size, text));
        RetrieveTrial trial;
        const std::size_t from = below(tokens.size() - text + 1), at = 8 + below(text - 8);
        const auto stretch = tokens.subspan(from, text);
        trial.ids.assign(stretch.begin(), stretch.begin() + static_cast<std::ptrdiff_t>(at));
        trial.ids.insert(trial.ids.end(), needle.begin(), needle.end());
        trial.ids.insert(trial.ids.end(), stretch.begin() + static_cast<std::ptrdiff_t>(at), stretch.end());
        // Where a tokenizer joins the blank with the key's first digit, the answer begins with it.
        const auto differ = std::mismatch(asked.begin(), asked.end(), whole.begin(), whole.end()).second;
        trial.answer = trial.ids.size() + static_cast<std::size_t>(differ - whole.begin());
        trial.ids.insert(trial.ids.end(), whole.begin(), whole.end());
        trial.place = static_cast<double>(at) / static_cast<double>(text);
        trials.push_back(std::move(trial));
    }
    return trials;
}

void retrieve(const RetrieveOptions& o) {
    std::vector<Scheme> schemes;
    for (const std::string& text : o.schemes) schemes.push_back(parse_scheme(text));
    const std::string text = read_text(o.text);
    ThreadPool pool(o.threads);
    std::optional<Gguf> gguf = Gguf::open(o.model);
    const Tokenizer tokenizer(*gguf);
    const std::vector<RetrieveTrial> all = make_trials(o, tokenizer, tokenizer.encode(text));
    const Model model(*gguf);
    gguf.reset();
    if (o.longest > model.config().context)
        fmt::print(stderr, "warning: --longest {} is more than the {} tokens that the model was made for\n", o.longest,
                   model.config().context);
    SchemeOptions options;
    options.sinks = o.sinks;
    options.strict = true;
    options.pool = &pool;
    std::optional<xquant::Calibration> statistics;
    if (!o.calibration.empty()) options.statistics = &statistics.emplace(read_statistics(o.calibration, model));
    std::size_t tokens = 0;
    for (const RetrieveTrial& trial : all) tokens += trial.ids.size();
    Progress progress(tokens * (schemes.size() + 1));

    std::vector<const RetrieveTrial*> counted;
    const auto exact = make_cache("f32", model, options);
    progress.label("exact");
    for (const RetrieveTrial& trial : all) {
        if (answers(model, trial, *exact, trial.ids.size(), pool)) counted.push_back(&trial);
        progress.advance(trial.ids.size());
    }
    progress.clear();
    fmt::print("{} trials of {} to {} tokens, keys of {} digits; the exact cache finds {}, which count\n\n", all.size(),
               o.shortest, o.longest, o.digits, counted.size());
    // By thirds of the length, so that a loss with length shows.
    const auto third = [&](const RetrieveTrial& trial) {
        const std::size_t span = std::max<std::size_t>(o.longest - o.shortest, 1);
        const std::size_t beyond = trial.ids.size() - std::min(trial.ids.size(), o.shortest);
        return std::min<std::size_t>(2, 3 * beyond / span);
    };
    std::size_t width = 15;
    for (const Scheme& scheme : schemes) width = std::max(width, scheme.text.size() + 1);
    fmt::print("{:<{}}{:>12}{:>10}{:>12}{:>12}{:>12}\n", "", width, "bits/token", "", "shortest", "middle", "longest");
    fmt::print("{:<{}}{:>12}{:>10}{:>12}{:>12}{:>12}\n", "scheme", width, "/layer", "found", "third", "third", "third");
    nlohmann::ordered_json json{{"trials", all.size()}, {"exact", counted.size()}};
    json["schemes"] = nlohmann::ordered_json::array();
    for (const Scheme& scheme : schemes) {
        progress.label(scheme.text);
        const auto cache = make_cache(scheme, model, options);
        std::size_t found = 0, found_in[3] = {}, counted_in[3] = {};
        double bits = 0;
        for (const RetrieveTrial* trial : counted) {
            const bool has = answers(model, *trial, *cache, scheme.tail ? 32 : trial->ids.size(), pool);
            found += has ? 1 : 0;
            ++counted_in[third(*trial)];
            found_in[third(*trial)] += has ? 1 : 0;
            bits = cache->bits_per_token_layer();
            progress.advance(trial->ids.size());
        }
        progress.clear();
        const auto share = [](std::size_t a, std::size_t b) { return fmt::format("{} of {}", a, b); };
        fmt::print("{:<{}}{:>12.0f}{:>10}{:>12}{:>12}{:>12}\n", scheme.text, width, bits, share(found, counted.size()),
                   share(found_in[0], counted_in[0]), share(found_in[1], counted_in[1]),
                   share(found_in[2], counted_in[2]));
        std::fflush(stdout);
        json["schemes"].push_back({{"name", scheme.text}, {"bits_per_token_layer", bits}, {"found", found}});
    }
    if (o.json.empty()) return;
    std::ofstream file(o.json);
    file << json.dump(2) << "\n";
    if (!file.flush()) throw Error(fmt::format("{}: can't be written", o.json));
}

}  // namespace llm
