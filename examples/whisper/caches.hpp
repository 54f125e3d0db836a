/// The decoder's caches: exact ones in f32, which owe nothing to the library, and the library's.
///
/// Cross attention can be described to the library in three ways:
///   own      each layer stores what it reads: its K and V, or a latent
///   shared   layer 0 stores X, the encoder's output, and the other layers read it (Layer::rows_of)
///   stacked  one layer has the heads of all: X is stored once, in a basis for all layers. Attention of a layer leaves
///            the other layers' queries 0, which costs as many times the arithmetic as there are layers
#pragma once

#include <memory>
#include <string>
#include <vector>
#include <xquant/calibration.hpp>
#include <xquant/model.hpp>

#include "attention_cache.hpp"
#include "decoder.hpp"
#include "progress.hpp"
#include "threads.hpp"

namespace whisper {

enum class CrossForm { own, shared, stacked };

/// A model of the library, and the weights that its views point at where they are not the decoder's own.
struct Described {
    xquant::Model model;
    std::vector<float> w_k, w_v, w_o, b_v;
};
Described describe_self(const Decoder& decoder);
Described describe_cross(const Decoder& decoder, CrossForm form);

/// What the calibrator learnt of self attention, of cross attention layer by layer, and of all its layers as one.
struct Statistics {
    xquant::Calibration self, cross, stacked;
};
Statistics gather_statistics(const Decoder& decoder, const std::vector<Window>& windows, std::size_t sinks,
                             std::size_t cross_sinks, llm::ThreadPool& pool, llm::Progress& progress);

/// "NAME", with ":group=N" or ":uniform" as the library takes it, ":stacked" for cross attention described so, and
/// ":calibrated" for schemes that can do without statistics.
struct Scheme {
    std::string text, library_name;
    bool needs_statistics = false, stacked = false;

    /// How cross attention is described for it: X is stored once.
    CrossForm cross_form() const;
};
/// Throws llm::Error for a name that the library does not know, or that needs what is not gathered here.
Scheme parse_scheme(const std::string& text);

/// Throws llm::Error where the scheme does not serve this decoder's self attention, or its cross attention.
void check_scheme(const Scheme& scheme, const Decoder& decoder, bool cross);

struct CacheOptions {
    std::size_t sinks = 4;
    llm::ThreadPool* pool = nullptr;         // never null
    const Statistics* statistics = nullptr;  // null: there are none
};

std::unique_ptr<llm::AttentionCache> make_exact_self(const Decoder& decoder, llm::ThreadPool& pool);
std::unique_ptr<CrossCache> make_exact_cross(const Decoder& decoder, llm::ThreadPool& pool);
/// Every row but the sinks is read from codes, those of the running step too.
std::unique_ptr<llm::AttentionCache> make_self(const Scheme& scheme, const Decoder& decoder,
                                               const CacheOptions& options);
/// Likewise; the sinks are the first frames.
std::unique_ptr<CrossCache> make_cross(const Scheme& scheme, const Decoder& decoder, const CacheOptions& options);

}  // namespace whisper
