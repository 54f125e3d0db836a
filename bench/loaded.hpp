// Caches that were filled, shared by all benchmarks of a scheme and shape: filling takes longer than measuring.
#pragma once

#include <string>
#include <vector>

#include "caches.hpp"
#include "layer.hpp"

namespace bench {

/// What the caches of attention benchmarks are filled from.
enum class Filled {
    narrow,  ///< W reads the first Dh channels of X; see RandomLayer
    wide     ///< W reads all of X: where writing is measured
};

/// A cache with `tokens` tokens, and a step with `rows` more that were appended and can be attended any number of
/// times.
struct Loaded {
    Cache* cache = nullptr;
    xquant::Sequence sequence;
    std::unique_ptr<Step> step;
    std::vector<float> q, out;  ///< [rows, H * Dh]
    double error = 0;           ///< of out, against the exact answer

    /// One call of attention over everything that is cached, into `out`.
    void attend() { step->attend(xquant::MatrixView(q.data(), rows, q.size() / rows), out.data()); }

    std::size_t rows = 1;
};

/// Appends rows 0 .. tokens of a layer to a sequence.
void fill(Cache& cache, xquant::Sequence sequence, const RandomLayer& layer, std::size_t tokens);

/// Kept until the program ends; filled at the first call.
Loaded& loaded(const Backend& backend, const Scheme& scheme, const Shape& shape, std::size_t tokens, std::size_t rows,
               Filled filled = Filled::narrow);

/// The layer behind it.
const RandomLayer& layer_of(const Scheme& scheme, const Shape& shape, Filled filled);

/// Iterations of a benchmark that evicts caches in between: some 50 ms of work.
std::int64_t iterations_for(const Scheme& scheme, const Shape& shape, std::size_t tokens, std::size_t rows);

}  // namespace bench
