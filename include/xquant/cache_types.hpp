// The plain types of a cache's interface: what it is told, and what it answers. cache.hpp has the verbs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <string>
#include <vector>

#include <xquant/sequence/handle.hpp>
#include <xquant/types.hpp>

namespace xquant {

/// Settings of a cache. Sizes are in tokens unless they say layers.
struct Options {
    /// First tokens of a sequence that are kept in f16, at most 4096: they decide quality out of proportion.
    std::size_t sinks = 4;
    std::size_t recent = 128;  ///< newest tokens kept in f16, at most 1048576
    DType rows = DType::f16;   ///< what sinks and newest tokens are kept in; f32 and bf16 are possible
    /// What prepared matrices are kept in. They count as Bytes::weights, and are large where X is taken: 2 D Hkv Dh
    /// entries a layer (`xquant-llm bytes`). Rows are coded, and come back, by a matrix as it is after rounding. A
    /// matrix that makes latents of K or of V, Dh x Dh a head, stays in f32.
    WeightType weights = WeightType::f16;
    /// Queries read every row outside the sinks and the window from codes, rows of their own step included.
    bool strict = false;
    std::size_t base_layer = 2;   ///< CrossLayer<Delta>: the layer whose rows become the accumulator
    std::size_t last_layers = 0;  ///< CrossLayer<Delta>: this many layers at the end keep the first quantizer's bits
    /// Where everything that a cache keeps is allocated; null: the default resource. Outlives the cache; called by the
    /// executor's threads. What preparing a layer takes for a moment comes from operator new and, in Eigen, malloc:
    /// 2 to 38 times W_k in f32, by projection (docs/api.md).
    std::pmr::memory_resource* memory = nullptr;
    /// Bytes that Bytes::stored() may reach, at no time more; 0: no limit. What would go beyond throws budget_error and
    /// changes nothing; steps do so when they begin. Weights, and the workspace of steps, are not counted. What
    /// `rebuilt` keeps counts, but gives way first; only pages that another thread's attention is reading, which have
    /// given way, may be there beyond the budget until it returns.
    std::size_t budget = 0;
    /// Bytes that Bytes::workspace may reach, at no time more; 0: no limit. What would go beyond throws budget_error:
    /// a step when it begins, or in append or attend where buffers of kernels do not fit.
    std::size_t workspace_budget = 0;
    /// Bytes that Bytes::rebuilt may reach, at no time more; 0: nothing is kept. A dial between bytes and time, for
    /// schemes that store X or latents, from which attention makes K anew for every step: up to so many bytes, K of the
    /// coded pages that are read most is kept in 8 bits (Hkv Dh bytes a token and layer, and 4 Hkv for scales).
    ///
    /// Kept are full pages of 128 tokens, from their third reading on. A call of attend makes K for at most 4 pages of
    /// its layer, or an eighth of those that it reads, up to 32, which costs what reading them costs once. Where there
    /// is no room, a page takes the place of one of the layer that was read less than half as often lately. What is
    /// kept goes with its page, and when the page's rows are cut; forks share it. It counts against `budget`, too, and
    /// gives way to everything else there: no step fails for it. It is not saved: a loaded cache makes it as it reads.
    ///
    /// Error  K of a head and token is off by at most range / 510 + 2^-10 largest |K| more (or 8e-6), the range being
    ///        that of its Dh channels; so is a score by that times the sum of |q| times the scale. Which pages are kept
    ///        depends on what was read before, not on an executor's threads.
    ///
    /// Refused (shape_error) where it cannot help: schemes that keep K itself, or whose queries meet what is stored
    /// (layers without RoPE and k_norm), CrossLayer<Delta>, caches on a device; and fewer bytes than one page takes.
    std::size_t rebuilt = 0;
    void* stream = nullptr;  ///< caches on a device: the cudaStream_t they work in; null: the default stream
};

/// n new tokens of a sequence.
struct StepPart {
    Sequence sequence;       ///< each sequence at most once in a step
    std::size_t tokens = 0;  ///< 1 or more; all parts of a step together: fewer than 2^31
    /// [tokens] for drafts that are a tree: which new token of this sequence each one follows, a number below its own,
    /// or -1 for one that follows what is stored. Empty: each follows the one before it. Read by begin alone.
    std::span<const std::int32_t> parents{};
    /// [tokens] the row of x (or of k and v), of q and of out that belongs to each new token: a list names a row once.
    /// All parts of a step name rows, or none does: empty, the rows lie one part after another. Read by begin alone.
    ///
    /// The matrices then have more rows than the largest number named. A row that several parts name is a token of each
    /// of these sequences, stored for each. Its row of out is written once, with the answer to the first of the parts
    /// in the list; the answers to the others are given nowhere. Rows of out that no part names are not written.
    std::span<const std::uint32_t> rows{};
};

/// Query rows of a sequence.
struct QueryPart {
    Sequence sequence;     ///< may be named more than once
    std::size_t rows = 0;  ///< 1 or more; all parts of a call together: fewer than 2^31
};

/// What the query rows of a call of attend see of their own sequence. A layer's window or chunks hold in either case.
enum class Visibility : unsigned char {
    causal,  ///< every token up to the row's own
    whole    ///< every token, those behind the row's own as well: prefixes that see themselves, images, encoders
};

/// What becomes of the positions of tokens that are erased.
enum class Gap : std::uint8_t {
    close,  ///< the tokens behind them, and the next one, move up
    keep,   ///< no other token moves
};

/// A coded page that may be requantized, as the caller is asked about it.
struct PageChoice {
    std::size_t sequence = 0;         ///< the first of the given sequences that has the page
    std::int64_t first_position = 0;  ///< of the page's first token in the sequence
    std::size_t behind = 0;           ///< tokens of the sequence that are newer than the page
    std::size_t filled = 0;           ///< slots in use, of 128
    std::size_t bytes = 0,            ///< of the page now
        bytes_after = 0;              ///< of the page once it is requantized
};

/// Chooses every page that is full: what requantize does unless told otherwise.
struct FullPages {
    /// Whether all 128 slots are in use.
    constexpr bool operator()(const PageChoice& page) const noexcept { return page.filled == coded_page_tokens; }
};

/// What requantize did.
struct Requantized {
    std::size_t pages = 0,         ///< how many were rewritten
        tokens = 0;                ///< slots of these pages that are in use
    std::size_t bytes_before = 0,  ///< of these pages as they were
        bytes_after = 0;           ///< of these pages now
    bool out_of_memory = false;    ///< it stopped early: some pages that were chosen are as before
};

/// How a file is read.
struct LoadOptions {
    /// A file's pages are read where they lie, in memory that the system shares between processes and may drop and read
    /// again. The file must stay as it is while the cache is used: replace it, do not write into it. False: pages are
    /// copied.
    bool map = true;
    /// Checksums of pages are compared, and their numbers are finite. False saves the time to read them all, and takes
    /// what the disk has.
    bool verify = true;
    /// A file of the same model and projection whose rows are coded in another way, with other bits say, is decoded and
    /// encoded. False: it is refused.
    bool transcode = false;
};

/// What load found.
struct Loaded {
    std::vector<Sequence> sequences;  ///< in the order in which they were saved
    std::string note;                 ///< what save was given
    std::size_t pages = 0,            ///< pages that were read
        pages_transcoded = 0;         ///< pages that were decoded and encoded anew
};

}  // namespace xquant
