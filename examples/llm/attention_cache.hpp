/// What the model asks of a cache: one sequence, fed step by step. Which rows are kept, and in how many bits, is the
/// cache's affair.
///
///   begin(n) -> for every layer { append(layer, x); attend(layer, q, out); } -> commit()
///
/// Letters  D width of x, H query heads, Dh head_dim; all arrays are row-major f32.
#pragma once

#include <cstddef>
#include <iosfwd>
#include <span>
#include <string>

#include "error.hpp"

namespace llm {

struct CacheBytes {
    std::size_t codes = 0, scales = 0, tail = 0, sinks = 0, index = 0, weights = 0, workspace = 0;
    std::size_t mapped = 0;   // rows of any kind that are read where they lie in a saved file
    std::size_t rebuilt = 0;  // keys kept for speed

    /// What grows with the sequence: everything but the prepared weights, the working memory of a step, and what is
    /// kept for speed.
    std::size_t stored() const { return codes + scales + tail + sinks + index + mapped; }
};

class AttentionCache {
public:
    virtual ~AttentionCache() = default;
    virtual void reset() = 0;                                    // an empty sequence again
    virtual void begin(std::size_t n) = 0;                       // a step of n new tokens
    virtual void append(std::size_t layer, const float* x) = 0;  // x [n, D], after the norm, before W_q W_k W_v
    virtual void attend(std::size_t layer, const float* q,
                        float* out) = 0;  // q [n, H, Dh] after RoPE -> out [n, H, Dh]
    virtual void commit() = 0;
    virtual void seal() = 0;                          // encode what is still waiting outside the tail window
    virtual void rest() {}                            // a cache that rests makes all of its tokens small
    virtual void wake() {}                            // what rests is made fast to read
    virtual std::size_t size() const = 0;             // tokens
    virtual double bits_per_token_layer() const = 0;  // codes, scales and zeros of the tokens that are not sinks
    virtual CacheBytes bytes() const = 0;

    /// Keeps the first n tokens, as they are stored.
    virtual void truncate(std::size_t n);

    /// Saves the tokens with a note, to a stream or in place of a file. Caches that are not the library's throw Error.
    virtual void save(std::ostream& out, const std::string& note) const;
    virtual void save(const std::string& path, const std::string& note) const;

    /// The saved tokens take the place of those that are there; returns the note. What lies in memory is copied; a file
    /// is mapped, and must stay as it is while the cache is used. Throws what xquant::load throws, and Error for
    /// sequences that no model here can continue; the cache is as it was then.
    virtual std::string load(std::span<const std::byte> saved);
    virtual std::string load(const std::string& path);

protected:
    /// Why what stands above cannot be done.
    virtual std::string cannot() const { return "this cache can be neither saved, loaded nor truncated"; }
};

inline void AttentionCache::truncate(std::size_t) { throw Error(cannot()); }
inline void AttentionCache::save(std::ostream&, const std::string&) const { throw Error(cannot()); }
inline void AttentionCache::save(const std::string&, const std::string&) const { throw Error(cannot()); }
inline std::string AttentionCache::load(std::span<const std::byte>) { throw Error(cannot()); }
inline std::string AttentionCache::load(const std::string&) { throw Error(cannot()); }

}  // namespace llm
