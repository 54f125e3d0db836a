// What one new token of a sequence costs in a layer's cache: counted from the layer's plan and codecs, and timed by
// what planner/measure.hpp measured.
//
//     keys      of each kv head: codes read, or a product [1, width] x [width, Dh] for each cached token; RoPE; q k
//     values    of each kv head: p times `width` channels for each cached token and query head; A comes behind that sum
//     pages     of each kv head: what a page takes longer out of memory
//     new row   T, the mix, and F (once along a channel, twice along a token), two operations an entry
//
// Across layers (CrossLayer<Delta>), each layer's codes are added to all D channels of the accumulator, and K and V are
// products of those: in 8 bits where codes have at most 5.
#pragma once

#include <cstddef>

#include <xquant/core/recipe.hpp>
#include <xquant/planner/machine.hpp>
#include <xquant/projection/cost.hpp>

namespace xquant {

/// What is done for a token of one sequence.
struct TokenWork {
    double f32 = 0,       ///< operations, a multiply-add counted as two
        int8 = 0,         ///< likewise, of 8-bit integers
        core = 0,         ///< seconds of one core
        extra_bytes = 0;  ///< read and written beside what is stored: accumulators
    /// The work of both.
    TokenWork& operator+=(const TokenWork& other) noexcept {
        f32 += other.f32;
        int8 += other.int8;
        core += other.core;
        extra_bytes += other.extra_bytes;
        return *this;
    }
    friend TokenWork operator*(double factor, TokenWork work) noexcept {
        return {factor * work.f32, factor * work.int8, factor * work.core, factor * work.extra_bytes};
    }
};

inline namespace XQUANT_ABI_NS {
namespace detail {

/// How a stream is read: its bits, 0 for rows that are not quantized.
struct ReadForm {
    unsigned bits = 0;
    bool by_channel = false,  ///< groups lie along a channel
        levels = false;       ///< codes stand for levels of a table: products are in f32
};

inline ReadForm read_form(const StreamCodec& codec) noexcept {
    const StreamFormat& format = codec.format;
    if (!format.quantized()) return {};
    return {format.bits, format.group_tokens > 1, format.levels != nullptr || codec.learn != nullptr};
}

constexpr ReadKind plain_kind(ReadForm form) noexcept {
    return form.bits == 0 ? ReadKind::rows : form.bits <= 5 ? ReadKind::plain4 : ReadKind::plain8;
}
constexpr ReadKind turned_kind(ReadForm form) noexcept {
    switch (form.bits) {
        case 2:
            return ReadKind::turned2;
        case 3:
            return ReadKind::turned3;
        case 4:
            return ReadKind::turned4;
        default:
            return ReadKind::turned8;
    }
}
constexpr bool integer_product(ReadForm form) noexcept { return form.bits > 0 && form.bits <= 5 && !form.levels; }
constexpr ReadKind product_kind(ReadForm form, std::size_t width) noexcept {
    const bool by_channel = form.by_channel && width <= 128;
    if (!integer_product(form)) return by_channel ? ReadKind::channel_product8 : ReadKind::token_product8;
    return by_channel ? ReadKind::channel_product4 : ReadKind::token_product4;
}

/// What a cached token costs in a layer, read in these forms.
inline TokenWork cached_token(const LayerPlan& plan, const LayerShape& shape, ReadForm keys, ReadForm values,
                              const Machine& machine) {
    const auto time = [&machine](ReadKind kind) { return machine.kernels[static_cast<std::size_t>(kind)]; };
    const auto dh = static_cast<double>(shape.head_dim);
    const double queries = static_cast<double>(shape.heads) / static_cast<double>(shape.kv_heads);
    TokenWork out;
    for (const HeadPlan& head : plan.keys) {
        const bool product = !head.matrix.empty() && !plan.keys_after_rope;
        const ReadTime read = time(plan.keys_after_rope ? plain_kind(keys) : turned_kind(keys));
        out.core += queries * read.score;
        (integer_product(keys) ? out.int8 : out.f32) += 2 * queries * dh;
        if (!product) {
            out.core += dh * (read.channel + queries * read.query);
            continue;
        }
        const double entries = static_cast<double>(head.width) * dh;
        const ReadTime made = time(product_kind(keys, head.width));
        out.core += entries * made.channel + dh * (made.query + (queries - 1) * read.query);
        (integer_product(keys) ? out.int8 : out.f32) += 2 * entries;
    }
    for (const HeadPlan& head : plan.values) {
        const ReadTime read = time(plain_kind(values));
        const auto width = static_cast<double>(head.width);
        out.core += width * (read.channel + queries * read.query);
        (integer_product(values) ? out.int8 : out.f32) += 2 * queries * width;
    }
    return out;
}

/// Pages that `tokens` tokens of a layer's cache lie in, times the kv heads that each fetch their channels of them.
inline double pages_fetched(const LayerPlan& plan, double tokens, std::size_t tokens_of_page) {
    const HeadPlan& head = plan.keys.front();
    const bool apart = read_apart(plan.keys, plan.streams[head.stream]);
    return tokens / static_cast<double>(tokens_of_page) * (apart ? static_cast<double>(plan.keys.size()) : 1.0);
}

/// What a new row costs: it is made, and rounded.
inline TokenWork new_row(const LayerParts& parts, const Machine& machine) {
    TokenWork out;
    for (std::size_t s = 0; s < parts.plan.streams.size(); ++s) {
        const StreamPlan& stream = parts.plan.streams[s];
        const double passes = parts.codecs[s].format.group_tokens > 1 ? 1 : 2;
        const std::size_t factor = feedback_floats(stream.coded_width(), stream.metric.block);
        out.f32 += 2 * (static_cast<double>(stream.matrix.size() + stream.mix.size() + stream.latent.size()) +
                        passes * static_cast<double>(factor));
    }
    out.core = out.f32 / machine.f32;
    return out;
}

/// What a layer costs for a new token that sees `coded` tokens in codes and `exact` tokens as rows. `sums`: what the
/// accumulator is kept in, or null where layers do not add up.
inline TokenWork layer_work(const LayerParts& parts, const LayerShape& shape, CrossRole role, const StreamCodec* sums,
                            double coded, double exact, const Machine& machine) {
    const ReadForm rows;
    TokenWork out = new_row(parts, machine);
    const LayerPlan& plan = parts.plan;
    const ReadForm keys = read_form(parts.codecs[plan.keys.front().stream]),
                   values = read_form(parts.codecs[plan.values.front().stream]);
    out += exact * cached_token(plan, shape, rows, rows, machine);
    out.core += machine.layer + machine.page * (pages_fetched(plan, coded, coded_page_tokens) +
                                                pages_fetched(plan, exact, row_page_tokens));
    if (sums == nullptr || role == CrossRole::none) {
        out += coded * cached_token(plan, shape, keys, values, machine);
        return out;
    }
    // The codes become a row of the accumulator, from which K and V are made.
    const auto time = [&machine](ReadKind kind) { return machine.kernels[static_cast<std::size_t>(kind)].channel; };
    const StreamPlan& stream = plan.streams.front();
    const auto width = static_cast<double>(stream.width), stored = static_cast<double>(stream.coded_width());
    TokenWork added;
    const ReadForm kept = read_form(*sums);
    ReadForm read = kept;
    if (integer_product(keys) && kept.bits > 5) read.bits = 5;  // keys are products in 8 bits
    added.core = stored * time(plain_kind(keys)) + width * time(plain_kind(kept));
    added.f32 = width;
    added.extra_bytes = 2 * sums->format.bits / 8.0 * width;
    if (!stream.latent.empty()) {
        added.core += stored * width * time(product_kind(keys, stream.coded_width()));
        (integer_product(keys) ? added.int8 : added.f32) += 2 * stored * width;
    }
    added += cached_token(plan, shape, read, kept, machine);
    out += coded * added;
    return out;
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
