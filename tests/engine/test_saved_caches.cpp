/// Saved caches behind the engine: a text goes on as if nothing had been saved, and what does not belong is refused by
/// name.
#include "saved_cache.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "catch.hpp"
#include "continuation.hpp"
#include "error.hpp"
#include "folder.hpp"
#include "gguf.hpp"
#include "inspect.hpp"
#include "model.hpp"
#include "tiny_model.hpp"

using namespace llm;
using namespace llm::test;
using ::test::bytes_of;
using ::test::Folder;
using ::test::write_bytes;

namespace {

struct Engine {
    explicit Engine(const TinyModel& tiny = tiny_model())
        : gguf(Gguf::parse(to_gguf(tiny).bytes(), "test.gguf")), tokenizer(gguf), model(gguf) {}

    std::unique_ptr<AttentionCache> cache(const std::string& scheme, std::size_t tail = 16, std::size_t sinks = 4) {
        SchemeOptions options;
        options.tail = tail;
        options.sinks = sinks;
        options.pool = &pool;
        return make_cache(scheme, model, options);
    }
    std::vector<float> read(std::span<const Token> ids, AttentionCache& cache) {
        return read_tokens(model, ids, cache, pool);
    }
    /// What follows, at temperature 0.
    std::vector<Token> answer(std::span<const Token> ids, AttentionCache& cache, std::size_t most) {
        Sampler sampler(0, 0);
        return continue_text(model, read(ids, cache), cache, sampler, tokenizer, {}, most, pool, [](auto) {});
    }

    Gguf gguf;
    Tokenizer tokenizer;
    Model model;
    ThreadPool pool{1};
};

std::vector<Token> tokens(std::size_t n, std::uint32_t seed = 5) {
    std::mt19937 random(seed);
    std::vector<Token> ids(n);
    for (Token& id : ids) id = static_cast<Token>(random() % 259);
    return ids;
}

std::span<const Token> first(const std::vector<Token>& ids, std::size_t n) { return std::span(ids).first(n); }

/// |a - b| / |b|
double distance(const std::vector<float>& a, const std::vector<float>& b) {
    double error = 0, size = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        error += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
        size += std::pow(static_cast<double>(b[i]), 2);
    }
    return std::sqrt(error / size);
}

/// What is thrown, of whatever kind; "" if nothing is.
template <class F>
std::string refusal(F&& f) {
    return message<std::exception>(std::forward<F>(f));
}

}  // namespace

TEST_CASE("a cache that was saved goes on as one that was not", "[saved]") {
    const Folder folder;
    for (const char* architecture : {"llama", "gemma3"}) {
        TinyModel tiny = tiny_model(architecture);
        tiny.layers = std::max<std::size_t>(tiny.layers, 4);  // caches of differences need some
        Engine e(with_weights(tiny));
        const std::vector<Token> ids = tokens(300);
        for (const char* scheme : {"f16", "q8_0", "kivi4", "x4_rot", "svd_head4", "cl_svd_rot4"}) {
            INFO(architecture << ' ' << scheme);
            const auto cache = e.cache(scheme);
            e.read(first(ids, 200), *cache);
            std::ostringstream stream;
            cache->save(stream, "a note");
            const std::string bytes = stream.str();
            cache->save(folder / "cache.xq", "another note");
            const std::vector<float> expected = e.read(ids, *cache);

            const auto copied = e.cache(scheme), mapped = e.cache(scheme);
            e.read(first(ids, 50), *mapped);  // what was there before is gone
            CHECK(copied->load(std::as_bytes(std::span(bytes))) == "a note");
            CHECK(mapped->load(folder / "cache.xq") == "another note");
            for (AttentionCache* loaded : {copied.get(), mapped.get()}) {
                REQUIRE(loaded->size() == 200);
                CHECK(loaded->bytes().stored() >= loaded->bytes().mapped);
                CHECK(e.read(ids, *loaded) == expected);
            }
            CHECK(copied->bytes().mapped == 0);
            CHECK(mapped->bytes().mapped > 0);
        }
    }
}

TEST_CASE("a prompt begins with what it has in common with a saved cache", "[saved]") {
    const Folder folder;
    Engine e;
    const std::vector<Token> ids = tokens(260);
    // f16 rows are the same in the tail and in pages; svd_head4's only as long as the tail has what it would have had.
    for (const std::size_t saved : {100UL, 200UL, 260UL}) {
        for (const std::size_t prompt : {100UL, 200UL, 230UL}) {
            for (const std::string name : {"f16", "svd_head4"}) {
                if (name == "svd_head4" && saved > prompt) continue;
                INFO(name << ' ' << saved << ' ' << prompt);
                const Scheme scheme = parse_scheme(name);
                const auto before = e.cache(name);
                e.read(first(ids, saved), *before);
                save_cache(*before, scheme, first(ids, saved), folder / "cache.xq");
                const auto after = e.cache(name), without = e.cache(name);
                const std::size_t reused = load_cache(*after, scheme, first(ids, prompt), folder / "cache.xq");
                CHECK(reused == std::min(saved, prompt - 1));
                CHECK(after->size() == reused);
                // In the steps in which the saved one read: rows leave the tail at the end of a step, and a row that is
                // read alone meets its keys in other sums than one of many.
                if (saved <= prompt) {
                    e.read(first(ids, saved), *without);
                    without->truncate(reused);
                }
                CHECK(e.answer(first(ids, prompt), *after, 20) == e.answer(first(ids, prompt), *without, 20));
            }
        }
    }
}

TEST_CASE("a prompt that turns away early keeps what comes before", "[saved]") {
    const Folder folder;
    Engine e;
    std::vector<Token> ids = tokens(200);
    const Scheme scheme = parse_scheme("svd_head4");
    const auto before = e.cache("svd_head4");
    e.read(ids, *before);
    save_cache(*before, scheme, ids, folder / "cache.xq");
    ids[130] = (ids[130] + 1) % 259;
    const auto after = e.cache("svd_head4"), exact = e.cache("f32");
    CHECK(load_cache(*after, scheme, ids, folder / "cache.xq") == 130);
    const std::vector<float> hidden = e.read(ids, *after), expected = e.read(ids, *exact);
    CHECK(distance(hidden, expected) < 0.3);
}

TEST_CASE("saved caches that do not belong are refused, and the cache is empty then", "[saved]") {
    const Folder folder;
    const std::string file = folder / "cache.xq";
    Engine e;
    const std::vector<Token> ids = tokens(150);
    const Scheme head = parse_scheme("svd_head4"), f16 = parse_scheme("f16");
    const auto saved = e.cache("svd_head4");
    e.read(ids, *saved);
    save_cache(*saved, head, ids, file);
    const auto refused = [&](AttentionCache& cache, const Scheme& scheme, const std::vector<Token>& prompt,
                             const std::string& path) {
        const std::string why = refusal([&] { load_cache(cache, scheme, prompt, path); });
        CHECK(cache.size() == 0);
        return why;
    };

    CHECK(contains(refused(*e.cache("f16"), f16, ids, file),
                   file + " was saved with the scheme svd_head4, and this is f16"));
    CHECK(contains(refused(*e.cache("svd_head4:group=64"), parse_scheme("svd_head4:group=64"), ids, file),
                   file + " was saved with the scheme svd_head4, and this is svd_head4:group=64"));
    CHECK(refused(*e.cache("svd_head4"), f16, ids, file) ==
          file + " was saved with the scheme svd_head4, and this is f16");
    CHECK(contains(refused(*e.cache("svd_head4", 16, 8), head, ids, file), "it keeps 4 sinks, this one 8"));
    CHECK(load_cache(*e.cache("svd_head4", 64), head, ids, file) == 149);  // another tail is no reason

    std::vector<Token> other = ids;
    other[0] = (other[0] + 1) % 259;
    CHECK(refused(*e.cache("svd_head4"), head, other, file) == file + " and the prompt have no first token in common");
    CHECK(contains(refused(*e.cache("svd_head4"), head, {ids[0]}, file), "no first token in common"));

    TinyModel changed = tiny_model();
    changed.tensors["blk.1.attn_k.weight"] = random_values(changed.tensors["blk.1.attn_k.weight"].size(), 0, 0.6f, 99);
    Engine another(changed);
    CHECK(contains(refused(*another.cache("svd_head4"), head, ids, file), "another model or projection"));

    CHECK(contains(refused(*e.cache("svd_head4"), head, ids, folder / "none.xq"), "cannot read"));
    CHECK(contains(refused(*e.cache("f32"), parse_scheme("f32"), ids, file),
                   "the exact cache is not a cache of the library"));

    saved->save(file, "notes of another program");
    CHECK(contains(refused(*e.cache("svd_head4"), head, ids, file), "another program wrote it"));
    saved->save(file, to_text({"svd_head4", tokens(149)}));
    CHECK(contains(refused(*e.cache("svd_head4"), head, ids, file), "holds 150 tokens, and its note names 149"));
    CHECK(contains(refusal([&] { save_cache(*saved, head, first(ids, 149), file); }), "the cache holds 150"));

    save_cache(*saved, head, ids, file);
    std::string bytes = bytes_of(file);
    bytes[bytes.size() / 2] ^= 1;
    write_bytes(file, bytes);
    CHECK(contains(refused(*e.cache("svd_head4"), head, ids, file), "is damaged"));
}

TEST_CASE("what rests in one scheme is saved in that one, and goes on in another when it wakes", "[saved]") {
    const auto read_awake = [](Engine& e, std::span<const Token> ids, AttentionCache& cache) {
        cache.wake();
        CHECK(cache.size() == 200);
        return e.read(ids, cache);
    };
    for (const char* architecture : {"llama", "qwen2", "qwen3"}) {  // qwen2 has biases, qwen3 a norm of K
        TinyModel tiny = tiny_model(architecture);
        tiny.layers = std::max<std::size_t>(tiny.layers, 4);
        Engine e(with_weights(tiny));
        const std::vector<Token> ids = tokens(300);
        const auto cache = e.cache("kv8:rest=cl_x_rot3"), rest = e.cache("cl_x_rot3", 0), fast = e.cache("kv8");
        INFO(architecture);
        std::ostringstream stream, of_rest;
        for (const auto& [of, to] : {std::pair{cache.get(), &stream}, std::pair{rest.get(), &of_rest}}) {
            e.read(first(ids, 200), *of);
            of == cache.get() ? of->rest() : of->seal();
            CHECK(of->bytes().tail == 0);
            of->save(*to, "a note");
        }
        const std::string bytes = stream.str();
        CHECK(bytes == of_rest.str());
        // The fast one gets K and V, and needs no weights to make them.
        CHECK(cache->bytes().weights > rest->bytes().weights);
        CHECK(cache->bytes().weights < rest->bytes().weights + fast->bytes().weights);
        const std::vector<float> awake = read_awake(e, ids, *cache), at_rest = e.read(ids, *rest);
        e.read(ids, *fast);
        CHECK(std::abs(cache->bits_per_token_layer() - fast->bits_per_token_layer()) < 1e-9);
        CHECK(distance(awake, at_rest) < 0.05);
        CHECK(distance(awake, at_rest) > 1e-5);
        CHECK(contains(refusal([&] { cache->save(stream, ""); }), "the cache has woken"));
        CHECK(contains(refusal([&] { cache->save("/", ""); }), "the cache has woken"));
        cache->wake();  // for the second time
        CHECK(cache->size() == 300);
        cache->truncate(200);
        CHECK(cache->size() == 200);

        // What was there before is gone, whether it rests or not.
        CHECK(cache->load(std::as_bytes(std::span(bytes))) == "a note");
        CHECK(read_awake(e, ids, *cache) == awake);
        cache->reset();
        CHECK(cache->size() == 0);
        e.read(first(ids, 200), *cache);
        cache->rest();
        CHECK(read_awake(e, ids, *cache) == awake);
    }
    // Of layers with a window, rows are gone.
    Engine e(tiny_model("gemma3"));
    const auto cache = e.cache("kv8:rest=x4_rot");
    const std::vector<Token> ids = tokens(600);
    for (const std::size_t n : {300UL, 600UL}) e.read(first(ids, n), *cache);
    CHECK(contains(refusal([&] { cache->wake(); }), "has a window, or chunks, and has freed"));
    CHECK(cache->size() == 600);
}

TEST_CASE("the exact cache is truncated, but not saved", "[saved]") {
    Engine e;
    const std::vector<Token> ids = tokens(60);
    const auto cache = e.cache("f32"), other = e.cache("f32");
    e.read(ids, *cache);
    cache->truncate(40);
    e.read(first(ids, 40), *other);
    CHECK(distance(e.read(ids, *cache), e.read(ids, *other)) < 1e-5);
    CHECK(contains(refusal([&] { cache->truncate(61); }), "fewer than 61"));
    const char* why = "the exact cache is not a cache of the library: it can be neither saved nor loaded";
    std::ostringstream stream;
    CHECK(message<Error>([&] { cache->save(stream, ""); }) == why);
    CHECK(message<Error>([&] { cache->save("nowhere", ""); }) == why);
    CHECK(message<Error>([&] { cache->load(std::span<const std::byte>()); }) == why);
    CHECK(message<Error>([&] { cache->load("nowhere"); }) == why);
}

TEST_CASE("a note says what was saved", "[saved]") {
    for (const CacheNote& note : {CacheNote{"svd_head4:tail=64", {1, 0, 49151}}, CacheNote{"f16", {}}}) {
        const CacheNote again = parse_note(to_text(note));
        CHECK(again.scheme == note.scheme);
        CHECK(again.ids == note.ids);
    }
    CHECK(to_text({"f16", {7, 8}}) == "xquant-llm\nscheme f16\ntokens 7 8\n");
    for (const char* text : {"", "xquant-llm\n", "xquant-llm\nscheme f16\n", "xquant-llm\nscheme f16\ntokens 1 2",
                             "xquant-llm\nscheme f16\ntokens 1  2\n", "xquant-llm\nscheme f16\ntokens x\n",
                             "xquant-llm\nscheme f16\ntokens 99999999999\n"}) {
        INFO(text);
        CHECK(contains(message<Error>([&] { parse_note(text); }), "another program wrote it"));
    }
}

TEST_CASE("a saved cache is inspected, and damage found", "[saved]") {
    const Folder folder;
    const std::string file = folder / "cache.xq";
    Engine e;
    const std::vector<Token> ids = tokens(150);
    const auto cache = e.cache("svd_head4");
    e.read(ids, *cache);
    save_cache(*cache, parse_scheme("svd_head4"), ids, file);
    const Inspection whole = inspect_file(file);
    INFO(whole.text);
    CHECK(whole.intact);
    for (const char* line : {"version     2\n", "scheme      svd_head4\n",
                             "layers      0 to 1: width 24, 6 heads, 2 kv heads, 4 channels a head\n",
                             "stream 0: 8 channels, 4 bits, groups of 128 tokens x 1 channel\n",
                             "sequence    0: 150 tokens, next position 150, ",
                             "of the tail, 1 of sinks (4 sinks kept)\n", "pages intact\n"})
        CHECK(contains(whole.text, line));
    CHECK(contains(whole.json, "\"tokens\": 150"));
    CHECK(contains(whole.json, "\"damaged_pages\": []"));

    std::string bytes = bytes_of(file);
    bytes.back() ^= 1;  // the padding of the last page
    write_bytes(file, bytes);
    const Inspection damaged = inspect_file(file);
    CHECK_FALSE(damaged.intact);
    CHECK(contains(damaged.text, "checksums   1 of "));
    CHECK(contains(refusal([&] { inspect_file(folder / "none.xq"); }), "cannot read"));
    write_bytes(file, "short");
    CHECK(contains(refusal([&] { inspect_file(file); }), "bytes; a header takes 64"));
}
