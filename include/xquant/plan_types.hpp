// What plans speak of: a machine, what is asked for, and a scheme as it would be. planner.hpp makes plans of these, and
// so does the compiled library (runtime.hpp).
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>

#include <xquant/cache_types.hpp>

namespace xquant {

/// What stored rows have to go through before attention has read them. Numbers are bits of a code.
enum class ReadKind : unsigned char {
    rows,              ///< not quantized
    plain4,            ///< codes of values, and of keys after RoPE
    plain8,            ///< likewise
    turned2,           ///< codes of keys before RoPE, which is applied to them
    turned3,           ///< likewise
    turned4,           ///< likewise
    turned8,           ///< likewise
    channel_product4,  ///< at most 128 channels in groups along each that a matrix makes keys of: integer products
    channel_product8,  ///< likewise: f32 products
    token_product4,    ///< more channels, or groups along a token, that a matrix makes keys of: integer products
    token_product8     ///< likewise: f32 products
};

/// Entries of ReadKind.
inline constexpr std::size_t read_kinds = 11;

/// What one core needs for a token of a kv head. Of a product [1, width] x [width, Dh]: for each of its entries, and
/// for each of the Dh channels beside that.
struct ReadTime {
    double channel = 0,  ///< seconds for each channel; of a product, for each entry
        query = 0,       ///< seconds for each channel and query head; of a product, for each channel of a key
        score = 0;       ///< seconds for each query head, where keys are read so; of a product 0
    friend bool operator==(const ReadTime&, const ReadTime&) = default;
};

/// What a machine can do.
struct Machine {
    std::size_t threads = 1;                     ///< that attention runs on
    double memory = 0,                           ///< bytes a second that these threads read together
        f32 = 0,                                 ///< operations a second of one core, a multiply-add counted as two
        int8 = 0,                                ///< likewise, of 8-bit integers
        page = 0,                                ///< seconds that a page of a kv head takes longer out of memory
        layer = 0;                               ///< seconds of a step in a layer, whatever is cached
    std::array<ReadTime, read_kinds> kernels{};  ///< of one core, out of its caches, by ReadKind
    friend bool operator==(const Machine&, const Machine&) = default;
};

/// What a cache has to serve.
struct PlanRequest {
    std::size_t context = 4096,  ///< tokens cached of each sequence
        sequences = 1,           ///< that take a token at once
        memory = 0;              ///< bytes that caches and prepared weights may take; 0: no limit
    Options options{};           ///< of the caches
};

/// A scheme, as it would be.
struct PlannedScheme {
    std::string name;                  ///< as make_cache takes it
    std::string unavailable;           ///< why there is no such cache of this model, or empty
    std::size_t cache = 0,             ///< bytes of all sequences, accumulators of a step included
        weights = 0;                   ///< bytes of prepared weights
    double read = 0,                   ///< bytes that a token of every sequence reads
        f32 = 0,                       ///< operations of it
        int8 = 0,                      ///< likewise, of 8-bit integers
        seconds = 0;                   ///< that it takes in the cache; 0: not known
    std::optional<double> divergence;  ///< mean KLD from the exact cache, in nats; none: not known
    std::string unknown;               ///< why the divergence is not known, or empty
    bool fits = false;                 ///< into PlanRequest::memory
    std::string dominated_by;          ///< a scheme that is as good in every respect and better in one, or empty

    /// Whether there is such a cache.
    [[nodiscard]] bool available() const noexcept { return unavailable.empty(); }
    /// Bytes of caches and weights.
    [[nodiscard]] std::size_t bytes() const noexcept { return cache + weights; }
};

}  // namespace xquant
