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
#include "statistics.hpp"
#include "tokenizer.hpp"

namespace llm {
namespace {

/// One line of the table.
struct Result {
    std::string name;
    double bits = 0, bytes = 0, compression = 0;  // per token and layer; per token; f16 keys and values / these
    double perplexity = 0, delta = 0;             // delta in percent
    double delta_error = 0, kld_error = 0;        // standard errors of delta and kld
    double kld = 0, kld_p999 = 0, top1 = 0, seconds = 0;
    std::size_t sinks = 0, tail = 0;
};

constexpr std::string_view exact_name = "f32";

/// a * b + c, for counts that a user typed.
std::size_t checked(std::size_t a, std::size_t b, std::size_t c) {
    std::size_t result = 0;
    if (__builtin_mul_overflow(a, b, &result) || __builtin_add_overflow(result, c, &result))
        throw Error("--offset, --context and --chunks are too large");
    return result;
}

/// First position that counts.
std::size_t first_scored(const PerplexityOptions& o) { return o.second_half ? o.context / 2 : 0; }

std::size_t tail_of(const Scheme& scheme, const PerplexityOptions& o) { return scheme.tail.value_or(o.tail); }
std::size_t sinks_of(const Scheme& scheme, const PerplexityOptions& o) { return scheme.sinks.value_or(o.sinks); }

/// Tokens fed at once.
std::size_t step_of(const Scheme& scheme, const PerplexityOptions& o) {
    constexpr std::size_t with_a_tail = 32;
    if (!scheme.rest.empty()) return (o.context + 1) / 2;  // one step that rests, one that is awake
    return std::min(o.context, o.step ? o.step : tail_of(scheme, o) ? with_a_tail : o.context);
}

void check_numbers(const PerplexityOptions& o, const std::vector<Scheme>& schemes) {
    if (o.chunks < 1) throw Error("--chunks must be 1 or more");
    if (o.context < 2) throw Error("--context must be 2 or more: the first token of a context can't be scored");
    for (const Scheme& scheme : schemes) {
        if (scheme.name == exact_name) continue;
        if (o.step > 0 && !scheme.rest.empty())
            throw Error(
                fmt::format("{}: --step {} is not for schemes with rest=, which are fed in two steps: the first "
                            "rests, the second meets it awake",
                            scheme.text, o.step));
        if (o.context <= sinks_of(scheme, o))
            throw Error(fmt::format("{}: --context {} leaves nothing to quantize behind {} sinks", scheme.text,
                                    o.context, sinks_of(scheme, o)));
        if (o.context <= tail_of(scheme, o))
            throw Error(fmt::format("{}: --context {} leaves nothing to quantize before a tail of {}", scheme.text,
                                    o.context, tail_of(scheme, o)));
    }
}

/// Where the two calibration chunks start.
std::size_t calibration_start(const PerplexityOptions& o, std::size_t tokens) {
    constexpr std::size_t default_start = 100000, skip = 4;
    if (o.context <= skip) throw Error("the x*_rot_mean and kvquant schemes need a --context of more than 4 tokens");
    const std::size_t length = checked(o.context, 2, 0);
    const std::size_t start =
        o.calibrate_offset.value_or(checked(1, default_start, length) <= tokens ? default_start : 0);
    if (checked(1, start, length) > tokens)
        throw Error(
            fmt::format("calibration needs tokens {} to {}, but the text has {}", start, start + length, tokens));
    if (start < o.offset + o.context * o.chunks && o.offset < start + length)
        fmt::print(stderr,
                   "warning: the calibration text (tokens {} to {}) overlaps with the evaluated one; x*_rot_mean and "
                   "kvquant will look too good\n",
                   start, start + length);
    return start;
}

/// The table, for names of up to `width` characters. The columns headed +- are standard errors.
void print_head(std::size_t width) {
    constexpr const char* line = "{:<{}}{:>11}{:>11}{:>9}{:>12}{:>9}{:>8}{:>10}{:>9}{:>9}{:>8}{:>9}\n";
    fmt::print(fmt::runtime(line), "", width, "bits/token", "bytes", "compres-", "", "change", "", "mean", "", "99.9 %",
               "", "");
    fmt::print(fmt::runtime(line), "scheme", width, "/layer", "/token", "sion", "perplexity", "%", "+-", "KLD", "+-",
               "KLD", "top-1", "seconds");
    std::fflush(stdout);
}

/// A number that fits its column: models that a cache has ruined have perplexities of any size.
std::string fitting(double value, int decimals, bool sign, std::size_t room) {
    const std::string plain = sign ? fmt::format("{:+.{}f}", value, decimals) : fmt::format("{:.{}f}", value, decimals);
    if (plain.size() < room) return plain;
    return sign ? fmt::format("{:+.1e}", value) : fmt::format("{:.1e}", value);
}

void print_row(const Result& r, std::size_t width) {
    fmt::print("{:<{}}{:>11.1f}{:>11.1f}{:>8.2f}x{:>12}{:>9}{:>8}{:>10.5f}{:>9.5f}{:>9.4f}{:>8.4f}{:>9.1f}\n", r.name,
               width, r.bits, r.bytes, r.compression, fitting(r.perplexity, 3, false, 12), fitting(r.delta, 2, true, 9),
               fitting(r.delta_error, 2, false, 8), r.kld, r.kld_error, r.kld_p999, r.top1, r.seconds);
    std::fflush(stdout);
}

std::string file_name(const std::string& path) { return std::filesystem::path(path).filename().string(); }

std::string to_json(const PerplexityOptions& o, bool bos, const std::vector<Result>& results) {
    nlohmann::ordered_json json{{"model", file_name(o.model)},
                                {"text", file_name(o.text)},
                                {"context", o.context},
                                {"offset", o.offset},
                                {"chunks", o.chunks},
                                {"sinks", o.sinks},
                                {"tail", o.tail},
                                {"bos", bos},
                                {"first_scored", first_scored(o)}};
    json["exact_perplexity"] = results.front().perplexity;
    json["schemes"] = nlohmann::ordered_json::array();
    for (std::size_t i = 1; i < results.size(); ++i) {
        const Result& r = results[i];
        json["schemes"].push_back({{"name", r.name},
                                   {"sinks", r.sinks},
                                   {"tail", r.tail},
                                   {"bits_per_token_layer", r.bits},
                                   {"bytes_per_token", r.bytes},
                                   {"perplexity", r.perplexity},
                                   {"delta_percent", r.delta},
                                   {"delta_percent_error", r.delta_error},
                                   {"kld_mean", r.kld},
                                   {"kld_mean_error", r.kld_error},
                                   {"kld_p999", r.kld_p999},
                                   {"top1", r.top1},
                                   {"seconds", r.seconds}});
    }
    return json.dump(2) + "\n";
}

/// Runs schemes over the same chunks. What the exact cache predicts is kept, so run_exact() comes first.
class Evaluation {
public:
    Evaluation(const Model& model, const std::vector<std::vector<Token>>& chunks, std::size_t first_scored,
               ThreadPool& pool, Progress& progress)
        : model_(model), chunks_(chunks), first_scored_(first_scored), pool_(pool), progress_(progress) {}

    Result run_exact(AttentionCache& cache) {
        return run("exact", cache, chunks_.front().size(), [&](const auto& ids, const float* hidden, auto& into) {
            references_.push_back(make_reference(model_, ids, hidden, first_scored_, pool_));
            compare(references_.back(), into);
        });
    }

    Result run(const std::string& name, AttentionCache& cache, std::size_t step) {
        std::size_t chunk = 0;
        return run(name, cache, step, [&](const auto& ids, const float* hidden, auto& into) {
            compare(model_, ids, hidden, references_[chunk++], pool_, into);
        });
    }

private:
    template <class Score>
    Result run(const std::string& name, AttentionCache& cache, std::size_t step, Score&& score) {
        Result result;
        result.name = name;
        Predictions predictions;
        std::size_t tokens = 0, stored = 0;
        for (const std::vector<Token>& ids : chunks_) {
            const auto start = std::chrono::steady_clock::now();
            const std::vector<float> hidden = feed(ids, cache, step);
            cache.seal();
            result.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            tokens += cache.size();
            stored += cache.bytes().stored();
            result.bits += cache.bits_per_token_layer() / static_cast<double>(chunks_.size());
            score(ids, hidden.data(), predictions);
            progress_.advance(ids.size());
        }
        result.bytes = static_cast<double>(stored) / static_cast<double>(tokens);
        result.compression = static_cast<double>(model_.f16_bytes_per_token()) / result.bytes;
        result.perplexity = predictions.perplexity();
        result.delta = predictions.delta_percent();
        result.delta_error = predictions.delta_percent_error();
        result.kld = predictions.kld_mean();
        result.kld_error = predictions.kld_error();
        result.kld_p999 = predictions.kld_quantile(0.999);
        result.top1 = predictions.top1();
        if (!std::isfinite(result.perplexity) || !std::isfinite(result.kld))
            throw Error(fmt::format("{}: the predictions are not finite", result.name));
        return result;
    }

    /// -> hidden states [context, D]
    std::vector<float> feed(std::span<const Token> ids, AttentionCache& cache, std::size_t step) {
        std::vector<float> hidden;
        hidden.reserve(ids.size() * model_.config().width);
        cache.reset();
        for (std::size_t at = 0; at < ids.size(); at += step) {
            const std::vector<float> more =
                model_.forward(ids.subspan(at, std::min(step, ids.size() - at)), cache, pool_);
            hidden.insert(hidden.end(), more.begin(), more.end());
            progress_.advance(std::min(step, ids.size() - at));
            cache.wake();
        }
        return hidden;
    }

    const Model& model_;
    const std::vector<std::vector<Token>>& chunks_;
    std::size_t first_scored_;
    ThreadPool& pool_;
    Progress& progress_;
    std::vector<Reference> references_;  // of each chunk
};

}  // namespace

void perplexity(const PerplexityOptions& o) {
    // Everything that can be wrong with the order is found before any work is done.
    const Place place = parse_place(o.backend);
    std::vector<Scheme> schemes;
    for (const std::string& text : o.schemes) {
        Scheme scheme = parse_scheme(text);
        const auto is_same = [&](const Scheme& other) { return other.text == scheme.text; };
        // The exact one is always there.
        if (scheme.name != exact_name && std::none_of(schemes.begin(), schemes.end(), is_same))
            schemes.push_back(std::move(scheme));
    }
    check_numbers(o, schemes);
    const std::string text = read_text(o.text);
    ThreadPool pool(o.threads);
    std::optional<Gguf> gguf = Gguf::open(o.model);
    const Tokenizer tokenizer(*gguf);
    const bool bos = o.bos.value_or(tokenizer.adds_bos());
    if (bos && tokenizer.bos() < 0) throw Error(fmt::format("--bos: {} names no BOS", o.model));
    std::vector<Token> tokens = tokenizer.encode(text);
    if (bos) tokens.insert(tokens.begin(), tokenizer.bos());
    const std::size_t evaluated = checked(o.context, o.chunks, 0);
    if (checked(1, o.offset, evaluated) > tokens.size())
        throw Error(fmt::format("{}: the text has {} tokens, but --offset {} with {} x {} tokens asks for {}", o.text,
                                tokens.size(), o.offset, o.chunks, o.context, o.offset + evaluated));
    const bool calibrates =
        std::any_of(schemes.begin(), schemes.end(), [](const Scheme& s) { return learns_from_text(s.needs); });
    const std::size_t calibration = calibrates ? calibration_start(o, tokens.size()) : 0;
    std::ofstream json;
    if (!o.json.empty()) {
        json.open(o.json);
        if (!json) throw Error(fmt::format("{}: can't be written", o.json));
    }
    /// count contexts from token `from` on.
    const auto cut = [&](std::size_t from, std::size_t count) {
        std::vector<std::vector<Token>> chunks;
        for (std::size_t chunk = 0; chunk < count; ++chunk) {
            const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(from + chunk * o.context);
            chunks.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(o.context));
            if (bos) chunks.back().front() = tokenizer.bos();
        }
        return chunks;
    };
    const std::vector<std::vector<Token>> chunks = cut(o.offset, o.chunks);

    const Model model(*gguf);
    gguf.reset();  // its bytes are no longer needed
    if (model.config().architecture.learned_positions && o.context > model.config().context)
        throw Error(
            fmt::format("--context {}: the model has positions for {} tokens", o.context, model.config().context));
    if (o.context > model.config().context)
        fmt::print(stderr, "warning: --context {} is more than the {} tokens that the model was made for\n", o.context,
                   model.config().context);

    Progress progress(2 * (schemes.size() + 1) * evaluated + (calibrates ? 2 * o.context : 0));
    Calibration learnt;
    if (calibrates) {
        progress.label("calibration");
        learnt = calibrate(model, cut(calibration, 2), pool);
        progress.advance(2 * o.context);
    }
    SchemeOptions options;
    options.sinks = o.sinks;
    options.tail = o.tail;
    options.strict = true;
    options.place = place;
    options.pool = &pool;
    options.calibration = calibrates ? &learnt : nullptr;
    std::optional<xquant::Calibration> statistics;
    if (!o.calibration.empty()) options.statistics = &statistics.emplace(read_statistics(o.calibration, model));

    Evaluation evaluation(model, chunks, first_scored(o), pool, progress);
    std::size_t width = 15;
    for (const Scheme& scheme : schemes) width = std::max(width, scheme.text.size() + 1);
    progress.clear();
    fmt::print("{}: tokens {} to {} of {}, {} x {}, of which {} are scored{}; sinks {}, tail {}\n\n", file_name(o.text),
               o.offset, o.offset + evaluated, tokens.size(), o.chunks, o.context,
               o.chunks * (o.context - 1 - first_scored(o)), bos ? "; every context starts with BOS" : "", o.sinks,
               o.tail);
    print_head(width);
    std::vector<Result> results;
    progress.label("exact");
    results.push_back(evaluation.run_exact(*make_cache(std::string(exact_name), model, options)));
    progress.clear();
    print_row(results.back(), width);
    for (const Scheme& scheme : schemes) {
        progress.label(scheme.text);
        results.push_back(evaluation.run(scheme.text, *make_cache(scheme, model, options), step_of(scheme, o)));
        results.back().sinks = sinks_of(scheme, o);
        results.back().tail = tail_of(scheme, o);
        progress.clear();
        print_row(results.back(), width);
    }
    if (json.is_open() && !(json << to_json(o, bos, results) << std::flush))
        throw Error(fmt::format("{}: can't be written", o.json));
}

}  // namespace llm
