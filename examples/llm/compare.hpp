/// Compares next-token predictions with the exact ones.
///
/// For each position with a next token in its context, from the logits l (this) and e (exact):
///   nll  = -log softmax(l)[next]
///   kld  = sum_i softmax(e)_i (log softmax(e)_i - log softmax(l)_i)
///   same = argmax e == argmax l
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "model.hpp"

namespace llm {

struct Predictions {
    std::vector<double> nll, kld;  // of each scored position
    std::size_t same = 0;          // positions with the same top-1

    double perplexity() const;  // exp(mean nll)
    double kld_mean() const;
    double kld_quantile(double q) const;  // linear between the neighbouring ranks
    double top1() const;                  // share of positions with the same top-1
};

/// Adds the n - 1 positions of one context. ids [n]; hidden, exact: hidden states [n, D]. Logits are made block by
/// block, so that only 2 * 128 * vocabulary of them are in memory.
void compare(const Model& model, std::span<const Token> ids, const float* hidden, const float* exact, ThreadPool& pool,
             Predictions& into);

}  // namespace llm
