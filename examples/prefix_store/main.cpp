/// prefix-store: answers prompts, and keeps the caches of their beginnings in a folder, for this run and later ones, or
/// on a Redis server, for other machines as well.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "answer.hpp"
#include "continuation.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "lmdb_store.hpp"
#include "prefix_store.hpp"
#include "saved_cache.hpp"
#include "schemes.hpp"
#if defined(XQUANT_PREFIX_STORE_REDIS)
#include "redis_store.hpp"
#endif

namespace {

struct Options {
    std::string model, store, redis, prompt, text, scheme = "svd_head4";
    std::size_t limit = 1024, ttl = 0, timeout = 100, tokens = 64, threads = 0, rounds = 1;  // MB, s, ms
    bool no_store = false, compare = false;
};

/// A hash of the whole file: another model, or another quantization of its weights, has another one.
std::string fingerprint(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes(std::size_t{1} << 20U);
    XXH3_state_t state;
    XXH3_128bits_reset(&state);
    do {
        file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        XXH3_128bits_update(&state, bytes.data(), static_cast<std::size_t>(file.gcount()));
    } while (file);
    if (!file.eof()) throw llm::Error(fmt::format("{}: can't be read", path));
    const XXH128_hash_t hash = XXH3_128bits_digest(&state);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

void print_store(llm::PrefixStore& store, std::size_t limit) {
    const std::optional<llm::StoreFigures> f = store.figures();
    if (!f)
        fmt::print(stderr, "store        out of reach\n");
    else
        fmt::print(stderr, "store        {} entries, {} bytes of at most {} MB; {} damaged ones were removed\n",
                   f->entries, f->bytes, limit, f->damaged);
}

#if defined(XQUANT_PREFIX_STORE_REDIS)
/// "HOST:PORT", or a host alone.
llm::RedisServer parse_server(const std::string& text, std::size_t timeout) {
    llm::RedisServer server{text.substr(0, text.rfind(':')), 6379,
                            std::chrono::milliseconds(std::min<std::size_t>(timeout, 1U << 30U))};
    const std::string port = text.substr(std::min(text.size(), server.host.size() + 1));
    const char* const end = port.data() + port.size();
    if (server.host.size() < text.size()) {
        const auto [at, error] = std::from_chars(port.data(), end, server.port);
        if (error != std::errc() || at != end) throw llm::Error(fmt::format("--redis {}: expected HOST:PORT", text));
    }
    return server;
}
#endif

std::unique_ptr<llm::Store> open_store(const Options& o) {
    if (o.limit > std::size_t{1} << 24U) throw llm::Error("--limit is too large");
    if (o.ttl > std::size_t{1} << 32U) throw llm::Error("--ttl is too large");
    const llm::StoreOptions options{.limit = o.limit << 20U, .ttl = std::chrono::seconds(o.ttl)};
    if (o.redis.empty()) return llm::open_lmdb(o.store, options);
#if defined(XQUANT_PREFIX_STORE_REDIS)
    return llm::open_redis(parse_server(o.redis, o.timeout), options);
#else
    throw llm::Error("--redis: this program was built without hiredis (libhiredis-dev)");
#endif
}

class Program {
public:
    explicit Program(const Options& o) : o_(o), gguf_(llm::Gguf::open(o.model)), tokenizer_(*gguf_), pool_(o.threads) {
        const std::string text = o.text.empty() ? o.prompt : llm::read_text(o.text);
        ids_ = tokenizer_.encode(text, o.text.empty());
        if (tokenizer_.adds_bos()) ids_.insert(ids_.begin(), tokenizer_.bos());
        if (ids_.empty()) throw llm::Error("the prompt is empty");
        ends_ = llm::end_tokens(*gguf_, tokenizer_);
        model_.emplace(*gguf_);
        gguf_.reset();  // its bytes are no longer needed
        const std::size_t context = model_->config().context;
        if (ids_.size() >= context)
            throw llm::Error(fmt::format("the prompt has {} tokens, the model's context {}", ids_.size(), context));
        scheme_ = llm::parse_scheme(o.scheme);
        if (scheme_.needs != llm::Needs::nothing)
            throw llm::Error(
                fmt::format("scheme '{}' needs a calibration text, which this program doesn't have", o.scheme));
        options_.tail = 128;
        options_.pool = &pool_;
        // All that decides which bytes a cache has, so that no other cache finds them.
        const bool rests = !scheme_.rest.empty();
        question_.scheme = fmt::format(
            "{} sinks={} tail={} group={}", rests ? scheme_.rest : scheme_.name, scheme_.sinks.value_or(options_.sinks),
            rests ? 0 : scheme_.tail.value_or(options_.tail), rests ? 0 : scheme_.group.value_or(0));
        question_.prompt = ids_;
        question_.ends = ends_;
        question_.most = std::min(o.tokens, context - ids_.size());
        if (o.no_store) return;
        store_.emplace(open_store(o), fingerprint(o.model), [](const std::string& why) {
            fmt::print(stderr, "store        {}; going on without it\n", why);
        });
    }

    void run() {
        const llm::Answer a = answer(store(), true);
        fmt::print(stderr,
                   "first token  {:.3f} s, {:.3f} of them to load; of {} prompt tokens {} came out of the store, {} "
                   "were read\n",
                   a.first_token_seconds, a.load_seconds, ids_.size(), a.reused, a.read);
        if (!store_) return;
        const std::size_t blocks = (ids_.size() - 1) / llm::PrefixStore::block * llm::PrefixStore::block;
        if (a.saved > 0)
            fmt::print(stderr, "put          {} tokens\n", a.saved);
        else if (a.reused < blocks)
            fmt::print(stderr,
                       "put          nothing: {} tokens are more than the limit, or the store is out of reach\n",
                       blocks);
        print_store(*store_, o_.limit);
    }

    /// Without the store and with it in turn, which has the prompt by then; prints the medians.
    void compare() {
        std::vector<llm::Answer> cold, warm;
        if (answer(store(), false).reused == 0) answer(store(), false);  // what was read once is in memory
        bool same = true;
        for (std::size_t i = 0; i < o_.rounds; ++i) {
            cold.push_back(answer(nullptr, false));
            warm.push_back(answer(store(), false));
            same = same && warm.back().tokens == cold.front().tokens;
        }
        const auto middle = [](std::vector<llm::Answer>& of) {
            const auto at = of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2);
            std::nth_element(of.begin(), at, of.end(), [](const llm::Answer& a, const llm::Answer& b) {
                return a.first_token_seconds < b.first_token_seconds;
            });
            return *at;
        };
        const llm::Answer without = middle(cold), with = middle(warm);
        fmt::print("{:<8}{:>18}{:>18}{:>14}{:>18}\n", "", "first token, s", "of them loading", "tokens read",
                   "out of the store");
        const auto row = [](const char* name, const llm::Answer& a) {
            fmt::print("{:<8}{:>18.3f}{:>18.3f}{:>14}{:>18}\n", name, a.first_token_seconds, a.load_seconds, a.read,
                       a.reused);
        };
        row("cold", without);
        row("warm", with);
        fmt::print("{:<8}{:>17.1f}x\n", "ratio", without.first_token_seconds / with.first_token_seconds);
        fmt::print("{:<8}{}\n", "answers", same ? "the same" : "differ");
        print_store(*store_, o_.limit);
    }

private:
    llm::PrefixStore* store() { return store_ ? &*store_ : nullptr; }

    /// With a cache of its own. It is made before the clock starts: a server makes its caches once.
    llm::Answer answer(llm::PrefixStore* store, bool aloud) {
        const std::unique_ptr<llm::AttentionCache> cache = llm::make_cache(scheme_, *model_, options_);
        if (store != nullptr) llm::check_savable(*cache);
        llm::Answer out = llm::answer(question_, *model_, tokenizer_, *cache, store, pool_, [&](std::string_view text) {
            if (!aloud) return;
            std::fwrite(text.data(), 1, text.size(), stdout);
            std::fflush(stdout);
        });
        if (aloud) std::fputs("\n", stdout);
        return out;
    }

    const Options& o_;
    std::optional<llm::Gguf> gguf_;
    llm::Tokenizer tokenizer_;
    llm::ThreadPool pool_;
    std::vector<llm::Token> ids_, ends_;
    std::optional<llm::Model> model_;
    llm::Scheme scheme_;
    llm::SchemeOptions options_;
    llm::Question question_;
    std::optional<llm::PrefixStore> store_;
};

std::string not_negative(const std::string& text) { return text.starts_with('-') ? "must not be negative" : ""; }

}  // namespace

int main(int argc, char** argv) {
    Options o;
    CLI::App app{"Answers a prompt; the cache of its beginning is kept, in a folder or on a server, and used again."};
    app.footer("\n" + llm::schemes_help());
    const auto number = [&](const char* name, std::size_t& value, const char* help) {
        return app.add_option(name, value, help)->capture_default_str()->type_name("N")->check(not_negative, "");
    };
    app.add_option("--model", o.model, "GGUF file")->envname("XQUANT_MODEL")->required()->type_name("FILE");
    CLI::Option* store = app.add_option("--store", o.store, "folder of the store; made if missing")->type_name("DIR");
    CLI::Option* redis = app.add_option("--redis", o.redis, "Redis server that is the store")->type_name("HOST:PORT");
    redis->excludes(store);
    number("--timeout", o.timeout,
           "ms that the server has for each reply; the store is left out where it takes longer");
    number("--ttl", o.ttl, "s after which what this run puts is gone; 0: never");
    number("--limit", o.limit, "most that the store holds, in MB; what was used longest ago goes first");
    app.add_option("--scheme", o.scheme, "cache to use; see below")->capture_default_str()->type_name("SCHEME");
    auto* prompt = app.add_option_group("prompt");
    prompt->add_option("--prompt", o.prompt, "text to continue")->type_name("TEXT");
    prompt->add_option("--text", o.text, "UTF-8 text to continue")->type_name("FILE");
    prompt->require_option(1);
    number("--tokens", o.tokens, "most tokens of the answer");
    number("--threads", o.threads, "threads; 0: as many as the machine has");
    CLI::Option* none = app.add_flag("--no-store", o.no_store, "read the whole prompt, as without a store");
    app.add_flag("--compare", o.compare, "time the first token without the store and with it")->excludes(none);
    number("--rounds", o.rounds, "how often --compare does both; it prints medians")->check(CLI::PositiveNumber);
    none->excludes(store)->excludes(redis);
    CLI11_PARSE(app, argc, argv);
    try {
        if (!o.no_store && o.store.empty() && o.redis.empty())
            throw llm::Error("--store, --redis or --no-store is needed");
        Program program(o);
        if (o.compare)
            program.compare();
        else
            program.run();
    } catch (const std::exception& error) {
        std::fflush(stdout);
        fmt::print(stderr, "prefix-store: {}\n", error.what());
        return 1;
    }
    return 0;
}
