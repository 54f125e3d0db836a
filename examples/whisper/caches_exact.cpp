#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <utility>

#include "caches.hpp"

namespace whisper {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<RowMajor, 0, Eigen::OuterStride<>>;
using ConstRows = Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>;

Eigen::Index index(std::size_t i) { return static_cast<Eigen::Index>(i); }

/// q [n, D], k and v [m, D] -> out [n, D]. Query t sees the keys up to first + t, or all of them.
void attend_exactly(const Decoder& decoder, std::size_t n, const float* q, const std::vector<float>& k,
                    const std::vector<float>& v, bool causal, std::size_t first, float* out, llm::ThreadPool& pool) {
    const std::size_t D = decoder.width(), Dh = decoder.head_dim(), m = k.size() / D;
    const float scale = 1 / std::sqrt(static_cast<float>(Dh));
    pool.parallel_for(decoder.heads(), [&](std::size_t h) {
        const Eigen::OuterStride<> stride(index(D));
        const ConstRows Q(q + h * Dh, index(n), index(Dh), stride), K(k.data() + h * Dh, index(m), index(Dh), stride),
            V(v.data() + h * Dh, index(m), index(Dh), stride);
        RowMajor P = Q * K.transpose();
        for (std::size_t t = 0; t < n; ++t) {
            const std::size_t seen = causal ? first + t + 1 : m;
            auto row = P.row(index(t)).head(index(seen)).array();
            row = ((row - row.maxCoeff()) * scale).exp().eval();
            row /= row.sum();
            P.row(index(t)).tail(index(m - seen)).setZero();
        }
        Rows(out + h * Dh, index(n), index(Dh), stride).noalias() = P * V;
    });
}

class ExactSelf final : public llm::AttentionCache {
public:
    ExactSelf(const Decoder& decoder, llm::ThreadPool& pool)
        : decoder_(decoder), pool_(pool), keys_(decoder.layers()), values_(decoder.layers()) {}

    void reset() override {
        for (auto* rows : {&keys_, &values_})
            for (auto& of_layer : *rows) of_layer.clear();
        size_ = step_ = 0;
    }
    void begin(std::size_t n) override { step_ = n; }
    void append(std::size_t layer, const float* x) override {
        const std::size_t D = decoder_.width();
        const Attention& of = decoder_.layer(layer).self;
        for (const auto& [rows, by] : {std::pair{&keys_[layer], &of.k}, {&values_[layer], &of.v}}) {
            rows->resize((size_ + step_) * D);
            llm::multiply(x, step_, by->weights, by->bias, rows->data() + size_ * D, pool_);
        }
    }
    void attend(std::size_t layer, const float* q, float* out) override {
        attend_exactly(decoder_, step_, q, keys_[layer], values_[layer], true, size_, out, pool_);
    }
    void commit() override { size_ += std::exchange(step_, 0); }
    void seal() override {}
    std::size_t size() const override { return size_; }
    double bits_per_token_layer() const override { return 32.0 * 2 * static_cast<double>(decoder_.width()); }
    llm::CacheBytes bytes() const override {
        llm::CacheBytes bytes;
        bytes.codes = sizeof(float) * 2 * size_ * decoder_.width() * decoder_.layers();
        return bytes;
    }

private:
    const Decoder& decoder_;
    llm::ThreadPool& pool_;
    std::vector<std::vector<float>> keys_, values_;  // of each layer [T, D]
    std::size_t size_ = 0, step_ = 0;
};

class ExactCross final : public CrossCache {
public:
    ExactCross(const Decoder& decoder, llm::ThreadPool& pool)
        : decoder_(decoder), pool_(pool), keys_(decoder.layers()), values_(decoder.layers()) {}

    void set(const float* x, std::size_t frames) override {
        for (std::size_t l = 0; l < decoder_.layers(); ++l) {
            const Attention& of = decoder_.layer(l).cross;
            for (const auto& [rows, by] : {std::pair{&keys_[l], &of.k}, {&values_[l], &of.v}}) {
                rows->resize(frames * decoder_.width());
                llm::multiply(x, frames, by->weights, by->bias, rows->data(), pool_);
            }
        }
    }
    void attend(std::size_t layer, std::size_t n, const float* q, float* out) override {
        attend_exactly(decoder_, n, q, keys_[layer], values_[layer], false, 0, out, pool_);
    }
    double bits_per_frame_layer() const override { return 32.0 * 2 * static_cast<double>(decoder_.width()); }
    std::size_t stored() const override { return sizeof(float) * 2 * keys_.front().size() * decoder_.layers(); }

private:
    const Decoder& decoder_;
    llm::ThreadPool& pool_;
    std::vector<std::vector<float>> keys_, values_;  // of each layer [frames, D]
};

}  // namespace

std::unique_ptr<llm::AttentionCache> make_exact_self(const Decoder& decoder, llm::ThreadPool& pool) {
    return std::make_unique<ExactSelf>(decoder, pool);
}
std::unique_ptr<CrossCache> make_exact_cross(const Decoder& decoder, llm::ThreadPool& pool) {
    return std::make_unique<ExactCross>(decoder, pool);
}

}  // namespace whisper
