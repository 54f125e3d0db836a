#include "generate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "continuation.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "plan.hpp"
#include "sampling.hpp"
#include "saved_cache.hpp"
#include "schemes.hpp"
#include "statistics.hpp"

namespace llm {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void print_figures(const Model& model, const AttentionCache& cache, const std::string& scheme, std::size_t prompt,
                   double prompt_seconds, std::size_t steps, double step_seconds) {
    const auto rate = [](std::size_t n, double s) { return s > 0 ? static_cast<double>(n) / s : 0; };
    fmt::print(stderr, "prompt      {} tokens, {:.1f} tokens/s\n", prompt, rate(prompt, prompt_seconds));
    fmt::print(stderr, "generation  {} tokens, {:.1f} tokens/s\n", steps, rate(steps, step_seconds));
    const CacheBytes b = cache.bytes();
    const double tokens = static_cast<double>(std::max<std::size_t>(cache.size(), 1));
    const double per_token = static_cast<double>(b.stored()) / tokens;
    fmt::print(stderr,
               "cache       {}: {} bytes for {} tokens = codes {} + scales {} + tail {} + sinks {} + index {}{}\n",
               scheme, b.stored(), cache.size(), b.codes, b.scales, b.tail, b.sinks, b.index,
               b.mapped > 0 ? fmt::format(" + mapped {}", b.mapped) : "");
    fmt::print(stderr, "            {:.1f} bytes/token, f16 keys and values take {}: compression {:.2f}\n", per_token,
               model.f16_bytes_per_token(), static_cast<double>(model.f16_bytes_per_token()) / per_token);
    fmt::print(stderr, "            besides: prepared weights {} bytes, workspace {} bytes{}\n", b.weights, b.workspace,
               b.rebuilt > 0 ? fmt::format(", rebuilt keys {} bytes", b.rebuilt) : "");
}

}  // namespace

std::vector<Token> chat_prompt(const Tokenizer& tokenizer, const std::string& system, const std::string& user) {
    const Token start = tokenizer.find("<|im_start|>"), end = tokenizer.find("<|im_end|>");
    if (start < 0 || end < 0) throw Error("--chat: the model's vocabulary has no <|im_start|> and <|im_end|>");
    std::vector<Token> ids;
    const auto text = [&](const std::string& plain) {
        const std::vector<Token> more = tokenizer.encode(plain);
        ids.insert(ids.end(), more.begin(), more.end());
    };
    ids.push_back(start), text("system\n" + system), ids.push_back(end), text("\n");
    ids.push_back(start), text("user\n" + user), ids.push_back(end), text("\n");
    ids.push_back(start), text("assistant\n");
    return ids;
}

void generate(const GenerateOptions& o) {
    const Scheme scheme = parse_scheme(o.scheme);
    if (learns_from_text(scheme.needs))
        throw Error(fmt::format(
            "scheme '{}' needs a calibration text, which `generate` doesn't have; `perplexity` does", o.scheme));
    std::optional<Gguf> gguf = Gguf::open(o.model);
    const Tokenizer tokenizer(*gguf);
    if (o.chat && gguf->has("tokenizer.chat_template") &&
        gguf->text("tokenizer.chat_template").find("<|im_start|>") == std::string::npos)
        throw Error("--chat: the model's chat template is not ChatML");
    std::vector<Token> ids = o.chat ? chat_prompt(tokenizer, o.system, o.prompt) : tokenizer.encode(o.prompt, true);
    if (!o.chat && tokenizer.adds_bos()) ids.insert(ids.begin(), tokenizer.bos());
    if (ids.empty()) throw Error("--prompt is empty");
    const std::vector<Token> ends = end_tokens(*gguf, tokenizer);
    ThreadPool pool(o.threads);
    const Model model(*gguf);
    gguf.reset();  // its bytes are no longer needed
    if (ids.size() >= model.config().context)
        throw Error(
            fmt::format("the prompt has {} tokens, the model's context {}", ids.size(), model.config().context));
    const std::size_t most = std::min(o.tokens, model.config().context - ids.size());

    SchemeOptions options;
    options.sinks = o.sinks;
    options.tail = o.tail;
    options.rebuilt = o.rebuilt.empty() ? 0 : parse_bytes(o.rebuilt);
    options.pool = &pool;
    std::optional<xquant::Calibration> statistics;
    if (!o.calibration.empty()) options.statistics = &statistics.emplace(read_statistics(o.calibration, model));
    const std::unique_ptr<AttentionCache> cache = make_cache(scheme, model, options);

    if (!o.save_cache.empty()) check_savable(*cache);

    auto start = std::chrono::steady_clock::now();
    std::size_t reused = 0;
    if (!o.load_cache.empty()) {
        reused = load_cache(*cache, scheme, ids, o.load_cache);
        fmt::print(stderr, "cache {}: {} of {} prompt tokens were there ({:.3f} s)\n", o.load_cache, reused, ids.size(),
                   seconds_since(start));
        start = std::chrono::steady_clock::now();
    }
    std::vector<float> hidden = read_tokens(model, ids, *cache, pool);
    const double prompt_seconds = seconds_since(start);

    Sampler sampler(o.temperature, o.seed);
    start = std::chrono::steady_clock::now();
    if (!o.chat) std::fputs(o.prompt.c_str(), stdout);
    const std::vector<Token> made = continue_text(model, std::move(hidden), *cache, sampler, tokenizer, ends, most,
                                                  pool, [](std::string_view text) {
                                                      std::fwrite(text.data(), 1, text.size(), stdout);
                                                      std::fflush(stdout);
                                                  });
    const double step_seconds = seconds_since(start);
    std::fputs("\n", stdout);
    std::fflush(stdout);
    print_figures(model, *cache, o.scheme, ids.size() - reused, prompt_seconds, made.size(), step_seconds);
    if (!o.save_cache.empty()) {
        std::vector<Token> all = ids;
        all.insert(all.end(), made.begin(), made.end());
        save_cache(*cache, scheme, all, o.save_cache);
        fmt::print(stderr, "saved       {}: {} tokens\n", o.save_cache, all.size());
    }
}

}  // namespace llm
