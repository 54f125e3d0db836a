/// Random rows that were quantized in 4 bits, along channels or tokens; they may lie far from nought, each channel
/// elsewhere.
#pragma once

#include <vector>

#include <xquant/xquant.hpp>

#include "support/model.hpp"

namespace parity {

template <class Axis = xquant::PerChannel>
xquant::QuantizedRows some_rows(std::size_t tokens, std::size_t width, float middles = 0) {
    test::Random random(2);
    std::vector<float> x = random.rows(tokens * width);
    const std::vector<float> of_channels = random.rows(width, middles);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += of_channels[i % width];
    return xquant::quantize<xquant::Uniform<4>, Axis>(xquant::MatrixView(x.data(), tokens, width));
}

}  // namespace parity
