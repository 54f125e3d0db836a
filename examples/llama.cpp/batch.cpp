#include "batch.hpp"

#include <algorithm>
#include <cstring>
#include <map>

namespace adapter {

Batch::Batch(const llama_ubatch& ubatch, const std::function<bool(std::size_t)>& is_empty) {
    std::map<std::size_t, std::size_t> which;  // sequence -> addition
    for (std::uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const llama_seq_id* const of = ubatch.seq_id[i];
        const auto count = static_cast<std::size_t>(ubatch.n_seq_id[i]);
        const auto sequence = [of](std::size_t j) { return static_cast<std::size_t>(of[j]); };
        // In a ubatch of equal sequence sets, a set's rows all belong to the same sequences.
        bool fork = count > 1 && ubatch.equal_seqs();
        for (std::size_t j = 0; j < count; ++j) {
            fork = fork && is_empty(sequence(j)) && (j == 0 || !which.contains(sequence(j)));
        }
        for (std::size_t j = 0; j < (fork ? 1 : count); ++j) {
            const auto [at, added] = which.try_emplace(sequence(j), additions_.size());
            if (added) additions_.push_back({sequence(j), {}, {}, {}});
            Addition& addition = additions_[at->second];
            if (fork && added) {
                for (std::size_t twin = 1; twin < count; ++twin) addition.twins.push_back(sequence(twin));
            }
            addition.rows.push_back(i);
            addition.positions.push_back(ubatch.pos[i]);
        }
    }
    for (const Addition& addition : additions_) order_.insert(order_.end(), addition.rows.begin(), addition.rows.end());
    straight_ = order_.size() == ubatch.n_tokens;
    for (std::size_t i = 0; straight_ && i < order_.size(); ++i) straight_ = order_[i] == i;
}

xquant::MatrixView Batch::rows(const ggml_tensor* from, std::vector<float>& buffer) const {
    const auto width = static_cast<std::size_t>(from->ne[0]);
    const xquant::MatrixView view(static_cast<const float*>(from->data), static_cast<std::size_t>(from->ne[1]), width,
                                  from->nb[1] / sizeof(float));
    if (straight_) return view;
    buffer.resize(order_.size() * width);
    for (std::size_t i = 0; i < order_.size(); ++i) {
        std::memcpy(buffer.data() + i * width, view.row(order_[i]), width * sizeof(float));
    }
    return {buffer.data(), order_.size(), width};
}

float* Batch::output(ggml_tensor* to, std::vector<float>& buffer) const {
    if (straight_) return static_cast<float*>(to->data);
    buffer.resize(order_.size() * static_cast<std::size_t>(to->ne[0]));
    return buffer.data();
}

void Batch::spread(const std::vector<float>& buffer, ggml_tensor* to) const {
    if (straight_) return;
    const auto width = static_cast<std::size_t>(to->ne[0]);
    // Of a row that went to several sequences, the first one's answer counts, as in llama.cpp's cache they all see the
    // same.
    for (std::size_t i = order_.size(); i-- > 0;) {
        std::memcpy(static_cast<float*>(to->data) + order_[i] * width, buffer.data() + i * width,
                    width * sizeof(float));
    }
}

}  // namespace adapter
