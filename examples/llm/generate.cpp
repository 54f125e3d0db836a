#include "generate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>

#include "error.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "sampling.hpp"
#include "schemes.hpp"
#include "utf8.hpp"

namespace llm {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Tokens after which the model has nothing more to say.
std::vector<Token> end_tokens(const Gguf& gguf, const Tokenizer& tokenizer) {
    std::vector<Token> ends;
    if (gguf.has("tokenizer.ggml.eos_token_id"))
        ends.push_back(static_cast<Token>(gguf.integer("tokenizer.ggml.eos_token_id")));
    for (const char* name : {"<|im_end|>", "<|endoftext|>"})
        if (const Token token = tokenizer.find(name); token >= 0) ends.push_back(token);
    return ends;
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
               "cache       {}: {} bytes for {} tokens = codes {} + scales {} + tail {} + sinks {} + index {}\n",
               scheme, b.stored(), cache.size(), b.codes, b.scales, b.tail, b.sinks, b.index);
    fmt::print(stderr, "            {:.1f} bytes/token, f16 keys and values take {}: compression {:.2f}\n", per_token,
               model.f16_bytes_per_token(), static_cast<double>(model.f16_bytes_per_token()) / per_token);
    fmt::print(stderr, "            besides: prepared weights {} bytes, workspace {} bytes\n", b.weights, b.workspace);
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
    if (scheme.needs != Needs::nothing)
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
    const std::size_t D = model.config().width;
    if (ids.size() >= model.config().context)
        throw Error(
            fmt::format("the prompt has {} tokens, the model's context {}", ids.size(), model.config().context));
    const std::size_t most = std::min(o.tokens, model.config().context - ids.size());

    SchemeOptions options;
    options.sinks = o.sinks;
    options.tail = o.tail;
    options.pool = &pool;
    const std::unique_ptr<AttentionCache> cache = make_cache(scheme, model, options);

    constexpr std::size_t step = 512;
    auto start = std::chrono::steady_clock::now();
    std::vector<float> hidden;  // of the last step; its last row predicts the next token
    {
        Progress progress(ids.size());
        progress.label("reading the prompt");
        for (std::size_t at = 0; at < ids.size(); at += step) {
            const auto part = std::span<const Token>(ids).subspan(at, std::min(step, ids.size() - at));
            hidden = model.forward(part, *cache, pool);
            progress.advance(part.size());
        }
    }
    const double prompt_seconds = seconds_since(start);

    Sampler sampler(o.temperature, o.seed);
    Utf8Stream stream;
    std::vector<float> logits(model.config().vocabulary);
    std::size_t steps = 0;
    start = std::chrono::steady_clock::now();
    if (!o.chat) std::fputs(o.prompt.c_str(), stdout);
    for (std::size_t made = 0; made < most; ++made) {
        model.logits(hidden.data() + hidden.size() - D, 1, logits.data(), pool);
        const Token next = sampler.draw(logits);
        if (std::find(ends.begin(), ends.end(), next) != ends.end()) break;
        std::fputs(stream.push(tokenizer.decode(next)).c_str(), stdout);
        std::fflush(stdout);
        hidden = model.forward({&next, 1}, *cache, pool);
        ++steps;
    }
    std::fputs((stream.finish() + "\n").c_str(), stdout);
    std::fflush(stdout);
    print_figures(model, *cache, o.scheme, ids.size(), prompt_seconds, steps, seconds_since(start));
}

}  // namespace llm
