// Which rows of a ubatch go to which sequence, in the order in which a step takes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

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

    /// Whether the ubatch's rows lie in the step's order: its parts need not name them.
    [[nodiscard]] bool straight() const noexcept { return straight_; }

private:
    std::vector<Addition> additions_;
    bool straight_ = true;
};

}  // namespace adapter
