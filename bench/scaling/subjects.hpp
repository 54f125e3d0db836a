// The schemes whose growth is measured, as caches of any number of layers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <xquant/xquant.hpp>

#include "../layer.hpp"

namespace bench {

using Best = xquant::backend::best;
using Caches = xquant::Cache<Best>;

/// What has to be read and multiplied; operations are two for a multiply-add.
struct Load {
    double bytes = 0, f32 = 0, int8 = 0;
    Load& operator+=(const Load& other) {
        bytes += other.bytes;
        f32 += other.f32;
        int8 += other.int8;
        return *this;
    }
    friend Load operator*(double factor, const Load& load) {
        return {factor * load.bytes, factor * load.f32, factor * load.int8};
    }
};

/// A scheme.
struct Kind {
    std::string name;
    xquant::LayerInput input;  ///< what is appended: X, or K before RoPE and V
    double bound;              ///< most relative error of attention on random data
    std::unique_ptr<Caches> (*make)(const xquant::Model&);
    /// What attention of one token of one layer has to do with `tokens` cached.
    Load (*attend)(const xquant::Model&, std::size_t tokens);
    /// What storing a step's rows has to do in one layer: matrices are read once, each row is multiplied by them.
    Load (*append)(const xquant::Model&, std::size_t rows);
};

/// f16, kv4, svd_head4 (where Eigen was found) and x4_rot.
const std::vector<Kind>& kinds();

/// A model of so many equal layers, whose W_k and W_v read the first Dh channels of X alone: keys and values, with
/// which caches are filled, are then made in a moment. No time depends on what is in them.
class RandomModel {
public:
    RandomModel(const Shape& shape, const Kind& kind, std::size_t layers);

    [[nodiscard]] const xquant::Model& model() const { return model_; }

    /// Rows first .. first + n of an endless text that repeats itself: X, or K and V, as the layers take it.
    struct Rows {
        xquant::MatrixView x, k, v;
    };
    /// All n rows are within one repetition: first % period + n is at most `period`.
    [[nodiscard]] Rows rows(std::size_t first, std::size_t n) const;
    static constexpr std::size_t period = 1024;

private:
    RandomLayer layer_;
    xquant::Model model_;
    std::vector<float> x_, k_, v_;
};

}  // namespace bench
