/// TurboQuant (arXiv 2504.19874) as a baseline: each head's K (after RoPE) and V, by itself.
///
///   x -> n = f16(|x|), and the code of each entry of sqrt(Dh) Q x / n, for a random rotation Q
///   x ~ n / sqrt(Dh) Q^T levels[codes], the levels of least squared error for a normal distribution (Lloyd-Max)
///
/// Residual  keys have one bit less in their codes; what these leave, r, is stored as its norm and the signs of S r,
///           for a normal random matrix S: r ~ f16(|r|) sqrt(pi / 2) / Dh S^T sign(S r). Products with queries are then
///           right on average.
/// It is simulated (exact_cache.hpp): bits are counted, and rows lie in f32.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "attention_cache.hpp"
#include "threads.hpp"

namespace llm {

class Model;

/// turboquant4, turboquant3 and turboquant2, each with "_residual" behind it, too.
struct TurboQuant {
    unsigned bits = 4;      // of a value, signs of residuals included; 2 to 4
    bool residual = false;  // of keys
};

/// What a name stands for; false where it is none of these.
bool parse_turboquant(const std::string& name, TurboQuant& out);
std::vector<std::string> turboquant_names();

/// 2^bits rising levels, each the mean of the standard normal values that are nearest to it.
std::vector<float> normal_levels(unsigned bits);

/// Rounds a row [n] in place. Of normal rows, the mean square of the error is 0.36, 0.117, 0.035 and 0.0095 of the
/// row's at 1, 2, 3 and 4 bits, as in theorem 1 of the paper.
std::function<void(float*)> turboquant_rounding(std::size_t n, TurboQuant form);

/// Bits of a head of a token, K and V of n channels each, norms included.
double turboquant_bits(TurboQuant form, std::size_t n);

std::unique_ptr<AttentionCache> make_turboquant_cache(TurboQuant form, const Model& model, ThreadPool& pool,
                                                      std::size_t sinks, std::size_t tail);

}  // namespace llm
