#include "bytes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "error.hpp"
#include "schemes.hpp"

namespace llm {
namespace {

namespace xq = xquant;

struct Shape {
    const char* name;
    const char* models;
    std::size_t layers;
    xq::LayerShape layer;  // D, H, Hkv, Dh
};

constexpr std::array<Shape, 5> shapes{{{"smollm2_135m", "SmolLM2-135M", 30, {576, 9, 3, 64}},
                                       {"gemma3_270m", "Gemma 3 270M", 18, {640, 4, 1, 256}},
                                       {"llama2_7b", "Llama 2 7B", 32, {4096, 32, 32, 128}},
                                       {"llama3_8b", "Llama 3 8B", 32, {4096, 32, 8, 128}},
                                       {"llama3_70b", "Llama 3 70B", 80, {8192, 64, 8, 128}}}};

const Shape& shape_named(const std::string& name) {
    const auto at = std::find_if(shapes.begin(), shapes.end(), [&](const Shape& shape) { return shape.name == name; });
    if (at == shapes.end()) {
        throw Error(fmt::format("--shape {}: known are {}", name, fmt::join(shape_names(), ", ")));
    }
    return *at;
}

xq::Model model_of(const Shape& shape, xq::LayerInput input) {
    xq::Model model = xq::Model::uniform(shape.layers, shape.layer, xq::Rope::standard(shape.layer.head_dim));
    for (xq::Layer& layer : model.layers) layer.input = input;
    return model;
}

/// A row of the table. None where the scheme does not serve the shape, or finds its rank in weights.
struct Row {
    double stored = 0, bits = 0;                        // bytes of a sequence; bits of a token and layer
    std::array<std::size_t, 3> from_x{};                // prepared weights in f32, f16, q8
    std::optional<std::size_t> from_keys_and_values{};  // in f16, where the scheme takes K and V
};

std::optional<Row> row_of(const Shape& shape, const std::string& scheme, std::size_t tokens) {
    try {
        const xq::Model model = model_of(shape, xq::LayerInput::x);
        const auto weights = [&](const xq::Model& of, xq::WeightType type) {
            xq::Options options;
            options.weights = type;
            return xq::predict(scheme, of, options, 0).weights;
        };
        Row row;
        const auto stored = [&](std::size_t n) {
            return static_cast<double>(xq::predict(scheme, model, {}, n).stored());
        };
        row.stored = stored(tokens);
        // Between two large counts, so that sinks, the newest tokens and tables fall away.
        constexpr std::size_t many = std::size_t{1} << 20U;
        row.bits = 8 * (stored(2 * many) - stored(many)) / static_cast<double>(many * shape.layers);
        row.from_x = {weights(model, xq::WeightType::f32), weights(model, xq::WeightType::f16),
                      weights(model, xq::WeightType::q8)};
        const std::vector<xq::LayerInput> inputs = xq::find_scheme(scheme).inputs;
        if (std::find(inputs.begin(), inputs.end(), xq::LayerInput::keys_before_rope) != inputs.end()) {
            row.from_keys_and_values = weights(model_of(shape, xq::LayerInput::keys_before_rope), xq::WeightType::f16);
        }
        return row;
    } catch (const xq::shape_error&) {
        return std::nullopt;
    }
}

double mebibytes(std::size_t bytes) { return static_cast<double>(bytes) / (1 << 20U); }

}  // namespace

std::vector<std::string> shape_names() {
    std::vector<std::string> names;
    for (const Shape& shape : shapes) names.emplace_back(shape.name);
    return names;
}

void bytes(const BytesOptions& options) {
    const Shape& shape = shape_named(options.shape);
    std::vector<std::string> names = options.schemes;
    if (names.empty()) {
        for (const std::string& name : scheme_names()) {
            // f32 and the simulated ones are not the library's.
            if (name != scheme_names().front() && !parse_scheme(name).turboquant) names.push_back(name);
        }
    }
    const auto [d, heads, kv_heads, dh] = shape.layer;
    fmt::print("{}: {} layers, D {}, {} heads, {} kv heads of {}; a sequence of {} tokens. MiB.\n\n", shape.models,
               shape.layers, d, heads, kv_heads, dh, options.tokens);
    fmt::print("| {:<16} | {:>16} | {:>8} | {:>11} | {:>11} | {:>11} | {:>11} |\n", "scheme", "bits/token/layer",
               "sequence", "weights f32", "weights f16", "weights q8", "K, V given");
    fmt::print("|{:-<18}|{:->17}:|{:->9}:|{:->12}:|{:->12}:|{:->12}:|{:->12}:|\n", "", "", "", "", "", "", "");
    nlohmann::json json = {{"shape", shape.name}, {"tokens", options.tokens}, {"schemes", nlohmann::json::array()}};
    std::vector<std::string> left_out;
    for (const std::string& name : names) {
        Scheme scheme = parse_scheme(name);
        if (scheme.turboquant || scheme.name == scheme_names().front() || !scheme.recipe.empty())
            throw Error(fmt::format("bytes --schemes {}: it is no scheme of the library", name));
        // How a layer's bits are divided takes statistics of a model; on average they are those of the uniform scheme.
        scheme.uniform = scheme.uniform || xq::find_scheme(scheme.library_name()).divides_bits;
        const std::optional<Row> row = row_of(shape, scheme.library_name(), options.tokens);
        if (!row) {
            left_out.push_back(name);
            continue;
        }
        fmt::print("| {:<16} | {:>16.0f} | {:>8.1f} | {:>11.1f} | {:>11.1f} | {:>11.1f} | {:>11} |\n", name, row->bits,
                   row->stored / (1 << 20U), mebibytes(row->from_x[0]), mebibytes(row->from_x[1]),
                   mebibytes(row->from_x[2]),
                   row->from_keys_and_values ? fmt::format("{:.1f}", mebibytes(*row->from_keys_and_values)) : "-");
        json["schemes"].push_back({{"scheme", name},
                                   {"bits_per_token_layer", row->bits},
                                   {"stored", row->stored},
                                   {"weights_f32", row->from_x[0]},
                                   {"weights_f16", row->from_x[1]},
                                   {"weights_q8", row->from_x[2]},
                                   {"weights_keys_and_values", row->from_keys_and_values.value_or(0)}});
    }
    if (!left_out.empty()) {
        fmt::print("\nLeft out, since they do not serve the shape or find their rank in weights: {}.\n",
                   fmt::join(left_out, ", "));
    }
    if (options.json.empty()) return;
    std::ofstream file(options.json);
    file << json.dump(1) << "\n";
    if (!file.flush()) throw Error(fmt::format("{}: cannot be written", options.json));
}

}  // namespace llm
