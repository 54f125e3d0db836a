/// Draws the next token from logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "tokenizer.hpp"

namespace llm {

class Sampler {
public:
    /// temperature 0: always the most likely token
    Sampler(double temperature, std::uint64_t seed) : temperature_(temperature), random_(seed) {}

    Token draw(std::span<const float> logits) {
        const auto top = std::max_element(logits.begin(), logits.end());
        if (temperature_ <= 0) return static_cast<Token>(top - logits.begin());
        weights_.resize(logits.size());
        double sum = 0;
        for (std::size_t i = 0; i < logits.size(); ++i)
            sum += weights_[i] = std::exp((static_cast<double>(logits[i]) - static_cast<double>(*top)) / temperature_);
        // Not std::discrete_distribution: what it draws for a seed differs between standard libraries.
        double left = static_cast<double>(random_() >> 11) * 0x1p-53 * sum;
        for (std::size_t i = 0; i < weights_.size(); ++i)
            if ((left -= weights_[i]) < 0) return static_cast<Token>(i);
        return static_cast<Token>(top - logits.begin());
    }

private:
    double temperature_;
    std::mt19937_64 random_;
    std::vector<double> weights_;
};

}  // namespace llm
