// What a context keeps of its tokens: xquant's cache, and which of its sequences are llama.cpp's. The verbs are those
// of llama_memory_i.
#pragma once

#include "compiled/best.hpp"

#include <xquant/calibration.hpp>
#include <xquant/persistence.hpp>
#include <xquant/serving/huge_pages.hpp>

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "adapter.hpp"
#include "batch.hpp"
#include "describe.hpp"
#include "settings.hpp"
#include "team.hpp"

struct llama_io_write_i;
struct llama_io_read_i;

namespace adapter {

class Rows;

/// What the operation of a layer points to. It stays where it is as long as the memory lives, so llama.cpp may use a
/// graph again.
struct Place {
    Rows* rows;
    std::size_t layer;  ///< in the cache
    bool stores;        ///< false: it reads an earlier layer's rows
    bool windowed;      ///< it has a sliding window, or chunks
};

class Rows {
public:
    /// @param layers  the model's layers that keep rows, in order
    Rows(const llama_model& model, const llama_cparams& cparams, Settings settings, std::vector<std::uint32_t> layers);
    ~Rows();

    // The graph. The first one that is built describes the layers, and the last of its layers makes the cache.

    /// The operation that stores a layer's rows and attends to them: [H * Dv, n]. Throws std::runtime_error for a layer
    /// that is not served; once the cache is there, its steps fail with that sentence instead, since llama_decode has
    /// no way to throw.
    ggml_tensor* attention(const llm_graph_context& graph, const AttentionArguments& arguments);

    // A step: begin for each ubatch, the operations of its graph, finish.

    /// Makes the cache if no graph did. Logs what is wrong, and returns false then.
    bool prepare();
    /// Whether the sequences of a batch stay within the context's size.
    [[nodiscard]] bool fits(const llama_batch& batch);
    /// Logs what is wrong, and returns false then.
    bool begin(const llama_ubatch& ubatch);
    void run(ggml_tensor* out, int thread, int threads, const Place& place);
    bool finish(bool computed);

    // Sequences.

    void clear();
    bool remove(llama_seq_id id, llama_pos p0, llama_pos p1);
    void copy(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1);
    void keep(llama_seq_id id);
    void add(llama_seq_id id, llama_pos p0, llama_pos p1, llama_pos delta);
    [[nodiscard]] bool can_shift() const noexcept { return shiftable_; }
    [[nodiscard]] llama_pos first_position(llama_seq_id id) const;
    [[nodiscard]] llama_pos last_position(llama_seq_id id) const;
    void write(llama_io_write_i& to, llama_seq_id id) const;
    void read(llama_io_read_i& from, llama_seq_id id);
    /// What is stored and the prepared weights; before there is a cache, what one of the context's size will take.
    [[nodiscard]] std::size_t bytes() const;

private:
    struct Kept {
        std::optional<xquant::Sequence> sequence;
        std::vector<llama_pos> positions;  ///< of each token; tokens of an image may share theirs
    };

    [[nodiscard]] bool has_data() const;
    [[nodiscard]] std::size_t index_of(int il) const;
    [[nodiscard]] xquant::Model described() const;
    void describe_layer(const llm_graph_context& graph, const AttentionArguments& arguments);
    /// In a graph that is built once the layers are described: throws unless it makes its rows in the same way.
    void compare_layer(const llm_graph_context& graph, const AttentionArguments& arguments) const;
    /// For a layer without keys and values of its own: the last one before it that has some and sees as far.
    Place& shared_place(const llm_graph_context& graph, const AttentionArguments& arguments);
    /// What the operation stores: X, or K and V; [W, n] each.
    [[nodiscard]] std::vector<ggml_tensor*> stored_rows(const llm_graph_context& graph,
                                                        const AttentionArguments& arguments,
                                                        std::int64_t channels) const;
    void make_cache();
    void forget(Kept& kept);
    [[nodiscard]] std::pair<std::size_t, std::size_t> tokens_of(const Kept& kept, llama_pos p0, llama_pos p1) const;
    [[nodiscard]] bool fits_budget(const std::vector<std::size_t>& more);
    [[nodiscard]] std::vector<std::pair<std::size_t, std::vector<llama_pos>>> listed(const xquant::Loaded& loaded,
                                                                                     llama_seq_id id) const;
    void store(ggml_tensor* out, const Place& place);

    const llama_model& model_;
    const llama_cparams& cparams_;
    Settings settings_;
    std::vector<std::uint32_t> own_layers_;
    std::map<int, Description> layers_;
    std::map<int, Place> places_;  ///< those of layers that read another one's rows, too
    bool shiftable_ = true, placed_ = false;
    xquant::Calibration calibration_;
    xquant::Arena memory_;  // on huge pages, which attention over long contexts is a third faster with
    std::unique_ptr<xquant::Cache<>> cache_;
    std::vector<Kept> kept_;  ///< by llama.cpp's number of a sequence

    std::optional<xquant::Cache<>::Step> step_;
    Batch batch_;
    Team team_;
    std::string unusable_;  ///< why the graph that was built last cannot be run
    std::string failed_;    ///< the first error of the graph that runs
};

}  // namespace adapter
