#include "memory.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

namespace adapter {
namespace {

using Ubatches = std::vector<llama_ubatch>;

class HasRows {
public:
    explicit HasRows(std::unique_ptr<Rows> rows) : rows_(std::move(rows)) {}
    virtual ~HasRows() = default;
    [[nodiscard]] Rows* rows() const noexcept { return rows_.get(); }

protected:
    std::unique_ptr<Rows> rows_;
};

// Attention alone -----------------------------------------------------------------------------------------------------

class PlainContext final : public llama_memory_context_i, public RowsContext {
public:
    PlainContext(llama_memory_status status, Rows* rows) : RowsContext(rows), status_(status) {}
    PlainContext(Rows* rows, Ubatches ubatches)
        : RowsContext(rows), ubatches_(std::move(ubatches)), status_(LLAMA_MEMORY_STATUS_SUCCESS) {}
    bool next() override { return ++at_ < ubatches_.size(); }
    bool apply() override { return ubatches_.empty() || rows()->begin(ubatches_[at_]); }
    const llama_ubatch& get_ubatch() const override { return ubatches_[at_]; }
    llama_memory_status get_status() const override { return status_; }

private:
    Ubatches ubatches_;
    std::size_t at_ = 0;
    llama_memory_status status_;
};

class PlainMemory final : public llama_memory_i, public HasRows {
public:
    using HasRows::HasRows;
    llama_memory_context_ptr init_batch(llama_batch_allocr& batches, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override {
        return std::make_unique<PlainContext>(LLAMA_MEMORY_STATUS_SUCCESS, rows());
    }
    llama_memory_context_ptr init_update(llama_context*, bool) override {
        return std::make_unique<PlainContext>(LLAMA_MEMORY_STATUS_NO_UPDATE, rows());
    }
    bool get_can_shift() const override { return rows()->can_shift(); }
    void clear(bool) override { rows()->clear(); }
    bool seq_rm(llama_seq_id id, llama_pos p0, llama_pos p1) override { return rows()->remove(id, p0, p1); }
    void seq_cp(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) override {
        rows()->copy(from, to, p0, p1);
    }
    void seq_keep(llama_seq_id id) override { rows()->keep(id); }
    void seq_add(llama_seq_id id, llama_pos p0, llama_pos p1, llama_pos delta) override {
        rows()->add(id, p0, p1, delta);
    }
    void seq_div(llama_seq_id, llama_pos, llama_pos, int) override {
        GGML_ABORT("xquant: positions cannot be divided");
    }
    llama_pos seq_pos_min(llama_seq_id id) const override { return rows()->first_position(id); }
    llama_pos seq_pos_max(llama_seq_id id) const override { return rows()->last_position(id); }
    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override {
        return {{ggml_backend_cpu_buffer_type(), rows()->bytes()}};
    }
    void state_write(llama_io_write_i& io, llama_seq_id id, llama_state_seq_flags) const override {
        rows()->write(io, id);
    }
    void state_read(llama_io_read_i& io, llama_seq_id id, llama_state_seq_flags) override { rows()->read(io, id); }
};

llama_memory_context_ptr PlainMemory::init_batch(llama_batch_allocr& batches, uint32_t n_ubatch, bool) {
    const auto fail = [this](llama_memory_status status) { return std::make_unique<PlainContext>(status, rows()); };
    if (!rows()->prepare()) return fail(LLAMA_MEMORY_STATUS_FAILED_COMPUTE);
    const llama_batch& batch = batches.get_batch();
    if (!rows()->fits(batch)) return fail(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    // Rows of several sequences at once come in sets of their own.
    const bool coupled = std::any_of(batch.n_seq_id, batch.n_seq_id + batch.n_tokens, [](int n) { return n > 1; });
    batches.split_reset();
    Ubatches ubatches;
    for (;;) {
        llama_ubatch ubatch = coupled ? batches.split_equal(n_ubatch, false, 0) : batches.split_simple(n_ubatch);
        if (ubatch.n_tokens == 0) break;
        ubatches.push_back(std::move(ubatch));
    }
    if (batches.get_n_used() < batches.get_n_tokens()) return fail(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    return std::make_unique<PlainContext>(rows(), std::move(ubatches));
}

// Beside recurrent layers ---------------------------------------------------------------------------------------------

class HybridContext final : public llama_memory_hybrid_context, public RowsContext {
public:
    HybridContext(llama_memory_hybrid* memory, Rows* rows) : llama_memory_hybrid_context(memory), RowsContext(rows) {}
    HybridContext(llama_memory_hybrid* memory, Rows* rows, slot_info_vec_t cells, Ubatches ubatches)
        : llama_memory_hybrid_context(memory, std::move(cells), std::move(ubatches)), RowsContext(rows), steps_(true) {}
    bool apply() override { return (!steps_ || rows()->begin(get_ubatch())) && llama_memory_hybrid_context::apply(); }

private:
    bool steps_ = false;
};

/// llama.cpp's own, whose cache of keys and values has cells and no layer.
class HybridMemory final : public llama_memory_hybrid, public HasRows {
public:
    HybridMemory(std::unique_ptr<Rows> rows, const llama_model& model, const llama_cparams& c,
                 const layer_filter_cb& is_recurrent)
        : llama_memory_hybrid(
              model, GGML_TYPE_F16, GGML_TYPE_F16, false, c.n_ctx_seq, 1, model.hparams.n_swa, model.hparams.swa_type,
              GGML_TYPE_F32, GGML_TYPE_F32, std::max(1U, c.n_seq_max), c.n_seq_max, c.n_rs_seq, c.offload_kqv,
              c.kv_unified, [](int32_t) { return false; }, is_recurrent),
          HasRows(std::move(rows)) {}

    llama_memory_context_ptr init_batch(llama_batch_allocr& batches, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override { return std::make_unique<HybridContext>(this, rows()); }
    llama_memory_context_ptr init_update(llama_context* context, bool optimize) override {
        return get_mem_recr()->init_update(context, optimize);  // there are no keys to be copied or turned
    }
    bool get_can_shift() const override { return rows()->can_shift() && llama_memory_hybrid::get_can_shift(); }
    void clear(bool data) override {
        rows()->clear();
        llama_memory_hybrid::clear(data);
    }
    bool seq_rm(llama_seq_id id, llama_pos p0, llama_pos p1) override {
        // A recurrent state cannot forget its last tokens, and says so.
        return llama_memory_hybrid::seq_rm(id, p0, p1) && rows()->remove(id, p0, p1);
    }
    void seq_cp(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) override {
        llama_memory_hybrid::seq_cp(from, to, p0, p1);
        rows()->copy(from, to, p0, p1);
    }
    void seq_keep(llama_seq_id id) override {
        llama_memory_hybrid::seq_keep(id);
        rows()->keep(id);
    }
    void seq_add(llama_seq_id id, llama_pos p0, llama_pos p1, llama_pos delta) override {
        llama_memory_hybrid::seq_add(id, p0, p1, delta);
        rows()->add(id, p0, p1, delta);
    }
    void seq_div(llama_seq_id, llama_pos, llama_pos, int) override {
        GGML_ABORT("xquant: positions cannot be divided");
    }
    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override {
        auto out = llama_memory_hybrid::memory_breakdown();
        out[ggml_backend_cpu_buffer_type()] += rows()->bytes();
        return out;
    }
    void state_write(llama_io_write_i& io, llama_seq_id id, llama_state_seq_flags flags) const override {
        if ((flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) == 0) rows()->write(io, id);
        llama_memory_hybrid::state_write(io, id, flags);
    }
    void state_read(llama_io_read_i& io, llama_seq_id id, llama_state_seq_flags flags) override {
        if ((flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY) == 0) rows()->read(io, id);
        llama_memory_hybrid::state_read(io, id, flags);
    }
};

llama_memory_context_ptr HybridMemory::init_batch(llama_batch_allocr& batches, uint32_t n_ubatch, bool embd_all) {
    const auto fail = [](llama_memory_status status) { return std::make_unique<llama_memory_hybrid_context>(status); };
    if (!rows()->prepare()) return fail(LLAMA_MEMORY_STATUS_FAILED_COMPUTE);
    if (!rows()->fits(batches.get_batch())) return fail(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    batches.split_reset();
    Ubatches ubatches;
    const uint32_t snapshots = get_mem_recr()->n_rs_seq;
    const bool unified = get_mem_attn()->get_n_stream() == 1;
    for (;;) {
        // The splits that recurrent states need: sets of as many tokens for each sequence.
        llama_ubatch ubatch = embd_all ? batches.split_seq(n_ubatch)
                                       : batches.split_equal(n_ubatch, !unified, snapshots > 0 ? snapshots + 1 : 0);
        if (ubatch.n_tokens == 0) break;
        ubatches.push_back(std::move(ubatch));
    }
    if (batches.get_n_used() < batches.get_n_tokens()) return fail(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    if (!get_mem_recr()->prepare(ubatches)) return fail(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    auto cells = get_mem_attn()->prepare(ubatches);
    if (cells.empty()) return fail(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    return std::make_unique<HybridContext>(this, rows(), std::move(cells), std::move(ubatches));
}

}  // namespace

Rows* rows_of(const llama_memory_context_i* context) {
    const auto* const ours = dynamic_cast<const RowsContext*>(context);
    return ours != nullptr ? ours->rows() : nullptr;
}

Rows* rows_of(llama_memory_i* memory) {
    const auto* const ours = dynamic_cast<const HasRows*>(memory);
    return ours != nullptr ? ours->rows() : nullptr;
}

std::unique_ptr<llama_memory_i> make_memory(std::unique_ptr<Rows> rows, const llama_cparams&) {
    return std::make_unique<PlainMemory>(std::move(rows));
}

std::unique_ptr<llama_memory_i> make_memory(std::unique_ptr<Rows> rows, const llama_model& model,
                                            const llama_cparams& cparams, std::vector<std::uint32_t> recurrent_layers) {
    return std::make_unique<HybridMemory>(std::move(rows), model, cparams, [&recurrent_layers](int32_t il) {
        return std::find(recurrent_layers.begin(), recurrent_layers.end(), static_cast<std::uint32_t>(il)) !=
               recurrent_layers.end();
    });
}

}  // namespace adapter
