// llama.cpp's memory interface over Rows: alone, and beside llama.cpp's own memory of recurrent layers.
#pragma once

#include <memory>
#include <vector>

#include "llama-memory-hybrid.h"
#include "llama-memory.h"
#include "rows.hpp"

namespace adapter {

/// What the contexts of both memories have in common: a graph finds the rows by it.
class RowsContext {
public:
    explicit RowsContext(Rows* rows) noexcept : rows_(rows) {}
    virtual ~RowsContext() = default;
    [[nodiscard]] Rows* rows() const noexcept { return rows_; }

private:
    Rows* rows_;
};

/// The rows of a graph's memory, or null if it is llama.cpp's.
Rows* rows_of(const llama_memory_context_i* context);
/// The rows of a memory, or null if it is llama.cpp's.
Rows* rows_of(llama_memory_i* memory);

/// For models whose layers all have attention.
std::unique_ptr<llama_memory_i> make_memory(std::unique_ptr<Rows> rows, const llama_cparams& cparams);

/// For models with recurrent layers: llama.cpp keeps their states, and knows of no layer with attention.
std::unique_ptr<llama_memory_i> make_memory(std::unique_ptr<Rows> rows, const llama_model& model,
                                            const llama_cparams& cparams, std::vector<std::uint32_t> recurrent_layers);

}  // namespace adapter
