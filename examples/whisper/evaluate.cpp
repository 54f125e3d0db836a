#include "evaluate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>
#include <xquant/registry_svd.hpp>

#include "caches.hpp"
#include "compare.hpp"
#include "decoder.hpp"
#include "error.hpp"

namespace whisper {
namespace {

/// One line of a table.
struct Result {
    double bits = 0, bytes = 0;  // of a token, or a frame, and layer
    llm::Predictions predictions;
    double seconds = 0;
};

void print_head(const char* of, const char* unit, std::size_t width) {
    constexpr const char* line = "{:<{}}{:>12}{:>12}{:>10}{:>10}{:>9}{:>9}{:>9}{:>8}{:>9}\n";
    const std::string bits = fmt::format("bits/{}", unit), bytes = fmt::format("bytes/{}", unit);
    fmt::print("\n");
    fmt::print(fmt::runtime(line), of, width, bits, bytes, "", "mean", "", "99.9 %", "", "perpl.", "");
    fmt::print(fmt::runtime(line), "scheme", width, "/layer", "/layer", "smaller", "KLD", "+-", "KLD", "top-1", "%",
               "seconds");
    std::fflush(stdout);
}

void print_row(const std::string& name, const Result& r, double f16_bytes, std::size_t width) {
    const llm::Predictions& p = r.predictions;
    fmt::print("{:<{}}{:>12.1f}{:>12.1f}{:>9.2f}x{:>10.5f}{:>9.5f}{:>9.4f}{:>9.4f}{:>+8.2f}{:>9.1f}\n", name, width,
               r.bits, r.bytes, f16_bytes / r.bytes, p.kld_mean(), p.kld_error(), p.kld_quantile(0.999), p.top1(),
               p.delta_percent(), r.seconds);
    std::fflush(stdout);
}

/// Runs caches over the same windows, beside what the exact ones predict.
class Evaluation {
public:
    Evaluation(const Decoder& decoder, const std::vector<Window>& windows, llm::ThreadPool& pool,
               llm::Progress& progress)
        : decoder_(decoder),
          windows_(windows),
          pool_(pool),
          progress_(progress),
          exact_self_(make_exact_self(decoder, pool)),
          exact_cross_(make_exact_cross(decoder, pool)) {
        for (const Window& window : windows_) {
            references_.push_back(llm::make_reference(decoder_.output(), window.tokens,
                                                      run(window, *exact_self_, *exact_cross_).data(), window.first - 1,
                                                      pool_));
            progress_.advance(1);
        }
    }

    Result self(llm::AttentionCache& cache) {
        return score(cache, *exact_cross_, [&](Result& result, const Window& window) {
            cache.seal();
            result.bits += cache.bits_per_token_layer();
            result.bytes += static_cast<double>(cache.bytes().stored()) / static_cast<double>(window.tokens.size());
        });
    }
    Result cross(CrossCache& cache) {
        return score(*exact_self_, cache, [&](Result& result, const Window& window) {
            result.bits += cache.bits_per_frame_layer();
            result.bytes += static_cast<double>(cache.stored()) / static_cast<double>(window.frames);
        });
    }

private:
    std::vector<float> run(const Window& window, llm::AttentionCache& self, CrossCache& cross) {
        self.reset();
        cross.set(window.x.data(), window.frames);
        return decoder_.forward(window.tokens, self, cross, pool_);
    }

    template <class Count>
    Result score(llm::AttentionCache& self, CrossCache& cross, Count&& count) {
        Result result;
        const auto start = std::chrono::steady_clock::now();
        for (std::size_t j = 0; j < windows_.size(); ++j) {
            const Window& window = windows_[j];
            const std::vector<float> hidden = run(window, self, cross);
            count(result, window);
            llm::compare(decoder_.output(), window.tokens, hidden.data(), references_[j], pool_, result.predictions);
            progress_.advance(1);
        }
        const auto windows = static_cast<double>(windows_.size());
        result.bits /= windows;
        result.bytes /= windows * static_cast<double>(decoder_.layers());
        result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (!std::isfinite(result.predictions.kld_mean())) throw llm::Error("the predictions are not finite");
        return result;
    }

    const Decoder& decoder_;
    const std::vector<Window>& windows_;
    llm::ThreadPool& pool_;
    llm::Progress& progress_;
    std::unique_ptr<llm::AttentionCache> exact_self_;
    std::unique_ptr<CrossCache> exact_cross_;
    std::vector<llm::Reference> references_;  // of each window
};

std::vector<Scheme> parsed(const std::vector<std::string>& texts) {
    std::vector<Scheme> out;
    for (const std::string& text : texts) out.push_back(parse_scheme(text));
    return out;
}

std::size_t widest(const std::vector<Scheme>& schemes) {
    std::size_t width = 17;
    for (const Scheme& scheme : schemes) width = std::max(width, scheme.text.size() + 1);
    return width;
}

}  // namespace

std::string schemes_help() {
    std::string help = "Schemes, and bits of a stored value, scales included:\n";
    for (const xquant::SchemeInfo& scheme : xquant::schemes()) {
        if (scheme.needs == xquant::Needs::nothing || scheme.needs == xquant::Needs::statistics)
            help += fmt::format("  {}{}\n", xquant::to_string(scheme),
                                scheme.needs == xquant::Needs::statistics ? " (needs --calibrate)" : "");
    }
    return help +
           "\nSuffixes:\n"
           "  :group=N      32, 64 or 128 values share a scale\n"
           "  :uniform      all layers have as many bits (head*, joint*; there are no others here)\n"
           "  :calibrated   x*_rot rounds by what was learnt of some windows, too\n"
           "  :stacked      cross attention of all layers is described as one layer, of all their heads\n"
           "\nIn cross attention x* store the encoder's output once for all layers, and so do xc*; all others store K "
           "and "
           "V of each layer. Layers that store differences (cl*) serve self attention alone.\n";
}

void evaluate(const EvaluateOptions& o) {
    const std::vector<Scheme> self = parsed(o.self_schemes), cross = parsed(o.cross_schemes);
    std::vector<Window> scored, learnt;
    std::optional<Decoder> read;
    {
        const Arrays arrays = Arrays::read(o.data);
        read.emplace(arrays);
        std::vector<Window> all = windows_of(arrays, *read);
        for (std::size_t j = 0; j < all.size(); ++j) {
            const bool learns = o.calibrate > 0 && j % o.calibrate == o.calibrate - 1;
            if (learns || o.windows == 0 || scored.size() < o.windows)
                (learns ? learnt : scored).push_back(std::move(all[j]));
        }
    }
    const Decoder& decoder = *read;
    for (const Scheme& scheme : self) check_scheme(scheme, decoder, false);
    for (const Scheme& scheme : cross) check_scheme(scheme, decoder, true);
    if (scored.empty()) throw llm::Error("--calibrate 1 leaves no window to score; 3 takes every third one");
    std::size_t tokens = 0, cached = 0, frames = 0;
    for (const Window& window : scored) {
        tokens += window.tokens.size() - window.first;
        cached += window.tokens.size();
        frames += window.frames;
        if (window.tokens.size() <= o.sinks + 1 || window.frames <= o.cross_sinks)
            throw llm::Error(
                fmt::format("--sinks {}, --cross-sinks {}: nothing is quantized behind them in a window of {} "
                            "tokens and {} frames",
                            o.sinks, o.cross_sinks, window.tokens.size(), window.frames));
    }
    llm::ThreadPool pool(o.threads);
    llm::Progress progress(learnt.size() + scored.size() * (1 + self.size() + cross.size()));
    Statistics statistics;
    if (!learnt.empty()) {
        progress.label("calibration");
        statistics = gather_statistics(decoder, learnt, o.sinks, o.cross_sinks, pool, progress);
    }
    progress.label("exact");
    Evaluation evaluation(decoder, scored, pool, progress);
    progress.clear();
    fmt::print(
        "{} layers, D {}, {} heads of {}, as many kv heads; {} windows of up to {} tokens and {} frames; {} tokens "
        "are scored; statistics of {} other windows; sinks {} (frames: {}), no tail\n",
        decoder.layers(), decoder.width(), decoder.heads(), decoder.head_dim(), scored.size(),
        std::max_element(scored.begin(), scored.end(),
                         [](const auto& a, const auto& b) { return a.tokens.size() < b.tokens.size(); })
            ->tokens.size(),
        frames / scored.size(), tokens, learnt.size(), o.sinks, o.cross_sinks);
    fmt::print("{} tokens are cached on average\n", cached / scored.size());
    const double f16_bytes = 2 * 2 * static_cast<double>(decoder.width());
    CacheOptions options{o.sinks, &pool, learnt.empty() ? nullptr : &statistics};
    if (!self.empty()) print_head("self attention", "token", widest(self));
    for (const Scheme& scheme : self) {
        progress.label("self attention, " + scheme.text);
        const Result result = evaluation.self(*make_self(scheme, decoder, options));
        progress.clear();
        print_row(scheme.text, result, f16_bytes, widest(self));
    }
    options.sinks = o.cross_sinks;
    if (!cross.empty()) print_head("cross attention", "frame", widest(cross));
    for (const Scheme& scheme : cross) {
        progress.label("cross attention, " + scheme.text);
        const Result result = evaluation.cross(*make_cross(scheme, decoder, options));
        progress.clear();
        print_row(scheme.text, result, f16_bytes, widest(cross));
    }
}

}  // namespace whisper
