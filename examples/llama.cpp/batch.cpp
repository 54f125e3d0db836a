#include "batch.hpp"

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
    std::uint32_t next = 0;
    for (const Addition& addition : additions_) {
        for (const std::uint32_t row : addition.rows) straight_ = straight_ && row == next++;
    }
    straight_ = straight_ && next == ubatch.n_tokens;
}

}  // namespace adapter
