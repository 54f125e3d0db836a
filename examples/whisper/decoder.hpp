/// Whisper's decoder in f32, with both of its caches left open.
///
///   x = embedding[ids] + positions
///   for every layer:  a = norm(x)     -> self.append                            a [n, D]
///                     a W_q + b_q     -> self.attend  -> o,  x += o W_o + b_o
///                     norm(x) W_q + b_q -> cross.attend -> o,  x += o W_o + b_o    keys and values: the encoder's
///                     x += gelu(norm(x) W_up + b_up) W_down + b_down
///   hidden = norm(x),  logits = hidden embedding^T
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "attention_cache.hpp"
#include "linear.hpp"
#include "model.hpp"
#include "threads.hpp"

namespace whisper {

/// x W^T + b; b may be empty.
struct Affine {
    llm::Matrix weights;
    std::vector<float> bias;
};

/// Queries, keys, values and output of an attention, and the norm before it. All are [D, D]; keys have no bias.
struct Attention {
    llm::Norm norm;
    Affine q, k, v, o;
};

struct DecoderLayer {
    Attention self, cross;
    llm::Norm feed_forward_norm;
    Affine up, down;
};

/// What the encoder made of one window of 30 s, and its transcript.
struct Window {
    std::vector<float> x;            // [frames, D]
    std::vector<llm::Token> tokens;  // prompt, text and its end
    std::size_t first = 0;           // tokens of the prompt: those from here on are scored
    std::size_t frames = 0;
};

/// Keys and values of the cross attention of all layers. They are given once for a window.
class CrossCache {
public:
    virtual ~CrossCache() = default;
    virtual void set(const float* x, std::size_t frames) = 0;  // x [frames, D], the encoder's output
    /// q [n, H Dh] -> out [n, H Dh]; each row sees all frames.
    virtual void attend(std::size_t layer, std::size_t n, const float* q, float* out) = 0;
    virtual double bits_per_frame_layer() const = 0;  // codes, scales and zeros of the frames that are not sinks
    virtual std::size_t stored() const = 0;           // bytes of what set() was given, over all layers
};

class Decoder {
public:
    /// Throws llm::Error where arrays are missing or do not fit.
    explicit Decoder(const Arrays& arrays);

    std::size_t width() const { return embedding_.columns; }
    std::size_t heads() const { return heads_; }
    std::size_t head_dim() const { return width() / heads_; }
    std::size_t layers() const { return layers_.size(); }
    const DecoderLayer& layer(std::size_t index) const { return layers_.at(index); }
    const llm::Matrix& output() const { return embedding_; }  // [vocabulary, D]

    /// One step: the tokens follow those that `self` holds. Returns their states after the last norm, [n, D].
    std::vector<float> forward(std::span<const llm::Token> ids, llm::AttentionCache& self, CrossCache& cross,
                               llm::ThreadPool& pool) const;

private:
    std::size_t heads_ = 0;
    llm::Matrix embedding_, positions_;
    llm::Norm norm_;
    std::vector<DecoderLayer> layers_;
};

/// All windows of a file.
std::vector<Window> windows_of(const Arrays& arrays, const Decoder& decoder);

}  // namespace whisper
