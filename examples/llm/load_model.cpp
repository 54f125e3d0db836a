/// A model out of a GGUF file: sizes from the metadata, pieces as its architecture says.
///
/// A tensor or a key of the architecture that nobody asked for would change the answers (RoPE factors, experts): better
/// no answer than a wrong one, so it is an error that names it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <set>

#include "error.hpp"
#include "gguf.hpp"
#include "model.hpp"

namespace llm {

class Loader {
public:
    explicit Loader(const Gguf& gguf) : gguf_(gguf), architecture_(architecture_of(gguf)) {}

    void load(Model& model) {
        const Config& c = model.config_ = config();
        check_all_keys_used();
        model.embedding_ = matrix("token_embd.weight", c.vocabulary, c.width);
        if (architecture_.learned_positions) model.positions_ = matrix("position_embd.weight", c.context, c.width);
        model.output_norm_ = norm("output_norm", c.width);
        if (gguf_.has_tensor("output.weight")) model.output_ = matrix("output.weight", c.vocabulary, c.width);
        for (std::size_t i = 0; i < c.layers; ++i) model.layers_.push_back(layer(i, c));
        for (const auto& [name, head] : gguf_.tensors())
            if (!tensors_used_.contains(name))
                fail(fmt::format("tensor '{}' is no part of a {} model as this engine knows it", name,
                                 architecture_.name));
    }

private:
    [[noreturn]] void fail(const std::string& what) const { throw Error(fmt::format("{}: {}", gguf_.name(), what)); }

    static const Architecture& architecture_of(const Gguf& gguf) {
        const std::string& asked = gguf.text("general.architecture");
        std::string known;
        for (const Architecture& architecture : architectures()) {
            if (architecture.name == asked) return architecture;
            known += fmt::format("{}'{}'", known.empty() ? "" : ", ", architecture.name);
        }
        throw Error(fmt::format("{}: the architecture is '{}'; this engine knows {}", gguf.name(), asked, known));
    }

    // Keys of the architecture's metadata, without its name.
    std::string key(std::string_view part) {
        std::string name = fmt::format("{}.{}", architecture_.name, part);
        keys_used_.insert(name);
        return name;
    }
    bool has(std::string_view part) { return gguf_.has(key(part)); }
    std::size_t integer(std::string_view part) {
        const std::string name = key(part);
        const std::uint64_t value = gguf_.integer(name);
        if (value == 0 || value > 0x7fffffff) fail(fmt::format("metadata '{}' is {}", name, value));
        return static_cast<std::size_t>(value);
    }
    std::size_t integer_or(std::string_view part, std::size_t otherwise) {
        return has(part) ? integer(part) : otherwise;
    }
    double positive(std::string_view part) {
        const std::string name = key(part);
        const double value = gguf_.number(name);
        if (!(value > 0) || !std::isfinite(value)) fail(fmt::format("metadata '{}' is {}", name, value));
        return value;
    }

    Config config() {
        Config c;
        c.architecture = architecture_;
        c.layers = integer("block_count");
        c.width = integer("embedding_length");
        c.heads = integer("attention.head_count");
        c.kv_heads = integer_or("attention.head_count_kv", c.heads);
        if (c.width % c.heads != 0 && !has("attention.key_length"))
            fail("the width is no multiple of the number of heads");
        c.head_dim = integer_or("attention.key_length", c.width / c.heads);
        if (integer_or("attention.value_length", c.head_dim) != c.head_dim)
            fail("keys and values have heads of different sizes, which this engine doesn't do");
        c.feed_forward = integer("feed_forward_length");
        c.context = integer("context_length");
        const double epsilon = gguf_.number(
            key(architecture_.layer_norm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon"));
        if (!(epsilon >= 0) || !std::isfinite(epsilon)) fail(fmt::format("a norm epsilon of {}", epsilon));
        c.norm_epsilon = static_cast<float>(epsilon);
        c.softmax_scale = static_cast<float>(has("attention.scale") ? positive("attention.scale")
                                                                    : 1 / std::sqrt(static_cast<double>(c.head_dim)));
        c.vocabulary = static_cast<std::size_t>(gguf_.tensor("token_embd.weight").shape.back());
        if (c.heads % c.kv_heads != 0)
            fail(fmt::format("{} heads can't share {} key/value heads", c.heads, c.kv_heads));

        if (!architecture_.learned_positions) {
            rope_.dims = integer_or("rope.dimension_count", c.head_dim);
            rope_.base = has("rope.freq_base") ? positive("rope.freq_base") : 10000.0;
            rope_.pairs = architecture_.pairs;
            if (rope_.dims > c.head_dim || rope_.dims % 2 != 0)
                fail(fmt::format("RoPE over {} of {} channels", rope_.dims, c.head_dim));
        }
        if (architecture_.window_period != 0) {
            window_ = integer("attention.sliding_window");
            window_period_ = integer_or("attention.sliding_window_pattern", architecture_.window_period);
            window_rope_ = rope_;
            window_rope_.base =
                has("rope.freq_base_swa") ? positive("rope.freq_base_swa") : architecture_.window_rope_base;
        }
        return c;
    }

    void check_all_keys_used() {
        key("vocab_size");  // the embedding says it, too
        for (const char* part : {"expert_count", "expert_used_count"})
            if (has(part) && gguf_.integer(key(part)) != 0) fail_for(key(part));
        if (has("rope.scaling.type") && gguf_.text(key("rope.scaling.type")) != "none")
            fail_for(key("rope.scaling.type"));
        for (const auto& [name, value] : gguf_.metadata())
            if (name.starts_with(fmt::format("{}.", architecture_.name)) && !keys_used_.contains(name)) fail_for(name);
    }
    [[noreturn]] void fail_for(const std::string& name) const {
        fail(fmt::format("metadata '{}' asks for something that this engine doesn't do", name));
    }

    Layer layer(std::size_t index, const Config& c) {
        const Architecture& has = architecture_;
        const auto blk = [&](const char* part) { return fmt::format("blk.{}.{}", index, part); };
        Layer l;
        const bool windowed = window_ != 0 && (index + 1) % window_period_ != 0;
        l.window = windowed ? window_ : 0;
        l.rope = windowed ? window_rope_ : rope_;

        l.attention_norm = norm(blk("attn_norm"), c.width);
        if (has.fused_qkv) {
            const Affine qkv = affine(blk("attn_qkv"), c.q_width() + 2 * c.kv_width(), c.width, has.qkv_biases);
            std::tie(l.W_q, l.b_q) = rows(qkv, 0, c.q_width());
            std::tie(l.W_k, l.b_k) = rows(qkv, c.q_width(), c.kv_width());
            std::tie(l.W_v, l.b_v) = rows(qkv, c.q_width() + c.kv_width(), c.kv_width());
        } else {
            std::tie(l.W_q, l.b_q) = affine(blk("attn_q"), c.q_width(), c.width, has.qkv_biases);
            std::tie(l.W_k, l.b_k) = affine(blk("attn_k"), c.kv_width(), c.width, has.qkv_biases);
            std::tie(l.W_v, l.b_v) = affine(blk("attn_v"), c.kv_width(), c.width, has.qkv_biases);
        }
        if (has.head_norms) {
            l.q_norm = vector(blk("attn_q_norm.weight"), c.head_dim);
            l.k_norm = vector(blk("attn_k_norm.weight"), c.head_dim);
        }
        std::tie(l.W_o, l.b_o) = affine(blk("attn_output"), c.width, c.q_width(), has.other_biases);
        if (has.post_norms) l.post_attention_norm = norm(blk("post_attention_norm"), c.width);

        l.feed_forward_norm = norm(blk("ffn_norm"), c.width);
        if (has.gated) {
            l.W_gate_up = affine(blk("ffn_gate"), c.feed_forward, c.width, false).first;
            const Matrix up = affine(blk("ffn_up"), c.feed_forward, c.width, false).first;
            l.W_gate_up.rows += up.rows;
            l.W_gate_up.values.insert(l.W_gate_up.values.end(), up.values.begin(), up.values.end());
        } else {
            std::tie(l.W_gate_up, l.b_up) = affine(blk("ffn_up"), c.feed_forward, c.width, has.other_biases);
        }
        std::tie(l.W_down, l.b_down) = affine(blk("ffn_down"), c.width, c.feed_forward, has.other_biases);
        if (has.post_norms) l.post_feed_forward_norm = norm(blk("post_ffw_norm"), c.width);
        return l;
    }

    using Affine = std::pair<Matrix, std::vector<float>>;

    Affine affine(const std::string& name, std::size_t out, std::size_t in, bool bias) {
        Matrix W = matrix(name + ".weight", out, in);
        return {std::move(W), bias ? vector(name + ".bias", out) : std::vector<float>()};
    }

    static Affine rows(const Affine& from, std::size_t first, std::size_t count) {
        const auto cut = [&](const std::vector<float>& values, std::size_t width) {
            const auto begin = values.begin() + static_cast<std::ptrdiff_t>(first * width);
            return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(count * width));
        };
        const std::size_t in = from.first.columns;
        return {{count, in, cut(from.first.values, in)}, from.second.empty() ? from.second : cut(from.second, 1)};
    }

    Norm norm(const std::string& name, std::size_t size) {
        Norm result{vector(name + ".weight", size), {}};
        if (architecture_.layer_norm) result.bias = vector(name + ".bias", size);
        return result;
    }

    Matrix matrix(const std::string& name, std::size_t out, std::size_t in) {
        return {out, in, values(name, {in, out})};
    }
    std::vector<float> vector(const std::string& name, std::size_t size) { return values(name, {size}); }

    std::vector<float> values(const std::string& name, const std::vector<std::uint64_t>& shape) {
        // The shape comes first: what the metadata claims may be absurd, what the file holds is not.
        const TensorHead& head = gguf_.tensor(name);
        if (head.shape != shape) fail(fmt::format("tensor '{}' has shape {}, expected {}", name, head.shape, shape));
        tensors_used_.insert(name);
        std::vector<float> result(head.values);
        gguf_.expand(head, result);
        return result;
    }

    const Gguf& gguf_;
    const Architecture& architecture_;
    Rope rope_, window_rope_;
    std::size_t window_ = 0, window_period_ = 0;
    std::set<std::string, std::less<>> tensors_used_, keys_used_;
};

Model::Model(const Gguf& gguf) { Loader(gguf).load(*this); }

}  // namespace llm
