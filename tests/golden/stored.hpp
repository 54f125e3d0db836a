/// What is stored of rows, in the form that golden files have.
#pragma once

#include <xquant/stages.hpp>

#include <algorithm>
#include <vector>

#include "support/catch.hpp"
#include "support/format.hpp"

namespace test {

/// Codes [rows, columns] of stored rows, read bit by bit.
inline std::vector<std::uint8_t> codes_of(const xquant::QuantizedRows& stored) {
    const xquant::StreamView view = stored.view();
    const xquant::StreamFormat& format = view.format;
    std::vector<std::uint8_t> out(stored.rows() * format.width);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(view.codes);
    for (std::size_t c = 0; c < format.width; c += format.group_channels) {
        for (std::size_t t = 0; t < stored.rows(); t += format.group_tokens) {
            const std::size_t channels = std::min<std::size_t>(format.group_channels, format.width - c);
            const std::size_t n = format.group_tokens * channels;
            const std::vector<std::uint8_t> group = unpack_bit_by_bit(bytes, n, format.bits);
            bytes += group_size(n, format.bits);
            for (std::size_t i = 0; i < n && t + i / channels < stored.rows(); ++i) {
                out[(t + i / channels) * format.width + c + i % channels] = group[i];
            }
        }
    }
    return out;
}

/// Numbers that f16 holds exactly.
inline std::vector<xquant::f16> halves(const std::vector<float>& values) {
    std::vector<xquant::f16> out;
    for (const float value : values) {
        out.push_back(xquant::to_f16(value));
        REQUIRE(xquant::to_float(out.back()) == value);
    }
    return out;
}

}  // namespace test
