// Which rows of a ubatch go to which sequence, in the order in which a step takes them.
#pragma once

#include <xquant/types.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "ggml.h"
#include "llama-batch.h"

namespace adapter {

/// What a ubatch adds to one sequence.
struct Addition {
    std::size_t sequence;
    std::vector<std::uint32_t> rows;   ///< of the ubatch
    std::vector<llama_pos> positions;  ///< of these rows
    std::vector<std::size_t> twins;    ///< empty sequences that get the same rows: they become forks of it afterwards
};

/// A ubatch, sorted by sequences. A row of several sequences is fed to one of them, if the others are empty and become
/// forks, and to each of them otherwise.
class Batch {
public:
    Batch() = default;
    Batch(const llama_ubatch& ubatch, const std::function<bool(std::size_t)>& is_empty);

    [[nodiscard]] const std::vector<Addition>& additions() const noexcept { return additions_; }

    /// Rows [W, n] of the graph in the step's order: as they lie, or gathered into `buffer`.
    [[nodiscard]] xquant::MatrixView rows(const ggml_tensor* from, std::vector<float>& buffer) const;

    /// Where a step may write its rows of `width` floats: into `to`, or into `buffer`, and then spread has to follow.
    [[nodiscard]] float* output(ggml_tensor* to, std::vector<float>& buffer) const;
    void spread(const std::vector<float>& buffer, ggml_tensor* to) const;

private:
    std::vector<Addition> additions_;
    std::vector<std::uint32_t> order_;  ///< row of the step -> row of the ubatch
    bool straight_ = true;              ///< both orders are the same
};

}  // namespace adapter
