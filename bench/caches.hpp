// The schemes that are measured, behind an interface without templates: each backend is compiled once, in a file of its
// own.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <xquant/core/core.hpp>

#include "roofline.hpp"

namespace bench {

/// A step of sequences of a one-layer cache.
class Step {
public:
    virtual ~Step() = default;
    virtual void append(const xquant::MatrixView& x) = 0;
    virtual void attend(const xquant::MatrixView& q, float* out) = 0;
    virtual void commit() = 0;
};

/// The library's default options, but for memory, which lies on huge pages where the kernel gives them, and
/// Options::weights, which the environment's XQUANT_BENCH_WEIGHTS may name.
/// Throws std::runtime_error for a name that is none.
const xquant::Options& options();

/// A one-layer cache with these options.
class Cache {
public:
    virtual ~Cache() = default;
    virtual xquant::Sequence create() = 0;
    virtual void drop(xquant::Sequence sequence) = 0;
    virtual xquant::Sequence fork(xquant::Sequence sequence) = 0;
    virtual std::unique_ptr<Step> begin(const std::vector<xquant::StepPart>& parts) = 0;
    std::unique_ptr<Step> begin(xquant::Sequence sequence, std::size_t tokens) { return begin({{sequence, tokens}}); }

    /// Rebuilt keys that it keeps now.
    [[nodiscard]] virtual std::size_t rebuilt_bytes() const = 0;
    /// Codes, scales, sinks and tail of a sequence.
    [[nodiscard]] virtual double stored_bytes(std::size_t tokens) const = 0;
    /// What attention of the last `rows` tokens of a sequence has to do; softmax and RoPE are not counted.
    [[nodiscard]] virtual Work attend_work(std::size_t tokens, std::size_t rows) const = 0;
    /// What appending a token has to do: the projection's matrices are read, the row is written.
    [[nodiscard]] virtual Work append_work() const = 0;
};

struct Scheme {
    std::string name;
    bool stores_x;  ///< rows of all D channels of X; else K, V or latents of them
    double bound;   ///< most relative error of attention on random data
    /// A cache that keeps rebuilt keys of at most so many bytes.
    std::function<std::unique_ptr<Cache>(const xquant::Model&, std::size_t rebuilt)> make;
    bool rebuilds = false;  ///< whether K is made anew for every step
};

struct Backend {
    std::string name;
    std::vector<Scheme> schemes;
};

/// The scalar backend and, if it is another one, the best of this build.
const std::vector<Backend>& backends();

Backend scalar_backend();
/// No schemes where the best backend is the scalar one.
Backend best_backend();

}  // namespace bench
