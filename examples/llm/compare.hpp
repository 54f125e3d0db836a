/// Compares next-token predictions with the exact ones.
///
/// For each scored position, from the logits l (this) and e (exact) and p = softmax(e):
///   nll  = -log softmax(l)[next]
///   kld  = sum_i p_i (log p_i - log softmax(l)_i)
///        = (h - h') m - log sum exp(e) + log sum exp(l)        m = sum_i p_i W_i
///   same = argmax e == argmax l
///
/// Logits are linear in the hidden states h and h', so all that a comparison needs of the exact side is m [D], the mean
/// row of the output matrix under p: schemes after the first cost one pass over the vocabulary, not two, and logits are
/// made and used up tile by tile.
/// Error  logits are products in f32: log sums are good to about 1e-6 a position.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "model.hpp"

namespace llm {

struct Predictions {
    std::vector<double> nll, exact_nll, kld;  // of each scored position
    std::size_t same = 0;                     // positions with the same top-1

    double perplexity() const;     // exp(mean nll)
    double delta_percent() const;  // change of the perplexity against the exact one
    double kld_mean() const;
    double kld_quantile(double q) const;  // linear between the neighbouring ranks
    double top1() const;                  // share of positions with the same top-1

    // Standard errors of the two means over positions, as if those were independent.
    double kld_error() const;
    double delta_percent_error() const;  // of the paired differences of nll, as percent of the perplexity
};

/// What the exact cache predicts for one context, from position `first` on.
struct Reference {
    std::size_t first = 0;
    std::vector<float> hidden, mean_row;  // h, m [n, D]
    std::vector<double> log_sum, nll;     // [n]
    std::vector<Token> top;               // [n]
};

/// output [vocabulary, D]: logits are hidden output^T. ids: one context; hidden: its exact hidden states [ids, D].
/// Scores the positions first .. ids - 2.
Reference make_reference(const Matrix& output, std::span<const Token> ids, const float* hidden, std::size_t first,
                         ThreadPool& pool);
inline Reference make_reference(const Model& model, std::span<const Token> ids, const float* hidden, std::size_t first,
                                ThreadPool& pool) {
    return make_reference(model.output(), ids, hidden, first, pool);
}

/// Adds the positions of the reference. hidden: hidden states of the same ids [ids, D].
void compare(const Matrix& output, std::span<const Token> ids, const float* hidden, const Reference& reference,
             ThreadPool& pool, Predictions& into);
inline void compare(const Model& model, std::span<const Token> ids, const float* hidden, const Reference& reference,
                    ThreadPool& pool, Predictions& into) {
    compare(model.output(), ids, hidden, reference, pool, into);
}

/// Adds the reference itself.
void compare(const Reference& reference, Predictions& into);

}  // namespace llm
