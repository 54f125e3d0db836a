// The layers that are measured.
#pragma once

#include <array>
#include <string>

#include <xquant/model.hpp>

namespace bench {

struct Shape {
    const char* name;
    xquant::LayerShape layer;  // D, H, Hkv, Dh
    double rope_base;          // the model's: how many pairs of channels turn slowly
};

inline constexpr std::array<Shape, 4> shapes{{
    {"smollm2_135m", {576, 9, 3, 64}, 100'000},
    {"llama3_8b", {4096, 32, 8, 128}, 500'000},
    {"llama2_7b", {4096, 32, 32, 128}, 10'000},
    {"gemma_mqa", {640, 8, 1, 256}, 1'000'000},
}};

/// verb/scheme/shape/T/backend
inline std::string name_of(const std::string& verb, const std::string& scheme, const Shape& shape, std::size_t tokens,
                           const std::string& backend) {
    return verb + "/" + scheme + "/" + shape.name + "/T" + std::to_string(tokens) + "/" + backend;
}

}  // namespace bench
