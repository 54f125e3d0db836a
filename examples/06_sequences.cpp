// What a server does with a cache: a prompt that several answers share, an endless conversation, old tokens in fewer
// bits, a file.
//
// Rows are noise here; in an engine they are the attention inputs of the tokens whose ids stand beside them.
#include <xquant/persistence.hpp>
#include <xquant/xquant.hpp>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <random>
#include <span>
#include <vector>

namespace xq = xquant;

namespace {

constexpr std::size_t d = 128, heads = 4, dh = 32;

struct Data {
    std::vector<float> w_k, w_v;
    xq::Model model;
    std::mt19937 random{7};

    Data() : model(xq::Model::uniform(1, {d, heads, heads, dh}, xq::Rope::standard(dh))) {
        w_k = rows(d);
        w_v = rows(d);
        model.layers[0].w_k = xq::MatrixView(w_k.data(), d, d);
        model.layers[0].w_v = xq::MatrixView(w_v.data(), d, d);
    }
    std::vector<float> rows(std::size_t n) {
        std::normal_distribution<float> normal;
        std::vector<float> out(n * d);
        for (float& value : out) value = normal(random) * 0.1F;
        return out;
    }
};

/// n new tokens, as an engine feeds them.
template <class Cache>
void feed(Cache& cache, xq::Sequence sequence, Data& data, std::size_t n) {
    const std::vector<float> x = data.rows(n), q = data.rows(n);
    std::vector<float> out(n * d);
    auto step = cache.begin({{sequence, n}});
    step.append(0, xq::MatrixView(x.data(), n, d));
    step.attend(0, xq::MatrixView(q.data(), n, d), out.data());
    step.commit();
}

}  // namespace

int main() {
    using Cache = xq::XCache<xq::Requantizable<xq::Uniform<4>, xq::Uniform<2>>, xq::Layout<xq::PerToken>>;
    Data data;
    Cache cache(data.model, {.sinks = 4, .recent = 64});

    // A prompt is read once. Another one that begins alike goes on from its pages.
    std::vector<std::int32_t> prompt(1000), other;
    for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>(i % 97);
    other.assign(prompt.begin(), prompt.begin() + 900);
    other.insert(other.end(), {7, 7, 7});
    xq::PrefixIndex index;
    const xq::Sequence first = cache.create();
    feed(cache, first, data, prompt.size());
    index.insert(first, prompt);
    const std::size_t before = cache.bytes().stored();
    const xq::PrefixMatch match = index.find(std::span(other).first(other.size() - 1));
    const xq::Sequence second = cache.fork(match.sequence, match.tokens);
    feed(cache, second, data, other.size() - match.tokens);
    std::printf("%zu of %zu tokens were known; the second sequence takes %zu bytes more, the first took %zu\n",
                match.tokens, other.size(), cache.bytes().stored() - before, before);

    // A conversation that never ends: after the first four tokens, the oldest makes room for each that comes.
    for (int i = 0; i < 500; ++i) {
        cache.erase(second, 4, 5);
        feed(cache, second, data, 1);
    }
    std::printf("500 tokens later it has %zu tokens, and goes on at position %lld\n", cache.size(second),
                static_cast<long long>(cache.next_position(second)));

    // Memory is short: pages with 256 newer tokens behind them go from 4 bits to 2.
    const xq::Sequence both[] = {first, second};
    const xq::Requantized done = cache.requantize(both, [](const xq::PageChoice& page) { return page.behind >= 256; });
    std::printf("%zu pages requantized: %zu bytes became %zu\n", done.pages, done.bytes_before, done.bytes_after);

    // And all of it survives the process.
    const std::string path = (std::filesystem::temp_directory_path() / "xquant_06_sequences.xq").string();
    xq::save(cache, both, path, "two sequences");
    Cache later(data.model, {.sinks = 4, .recent = 64});
    const xq::Loaded loaded = xq::load(later, path);
    feed(later, loaded.sequences[1], data, 10);
    std::printf("loaded \"%s\": %zu and %zu tokens, %zu bytes of them mapped\n", loaded.note.c_str(),
                later.size(loaded.sequences[0]), later.size(loaded.sequences[1]), later.bytes().mapped);
    later.drop(loaded.sequences[0]);
    later.drop(loaded.sequences[1]);
    std::filesystem::remove(path);
}
