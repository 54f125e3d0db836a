#include "perplexity.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "calibrate.hpp"
#include "compare.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "schemes.hpp"
#include "tokenizer.hpp"

namespace llm {
namespace {

/// One line of the table.
struct Result {
    std::string name;
    double bits = 0, bytes = 0, compression = 0;  // per token and layer; per token; f16 keys and values / these
    double perplexity = 0, delta = 0;             // delta in percent
    double kld = 0, kld_p999 = 0, top1 = 0, seconds = 0;
};

constexpr std::string_view exact_name = "f32";

void check_schemes(const std::vector<std::string>& names) {
    const std::vector<std::string> known = scheme_names();
    for (const std::string& name : names)
        if (name != exact_name && std::find(known.begin(), known.end(), name) == known.end())
            throw Error(fmt::format("unknown scheme '{}'; known are {}", name, fmt::join(known, ", ")));
}

/// a * b + c, for counts that a user typed.
std::size_t checked(std::size_t a, std::size_t b, std::size_t c) {
    std::size_t result = 0;
    if (__builtin_mul_overflow(a, b, &result) || __builtin_add_overflow(result, c, &result))
        throw Error("--offset, --context and --chunks are too large");
    return result;
}

void check_numbers(const PerplexityOptions& o) {
    if (o.chunks < 1) throw Error("--chunks must be 1 or more");
    if (o.context < 2) throw Error("--context must be 2 or more: the first token of a context can't be scored");
    if (o.context <= o.sinks)
        throw Error(fmt::format("--context {} leaves nothing to quantize behind {} sinks", o.context, o.sinks));
    if (o.context <= o.tail)
        throw Error(fmt::format("--context {} leaves nothing to quantize before a tail of {}", o.context, o.tail));
}

/// Where the two calibration chunks start.
std::size_t calibration_start(const PerplexityOptions& o, std::size_t tokens) {
    constexpr std::size_t default_start = 100000, skip = 4;
    if (o.context <= skip) throw Error("the x*_rot_mean schemes need a --context of more than 4 tokens");
    const std::size_t length = checked(o.context, 2, 0);
    const std::size_t start =
        o.calibrate_offset.value_or(checked(1, default_start, length) <= tokens ? default_start : 0);
    if (checked(1, start, length) > tokens)
        throw Error(
            fmt::format("calibration needs tokens {} to {}, but the text has {}", start, start + length, tokens));
    if (start < o.offset + o.context * o.chunks && o.offset < start + length)
        fmt::print(stderr,
                   "warning: the calibration text (tokens {} to {}) overlaps with the evaluated one; x*_rot_mean will "
                   "look too good\n",
                   start, start + length);
    return start;
}

void print_head() {
    fmt::print("{:<15}{:>11}{:>12}{:>9}{:>12}{:>10}{:>10}{:>10}{:>8}{:>9}\n", "", "bits/token", "bytes", "compres-", "",
               "change", "mean", "99.9 %", "", "");
    fmt::print("{:<15}{:>11}{:>12}{:>9}{:>12}{:>10}{:>10}{:>10}{:>8}{:>9}\n", "scheme", "/layer", "/token", "sion",
               "perplexity", "%", "KLD", "KLD", "top-1", "seconds");
    std::fflush(stdout);
}

void print_row(const Result& r) {
    fmt::print("{:<15}{:>11.1f}{:>12.1f}{:>8.2f}x{:>12.3f}{:>+10.2f}{:>10.5f}{:>10.4f}{:>8.4f}{:>9.1f}\n", r.name,
               r.bits, r.bytes, r.compression, r.perplexity, r.delta, r.kld, r.kld_p999, r.top1, r.seconds);
    std::fflush(stdout);
}

std::string file_name(const std::string& path) { return std::filesystem::path(path).filename().string(); }

std::string to_json(const PerplexityOptions& o, const std::vector<Result>& results) {
    nlohmann::ordered_json json{
        {"model", file_name(o.model)}, {"text", file_name(o.text)}, {"context", o.context}, {"offset", o.offset},
        {"chunks", o.chunks},          {"sinks", o.sinks},          {"tail", o.tail}};
    json["exact_perplexity"] = results.front().perplexity;
    json["schemes"] = nlohmann::ordered_json::array();
    for (std::size_t i = 1; i < results.size(); ++i) {
        const Result& r = results[i];
        json["schemes"].push_back({{"name", r.name},
                                   {"bits_per_token_layer", r.bits},
                                   {"bytes_per_token", r.bytes},
                                   {"perplexity", r.perplexity},
                                   {"delta_percent", r.delta},
                                   {"kld_mean", r.kld},
                                   {"kld_p999", r.kld_p999},
                                   {"top1", r.top1},
                                   {"seconds", r.seconds}});
    }
    return json.dump(2) + "\n";
}

/// Runs schemes over the same chunks. The exact hidden states are kept, so exact() comes first.
class Evaluation {
public:
    Evaluation(const Model& model, std::span<const Token> ids, std::size_t context, std::size_t step, ThreadPool& pool,
               Progress& progress)
        : model_(model),
          ids_(ids),
          context_(context),
          step_(step),
          pool_(pool),
          progress_(progress),
          exact_(ids.size() / context) {}

    Result run(std::string name, AttentionCache& cache, bool exact) {
        Result result;
        result.name = std::move(name);
        Predictions predictions;
        std::size_t tokens = 0, stored = 0;
        for (std::size_t chunk = 0; chunk < exact_.size(); ++chunk) {
            const auto ids = ids_.subspan(chunk * context_, context_);
            const auto start = std::chrono::steady_clock::now();
            std::vector<float> hidden = feed(ids, cache);
            cache.seal();
            result.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            tokens += cache.size();
            stored += cache.bytes().stored();
            result.bits += cache.bits_per_token_layer() / static_cast<double>(exact_.size());
            if (exact) exact_[chunk] = std::move(hidden);
            compare(model_, ids, exact ? exact_[chunk].data() : hidden.data(), exact_[chunk].data(), pool_,
                    predictions);
        }
        if (exact) exact_perplexity_ = predictions.perplexity();
        result.bytes = static_cast<double>(stored) / static_cast<double>(tokens);
        result.compression = static_cast<double>(model_.f16_bytes_per_token()) / result.bytes;
        result.perplexity = predictions.perplexity();
        result.delta = 100 * (result.perplexity / exact_perplexity_ - 1);
        result.kld = predictions.kld_mean();
        result.kld_p999 = predictions.kld_quantile(0.999);
        result.top1 = predictions.top1();
        if (!std::isfinite(result.perplexity) || !std::isfinite(result.kld))
            throw Error(fmt::format("{}: the predictions are not finite", result.name));
        return result;
    }

private:
    /// -> hidden states [context, D]
    std::vector<float> feed(std::span<const Token> ids, AttentionCache& cache) {
        std::vector<float> hidden;
        hidden.reserve(ids.size() * model_.config().width);
        cache.reset();
        for (std::size_t at = 0; at < ids.size(); at += step_) {
            const auto step = ids.subspan(at, std::min(step_, ids.size() - at));
            const std::vector<float> more = model_.forward(step, cache, pool_);
            hidden.insert(hidden.end(), more.begin(), more.end());
            progress_.advance(step.size());
        }
        return hidden;
    }

    const Model& model_;
    std::span<const Token> ids_;
    std::size_t context_, step_;
    ThreadPool& pool_;
    Progress& progress_;
    std::vector<std::vector<float>> exact_;  // [chunks][context, D]
    double exact_perplexity_ = 0;
};

}  // namespace

void perplexity(const PerplexityOptions& o) {
    // Everything that can be wrong with the order is found before any work is done.
    check_schemes(o.schemes);
    check_numbers(o);
    const std::string text = read_text(o.text);
    ThreadPool pool(o.threads);
    std::optional<Gguf> gguf = Gguf::open(o.model);
    const std::vector<Token> tokens = Tokenizer(*gguf).encode(text);
    const std::size_t evaluated = checked(o.context, o.chunks, 0);
    if (checked(1, o.offset, evaluated) > tokens.size())
        throw Error(fmt::format("{}: the text has {} tokens, but --offset {} with {} x {} tokens asks for {}", o.text,
                                tokens.size(), o.offset, o.chunks, o.context, o.offset + evaluated));
    std::vector<std::string> names;
    for (const std::string& name : o.schemes)
        if (name != exact_name && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    const bool calibrates = std::any_of(names.begin(), names.end(), scheme_needs_mean);
    const std::size_t calibration = calibrates ? calibration_start(o, tokens.size()) : 0;
    std::ofstream json;
    if (!o.json.empty()) {
        json.open(o.json);
        if (!json) throw Error(fmt::format("{}: can't be written", o.json));
    }

    const Model model(*gguf);
    gguf.reset();  // its bytes are no longer needed
    if (o.context > model.config().context)
        fmt::print(stderr, "warning: --context {} is more than the {} tokens that the model was made for\n", o.context,
                   model.config().context);

    Progress progress((names.size() + 1) * evaluated + (calibrates ? 2 * o.context : 0));
    std::vector<std::vector<float>> mean;
    if (calibrates) {
        progress.label("calibration");
        mean = calibrate(model, std::span(tokens).subspan(calibration, 2 * o.context), o.context, pool);
        progress.advance(2 * o.context);
    }
    SchemeOptions options;
    options.sinks = o.sinks;
    options.tail = o.tail;
    options.strict = true;
    options.pool = &pool;
    options.mean = calibrates ? &mean : nullptr;

    const std::size_t step = o.step ? o.step : o.tail ? 32 : o.context;
    Evaluation evaluation(model, std::span(tokens).subspan(o.offset, evaluated), o.context, step, pool, progress);
    progress.clear();
    fmt::print("{}: tokens {} to {} of {}, {} x {}; sinks {}, tail {}, {} tokens a step\n\n", file_name(o.text),
               o.offset, o.offset + evaluated, tokens.size(), o.chunks, o.context, o.sinks, o.tail,
               std::min(step, o.context));
    print_head();
    std::vector<Result> results;
    names.insert(names.begin(), std::string(exact_name));
    for (const std::string& name : names) {
        const bool exact = results.empty();
        const std::string shown = exact ? "exact" : name;
        progress.label(shown);
        const std::unique_ptr<AttentionCache> cache = make_cache(name, model, options);
        results.push_back(evaluation.run(shown, *cache, exact));
        progress.clear();
        print_row(results.back());
    }
    if (json.is_open() && !(json << to_json(o, results) << std::flush))
        throw Error(fmt::format("{}: can't be written", o.json));
}

}  // namespace llm
