#include "statistics.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <optional>
#include <xquant/calibration/calibrator.hpp>
#include <xquant/mixed_bits.hpp>
#include <xquant/persistence/calibration.hpp>

#include "compare.hpp"
#include "error.hpp"
#include "gguf.hpp"
#include "library_cache.hpp"
#include "listening_cache.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "threads.hpp"
#include "tokenizer.hpp"

namespace llm {
namespace {

namespace xq = xquant;

/// A calibrator hears what goes in.
class CalibratingCache final : public ListeningCache {
public:
    CalibratingCache(const Model& model, ThreadPool& pool, xq::Calibrator& calibrator)
        : ListeningCache(model, pool), pool_(&pool), calibrator_(&calibrator), width_(model.config().width) {}

    void append(std::size_t layer, const float* x) override {
        x_.assign(x, x + step() * width_);
        ListeningCache::append(layer, x);
    }
    void attend(std::size_t layer, const float* q, float* out) override {
        calibrator_->add(layer, step(), x_.data(), q, *pool_);
        ListeningCache::attend(layer, q, out);
    }

private:
    ThreadPool* pool_;
    xq::Calibrator* calibrator_;
    std::size_t width_;
    std::vector<float> x_;
};

/// What codes of 3 bits of one layer's K, or V, cost by themselves: the divergence from the cache in f16, on contexts
/// of 512 tokens.
void measure_sensitivities(const Model& model, xq::Model described, const std::vector<std::vector<Token>>& contexts,
                           std::size_t sinks, ThreadPool& pool, Progress& progress, xq::Calibration& found) {
    found.attach(described);
    const std::size_t layers = found.layers.size();
    std::vector<Reference> references;
    const std::unique_ptr<AttentionCache> exact = make_exact_cache(model, pool);
    for (const std::vector<Token>& ids : contexts) {
        exact->reset();
        const std::vector<float> hidden = model.forward(ids, *exact, pool);
        references.push_back(make_reference(model, ids, hidden.data(), 0, pool));
    }
    for (std::size_t i = 0; i < 2 * layers; ++i) {
        xq::BitRecipe recipe{xq::BitForm::heads, std::vector<xq::LayerBits>(layers, {16, 16})};
        (i % 2 == 0 ? recipe.layers[i / 2].keys : recipe.layers[i / 2].values) = 3;
        const std::unique_ptr<AttentionCache> cache = make_library_sequence(
            xq::make_cache(recipe, described, xq::Options{.sinks = sinks, .strict = true}), model, pool);
        Predictions predictions;
        for (std::size_t k = 0; k < contexts.size(); ++k) {
            cache->reset();
            const std::vector<float> hidden = model.forward(contexts[k], *cache, pool);
            compare(model, contexts[k], hidden.data(), references[k], pool, predictions);
        }
        xq::LayerStatistics& statistics = found.layers[i / 2];
        (i % 2 == 0 ? statistics.key_sensitivity : statistics.value_sensitivity) =
            static_cast<float>(std::max(predictions.kld_mean(), 1e-9));
        progress.advance(1);
    }
}

/// Contexts of a text, spread evenly over the tokens that may be used.
std::vector<std::vector<Token>> contexts_of(const std::string& file, const Tokenizer& tokenizer,
                                            const CalibrateOptions& o, std::size_t count) {
    const std::vector<Token> tokens = tokenizer.encode(read_text(file));
    const std::size_t end = o.to == 0 ? tokens.size() : std::min(o.to, tokens.size());
    if (end < o.from || end - o.from < o.context)
        throw Error(fmt::format("{}: --context {} needs as many tokens; between --from {} and {} there are {}", file,
                                o.context, o.from, end, end > o.from ? end - o.from : 0));
    const std::size_t room = end - o.from - o.context, most = room / o.context + 1;
    count = std::min(count, most);
    std::vector<std::vector<Token>> out;
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t first = o.from + (count > 1 ? room * i / (count - 1) : room / 2);
        const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(first);
        out.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(o.context));
        if (tokenizer.adds_bos()) out.back().front() = tokenizer.bos();
    }
    return out;
}

}  // namespace

void calibrate_texts(const CalibrateOptions& o) {
    if (o.contexts < 1) throw Error("--contexts must be 1 or more");
    if (o.context < o.sinks + 2)
        throw Error(fmt::format("--context {} leaves nothing to learn from behind {} sinks", o.context, o.sinks));
    ThreadPool pool(o.threads);
    std::optional<Gguf> gguf = Gguf::open(o.model);
    const Tokenizer tokenizer(*gguf);
    std::vector<std::vector<Token>> contexts;
    for (std::size_t i = 0; i < o.texts.size(); ++i) {
        const std::size_t count = o.contexts * (i + 1) / o.texts.size() - o.contexts * i / o.texts.size();
        for (auto& one : contexts_of(o.texts[i], tokenizer, o, count)) contexts.push_back(std::move(one));
    }
    const Model model(*gguf);
    gguf.reset();
    if (o.context > model.config().context)
        throw Error(fmt::format("--context {} is more than the {} tokens that the model was made for", o.context,
                                model.config().context));
    xq::CalibratorOptions options;
    options.sinks = o.sinks;
    options.x = o.x;
    const xq::Model described = describe(model);
    xq::Calibrator calibrator(described, options);
    CalibratingCache cache(model, pool, calibrator);
    // The first tokens of some contexts are enough to measure a layer by itself.
    std::vector<std::vector<Token>> measured;
    for (std::size_t i = 0; i < std::min(o.measured, contexts.size()); ++i) {
        const std::vector<Token>& of = contexts[contexts.size() * i / std::min(o.measured, contexts.size())];
        measured.emplace_back(of.begin(),
                              of.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(512, of.size())));
    }
    const std::size_t trials = measured.empty() ? 0 : 2 * model.config().layers;
    Progress progress(contexts.size() + trials);
    progress.label("calibration");
    for (const std::vector<Token>& context : contexts) {
        cache.reset();
        model.forward(context, cache, pool);
        progress.advance(1);
    }
    xq::Calibration found = calibrator.finish();
    progress.label("sensitivities");
    if (!measured.empty()) measure_sensitivities(model, described, measured, o.sinks, pool, progress, found);
    progress.clear();
    xq::save_calibration(found, described, o.out);
    fmt::print("{}: learnt from {} tokens in {} places\n", o.out, found.tokens, found.contexts);
    if (found.tokens < 4096)
        fmt::print(stderr, "warning: {} tokens are few; from 4,096 on, half of what can be gained is there\n",
                   found.tokens);
    if (found.contexts == 1) fmt::print(stderr, "warning: all of them stand in one place; spread them over texts\n");
}

void allocate(const AllocateOptions& o) {
    if (o.form != "heads" && o.form != "joint")
        throw Error(fmt::format("--form is '{}'; expected heads or joint", o.form));
    if ((o.bits > 0) == (o.bytes_per_token > 0)) throw Error("one of --bits and --bytes-per-token has to be given");
    const xq::BitForm form = o.form == "heads" ? xq::BitForm::heads : xq::BitForm::joint;
    const Model model(Gguf::open(o.model));
    xq::Model described = describe(model);
    const xq::Calibration known = read_statistics(o.calibration, model);
    known.attach(described);
    // Of a token of a long sequence.
    const auto bytes = [&](const xq::BitRecipe& recipe) {
        constexpr std::size_t many = 8192;
        const auto stored = [&](std::size_t tokens) { return xq::predict(recipe, described, {}, tokens).stored(); };
        return static_cast<double>(stored(2 * many) - stored(many)) / static_cast<double>(many);
    };
    double bits = o.bits;
    if (o.bytes_per_token > 0) {
        double least = 2, most = 6;
        const auto allowed = static_cast<double>(o.bytes_per_token);
        const double fewest = bytes(xq::allocate_bits(form, described, least));
        if (fewest > allowed)
            throw Error(fmt::format("--bytes-per-token {}: 2 bits everywhere take {:.0f}", o.bytes_per_token, fewest));
        for (int halves = 0; halves < 20; ++halves) {
            bits = (least + most) / 2;
            (bytes(xq::allocate_bits(form, described, bits)) <= allowed ? least : most) = bits;
        }
        bits = bytes(xq::allocate_bits(form, described, 6)) <= allowed ? 6 : least;
    }
    const xq::BitRecipe recipe = xq::allocate_bits(form, described, bits);
    std::ofstream out(o.out);
    if (!(out << xq::to_string(recipe) << "\n" << std::flush)) throw Error(fmt::format("{}: can't be written", o.out));
    fmt::print("{}: {:.2f} bits on average, {:.0f} bytes a token\n", o.out, bits, bytes(recipe));
}

xq::Calibration read_statistics(const std::string& file, const Model& model) {
    return xq::load_calibration(file, describe(model));
}

}  // namespace llm
