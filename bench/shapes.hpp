// The layers that are measured.
#pragma once

#include <array>
#include <string>

#include <xquant/model.hpp>

namespace bench {

struct Shape {
    const char* name;
    xquant::LayerShape layer;  // D, H, Hkv, Dh
};

inline constexpr std::array<Shape, 4> shapes{{
    {"smollm2_135m", {576, 9, 3, 64}},
    {"llama3_8b", {4096, 32, 8, 128}},
    {"llama2_7b", {4096, 32, 32, 128}},
    {"gemma_mqa", {640, 8, 1, 256}},
}};

/// verb/scheme/shape/T/backend
inline std::string name_of(const std::string& verb, const std::string& scheme, const Shape& shape, std::size_t tokens,
                           const std::string& backend) {
    return verb + "/" + scheme + "/" + shape.name + "/T" + std::to_string(tokens) + "/" + backend;
}

}  // namespace bench
