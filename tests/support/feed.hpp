/// Feeds caches. A row depends on its sequence's seed, its token and its layer alone: it does not matter in which step,
/// or beside which other sequences, it comes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <xquant/model.hpp>

#include "support/schemes.hpp"

namespace test {

/// Fills out [n] with numbers in [-1, 1) that depend on `key` alone.
inline void fill_row(std::uint64_t key, std::size_t n, float* out) {
    for (std::size_t i = 0; i < n; ++i) {
        // splitmix64
        std::uint64_t z = key + (i + 1) * 0x9E3779B97F4A7C15U;
        z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
        z ^= z >> 31U;
        out[i] = static_cast<float>(static_cast<std::int32_t>(z >> 40U) - (1 << 23)) * 0x1p-23F;
    }
}

/// Rows first .. first + n of one layer of a sequence: x [n, D] (or K beside V [n, 2 Hkv Dh], where the layer takes
/// them), q [n, H * Dh].
struct Rows {
    std::vector<float> x, q;
};
inline Rows rows_of(const xquant::Layer& layer, std::size_t index, std::uint32_t seed, std::size_t first,
                    std::size_t n) {
    const bool given = layer.input != xquant::LayerInput::x;
    const std::size_t d = given ? 2 * layer.shape.kv_width() : layer.shape.width;
    const std::size_t heads = layer.shape.heads * layer.shape.head_dim;
    Rows rows{std::vector<float>(n * d), std::vector<float>(n * heads)};
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t key = (std::uint64_t{seed} << 40U) + ((first + i) << 10U) + 2 * index;
        fill_row(key * 0x100000001B3U, d, rows.x.data() + i * d);
        fill_row((key + 1) * 0x100000001B3U, heads, rows.q.data() + i * heads);
        for (std::size_t c = 0; c < heads; ++c) rows.q[i * heads + c] *= 2;
    }
    return rows;
}

using Outputs = std::vector<std::vector<float>>;  ///< [layers][tokens, H * Dh]

/// A sequence that is being fed, and what attention said so far.
struct Feed {
    xquant::Sequence sequence;
    std::uint32_t seed = 1;
    std::size_t tokens = 0;
    Outputs out{};
    std::size_t answered = 0;  ///< rows of `out`
};

/// The largest difference of the answers to the last `rows` tokens of two sequences of the same model, 1e9 where one is
/// not finite. Tiles may be cut differently, so the softmax rounds differently.
inline double distance(const Feed& a, const Feed& b, std::size_t rows) {
    double worst = a.out.size() == b.out.size() ? 0 : 1e9;
    for (std::size_t layer = 0; layer < std::min(a.out.size(), b.out.size()); ++layer) {
        const std::vector<float>&x = a.out[layer], &y = b.out[layer];
        const std::size_t width = x.size() / a.answered;
        if (std::min(x.size(), y.size()) < rows * width) return 1e9;
        for (std::size_t i = 1; i <= rows * width; ++i) {
            const float u = x[x.size() - i], v = y[y.size() - i];
            worst = std::max(worst, std::isfinite(u) && std::isfinite(v) ? std::abs(double{u} - double{v}) : 1e9);
        }
    }
    return worst;
}

/// New tokens of one of the sequences of a step.
struct NewTokens {
    Feed* feed;
    std::size_t count;
};

/// Runs all layers of an open step; `parts` are those it was begun with. x and q are overwritten by NaN as soon as the
/// library has returned. Outputs of all rows of the step.
template <class Step, class Executor>
Outputs run_layers(Step& step, const xquant::Model& model, const std::vector<NewTokens>& parts, Executor&& threads) {
    Outputs out;
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        const xquant::LayerShape& shape = model.layers[layer].shape;
        const std::size_t heads = shape.heads * shape.head_dim;
        Rows all;
        for (const NewTokens& part : parts) {
            const Rows rows = rows_of(model.layers[layer], layer, part.feed->seed, part.feed->tokens, part.count);
            all.x.insert(all.x.end(), rows.x.begin(), rows.x.end());
            all.q.insert(all.q.end(), rows.q.begin(), rows.q.end());
        }
        if (model.layers[layer].input == xquant::LayerInput::x) {
            step.append(layer, xquant::MatrixView(all.x.data(), step.size(), shape.width), threads);
        } else {
            const std::size_t r = shape.kv_width();
            step.append_kv(layer, xquant::MatrixView(all.x.data(), step.size(), r, 2 * r),
                           xquant::MatrixView(all.x.data() + r, step.size(), r, 2 * r), threads);
        }
        all.x.assign(all.x.size(), std::numeric_limits<float>::quiet_NaN());
        out.emplace_back(step.size() * heads, std::numeric_limits<float>::quiet_NaN());
        step.attend(layer, xquant::MatrixView(all.q.data(), step.size(), heads), out.back().data(), 0, threads);
        all.q.assign(all.q.size(), std::numeric_limits<float>::quiet_NaN());
    }
    return out;
}

inline std::vector<xquant::StepPart> step_parts(const std::vector<NewTokens>& parts) {
    std::vector<xquant::StepPart> out;
    for (const NewTokens& part : parts) out.push_back({part.feed->sequence, part.count});
    return out;
}

/// One step, committed: outputs are added to those of its feeds.
template <class Executor>
void feed_on(Executor&& threads, Cache& cache, const xquant::Model& model, const std::vector<NewTokens>& parts) {
    auto step = cache.begin(step_parts(parts));
    const Outputs out = run_layers(step, model, parts, threads);
    step.commit();
    for (std::size_t layer = 0; layer < out.size(); ++layer) {
        const std::size_t heads = model.layers[layer].shape.heads * model.layers[layer].shape.head_dim;
        auto at = out[layer].begin();
        for (const NewTokens& part : parts) {
            part.feed->out.resize(out.size());
            const auto end = at + static_cast<std::ptrdiff_t>(part.count * heads);
            part.feed->out[layer].insert(part.feed->out[layer].end(), at, end);
            at = end;
        }
    }
    for (const NewTokens& part : parts) {
        part.feed->tokens += part.count;
        part.feed->answered += part.count;
    }
}

/// The same on the calling thread.
void feed(Cache& cache, const xquant::Model& model, const std::vector<NewTokens>& parts);

/// A step that is destroyed without commit: what it would have said.
Outputs feed_and_abandon(Cache& cache, const xquant::Model& model, const std::vector<NewTokens>& parts);

/// Outputs of a sequence that is fed by itself, in steps of these sizes.
Outputs outputs_of(Cache& cache, const xquant::Model& model, const std::vector<std::size_t>& steps,
                   std::uint32_t seed = 1);

/// "" where they are equal bit for bit; else where they differ first.
std::string difference(const Outputs& expected, const Outputs& found);

/// What a sequence has stored: slots and bytes of every page. Slots that do not belong to it are left out, where rows
/// are stored token by token: steps may write there without committing.
struct StoredPage {
    xquant::Purpose purpose;
    std::size_t begin, end;
    std::int64_t first_position;
    std::vector<std::byte> bytes;
    friend bool operator==(const StoredPage&, const StoredPage&) = default;
};
std::vector<StoredPage> stored_pages(const Cache& cache, xquant::Sequence sequence, const Scheme& scheme,
                                     const xquant::Model& model, const xquant::Options& options);

}  // namespace test
