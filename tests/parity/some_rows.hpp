/// Random rows that were quantized in 4 bits, along channels or tokens.
#pragma once

#include <vector>

#include <xquant/xquant.hpp>

#include "support/model.hpp"

namespace parity {

template <class Axis = xquant::PerChannel>
xquant::QuantizedRows some_rows(std::size_t tokens, std::size_t width) {
    test::Random random(2);
    const std::vector<float> x = random.rows(tokens * width);
    return xquant::quantize<xquant::Uniform<4>, Axis>(xquant::MatrixView(x.data(), tokens, width));
}

}  // namespace parity
