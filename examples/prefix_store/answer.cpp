#include "answer.hpp"

#include <chrono>
#include <optional>
#include <sstream>
#include <xquant/persistence.hpp>

#include "continuation.hpp"
#include "error.hpp"
#include "sampling.hpp"

namespace llm {

std::size_t load_prefix(PrefixStore& store, const std::string& scheme, std::span<const Token> prompt,
                        AttentionCache& cache) {
    while (const auto found = store.find(scheme, prompt)) {
        try {
            cache.load(found->bytes());
            if (cache.size() == found->stored_tokens()) {
                cache.truncate(found->tokens());
                return found->tokens();
            }
        } catch (const xquant::file_error&) {
            // Damaged, of another scheme or model, or of another version of the format: removed below.
        } catch (const Error&) {
            // Sound, and yet nothing that this engine saves: several sequences, say. Removed below, too.
        } catch (const xquant::shape_error&) {
            // Layers with a window have freed what this prompt would see of a longer one.
            cache.reset();
            return 0;
        }
        cache.reset();
        store.remove_damaged(*found);
    }
    return 0;
}

Answer answer(const Question& question, const Model& model, const Tokenizer& tokenizer, AttentionCache& cache,
              PrefixStore* store, ThreadPool& pool, const std::function<void(std::string_view)>& say) {
    using Clock = std::chrono::steady_clock;
    if (question.prompt.empty()) throw Error("the prompt is empty");
    const auto start = Clock::now();
    const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
    Answer out;
    // A token must be left to read: its hidden state predicts the first one of the answer.
    const auto blocks = question.prompt.first((question.prompt.size() - 1) / PrefixStore::block * PrefixStore::block);
    if (store != nullptr) {
        out.reused = load_prefix(*store, question.scheme, blocks, cache);
        out.load_seconds = seconds();
    }
    out.read = question.prompt.size() - out.reused;
    std::ostringstream bytes;
    if (out.reused < blocks.size()) {
        read_tokens(model, blocks, cache, pool);
        cache.rest();
        if (store != nullptr) cache.save(bytes, "");
    }
    cache.wake();
    std::vector<float> hidden = read_tokens(model, question.prompt, cache, pool);
    Sampler sampler(0, 0);
    out.tokens = continue_text(model, std::move(hidden), cache, sampler, tokenizer, question.ends, question.most, pool,
                               [&](std::string_view text) {
                                   if (out.first_token_seconds == 0) out.first_token_seconds = seconds();
                                   say(text);
                               });
    // Now that nobody waits for a token.
    const std::string_view whole = bytes.view();
    if (!whole.empty() && store->put(question.scheme, blocks, std::as_bytes(std::span(whole))))
        out.saved = blocks.size();
    return out;
}

}  // namespace llm
