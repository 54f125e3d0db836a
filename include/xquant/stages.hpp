// The stages by themselves, for engines that want only a part: the codec, or a tile of keys.
//
//     quantize<Uniform<4>, PerToken>(rows)   ->  QuantizedRows      dequantize(quantized, out)
//     quantize<NonUniform<4>>(rows, others)    with levels learnt from other rows
//     rematerialize(quantized, head, token, tokens, out)
//
// SVD bases: svd_basis in <xquant/projection/svd.hpp>. Rotations: projection/rotation.hpp.
#pragma once

#include <vector>

#include <xquant/backend/simd/backends.hpp>
#include <xquant/concepts.hpp>
#include <xquant/core/arithmetic.hpp>
#include <xquant/core/learn.hpp>
#include <xquant/core/make_codec.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {

/// Rows in codes, scales, zeros and outliers, in the format of storage/format.hpp.
class QuantizedRows {
public:
    /// `levels`: what the codec's quantizer learnt, if it learns.
    QuantizedRows(const StreamCodec& codec, std::size_t rows, std::vector<float> levels = {})
        : rows_(rows),
          codec_(codec),
          codes_(codec.format.code_bytes(rows)),
          scales_(codec.format.token_blocks(rows) * codec.format.channel_blocks() * codec.format.scales_per_group()),
          outliers_(codec.format.outlier_count(rows)),
          indices_(outliers_.size()),
          levels_(std::move(levels)) {}

    /// How many rows there are.
    [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
    /// Their format and encoder. Learnt levels belong to this object, which must outlive the codec.
    [[nodiscard]] StreamCodec codec() const noexcept {
        StreamCodec codec = codec_;
        codec.format.tokens = static_cast<std::uint32_t>(rows_);
        if (!levels_.empty()) codec.format.levels = levels_.data();
        return codec;
    }
    /// Bytes of codes, scales, zeros and outliers.
    [[nodiscard]] std::size_t bytes() const noexcept {
        return codes_.size() + (scales_.size() + outliers_.size()) * sizeof(f16) + indices_.size();
    }

    /// A view of codes, scales, zeros and outliers, for writing. Good as long as this object.
    [[nodiscard]] MutableStreamView view() noexcept {
        f16* scales = scales_.empty() ? nullptr : scales_.data();
        const StreamFormat format = codec().format;
        return {format,           codes_.data(),  scales, format.stores_zero ? scales + scales_.size() / 2 : nullptr,
                outliers_.data(), indices_.data()};
    }
    /// A view for reading.
    [[nodiscard]] StreamView view() const noexcept { return read_only(const_cast<QuantizedRows*>(this)->view()); }

private:
    std::size_t rows_;
    StreamCodec codec_;
    std::vector<std::byte> codes_;
    std::vector<f16> scales_;  ///< scales, then zeros
    std::vector<f16> outliers_;
    std::vector<std::byte> indices_;
    std::vector<float> levels_;
};

namespace detail {

/// Rows as f32, checked for what f16 cannot hold.
inline std::vector<float> checked_rows(const MatrixView& rows) {
    check_arithmetic();
    expects(!rows.empty() && rows.cols > 0 && rows.stride >= rows.cols, "quantize: rows is ", rows,
            "; expected [n, 1 or more]");
    std::vector<float> values(rows.rows * rows.cols);
    for (std::size_t i = 0; i < rows.rows; ++i)
        load_row(rows.row(i), rows.type, rows.cols, values.data() + i * rows.cols);
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (!fits_f16(values[i])) {
            raise_value(value_error::none, i / rows.cols, "quantize: row ", i / rows.cols, ", channel ", i % rows.cols,
                        " is ", values[i], "; expected a finite value within f16's 65504");
        }
    }
    return values;
}

}  // namespace detail

/// Encodes rows [n, width]. Groups start at the first row; the last may be shorter. A quantizer that learns its levels
/// does so from `calibration` [m, width]; others ignore it.
/// Error   what the quantizer states. Throws shape_error, value_error for values not finite or beyond f16, state_error
///         where floats are not rounded to the nearest (core/arithmetic.hpp).
/// Cost    reads 4 n width bytes, writes bytes().
template <element_policy Quantizer, axis_policy Axis = PerToken, class Backend = backend::best>
QuantizedRows quantize(const MatrixView& rows, const MatrixView& calibration = {}) {
    const std::vector<float> values = detail::checked_rows(rows);
    const StreamCodec codec = make_codec<Quantizer, Axis>(rows.cols);
    std::vector<float> levels;
    if constexpr (learning_policy<Quantizer>) {
        detail::expects(calibration.rows > 0 && calibration.cols == rows.cols, "quantize: calibration is ", calibration,
                        "; this quantizer learns its levels from [1 or more, ", rows.cols, "]");
        levels = detail::learn_levels(codec, detail::checked_rows(calibration).data(), calibration.rows);
    }
    QuantizedRows out(codec, rows.rows, std::move(levels));
    encode_rows(Backend{}, out.codec(), backend::Matrix{values.data(), rows.rows, rows.cols, rows.cols}, 0, out.view());
    return out;
}

/// out [n, width] = zero + scale * level(code).
template <class Backend = backend::best>
void dequantize(const QuantizedRows& rows, float* out) {
    const std::size_t width = rows.codec().format.width;
    constexpr std::size_t at_once = backend::max_group;
    const backend::Tile all{out, rows.rows(), width, width, backend::TileOrder::token_major};
    for (std::size_t c = 0; c < width; c += at_once) {
        decode_tile(Backend{}, rows.view(), 0, c, all.part({0, all.tokens}, {c, (std::min)(at_once, width - c)}));
    }
}

/// out [tokens, Dh] = z A + c for tokens token .. + tokens, at most 128, of one head; no RoPE.
/// Throws shape_error if the tokens or the head's channels are not there.
template <class Backend = backend::best>
void rematerialize(const QuantizedRows& rows, const HeadPlan& head, std::size_t head_dim, std::size_t token,
                   std::size_t tokens, float* out) {
    const std::size_t width = rows.codec().format.width;
    detail::expects(tokens <= backend::tile_tokens && tokens <= rows.rows() && token <= rows.rows() - tokens,
                    "rematerialize: tokens ", token, " .. ", token, " + ", tokens, "; there are ", rows.rows(),
                    ", and at most ", backend::tile_tokens, " are rebuilt at a time");
    detail::expects(head.width <= width && head.first <= width - head.width, "rematerialize: the head reads channels ",
                    head.first, " .. ", head.first, " + ", head.width, "; there are ", width);
    detail::expects(head.matrix.empty() ? head.width == head_dim : head.matrix.size() == head.width * head_dim,
                    "rematerialize: the matrix has ", head.matrix.size(),
                    " floats; expected [width, head_dim] = ", detail::Shape{head.width, head_dim},
                    ", or none with width = head_dim");
    detail::expects(head.constant.empty() || head.constant.size() == head_dim, "rematerialize: the constant has ",
                    head.constant.size(), " floats; expected none, or head_dim = ", head_dim);
    const HeadDecoder decoder{head.stream,
                              head.first,
                              head.width,
                              head.matrix.empty() ? nullptr : head.matrix.data(),
                              head.constant.empty() ? nullptr : head.constant.data(),
                              head_dim};
    std::vector<float> scratch(backend::rematerialize_scratch(head_dim));
    backend::rematerialize(Backend{}, rows.view(), decoder, token,
                           {out, tokens, head_dim, head_dim, backend::TileOrder::token_major}, scratch.data());
}

}  // namespace XQUANT_ABI_NS
}  // namespace xquant
