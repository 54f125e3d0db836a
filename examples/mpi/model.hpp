/// A small decoder with random weights, the same ones on every rank: what xquant-mpi divides among ranks.
///
///   for every layer:  a = norm(x)   q = rope(a W_q)   o = attention(q, cache of a)   x += o W_o
///                     x += silu(norm(x) W_up) W_down
///
/// A sum over channels is made in their order whatever the part of the matrix that it belongs to, so that parts of a
/// product are its bits. All arrays are row-major f32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>
#include <xquant/xquant.hpp>

namespace mpi {

struct Shape {
    std::size_t layers = 8;      // L
    std::size_t width = 256;     // D
    std::size_t heads = 8;       // H, query heads
    std::size_t kv_heads = 4;    // Hkv
    std::size_t head_dim = 128;  // Dh
    std::size_t inner = 512;     // F

    std::size_t group() const { return heads / kv_heads; }  // query heads of a kv head
};

/// What a rank has: layers [first_layer, end_layer), and of each the kv heads [first_head, end_head).
struct Part {
    std::size_t first_layer = 0, end_layer = 0, first_head = 0, end_head = 0;

    std::size_t layers() const { return end_layer - first_layer; }
    std::size_t heads() const { return end_head - first_head; }
};

struct Layer {
    std::vector<float> w_q;           // [D, H * Dh]
    std::vector<float> w_k, w_v;      // [Hkv * Dh, D], as the cache reads them
    std::vector<float> w_o;           // [H * Dh, D]
    std::vector<float> w_up, w_down;  // [D, F], [F, D]
};

/// The weights of layer `index`. Cost: all of them are made; a real engine reads its part from a file.
Layer make_layer(const Shape& shape, std::size_t index);

/// The part as the library reads it: heads are a view of rows of W_k and W_v, nothing is copied. layers: those of the
/// part; they must outlive the cache's construction.
xquant::Model describe(const Shape& shape, const Part& part, const std::vector<Layer>& layers);

/// x [n, D] of the prompt's tokens.
std::vector<float> make_prompt(const Shape& shape, std::size_t n);

/// y [n, columns] = x [n, rows] W; w: the first of the columns in W [rows, stride].
void multiply(const float* x, std::size_t n, const float* w, std::size_t rows, std::size_t columns, std::size_t stride,
              float* y);

/// x / sqrt(mean(x^2) + 1e-5), row by row: x [n, D] -> out [n, D].
void norm(const float* x, std::size_t n, std::size_t width, float* out);

/// RoPE of q [n, heads, Dh], in place; row t stands at position first + t.
void rope(float* q, std::size_t n, std::size_t heads, std::size_t head_dim, std::size_t first);

/// x [n, D] += silu(norm(x) W_up) W_down
void feed_forward(const Shape& shape, const Layer& layer, float* x, std::size_t n);

}  // namespace mpi
