/// The loader of saved caches, on files that lie under checksums that are right: whatever they say, a cache refuses
/// them by an error of its own, or can go on with what came of them.
///
/// The first byte chooses the cache that saved a file, the one that loads it, and whether it transcodes; every four
/// that follow change a byte of the file: its place (3 bytes) and its new value. Then checksums are computed anew.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include <xquant/persistence.hpp>
#include <xquant/xquant.hpp>

namespace {

using namespace xquant;

constexpr std::size_t layers = 3, width = 8, heads = 2, head_dim = 4;

/// A model whose weights are some numbers.
const Model& model() {
    static const std::vector<float> weights = [] {
        std::vector<float> out(layers * 2 * head_dim * width);
        for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(i * 37 % 19) / 19 - 0.5F;
        return out;
    }();
    static const Model made = [] {
        const LayerShape shape{.width = width, .heads = heads, .kv_heads = 1, .head_dim = head_dim};
        Model out = Model::uniform(layers, shape, Rope::standard(head_dim));
        for (std::size_t i = 0; i < layers; ++i) {
            out.layers[i].w_k = MatrixView(weights.data() + 2 * i * head_dim * width, head_dim, width);
            out.layers[i].w_v = MatrixView(weights.data() + (2 * i + 1) * head_dim * width, head_dim, width);
        }
        return out;
    }();
    return made;
}

template <class Cache>
void step(Cache& cache, Sequence sequence, std::size_t n) {
    std::vector<float> x(n * width), q(n * heads * head_dim, 0.5F), out(q.size());
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 29 % 23) / 23 - 0.5F;
    auto step = cache.begin({{sequence, n}});
    for (std::size_t i = 0; i < layers; ++i) {
        step.append(i, MatrixView(x.data(), n, width));
        step.attend(i, MatrixView(q.data(), n, heads * head_dim), out.data());
    }
    step.commit();
}

std::span<std::byte> bytes_of(std::string& text) { return std::as_writable_bytes(std::span(text.data(), text.size())); }
void put(std::string& file, std::size_t at, const std::vector<std::byte>& bytes) {
    std::memcpy(file.data() + at, bytes.data(), bytes.size());
}

/// A saved cache, and where its parts lie.
struct Saved {
    std::string file;
    detail::FileHeader header;
    std::size_t pages = 0;
    std::vector<std::size_t> records;
    std::vector<std::size_t> sizes;
};

template <class Cache>
Saved saved_by() {
    Cache cache(model(), {.sinks = 2, .recent = 5});
    const Sequence a = cache.create();
    step(cache, a, 150);
    cache.erase(a, 20, 30);
    const Sequence b = cache.fork(a);
    step(cache, b, 10);
    Saved made;
    save(
        cache, std::vector<Sequence>{a, b},
        [&](std::span<const std::byte> some) {
            made.file.append(reinterpret_cast<const char*>(some.data()), some.size());
        },
        "note");
    made.header = detail::header_of(bytes_of(made.file));
    made.pages = detail::pages_begin(static_cast<std::size_t>(made.header.description_bytes));
    const detail::Description about =
        detail::description_of(made.header, bytes_of(made.file).subspan(64, made.pages - 64));
    made.records = detail::record_places(made.header, about);
    for (const detail::SavedPage& page : about.pages) made.sizes.push_back(static_cast<std::size_t>(page.bytes));
    return made;
}

/// Checksums as they should be for what the file says now.
void seal(const Saved& as, std::string& file) {
    const auto bytes = bytes_of(file);
    detail::FileHeader header = as.header;
    header.description_hash = detail::hash_of(bytes.subspan(64, as.pages - 64));
    put(file, 0, detail::to_bytes(header));
    std::uint64_t before = header.description_hash;
    for (std::size_t i = 0; i < as.records.size(); ++i) {
        const std::size_t at = as.records[i], size = as.sizes[i];
        detail::PageRecord record = detail::record_of(bytes.subspan(at, 64));
        record.hash = before =
            detail::page_hash(before, bytes.subspan(at, 64), bytes.subspan(at + 64, size),
                              bytes.subspan(at + 64 + size, detail::padding_after(64 + size).size()));
        put(file, at, detail::to_bytes(record));
    }
}

/// Changes a file that From saved, and loads it into To.
template <class From, class To = From>
void load_changed(const std::uint8_t* data, std::size_t size, bool transcode) {
    static const Saved good = saved_by<From>();
    static To cache(model(), {.sinks = 2, .recent = 5, .rows = std::is_same_v<From, To> ? DType::f16 : DType::bf16});
    std::string file = good.file;
    bool changed = !std::is_same_v<From, To> && !transcode;  // such a file is refused as it is
    for (; size >= 4; data += 4, size -= 4) {
        const std::size_t place = 64 + (data[0] | data[1] << 8U | data[2] << 16U) % (file.size() - 64);
        changed |= file[place] != static_cast<char>(data[3]);
        file[place] = static_cast<char>(data[3]);
    }
    seal(good, file);
    const std::span<const std::byte> bytes = bytes_of(file);
    try {
        for (const Sequence sequence : load(cache, bytes, LoadOptions{.transcode = transcode}).sequences) {
            step(cache, sequence, 1);
            cache.drop(sequence);
        }
    } catch (const error& refused) {
        if (changed) return;
        std::fprintf(stderr, "saved: what was not changed is refused: %s\n", refused.what());
        std::abort();
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using Outliers =
        XCache<WithOutliers<Uniform<4, 32>, 1>, Layout<PerToken>, CrossLayer<Off>, Projection<KeyValue<AfterRope>>>;
    using Levels = XCache<Nf4<>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>;
    using Differences = XCache<Uniform<3, 32>, Layout<PerToken>, CrossLayer<Delta>, Projection<Plain>>;
    using PerChannels = XCache<Requantizable<Uniform<4>, Uniform<2>>, Layout<PerChannel>>;
    using FourBits = XCache<Uniform<4, 64>, Layout<PerToken>, CrossLayer<Off>, Projection<Plain>>;
    using Sums = XCache<Uniform<4, 32>, Layout<PerToken>, CrossLayer<Delta>, Projection<Plain>>;
    if (size == 0) return 0;
    const bool transcode = (data[0] & 8U) != 0;
    switch (data[0] % 8) {
        case 0:
            load_changed<Outliers>(data + 1, size - 1, transcode);
            break;
        case 1:
            load_changed<Levels>(data + 1, size - 1, transcode);
            break;
        case 2:
            load_changed<Differences>(data + 1, size - 1, transcode);
            break;
        case 3:
            load_changed<PerChannels>(data + 1, size - 1, transcode);
            break;
        case 4:
            load_changed<Levels, FourBits>(data + 1, size - 1, transcode);
            break;
        case 5:
            load_changed<FourBits, Levels>(data + 1, size - 1, transcode);
            break;
        case 6:
            load_changed<Differences, Sums>(data + 1, size - 1, transcode);
            break;
        default:
            load_changed<PerChannels, PerChannels>(data + 1, size - 1, true);
    }
    return 0;
}
