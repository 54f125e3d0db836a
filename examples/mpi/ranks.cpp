#include "ranks.hpp"

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <xquant/registry_svd.hpp>

namespace mpi {
namespace {

int count(std::size_t values) { return static_cast<int>(values); }

}  // namespace

Group::Group(MPI_Comm of) : comm(of) {
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
}

Part part_of(const Shape& shape, Split split, int rank, int size) {
    const auto r = static_cast<std::size_t>(rank), all = static_cast<std::size_t>(size);
    Part part{0, shape.layers, 0, shape.kv_heads};
    if (split == Split::layers) {
        if (all > shape.layers)
            throw std::runtime_error(std::to_string(shape.layers) + " layers are too few for " + std::to_string(all) +
                                     " ranks");
        part.first_layer = r * shape.layers / all;
        part.end_layer = (r + 1) * shape.layers / all;
    } else {
        if (shape.kv_heads % all != 0)
            throw std::runtime_error(std::to_string(shape.kv_heads) + " kv heads cannot be divided among " +
                                     std::to_string(all) + " ranks");
        part.first_head = r * shape.kv_heads / all;
        part.end_head = (r + 1) * shape.kv_heads / all;
    }
    return part;
}

Share::Share(const Plan& plan, const Group& group)
    : plan_(plan), group_(group), part_(part_of(plan.shape, plan.split, group.rank, group.size)) {
    for (std::size_t i = part_.first_layer; i < part_.end_layer; ++i) layers_.push_back(make_layer(plan.shape, i));
    cache_ = xquant::make_cache(plan.scheme, describe(plan.shape, part_, layers_),
                                {.sinks = 4, .recent = 64, .budget = plan.budget});
    sequence_ = cache_->create();
}

bool Share::all(bool yes) const {
    int all = yes ? 1 : 0;
    MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_MIN, group_.comm);
    return all == 1;
}

std::vector<float> Share::step(const std::vector<float>& x, std::size_t n) {
    refusal_.clear();
    std::optional<Cache::Step> step;
    try {
        step.emplace(cache_->begin({{sequence_, n}}));
    } catch (const xquant::budget_error& error) {
        refusal_ = error.what();
    }
    // begin has taken all the memory that the step stores; so what may be refused is refused before a row moves.
    if (!all(step.has_value())) return {};

    std::vector<float> hidden = x;
    const int size = count(n * plan_.shape.width), tag = 0;
    const bool pipeline = plan_.split == Split::layers;
    hidden.resize(n * plan_.shape.width);
    if (pipeline && group_.rank > 0)
        MPI_Recv(hidden.data(), size, MPI_FLOAT, group_.rank - 1, tag, group_.comm, MPI_STATUS_IGNORE);
    for (std::size_t i = 0; i < part_.layers(); ++i) layer(*step, i, hidden.data(), n);
    if (pipeline && group_.rank + 1 < group_.size)
        MPI_Send(hidden.data(), size, MPI_FLOAT, group_.rank + 1, tag, group_.comm);
    step->commit();
    if (!pipeline || group_.size == 1) return hidden;
    // The last stage has them, and the first one needs them for the next token.
    if (group_.rank == group_.size - 1) MPI_Send(hidden.data(), size, MPI_FLOAT, 0, tag, group_.comm);
    if (group_.rank == 0)
        MPI_Recv(hidden.data(), size, MPI_FLOAT, group_.size - 1, tag, group_.comm, MPI_STATUS_IGNORE);
    return hidden;
}

void Share::layer(Cache::Step& step, std::size_t index, float* x, std::size_t n) {
    const Shape& shape = plan_.shape;
    const std::size_t D = shape.width, Dh = shape.head_dim, all = shape.heads * Dh;
    const std::size_t heads = part_.heads() * shape.group(), own = heads * Dh;
    const Layer& layer = layers_[index];
    std::vector<float> a(n * D), q(n * own), out(n * own);
    norm(x, n, D, a.data());
    multiply(a.data(), n, layer.w_q.data() + part_.first_head * shape.group() * Dh, D, own, all, q.data());
    rope(q.data(), n, heads, Dh, tokens());
    step.append(index, xquant::MatrixView(a.data(), n, D));
    step.attend(index, xquant::MatrixView(q.data(), n, own), out.data());
    join(layer, out, n, a.data());
    for (std::size_t i = 0; i < n * D; ++i) x[i] += a[i];
    feed_forward(shape, layer, x, n);
}

void Share::join(const Layer& layer, const std::vector<float>& own, std::size_t n, float* a) const {
    const std::size_t D = plan_.shape.width, all = plan_.shape.heads * plan_.shape.head_dim, width = own.size() / n;
    if (width == all) {
        multiply(own.data(), n, layer.w_o.data(), all, D, D, a);
    } else if (plan_.join == Join::sum) {
        const std::size_t first = part_.first_head * plan_.shape.group() * plan_.shape.head_dim;
        multiply(own.data(), n, layer.w_o.data() + first * D, width, D, D, a);
        MPI_Allreduce(MPI_IN_PLACE, a, count(n * D), MPI_FLOAT, MPI_SUM, group_.comm);
    } else {
        const auto ranks = static_cast<std::size_t>(group_.size);
        std::vector<float> parts(n * all), whole(n * all);
        MPI_Allgather(own.data(), count(own.size()), MPI_FLOAT, parts.data(), count(own.size()), MPI_FLOAT,
                      group_.comm);
        for (std::size_t r = 0; r < ranks; ++r) {
            for (std::size_t t = 0; t < n; ++t)
                std::copy_n(parts.data() + (r * n + t) * width, width, whole.data() + t * all + r * width);
        }
        multiply(whole.data(), n, layer.w_o.data(), all, D, D, a);
    }
}

}  // namespace mpi
