// Makes the schemes of one backend. Included by caches_<backend>.cpp alone: it compiles the library.
#pragma once

#include <utility>

#ifdef XQUANT_BENCH_SVD
#include <xquant/projection/svd.hpp>
#endif
#include <xquant/xquant.hpp>

#include "caches.hpp"

namespace bench {

namespace xq = xquant;

template <class Tag>
class StepOf final : public Step {
public:
    explicit StepOf(typename xq::Cache<Tag>::Step step) : step_(std::move(step)) {}
    void append(const xq::MatrixView& x) override { step_.append(0, x); }
    void attend(const xq::MatrixView& q, float* out) override { step_.attend(0, q, out); }
    void commit() override { step_.commit(); }

private:
    typename xq::Cache<Tag>::Step step_;
};

template <class Library>
class CacheOf final : public Cache {
    using Tag = typename Library::backend;

public:
    CacheOf(const xq::Model& model, const xq::Options& options)
        : model_(model), plan_(Library::scheme::prepare(model.layers.front()).plan), cache_(model, options) {}

    xq::Sequence create() override { return cache_.create(); }
    void drop(xq::Sequence sequence) override { cache_.drop(sequence); }
    xq::Sequence fork(xq::Sequence sequence) override { return cache_.fork(sequence); }
    using Cache::begin;
    std::unique_ptr<Step> begin(const std::vector<xq::StepPart>& parts) override {
        return std::make_unique<StepOf<Tag>>(cache_.begin(parts));
    }

    [[nodiscard]] std::size_t rebuilt_bytes() const override { return cache_.bytes().rebuilt; }
    [[nodiscard]] double stored_bytes(std::size_t tokens) const override {
        const xq::Bytes bytes = Library::predict(model_, cache_.options(), tokens);
        return static_cast<double>(bytes.codes + bytes.scales + bytes.tail + bytes.sinks);
    }

    [[nodiscard]] Work attend_work(std::size_t tokens, std::size_t rows) const override {
        const xq::LayerShape& shape = model_.layers.front().shape;
        const std::size_t dh = shape.head_dim;
        xq::AttendTask task;
        task.head_dim = dh;
        task.rows = rows;
        task.queries_per_kv = shape.heads / shape.kv_heads;
        if (!plan_.keys_after_rope) task.rope.pairs = dh / 2;
        const float some = 0;
        const auto decoder = [&](const xq::HeadPlan& head) {
            return xq::HeadDecoder{head.stream, head.first, head.width, head.matrix.empty() ? nullptr : &some,
                                   nullptr,     dh};
        };
        task.key = decoder(plan_.keys.front());
        task.value = decoder(plan_.values.front());
        const auto queries = static_cast<double>(task.queries());
        // A head's operations for each token: z A where it is not absorbed, and the product with the queries.
        const auto product = [&](const xq::HeadDecoder& head, bool absorbed) {
            const bool rebuilt = head.matrix != nullptr && !absorbed;
            return (rebuilt ? 2.0 * static_cast<double>(head.width * dh) : 0.0) +
                   2.0 * queries * static_cast<double>(rebuilt ? dh : head.width);
        };
        const double each = product(task.key, xq::absorbs_keys(task)) +
                            product(task.value, xq::absorbs_values(task.value, task.queries(), dh));
        // Rows of the step see each other causally: half of them on average.
        const double seen = static_cast<double>(tokens) - static_cast<double>(rows - 1) / 2;
        return {stored_bytes(tokens), each * seen * static_cast<double>(shape.kv_heads)};
    }

    [[nodiscard]] Work append_work() const override {
        Work work;
        for (const xq::StreamPlan& stream : plan_.streams) {
            work.bytes += static_cast<double>(xq::size_of(cache_.options().weights) * stream.matrix.size());
            work.bytes += 4.0 * static_cast<double>(stream.width);
            work.operations += 2.0 * static_cast<double>(stream.matrix.size());
        }
        return work;
    }

private:
    xq::Model model_;  // its weights may be gone
    xq::LayerPlan plan_;
    Library cache_;
};

template <class Library, class Tag>
Scheme scheme(const char* name, bool stores_x, double bound, bool rebuilds = false) {
    return {name, stores_x, bound,
            [](const xq::Model& model, std::size_t rebuilt) -> std::unique_ptr<Cache> {
                xq::Options own = options();
                own.rebuilt = rebuilt;
                return std::make_unique<CacheOf<typename Library::template on<Tag>>>(model, own);
            },
            rebuilds};
}

/// Bounds are some 40 % above the largest error of the scalar backend on the shapes that are measured: they catch
/// answers that are wrong, while tests/parity/ compares backends closely.
template <class Tag>
std::vector<Scheme> schemes_of() {
    namespace preset = xq::preset;
    return {
        scheme<preset::f16_kv, Tag>("f16", false, 1.2e-3),
        scheme<preset::kv<8>, Tag>("kv8", false, 1.8e-2),
        scheme<preset::kv<4>, Tag>("kv4", false, 0.3),
        scheme<preset::kivi<4>, Tag>("kivi4", false, 0.3),
#ifdef XQUANT_BENCH_SVD
        scheme<preset::head_svd<4>, Tag>("svd_head4", false, 0.3, true),
#endif
        scheme<preset::rotated_x<4>, Tag>("x4_rot", true, 0.3, true),
    };
}

}  // namespace bench
