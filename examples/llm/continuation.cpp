#include "continuation.hpp"

#include <algorithm>

#include "attention_cache.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "utf8.hpp"

namespace llm {

std::vector<Token> end_tokens(const Gguf& gguf, const Tokenizer& tokenizer) {
    std::vector<Token> ends;
    if (gguf.has("tokenizer.ggml.eos_token_id"))
        ends.push_back(static_cast<Token>(gguf.integer("tokenizer.ggml.eos_token_id")));
    for (const char* name : {"<|im_end|>", "<|endoftext|>"})
        if (const Token token = tokenizer.find(name); token >= 0) ends.push_back(token);
    return ends;
}

std::vector<float> read_tokens(const Model& model, std::span<const Token> ids, AttentionCache& cache,
                               ThreadPool& pool) {
    constexpr std::size_t step = 512;
    if (cache.size() >= ids.size()) throw Error("no token is left to read");
    std::vector<float> hidden;  // of the last step
    Progress progress(ids.size() - cache.size());
    progress.label("reading the prompt");
    while (cache.size() < ids.size()) {
        const auto part = ids.subspan(cache.size(), std::min(step, ids.size() - cache.size()));
        hidden = model.forward(part, cache, pool);
        progress.advance(part.size());
    }
    hidden.erase(hidden.begin(), hidden.end() - static_cast<std::ptrdiff_t>(model.config().width));
    return hidden;
}

std::vector<Token> continue_text(const Model& model, std::vector<float> hidden, AttentionCache& cache, Sampler& sampler,
                                 const Tokenizer& tokenizer, std::span<const Token> ends, std::size_t most,
                                 ThreadPool& pool, const std::function<void(std::string_view)>& say) {
    Utf8Stream stream;
    std::vector<float> logits(model.config().vocabulary);
    std::vector<Token> made;
    while (made.size() < most) {
        model.logits(hidden.data(), 1, logits.data(), pool);
        const Token next = sampler.draw(logits);
        if (std::find(ends.begin(), ends.end(), next) != ends.end()) break;
        say(stream.push(tokenizer.decode(next)));
        hidden = model.forward({&next, 1}, cache, pool);
        made.push_back(next);
    }
    say(stream.finish());
    return made;
}

}  // namespace llm
