// Levels that a quantizer learns from calibration rows, when a cache is constructed or rows are quantized by
// themselves.
#pragma once

#include <vector>

#include <xquant/backend/project.hpp>
#include <xquant/backend/scalar/outliers.hpp>
#include <xquant/core/prepared.hpp>

namespace xquant {
inline namespace XQUANT_ABI_NS {
namespace detail {

/// The levels [2^bits] of a stream from rows [n, width]: its quantizer sees the groups that it would encode, outliers
/// taken out. A last group that is not full is left out where there are full ones. Throws value_error for levels that
/// are not finite.
inline std::vector<float> learn_levels(const StreamCodec& codec, const float* rows, std::size_t n) {
    const StreamFormat& format = codec.format;
    const std::size_t width = format.width, blocks = std::max<std::size_t>(1, n / format.group_tokens);
    std::vector<float> values;
    values.reserve(n * width);
    std::vector<std::span<const float>> groups;
    std::vector<f16> outliers(format.outliers);
    std::vector<std::byte> indices(format.outliers);
    for (std::size_t block = 0; block < blocks; ++block) {
        const std::size_t first = block * format.group_tokens,
                          tokens = std::min<std::size_t>(format.group_tokens, n - first);
        for (std::size_t b = 0; b < format.channel_blocks(); ++b) {
            const std::size_t begin = values.size();
            for (std::size_t t = first; t < first + tokens; ++t) {
                const float* row = rows + t * width + b * format.group_channels;
                values.insert(values.end(), row, row + format.channels_of(b));
            }
            const std::span<float> group(values.data() + begin, values.size() - begin);
            if (codec.choose != nullptr) backend::take_outliers(codec, group, outliers.data(), indices.data());
            groups.push_back(group);
        }
    }
    std::vector<float> levels(codec.learnt_levels());
    codec.learn(groups, levels);
    for (const float level : levels) {
        if (!is_finite(level)) raise<value_error>("the quantizer learnt a level that is not finite: ", level);
    }
    return levels;
}

/// The levels of a stream of layer `index`, from Layer::calibration, whose rows count as positions 0, 1, ...
/// Throws value_error.
template <class Backend>
std::vector<float> learn_stream(const PreparedLayer& prepared, const Layer& layer, std::size_t index,
                                std::size_t stream, const RopeView& rope, const StreamCodec& codec) {
    const MatrixView& x = layer.calibration;  // or K beside V
    const StreamEncoder& encoder = prepared.encoders[stream];
    const std::size_t first = encoder.source == RowSource::values ? encoder.input : 0;
    std::vector<float> input(x.cols), rows(x.rows * encoder.width);
    std::vector<float> scratch(backend::project_scratch(encoder.input, encoder.width, 1));
    for (std::size_t i = 0; i < x.rows; ++i) {
        const auto position = static_cast<std::int64_t>(i);
        load_row(x.row(i), x.type, x.cols, input.data());
        float* row = rows.data() + i * encoder.width;
        backend::project(Backend{}, encoder, {input.data() + first, 1, encoder.input, encoder.input},
                         {&position, nullptr, rope, layer.shape.head_dim}, row, scratch.data());
        for (std::size_t c = 0; c < encoder.width; ++c) {
            if (fits_f16(row[c])) continue;
            raise_value(index, i, "layer ", index, ": calibration: row ", i, ", channel ", c, " of stream ", stream,
                        " is ", row[c], " once projected; expected a finite value within f16's 65504");
        }
    }
    return learn_levels(codec, rows.data(), x.rows);
}

}  // namespace detail
}  // namespace XQUANT_ABI_NS
}  // namespace xquant
