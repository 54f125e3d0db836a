#include "rows.hpp"

#include <xquant/persistence/calibration.hpp>
#include <xquant/registry_svd.hpp>

#include <algorithm>
#include <limits>
#include <span>
#include <stdexcept>

#include "error.hpp"
#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

namespace adapter {
namespace {

using namespace xquant;

/// The first word of a state. No bit that is lost makes one of the other.
constexpr std::uint64_t no_tokens = 0x3178717465736574U, some_tokens = 0x31787173656C6966U;

void operation(ggml_tensor* out, int thread, int threads, void* of) {
    const Place& place = *static_cast<const Place*>(of);
    place.rows->run(out, thread, threads, place);
}

/// Heads [Dh, heads, n] as rows [W, n] of floats, with zeros behind each head up to `channels`.
ggml_tensor* rows_of_heads(ggml_context* context, ggml_tensor* heads, std::int64_t channels) {
    if (heads->type != GGML_TYPE_F32) heads = ggml_cast(context, heads, GGML_TYPE_F32);
    if (heads->ne[0] < channels) {
        if (!ggml_is_contiguous(heads)) heads = ggml_cont(context, heads);
        heads = ggml_pad(context, heads, static_cast<int>(channels - heads->ne[0]), 0, 0, 0);
    }
    if (heads->nb[0] != sizeof(float) || heads->nb[1] != static_cast<std::size_t>(heads->ne[0]) * sizeof(float)) {
        heads = ggml_cont(context, heads);
    }
    return ggml_view_2d(context, heads, heads->ne[0] * heads->ne[1], heads->ne[2], heads->nb[2], 0);
}

/// Rows [W, n] of the graph.
MatrixView matrix_of(const ggml_tensor* t) {
    const auto width = static_cast<std::size_t>(t->ne[0]);
    return {static_cast<const float*>(t->data), static_cast<std::size_t>(t->ne[1]), width, t->nb[1] / sizeof(float)};
}

const char* name_of(LayerInput input) {
    return input == LayerInput::x ? "X" : input == LayerInput::keys_before_rope ? "K before RoPE, and V" : "K and V";
}

}  // namespace

Rows::Rows(const llama_model& model, const llama_cparams& cparams, Settings settings, std::vector<std::uint32_t> layers)
    : model_(model),
      cparams_(cparams),
      settings_(std::move(settings)),
      own_layers_(std::move(layers)),
      kept_(cparams.kv_unified ? LLAMA_MAX_SEQ : cparams.n_seq_max) {}

Rows::~Rows() { step_.reset(); }

bool Rows::has_data() const { return !model_.hparams.no_alloc; }

// The graph -----------------------------------------------------------------------------------------------------------

std::size_t Rows::index_of(int il) const {
    const auto at = std::lower_bound(own_layers_.begin(), own_layers_.end(), static_cast<std::uint32_t>(il));
    if (at == own_layers_.end() || *at != static_cast<std::uint32_t>(il)) {
        refuse(il, "it has keys and values, and llama.cpp's cache has no place for them");
    }
    return static_cast<std::size_t>(at - own_layers_.begin());
}

void Rows::describe_layer(const llm_graph_context& graph, const AttentionArguments& a) {
    if (a.k == nullptr || a.v == nullptr) refuse(a.il, "it has keys or values alone");
    const std::size_t index = index_of(a.il);
    Description description = describe(graph, a, settings_, has_data());
    const Layer& layer = description.layer;
    shiftable_ = shiftable_ && description.shiftable;
    placed_ = placed_ || layer.reach() > 0 || layer.alibi_slopes != nullptr || !layer.rope.inverse_frequencies.empty();
    layers_.insert_or_assign(a.il, std::move(description));
    places_.insert_or_assign(a.il, Place{this, index, true, layer.reach() > 0});
}

void Rows::compare_layer(const llm_graph_context&, const AttentionArguments& a) const {
    const Description& known = layers_.at(a.il);
    if (settings_.input == LayerInput::keys_after_rope) return;  // they are stored whatever made them
    const Origin k = trace(a.k), v = trace(a.v);
    const bool same = settings_.input == LayerInput::x
                          ? same_origin(k, known.k) && same_origin(v, known.v)
                          : k.rope.parameters == known.k.rope.parameters && k.rope.factors == known.k.rope.factors &&
                                k.after_rope == known.k.after_rope;
    if (!same) refuse(a.il, "this batch makes its K and V in another way than the model did before");
}

Place& Rows::shared_place(const llm_graph_context& graph, const AttentionArguments& a) {
    const llama_hparams& h = graph.hparams;
    const auto il = static_cast<std::uint32_t>(a.il);
    for (std::size_t i = own_layers_.size(); i-- > 0;) {
        const std::uint32_t source = own_layers_[i];
        if (source >= il || h.is_swa(source) != h.is_swa(il)) continue;
        const Layer& layer = layers_.at(static_cast<int>(source)).layer;
        const std::size_t heads = static_cast<std::size_t>(a.q->ne[1]);
        if (layer.shape.heads != heads || layer.softmax_scale != static_cast<double>(a.kq_scale)) break;
        return places_.insert_or_assign(a.il, Place{this, i, false, h.is_swa(il)}).first->second;
    }
    refuse(a.il, "no layer before it has keys and values that it could share");
}

std::vector<ggml_tensor*> Rows::stored_rows(const llm_graph_context& graph, const AttentionArguments& a,
                                            std::int64_t channels) const {
    ggml_context* const context = graph.ctx0;
    if (settings_.input == LayerInput::x) {
        ggml_tensor* const x = trace(a.k).x;
        if (x->ne[2] != 1 || x->type != GGML_TYPE_F32) refuse(a.il, "X is no matrix of floats");
        return {x->nb[0] == sizeof(float) ? x : ggml_cont(context, x)};
    }
    ggml_tensor* k = a.k;
    if (settings_.input == LayerInput::keys_before_rope) {
        const Origin origin = trace(a.k);
        if (origin.rope.present()) k = origin.rope.source;
    }
    return {rows_of_heads(context, k, channels), rows_of_heads(context, a.v, channels)};
}

ggml_tensor* Rows::attention(const llm_graph_context& graph, const AttentionArguments& a) {
    const bool shares = a.k == nullptr && a.v == nullptr, first_graph = !cache_;
    if (a.il == static_cast<int>(own_layers_.front())) unusable_.clear();
    if (shares) {
        shared_place(graph, a);
    } else if (first_graph) {
        describe_layer(graph, a);
        if (has_data() && layers_.size() == own_layers_.size()) make_cache();
    }
    Place& place = places_.at(a.il);
    const Description& description = layers_.at(static_cast<int>(own_layers_[place.layer]));
    ggml_context* const context = graph.ctx0;
    const auto channels = static_cast<std::int64_t>(description.layer.shape.head_dim);
    ggml_tensor* const q = rows_of_heads(context, a.q, channels);
    std::vector<ggml_tensor*> sources{q};
    if (!shares) {
        try {
            if (!first_graph) compare_layer(graph, a);
            for (ggml_tensor* const rows : stored_rows(graph, a, channels)) sources.push_back(rows);
        } catch (const std::exception& error) {
            if (first_graph) throw;
            if (unusable_.empty()) unusable_ = error.what();
        }
    }
    ggml_tensor* out = ggml_custom_4d(context, GGML_TYPE_F32, q->ne[0], q->ne[1], 1, 1, sources.data(),
                                      static_cast<int>(sources.size()), operation, GGML_N_TASKS_MAX, &place);
    if (description.value_channels < channels) {
        const auto head = static_cast<std::size_t>(channels) * sizeof(float);
        out = ggml_view_3d(context, out, description.value_channels, a.q->ne[1], a.q->ne[2], head, out->nb[1], 0);
        out = ggml_cont_2d(context, out, description.value_channels * a.q->ne[1], a.q->ne[2]);
    }
    ggml_build_forward_expand(graph.gf, out);
    return out;
}

Model Rows::described() const {
    Model model;
    for (const auto& [il, description] : layers_) model.layers.push_back(description.layer);
    return model;
}

void Rows::make_cache() {
    if (layers_.size() != own_layers_.size()) {
        fail("the graph has attention in " + std::to_string(layers_.size()) + " layers; expected " +
             std::to_string(own_layers_.size()));
    }
    Model model = described();
    if (!settings_.calibration.empty()) {
        calibration_ = load_calibration(settings_.calibration, model);
        calibration_.attach(model);
    }
    std::pair<std::vector<float>, std::vector<float>> weights;  // of one layer at a time
    auto next = layers_.begin();
    if (settings_.reads_w_k) {
        model.load_layer = [&](std::size_t, Layer& layer) {
            weights = {};
            weights = next++->second.weights();
            const auto& [w_k, w_v] = weights;
            layer.w_k = MatrixView(w_k.data(), layer.shape.kv_width(), layer.shape.width);
            if (!w_v.empty()) layer.w_v = MatrixView(w_v.data(), layer.shape.kv_width(), layer.shape.width);
        };
    }
    settings_.options.memory = &memory_;
    cache_ = xquant::make_cache(settings_.scheme, model, settings_.options);
    const auto stored = [&](std::size_t tokens) {
        return predict(settings_.scheme, model, settings_.options, tokens).stored();
    };
    constexpr std::size_t many = 8192;
    LLAMA_LOG_INFO(
        "xquant: the cache is %s: %zu layers, %s; %.0f bytes a token, %zu of prepared weights in %s; "
        "%zu sinks and %zu newest tokens in f16\n",
        settings_.asked.c_str(), layers_.size(), name_of(settings_.input),
        static_cast<double>(stored(2 * many) - stored(many)) / many, cache_->bytes().weights,
        xquant::to_string(settings_.options.weights), settings_.options.sinks, settings_.options.recent);
    const auto on_gpu = [&](const auto& layer) {
        const auto type = ggml_backend_dev_type(model_.dev_layer(layer.first));
        return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
    };
    if (const auto count = std::count_if(layers_.begin(), layers_.end(), on_gpu); count > 0) {
        LLAMA_LOG_WARN(
            "xquant: %zu of %zu layers are on a GPU: their attention runs on the processor, where q, K and V are "
            "copied, and the answer back\n",
            static_cast<std::size_t>(count), layers_.size());
    }
    if (!shiftable_)
        LLAMA_LOG_WARN("xquant: how this model turns its keys is not known: positions cannot be shifted\n");
}

// A step --------------------------------------------------------------------------------------------------------------

bool Rows::prepare() {
    try {
        if (!cache_) make_cache();
        if (!cparams_.causal_attn && model_.hparams.non_causal_type == LLAMA_NON_CAUSAL_TYPE_SWA_FULL) {
            fail("a batch that is not causal, and whose tokens see each other beyond the window");
        }
        for (const auto& [il, description] : layers_) {
            if (cparams_.causal_attn || description.layer.alibi_slopes == nullptr) continue;
            refuse(il, "a batch that is not causal, and ALiBi, which llama.cpp lets fall to both sides");
        }
        return true;
    } catch (const std::exception& error) {
        LLAMA_LOG_ERROR("%s\n", error.what());
        return false;
    }
}

bool Rows::fits(const llama_batch& batch) {
    std::vector<std::size_t> more(kept_.size());
    for (int i = 0; i < batch.n_tokens; ++i) {
        for (int j = 0; j < batch.n_seq_id[i]; ++j) ++more.at(static_cast<std::size_t>(batch.seq_id[i][j]));
    }
    for (std::size_t s = 0; s < more.size(); ++s) {
        if (more[s] != 0 && kept_[s].positions.size() + more[s] > cparams_.n_ctx_seq) return false;
    }
    return settings_.options.budget == 0 || fits_budget(more);
}

/// A step of all rows of the batch is begun and dropped, so that llama.cpp learns before it computes anything, and
/// answers as it does where its own cache is full.
bool Rows::fits_budget(const std::vector<std::size_t>& more) {
    step_.reset();
    std::vector<StepPart> parts;
    try {
        for (std::size_t s = 0; s < more.size(); ++s) {
            if (more[s] == 0) continue;
            Kept& kept = kept_[s];
            if (!kept.sequence) kept.sequence = cache_->create();
            parts.push_back({*kept.sequence, more[s]});
        }
        if (!parts.empty()) static_cast<void>(cache_->begin(parts));
        return true;
    } catch (const budget_error& error) {
        LLAMA_LOG_WARN("xquant: %s\n", error.what());
        return false;
    }
}

bool Rows::begin(const llama_ubatch& ubatch) {
    step_.reset();
    failed_.clear();
    try {
        batch_ = Batch(ubatch, [this](std::size_t s) { return kept_.at(s).positions.empty(); });
        std::vector<StepPart> parts;
        for (const Addition& addition : batch_.additions()) {
            Kept& kept = kept_.at(addition.sequence);
            if (!kept.sequence) kept.sequence = cache_->create();
            const Sequence sequence = *kept.sequence;
            if (placed_) {
                const auto& positions = addition.positions;
                for (std::size_t i = 1; i < positions.size(); ++i) {
                    if (positions[i] == positions[i - 1] + 1) continue;
                    fail("position " + std::to_string(positions[i]) + " follows position " +
                         std::to_string(positions[i - 1]) + " in a batch; expected the next one");
                }
                cache_->set_next_position(sequence, positions.front());
            }
            parts.push_back({.sequence = sequence, .tokens = addition.rows.size()});
            if (!batch_.straight()) parts.back().rows = addition.rows;
        }
        step_.emplace(cache_->begin(parts));
        return true;
    } catch (const std::exception& error) {
        LLAMA_LOG_ERROR("%s\n", error.what());
        return false;
    }
}

void Rows::store(ggml_tensor* out, const Place& place) {
    if (!unusable_.empty()) throw std::runtime_error(unusable_);
    if (!step_) fail("a graph runs without a batch");
    if (place.stores) {
        const MatrixView first = matrix_of(out->src[1]);
        if (settings_.input == LayerInput::x) {
            step_->append(place.layer, first, team_);
        } else {
            step_->append_kv(place.layer, first, matrix_of(out->src[2]), team_);
        }
    }
    const bool causal =
        cparams_.causal_attn || (model_.hparams.non_causal_type == LLAMA_NON_CAUSAL_TYPE_SWA_ONLY && !place.windowed);
    step_->attend(place.layer, matrix_of(out->src[0]), static_cast<float*>(out->data),
                  causal ? Visibility::causal : Visibility::whole, 0, team_);
}

void Rows::run(ggml_tensor* out, int thread, int threads, const Place& place) {
    if (thread != 0) return team_.follow();
    team_.open(threads);
    if (failed_.empty()) {
        try {
            store(out, place);
        } catch (const std::exception& error) {
            failed_ = error.what();
        }
    }
    if (!failed_.empty()) {
        std::fill_n(static_cast<float*>(out->data), ggml_nelements(out), std::numeric_limits<float>::quiet_NaN());
    }
    team_.close();
}

bool Rows::finish(bool computed) {
    if (!step_) return computed;
    try {
        if (!failed_.empty()) throw std::runtime_error(failed_);
        if (computed) {
            step_->commit();
            for (const Addition& addition : batch_.additions()) {
                Kept& kept = kept_[addition.sequence];
                kept.positions.insert(kept.positions.end(), addition.positions.begin(), addition.positions.end());
            }
            step_.reset();
            for (const Addition& addition : batch_.additions()) {
                const Kept& kept = kept_[addition.sequence];
                for (const std::size_t twin : addition.twins) {
                    forget(kept_[twin]);
                    kept_[twin] = Kept{cache_->fork(*kept.sequence), kept.positions};
                }
            }
        }
    } catch (const std::exception& error) {
        LLAMA_LOG_ERROR("%s\n", error.what());
        computed = false;
    }
    step_.reset();
    return computed;
}

// Sequences -----------------------------------------------------------------------------------------------------------

void Rows::forget(Kept& kept) {
    if (kept.sequence) cache_->drop(*kept.sequence);
    kept = Kept{};
}

std::pair<std::size_t, std::size_t> Rows::tokens_of(const Kept& kept, llama_pos p0, llama_pos p1) const {
    const auto& p = kept.positions;
    const auto begin = p0 <= 0 ? p.begin() : std::lower_bound(p.begin(), p.end(), p0);
    const auto end = p1 < 0 ? p.end() : std::lower_bound(p.begin(), p.end(), p1);
    return {static_cast<std::size_t>(begin - p.begin()), static_cast<std::size_t>(std::max(begin, end) - p.begin())};
}

void Rows::clear() {
    step_.reset();
    for (Kept& kept : kept_) forget(kept);
}

bool Rows::remove(llama_seq_id id, llama_pos p0, llama_pos p1) {
    step_.reset();
    if (id < 0) {
        bool all = true;
        for (std::size_t s = 0; s < kept_.size(); ++s) all = remove(static_cast<llama_seq_id>(s), p0, p1) && all;
        return all;
    }
    Kept& kept = kept_.at(static_cast<std::size_t>(id));
    const auto [begin, end] = tokens_of(kept, p0, p1);
    if (begin == end) return true;
    if (begin == 0 && end == kept.positions.size()) {
        forget(kept);
        return true;
    }
    try {
        if (end == kept.positions.size()) {
            cache_->truncate(*kept.sequence, begin);
        } else {
            cache_->erase(*kept.sequence, begin, end, Gap::keep);
        }
    } catch (const std::exception& error) {
        LLAMA_LOG_WARN("xquant: removing positions %d to %d of sequence %d: %s\n", p0, p1, id, error.what());
        return false;
    }
    const auto at = kept.positions.begin();
    kept.positions.erase(at + static_cast<std::ptrdiff_t>(begin), at + static_cast<std::ptrdiff_t>(end));
    return true;
}

void Rows::copy(llama_seq_id from_id, llama_seq_id to_id, llama_pos p0, llama_pos p1) {
    step_.reset();
    if (from_id == to_id) return;
    const Kept& from = kept_.at(static_cast<std::size_t>(from_id));
    Kept& to = kept_.at(static_cast<std::size_t>(to_id));
    const auto [begin, end] = tokens_of(from, p0, p1);
    if (!to.positions.empty() && !(begin == 0 && end == from.positions.size())) {
        GGML_ABORT("xquant: part of a sequence cannot be copied to sequence %d, which has %zu tokens", to_id,
                   to.positions.size());
    }
    forget(to);
    if (begin == end) return;
    to.sequence = cache_->fork(*from.sequence, end);
    to.positions.assign(from.positions.begin(), from.positions.begin() + static_cast<std::ptrdiff_t>(end));
    if (begin > 0) remove(to_id, 0, to.positions[begin]);
}

void Rows::keep(llama_seq_id id) {
    step_.reset();
    for (std::size_t s = 0; s < kept_.size(); ++s) {
        if (static_cast<llama_seq_id>(s) != id) forget(kept_[s]);
    }
}

void Rows::add(llama_seq_id id, llama_pos p0, llama_pos p1, llama_pos delta) {
    step_.reset();
    Kept& kept = kept_.at(static_cast<std::size_t>(id));
    const auto [begin, end] = tokens_of(kept, p0, p1);
    if (begin == end || delta == 0) return;
    if (!shiftable_) GGML_ABORT("xquant: how this model turns its keys is not known: positions cannot be shifted");
    if (placed_) cache_->shift(*kept.sequence, begin, end, delta);
    for (std::size_t i = begin; i < end; ++i) kept.positions[i] += delta;
}

llama_pos Rows::first_position(llama_seq_id id) const {
    const Kept& kept = kept_.at(static_cast<std::size_t>(id));
    const auto& positions = kept.positions;
    if (positions.empty()) return -1;
    // What llama.cpp asks for is whether a window's tokens before some position are all there.
    const std::size_t shortest = cache_->shortest_prefix(*kept.sequence);
    if (shortest == 0) return positions.front();
    const llama_pos next = shortest < positions.size() ? positions[shortest] : positions.back() + 1;
    return std::max(positions.front(), next - static_cast<llama_pos>(model_.hparams.n_swa));
}

llama_pos Rows::last_position(llama_seq_id id) const {
    const auto& positions = kept_.at(static_cast<std::size_t>(id)).positions;
    return positions.empty() ? -1 : positions.back();
}

std::size_t Rows::bytes() const {
    if (cache_) return cache_->bytes().stored() + cache_->bytes().weights;
    if (layers_.empty()) return 0;
    // llama.cpp asks before it loads the model, to see what fits. How a calibration divides bits is not known then: on
    // average it is as many as the uniform scheme has.
    std::string scheme = settings_.scheme;
    if (find_scheme(scheme).divides_bits) scheme.insert((std::min)(scheme.find(':'), scheme.size()), ":uniform");
    const Bytes one = predict(scheme, described(), settings_.options, cparams_.n_ctx_seq);
    return one.stored() * cparams_.n_seq_max + one.weights;
}

// A state is a word, and what xquant saves; its note, which has a checksum as all of it, lists the positions.

void Rows::write(llama_io_write_i& to, llama_seq_id id) const {
    std::vector<Sequence> sequences;
    std::string note;
    const auto put = [&note](const auto* values, std::size_t count) {
        note.append(reinterpret_cast<const char*>(values), count * sizeof *values);
    };
    for (std::size_t s = 0; s < kept_.size(); ++s) {
        const auto& positions = kept_[s].positions;
        if ((id >= 0 && static_cast<std::size_t>(id) != s) || positions.empty()) continue;
        sequences.push_back(*kept_[s].sequence);
        const std::uint32_t about[2] = {static_cast<std::uint32_t>(s), static_cast<std::uint32_t>(positions.size())};
        put(about, 2);
        put(positions.data(), positions.size());
    }
    const std::uint64_t head = sequences.empty() ? no_tokens : some_tokens;
    to.write(&head, sizeof head);
    if (sequences.empty()) return;
    save(
        *cache_, sequences, [&to](std::span<const std::byte> bytes) { to.write(bytes.data(), bytes.size()); }, note);
}

void Rows::read(llama_io_read_i& from, llama_seq_id id) {
    step_.reset();
    std::uint64_t head = 0;
    from.read(&head, sizeof head);
    if (head != no_tokens && head != some_tokens) fail("this is no state of these caches");
    Loaded loaded;
    if (head == some_tokens) {
        if (!cache_) make_cache();
        loaded = load(*cache_, [&from](std::span<std::byte> to) { from.read(to.data(), to.size()); });
    }
    std::vector<std::pair<std::size_t, std::vector<llama_pos>>> all;
    try {
        all = listed(loaded, id);
    } catch (...) {
        for (const Sequence sequence : loaded.sequences) cache_->drop(sequence);
        throw;
    }
    if (id >= 0)
        forget(kept_.at(static_cast<std::size_t>(id)));
    else
        clear();
    for (std::size_t i = 0; i < all.size(); ++i) {
        kept_[all[i].first] = Kept{loaded.sequences[i], std::move(all[i].second)};
    }
}

/// Which of llama.cpp's sequences a state has, with the positions of their tokens; all of them become `id` where that
/// is not negative. Throws std::runtime_error where they do not fit here.
std::vector<std::pair<std::size_t, std::vector<llama_pos>>> Rows::listed(const Loaded& loaded, llama_seq_id id) const {
    std::vector<std::pair<std::size_t, std::vector<llama_pos>>> all;
    const std::string& note = loaded.note;
    std::size_t at = 0;
    const auto get = [&](auto* values, std::size_t count) {
        const std::size_t bytes = count * sizeof *values;
        if (bytes > note.size() - at) fail("the state lists other tokens than it has");
        std::copy_n(note.data() + at, bytes, reinterpret_cast<char*>(values));
        at += bytes;
    };
    if (id >= 0 && loaded.sequences.size() > 1) {
        fail("the state has " + std::to_string(loaded.sequences.size()) + " sequences; expected one");
    }
    for (const Sequence sequence : loaded.sequences) {
        std::uint32_t about[2];
        get(about, 2);
        const std::size_t s = id >= 0 ? static_cast<std::size_t>(id) : about[0];
        if (s >= kept_.size() || about[1] > cparams_.n_ctx_seq || about[1] != cache_->size(sequence)) {
            fail("the state has " + std::to_string(about[1]) + " tokens of sequence " + std::to_string(s) +
                 "; the context has room for " + std::to_string(cparams_.n_ctx_seq) + " tokens of each of " +
                 std::to_string(kept_.size()));
        }
        auto& positions = all.emplace_back(s, std::vector<llama_pos>(about[1])).second;
        get(positions.data(), positions.size());
    }
    return all;
}

}  // namespace adapter
