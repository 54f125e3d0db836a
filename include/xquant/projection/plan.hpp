// What a projection policy hands back for one layer: how rows are made from X, and how K and V come back. Plain data.
//
//     write  z = mix(rotate(rope(norms((x - mean) T + b))))
//     read   K_h = z[first .. first + width] A_k,h + c_k,h, V_h likewise
//
// Every projection answers with such a plan, and one set of kernels serves all. A layer of a cross-layer cache codes
// (z - accumulator) U in place of z, and adds what was coded, times U^T, to the accumulator; K and V come from the
// accumulator.
#pragma once

#include <cstddef>
#include <vector>

#include <xquant/projection/metric.hpp>
#include <xquant/projection/rotation.hpp>
#include <xquant/projection/weights.hpp>

namespace xquant {

/// What the rows of a stream are made from: x [D], or K or V [Hkv * Dh] that the engine made.
enum class RowSource : unsigned char { x, keys, values };

/// How the rows of one stream are made from x [D], or from K or V [D = Hkv * Dh].
struct StreamPlan {
    RowSource source = RowSource::x;  ///< what the engine hands over for it
    std::size_t width = 0;            ///< R, channels of a row
    std::vector<float> mean;          ///< [D], subtracted first; empty: nothing is
    std::vector<float> matrix;        ///< T [D, R]; empty: the identity, R = D
    /// Each head makes its own channels: T is [Hkv][Dh, R / Hkv], and head h makes channels h R / Hkv on. Needs K or V.
    bool by_head = false;
    std::vector<float> bias;      ///< b [R]; empty: zero
    std::vector<float> row_norm;  ///< gain [R] of an RMS norm of the row, the model's own; empty: none
    double row_norm_epsilon = 0;  ///< added to the mean square
    bool norm = false;            ///< then Layer::k_norm on each head (keys stored after their norm)
    bool unit_norm = false;       ///< then such a norm without its gain (latents of keys that are as long as the keys)
    bool rope = false;            ///< then turn each head by its position (keys stored after RoPE)
    std::size_t rotate = 0;       ///< then rotate each block of this many channels; 0: do not
    std::size_t mixed = 0;        ///< then multiply each block of this many channels, n, by a matrix; 0: do not
    std::vector<float> mix;       ///< [width / n][n, n] these matrices; they stay in f32, as keeps_f32 says of others
    std::vector<float> latent;    ///< U [R, coded channels] of a cross-layer difference; empty: identity
    std::vector<float> spread;    ///< [coded channels, R] the way back; empty: U^T, for orthonormal columns
    StreamMetric metric;  ///< of coded rows, where they are rounded for one; a scheme asks its projection for it

    /// Channels of a coded row.
    [[nodiscard]] std::size_t coded_width() const noexcept { return latent.empty() ? width : latent.size() / width; }
};

/// How K or V of one kv head comes back from a stream.
struct HeadPlan {
    std::size_t stream = 0;       ///< number of the stream
    std::size_t first = 0,        ///< first channel of the stream that is read
        width = 0;                ///< channels that are read
    std::vector<float> matrix;    ///< A [width, Dh]; empty: the identity, width = Dh
    std::vector<float> constant;  ///< c [Dh]; empty: zero
};

/// The first channels of every key, where all heads share them: a stream of their own, read as it is.
struct SharedKeys {
    std::size_t stream = 0;  ///< number of the stream
    std::size_t width = 0;   ///< how many channels: as many as RoPE turns, or 0 where heads share nothing
};

/// What a projection answers for one layer.
struct LayerPlan {
    std::vector<StreamPlan> streams;  ///< how the rows of each stream are made
    std::vector<HeadPlan> keys,       ///< [Hkv] how K comes back; all heads from one stream
        values;                       ///< [Hkv] how V comes back; all heads from one stream
    SharedKeys shared;                ///< in place of what `keys` says of these channels
    bool keys_normed = false;         ///< keys were stored after k_norm: it is not applied when reading
    bool keys_after_rope = false;     ///< keys were stored after RoPE: none is applied when reading
};

inline namespace XQUANT_ABI_NS {

/// Whether T of a stream stays in f32, whatever Options::weights says. Made for K or V it is small, and inverts A: its
/// terms cancel, and their rounding would be many times that of what is left.
constexpr bool keeps_f32(const StreamPlan& stream) noexcept { return stream.source != RowSource::x; }

/// Entries of F of a stream with this many coded channels and blocks of n in its metric, 0: none. Whole groups of 8-bit
/// entries, so that matrices behind it share no scale with each other because of it.
constexpr std::size_t feedback_floats(std::size_t coded_width, std::size_t n) noexcept {
    const std::size_t entries = n > 0 ? coded_width / n * feedback_entries(n) : 0;
    return (entries + weight_group - 1) / weight_group * weight_group;
}

/// Entries of the matrices of a plan that Options::weights is about; U counts twice, since its transpose is kept as
/// well.
inline std::size_t matrix_floats(const LayerPlan& plan) noexcept {
    std::size_t floats = 0;
    for (const StreamPlan& stream : plan.streams) {
        floats += (keeps_f32(stream) ? 0 : stream.matrix.size()) + 2 * stream.latent.size() +
                  feedback_floats(stream.coded_width(), stream.metric.block);
    }
    for (const auto* heads : {&plan.keys, &plan.values}) {
        for (const HeadPlan& head : *heads) floats += head.matrix.size();
    }
    return floats;
}

/// Floats of a plan that matrix_floats does not count, and the tables that its norms and rotations need.
inline std::size_t vector_floats(const LayerPlan& plan, std::size_t head_dim) noexcept {
    std::size_t floats = 0;
    for (const StreamPlan& stream : plan.streams) {
        floats += stream.mean.size() + stream.bias.size() + stream.row_norm.size() + stream.mix.size() +
                  (keeps_f32(stream) ? stream.matrix.size() : 0);
        if (stream.unit_norm) floats += head_dim;
        if (stream.rotate != 0) floats += dct_size(stream.rotate) * dct_size(stream.rotate);
    }
    for (const auto* heads : {&plan.keys, &plan.values}) {
        for (const HeadPlan& head : *heads) floats += head.constant.size();
    }
    return floats;
}

}  // namespace XQUANT_ABI_NS

/// A HeadPlan as kernels read it. It owns nothing; pointers are null only where that is stated.
struct HeadDecoder {
    std::size_t stream = 0,           ///< number of the stream
        first = 0,                    ///< first channel that is read
        width = 0;                    ///< channels that are read
    WeightMatrix matrix;              ///< [width, Dh], or null: the identity
    const float* constant = nullptr;  ///< [Dh], or null: zero
    std::size_t head_dim = 0;         ///< Dh, columns of the matrix
};

/// A StreamPlan as kernels read it. It owns nothing; pointers are null only where that is stated.
struct StreamEncoder {
    RowSource source = RowSource::x;  ///< what it reads
    std::size_t input = 0,            ///< D, channels that it reads
        width = 0;                    ///< R, channels of a row
    std::size_t blocks = 1;           ///< T is [blocks][D / blocks, R / blocks]; 1: [D, R]
    const float* mean = nullptr;      ///< [D] or null
    WeightMatrix matrix;              ///< T, or null: the identity
    const float* bias = nullptr;      ///< [R] or null
    const float* norm = nullptr;      ///< gain [norm_width] of an RMS norm of each block of so many channels, or null
    std::size_t norm_width = 0;       ///< Dh (k_norm) or R (the row's own norm)
    float norm_epsilon = 0;           ///< added to the mean square
    bool rope = false;                ///< whether heads are turned by their position
    /// Whether rows are keys that come with the RoPE of their position: where the sequence's stored keys lag, they are
    /// turned back by the lag.
    bool comes_with_rope = false;
    std::size_t rotate = 0;      ///< block width or 0
    const float* dct = nullptr;  ///< [m, m], m = rotate / largest power of two that divides it
    std::size_t mixed = 0;       ///< block width n or 0
    const float* mix = nullptr;  ///< [R / n][n, n], or null where nothing is mixed

    std::size_t coded_width = 0;  ///< channels of a coded row
    WeightMatrix latent;          ///< U [R, coded_width] or null: the identity
    WeightMatrix spread;          ///< [coded_width, R] the way back
    FeedbackView feedback;        ///< of coded rows, where they are rounded for a metric
};

/// What a layer has to do with the accumulator of a cross-layer cache.
enum class CrossRole : unsigned char {
    none,       ///< stands alone
    base,       ///< its rows become the accumulator
    difference  ///< stores what it adds to the accumulator
};

}  // namespace xquant
