/// How the ranks of a group share a decoder, and what they say to one another. With one rank nothing is said.
///
///   Split::layers   a pipeline: rank r has the caches of its layers; X of a step goes from rank to rank
///   Split::heads    tensor parallel: rank r has its kv heads' part of every cache; X is whole on every rank, and what
///                   attention gives is joined after each layer
///
///   Join::gather    every rank gets all heads' output, and multiplies it with the whole W_o: the bits of one process
///   Join::sum       every rank multiplies with its rows of W_o, and the products are added up: fewer multiplications,
///                   and sums in another order
#pragma once

#include <mpi.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>
#include <xquant/xquant.hpp>

#include "model.hpp"

namespace mpi {

enum class Split { layers, heads };
enum class Join { gather, sum };

/// A group of processes; MPI_COMM_SELF for one alone.
struct Group {
    MPI_Comm comm = MPI_COMM_SELF;
    int rank = 0, size = 1;

    explicit Group(MPI_Comm of);
};

/// What rank `rank` of `size` has. Throws std::runtime_error where a rank would have nothing, or kv heads do not
/// divide.
Part part_of(const Shape& shape, Split split, int rank, int size);

struct Plan {
    Shape shape;
    std::string scheme;
    Split split = Split::layers;
    Join join = Join::gather;
    std::size_t budget = 0;  // of this rank's cache, in bytes; 0: none
};

/// One rank's share of a decoder, its cache among it.
class Share {
public:
    Share(const Plan& plan, const Group& group);

    /// A step of n tokens on all ranks, or on none: where one rank's cache refuses it (xquant::budget_error), all of
    /// them let it go, and nothing has changed anywhere. x [n, D] is read on rank 0, and on all ranks where heads are
    /// split; returns the hidden states [n, D] there. Nothing where it was refused; refusal() says why.
    std::vector<float> step(const std::vector<float>& x, std::size_t n);

    const std::string& refusal() const { return refusal_; }
    const Part& part() const { return part_; }
    std::size_t tokens() const { return cache_->size(sequence_); }
    xquant::Bytes bytes() const { return cache_->bytes(); }

private:
    using Cache = xquant::Cache<>;

    /// Whether all ranks say yes.
    bool all(bool yes) const;
    void layer(Cache::Step& step, std::size_t index, float* x, std::size_t n);
    /// own [n, Dh * own heads] -> a [n, D], W_o applied
    void join(const Layer& layer, const std::vector<float>& own, std::size_t n, float* a) const;

    Plan plan_;
    Group group_;
    Part part_;
    std::vector<Layer> layers_;
    std::unique_ptr<Cache> cache_;
    xquant::Sequence sequence_;
    std::string refusal_;
};

}  // namespace mpi
