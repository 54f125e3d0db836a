// The tables of a cache's layers, packed by the processor, once, for the device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <xquant/backend/cuda/kernels/append.cuh>
#include <xquant/backend/cuda/kernels/launchable.cuh>
#include <xquant/core/core.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// Tables on their way to a device: entered one after another, they are copied at once.
class Packing {
public:
    /// Where it will lie, from the beginning.
    template <class T>
    std::size_t add(const T* values, std::size_t count) {
        const std::size_t at = round_up(bytes_.size(), 16);
        bytes_.resize(at + count * sizeof(T));
        if (count > 0) std::memcpy(bytes_.data() + at, values, count * sizeof(T));
        return at;
    }
    template <class Vector>
    std::size_t add(const Vector& values) {
        return add(values.data(), values.size());
    }
    /// Overwrites what was added.
    template <class Vector>
    void put(std::size_t at, const Vector& values) noexcept {
        std::memcpy(bytes_.data() + at, values.data(), values.size() * sizeof(values[0]));
    }
    void clear() noexcept { bytes_.clear(); }
    [[nodiscard]] const std::vector<std::byte>& bytes() const noexcept { return bytes_; }

private:
    std::vector<std::byte> bytes_;
};

/// Which kernels serve a layer.
struct LayerForm {
    bool absorbs_queries = false;
    bool feeds_back = false;      ///< a stream is rounded for its metric
    bool serves_prefill = false;  ///< PrefillAttention fits into the device's shared memory
    backend::gpu::Products products = backend::gpu::Products::none;

    /// Calls f(products) with these as a compile-time constant.
    template <class F>
    void with_products(F&& f) const {
        using backend::gpu::Products;
        if (products == Products::none) return f(std::integral_constant<Products, Products::none>{});
        if (products == Products::halves) return f(std::integral_constant<Products, Products::halves>{});
        return f(std::integral_constant<Products, Products::codes>{});
    }
};

/// Shared memory of a block of the kernel for a layer's attention: PrefillAttention, or DecodeAttention.
template <class M>
std::size_t shared_bytes_of(LayerForm form, std::size_t head_dim, bool prefill) noexcept {
    using namespace backend::gpu;
    std::size_t bytes = 0;
    with_size<M>(head_dim, [&]<unsigned Size>(std::integral_constant<unsigned, Size>) {
        form.with_products([&]<Products How>(std::integral_constant<Products, How>) {
            bytes = prefill ? attend_bytes<M, Size, How, true> : attend_bytes<M, Size, How, false>;
        });
    });
    return bytes;
}

/// One layer's tables, and where they will lie. Pointers are to the processor's memory until relocate().
class LayerEntry {
public:
    /// Enters layer `number`. Throws state_error where the device cannot serve it.
    LayerEntry(const Core& core, std::size_t number, bool coded, Packing& all) : layer_(&core.layers()[number]) {
        using namespace backend::gpu;
        const PreparedLayer& layer = *layer_;
        expects<state_error>(layer.role == CrossRole::none || encodes(core.accumulator()), "layer ", number,
                             ": a device cannot encode the quantizer of the accumulator");
        expects<state_error>(layer.rules.chunk == 0, "layer ", number, ": chunk is ", layer.rules.chunk,
                             ", and a device does not serve chunks; leave it at 0, or use a cache of the processor");
        floats_ = all.add(layer.floats());
        entries_ = all.add(layer.matrices().entries());
        weight_scales_ = all.add(layer.matrices().scales());
        table_.shape = layer.shape;
        table_.rope = core.rope(layer);
        table_.rules = layer.rules;
        table_.keys_after_rope = layer.keys_after_rope;
        table_.key_stream = static_cast<std::uint32_t>(layer.keys.front().stream);
        table_.value_stream = static_cast<std::uint32_t>(layer.values.front().stream);
        table_.shared_stream = static_cast<std::uint32_t>(layer.shared.stream);
        table_.shared_channels = static_cast<std::uint32_t>(layer.shared.width);
        table_.streams = static_cast<std::uint32_t>(layer.encoders.size());
        table_.role = layer.role;
        if (layer.role != CrossRole::none) {
            table_.sum = core.accumulators().sections.front();
            table_.sum_rule = core.accumulator().rule;
        }
        RopeView& rope = table_.rope;
        frequencies_ = all.add(rope.inverse_frequencies, rope.pairs);
        rope_table_ = all.add(pack_rope(rope));
        rope.cosines = rope.sines = nullptr;  // kernels read the packed ones
        const PageGroup& page_group = core.page_group(layer.page_group);
        std::size_t floats = 0;
        for (std::size_t s = 0; s < layer.encoders.size(); ++s) {
            StreamTable stream;
            const StreamCodec& codec = core.codec(number, s);
            expects<state_error>(
                encodes(codec), "layer ", number, ", stream ", s,
                ": a device encodes uniform quantizers in groups along a token or along a channel; "
                "this one has levels, outliers, a scale rule of its own, or groups of several tokens and "
                "channels");
            stream.encoder = layer.encoders[s];
            stream.rule = codec.rule;
            stream.feeds_back = codec.feeds_back;
            form_.feeds_back |= codec.feeds_back;
            stream.first_float = floats;
            floats += stream.encoder.width;
            stream.first_unmixed = stream.first_float;
            if (stream.encoder.mix != nullptr) {
                stream.first_unmixed = floats;
                floats += stream.encoder.width;
            }
            for (const PageFormat* format : {&page_group.coded, &page_group.rows, &page_group.sinks}) {
                stream.sections[static_cast<std::uint32_t>(format->kind)] =
                    format->sections[layer.place * core.streams() + s];
            }
            streams_.push_back(stream);
        }
        keys_.assign(layer.keys.begin(), layer.keys.end());
        values_.assign(layer.values.begin(), layer.values.end());
        enter_matrices(coded, all);
        streams_at_ = all.add(streams_);
        keys_at_ = all.add(keys_);
        values_at_ = all.add(values_);
        key_matrices_at_ = all.add(tables_of(key_matrices_));
        value_matrices_at_ = all.add(tables_of(value_matrices_));
        at_ = all.add(&table_, 1);
    }

    [[nodiscard]] LayerForm form() const noexcept { return form_; }

    /// Pointers into the layer's floats, and offsets, become pointers to the device.
    /// @return  where the layer's table lies, from `base`
    std::size_t relocate(std::byte* base, Packing& all) noexcept {
        const float* host = layer_->floats().data();
        const auto* device = at<float>(base, floats_);
        const auto move = [&](const float*& pointer) {
            if (pointer != nullptr) pointer = device + (pointer - host);
        };
        const std::byte* host_entries = layer_->matrices().entries().data();
        const auto move_matrix = [&](WeightMatrix& matrix) {
            if (matrix == nullptr) return;  // a device takes X alone, whose matrices are all there
            matrix.entries = base + entries_ + (static_cast<const std::byte*>(matrix.entries) - host_entries);
            matrix.scales = at<float>(base, weight_scales_);
        };
        for (auto& stream : streams_) {
            for (const float** pointer : {&stream.encoder.mean, &stream.encoder.bias, &stream.encoder.norm,
                                          &stream.encoder.dct, &stream.encoder.mix}) {
                move(*pointer);
            }
            for (WeightMatrix* matrix : {&stream.encoder.matrix, &stream.encoder.latent, &stream.encoder.spread,
                                         &stream.encoder.feedback.columns}) {
                move_matrix(*matrix);
            }
        }
        for (auto* heads : {&keys_, &values_}) {
            for (HeadDecoder& head : *heads) {
                move_matrix(head.matrix);
                move(head.constant);
            }
        }
        for (const float** pointer : {&table_.rules.key_norm, &table_.rules.slopes, &table_.rules.sink_logits}) {
            move(*pointer);
        }
        for (auto* matrices : {&key_matrices_, &value_matrices_}) {
            for (Matrix& matrix : *matrices) matrix.relocate(base);
        }
        table_.rope.inverse_frequencies = at<double>(base, frequencies_);
        table_.rope_table = at<std::uint32_t>(base, rope_table_);
        if (table_.rules.key_norm != nullptr) table_.key_gain = at<float>(base, gain_);
        table_.keys = at<HeadDecoder>(base, keys_at_);
        table_.values = at<HeadDecoder>(base, values_at_);
        table_.key_matrices = at<backend::gpu::MatrixTable>(base, key_matrices_at_);
        table_.value_matrices = at<backend::gpu::MatrixTable>(base, value_matrices_at_);
        table_.tables = at<backend::gpu::StreamTable>(base, streams_at_);
        all.put(streams_at_, streams_);
        all.put(keys_at_, keys_);
        all.put(values_at_, values_);
        all.put(key_matrices_at_, tables_of(key_matrices_));
        all.put(value_matrices_at_, tables_of(value_matrices_));
        all.put(at_, std::span(&table_, 1));
        return at_;
    }

private:
    template <class T>
    static const T* at(const std::byte* base, std::size_t offset) noexcept {
        return reinterpret_cast<const T*>(base + offset);
    }

    /// A of a head, and where its numbers will lie.
    struct Matrix {
        backend::gpu::MatrixTable table;
        std::size_t halves = 0, weights = 0, factors = 0, constant = 0;
        bool there = false, coded = false, has_constant = false;

        Matrix() = default;
        Matrix(const backend::gpu::PackedMatrix& packed, Packing& all)
            : table(packed.table),
              halves(all.add(packed.halves)),
              weights(all.add(packed.weights)),
              factors(all.add(packed.factors)),
              constant(all.add(packed.constant)),
              there(true),
              coded(!packed.weights.empty()),
              has_constant(!packed.constant.empty()) {}

        void relocate(const std::byte* base) noexcept {
            if (there) table.halves = at<f16>(base, halves);
            if (coded) table.weights = at<std::int8_t>(base, weights);
            if (coded) table.factors = at<backend::gpu::ColumnFactor>(base, factors);
            if (has_constant) table.constant = at<float>(base, constant);
        }
    };

    static std::vector<backend::gpu::MatrixTable> tables_of(const std::vector<Matrix>& matrices) {
        std::vector<backend::gpu::MatrixTable> out;
        for (const Matrix& matrix : matrices) out.push_back(matrix.table);
        return out;
    }

    /// What is rebuilt, in the form that the kernels take.
    void enter_matrices(bool coded, Packing& all) {
        using namespace backend::gpu;
        const std::size_t dh = table_.shape.head_dim;
        const unsigned size = size_of_head(dh);
        RopeView rope = table_.rope;
        if (table_.keys_after_rope) rope.pairs = 0;
        const ChannelOrder order = key_order(size, dh, rope, table_.shared_channels);
        const bool absorbed = std::all_of(keys_.begin(), keys_.end(), [&](const HeadDecoder& key) {
            return key.width == keys_.front().width &&
                   absorbs_queries(key, dh, rope, table_.rules, table_.shared_channels);
        });
        table_.absorbs_queries = absorbed;
        const auto rebuilt = [&](const HeadDecoder& key) { return key.matrix != nullptr && !absorbed; };
        const auto summed = [&](const HeadDecoder& value) { return sums_latents(value, dh); };
        // Sums of cross-layer caches have formats of their own.
        const auto format_of = [&](const HeadDecoder& head) -> const StreamFormat* {
            return coded && table_.role == CrossRole::none ? &streams_[head.stream].sections[0].format : nullptr;
        };
        for (const HeadDecoder& key : keys_) {
            key_matrices_.push_back(
                rebuilt(key) ? Matrix(pack_matrix(key, order, table_.shared_channels, format_of(key)), all) : Matrix());
        }
        for (const HeadDecoder& value : values_) {
            value_matrices_.push_back(
                summed(value) ? Matrix() : Matrix(pack_matrix(value, value_order(size, dh), 0, format_of(value)), all));
        }
        const auto is_coded = [](const Matrix& matrix) { return matrix.coded; };
        form_.absorbs_queries = absorbed;
        if (std::any_of(keys_.begin(), keys_.end(), rebuilt) || !std::all_of(values_.begin(), values_.end(), summed)) {
            form_.products = Products::halves;
        }
        if (std::any_of(key_matrices_.begin(), key_matrices_.end(), is_coded) ||
            std::any_of(value_matrices_.begin(), value_matrices_.end(), is_coded)) {
            form_.products = Products::codes;
        }
        if (table_.rules.key_norm != nullptr) gain_ = all.add(pack_gain(table_.rules.key_norm, order));
    }

    const PreparedLayer* layer_;
    backend::gpu::LayerTable table_;
    std::vector<backend::gpu::StreamTable> streams_;
    std::vector<HeadDecoder> keys_, values_;
    std::vector<Matrix> key_matrices_, value_matrices_;
    LayerForm form_;
    std::size_t at_ = 0, floats_ = 0, entries_ = 0, weight_scales_ = 0, streams_at_ = 0, keys_at_ = 0, values_at_ = 0,
                key_matrices_at_ = 0, value_matrices_at_ = 0;
    std::size_t frequencies_ = 0, rope_table_ = 0, gain_ = 0;
};

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
